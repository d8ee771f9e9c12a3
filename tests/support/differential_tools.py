"""Random sequences of system calls: how they are made, carried out, and seen by strace and by the program."""

from __future__ import annotations

import posixpath
import re
import selectors
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from hypothesis import strategies as st

AT_FDCWD = -100
SPOOFED = 0x1CE
ANSWER_SECONDS = 30

# Numbers and arguments: arch/x86/entry/syscalls/syscall_64.tbl, and each call's man page. D is a folder's
# descriptor, P a path, F flags of open, S a descriptor; other words are as differential.c reads them.
CALLS: Mapping[str, tuple[int, str, str]] = {
    "open": (2, "P F i:0x1a4", "open"),
    "openat": (257, "D P F i:0x1a4", "open"),
    "openat2": (437, "D P H i:24", "open"),
    "creat": (85, "P i:0x1a4", "open"),
    "stat": (4, "P b:144", "stat"),
    "lstat": (6, "P b:144", "stat"),
    "newfstatat": (262, "D P b:144 A", "stat"),
    "statx": (332, "D P A i:0x7ff b:256", "stat"),
    "access": (21, "P i:4", "access"),
    "faccessat": (269, "D P i:4", "access"),
    "faccessat2": (439, "D P i:4 A", "access"),
    "readlink": (89, "P b:0 i:64", "readlink"),
    "readlinkat": (267, "D P b:0 i:64", "readlink"),
    "statfs": (137, "P b:120", ""),
    "fstatfs": (138, "S b:120", ""),
    "mkdir": (83, "P i:0x1ed", "change"),
    "mkdirat": (258, "D P i:0x1ed", "change"),
    "rmdir": (84, "P", "change"),
    "unlink": (87, "P", "change"),
    "unlinkat": (263, "D P i:0", "change"),
    "symlink": (88, "i:0 P", ""),
    "chdir": (80, "P", ""),
    "fchdir": (81, "S", ""),
    "read": (0, "S b:0 i:64", ""),
    "dup": (32, "S", ""),
    "close": (3, "S", ""),
    "tgkill": (234, "g t i:10", ""),
    "getpgid": (121, "i:0", ""),
}
OPENS = ("open", "openat", "openat2", "creat")
SLOTS = {"root": 0, "tree": 1, "file": 2, "new": 3}
"""The descriptors that a worker has: of three files that are there, and of its latest open."""

O_DIRECTORY, O_NOFOLLOW, O_PATH, O_CREAT = 0o200000, 0o400000, 0o10000000, 0o100
OPEN_FLAGS = (0, 1, 2, O_DIRECTORY, O_NOFOLLOW, O_PATH, O_PATH | O_NOFOLLOW, 0o4000)
NOFOLLOW, EMPTY = 0x100, 0x1000
RESOLVE = (0, 0x04, 0x08)  # RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH: linux/openat2.h


@dataclass(frozen=True)
class Call:
    """One call of a sequence.

    Attributes:
        name: A key of ``CALLS``.
        path: The path, with ``{W}`` for the example's tree; None: the call has none.
        where: Where it lies in memory, as in differential.c; ``0`` and ``1`` for addresses of nothing.
        folder: The folder that a relative path starts at: a key of ``SLOTS``, ``cwd`` or ``bad``.
        flags: Of open, or AT_ flags.
        resolve: Of openat2.
        slot: The descriptor for calls on descriptors.
    """

    name: str
    path: str | None = None
    where: str = "n"
    folder: str = "cwd"
    flags: int = 0
    resolve: int = 0
    slot: str = "new"

    @property
    def changes(self) -> bool:
        """Whether it may make or remove a file."""
        kind = CALLS[self.name][2]
        creates = kind == "open" and bool(self.flags & O_CREAT)
        return kind == "change" or self.name in {"creat", "symlink"} or creates

    def line(self, tree: Path) -> str:
        """Return the words that differential.c reads."""
        number, words, _ = CALLS[self.name]
        path = (self.path or "").replace("{W}", str(tree)).encode()
        known = {
            "D": {"cwd": f"i:{AT_FDCWD}", "bad": "i:777"}.get(self.folder) or f"s:{SLOTS.get(self.folder)}",
            "P": {"0": "i:0", "1": "i:16"}.get(self.where) or f"p:{self.where}:{path.hex()}",
            "F": f"i:{self.flags}",
            "A": f"i:{self.flags}",
            "H": f"h:{self.flags},{0o644 if self.flags & O_CREAT else 0},{self.resolve}",
            "S": f"s:{SLOTS.get(self.slot)}",
        }
        parts = [known.get(word, word) for word in words.split()]
        if self.name == "symlink":
            parts[0] = f"p:e:{b'n0'.hex()}"
        return " ".join([str(number), *parts, *([f">{SLOTS[self.slot]}"] if self.name in OPENS else [])])


@dataclass(frozen=True)
class Seen:
    """What a call gave.

    Attributes:
        result: Its return value; -1 for an error.
        errno: The error's number, or 0.
        data: What it wrote to the program's memory.
    """

    result: int
    errno: int
    data: bytes


@dataclass(frozen=True)
class Worker:
    """A thread or process of an example.

    Attributes:
        kind: ``m`` for the first one, ``t`` for a thread, ``f`` for a process.
        calls: What it does.
    """

    kind: str
    calls: tuple[Call, ...]


# Below {W}: what rules are about, in many spellings, and what they are not about.
RULED = (
    "file", "./file", "dir/../file", "/file", "tree", "tree/", "tree/a", "tree/./a", "tree//sub/c",
    "tree/sub/../a", "tree/extra", "tree/link", "spoofed", "spoofed/inner/x", "spoofed/./inner", "masked/m",
    "file/", "file/.", "tree/.", "tree/a/", "tree/sub/", "tree/sub/..",
)  # fmt: skip
OTHERS = (
    "gone", "missing", "link", "dir", "dir/x", "dirlink/x", "dangling", "tree/only-source", "tree/nothing",
    "treetop", "targets/file", "a" * 300, "dir/" + "./" * 1000 + "x", "./" * 3000,
)  # fmt: skip
OPENED = {"root": "{W}", "tree": "{W}/tree", "file": "{W}/file"}
OWN = ("n0", "n1", "d0", "d0/n0", "l0", "./n0", "d0/../n1", "")
EMPTY_PATH = Call("newfstatat", "", flags=EMPTY)


def _paths() -> st.SearchStrategy[tuple[str, str]]:
    """Return folders and paths that go with them."""
    ruled = st.sampled_from(RULED)
    return st.one_of(
        ruled.map(lambda p: ("cwd", "{W}/" + p)),
        ruled.map(lambda p: ("cwd", "../../" + p.lstrip("/"))),
        ruled.map(lambda p: ("root", p.lstrip("/"))),
        st.sampled_from(OTHERS).map(lambda p: ("cwd", "{W}/" + p)),
        st.sampled_from(("a", "sub/c", "extra", "only-source", "../file")).map(lambda p: ("tree", p)),
        st.tuples(st.sampled_from(("bad", "file")), st.sampled_from(("n0", "{W}/tree/a"))),
        st.sampled_from(OWN).map(lambda p: ("cwd", p)),
    )


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """Draw one call; what changes something does so in the worker's own folder."""
    name = draw(st.sampled_from(sorted(CALLS)))
    slot = draw(st.sampled_from(sorted(SLOTS)))
    where = draw(st.sampled_from("nnnnnnnnxxxxeeeu01"))
    kind = CALLS[name][2]
    if kind == "change" or name in {"creat", "symlink"}:
        own = draw(st.sampled_from([p for p in OWN if p]))
        return Call(name, own, where, slot="new")
    if name == "chdir":
        return Call(name, draw(st.sampled_from(("{W}", "{W}/tree", "{W}/dir", "{W}/missing", "d0"))), "n")
    if "P" not in CALLS[name][1]:
        return Call(name, slot="new" if name in {"close", "dup"} else slot)
    folder, path = draw(_paths())
    if "D" not in CALLS[name][1]:
        folder, path = "cwd", path if folder == "cwd" else "{W}/" + path.replace("{W}/", "")
    if kind == "open":
        flags = draw(st.sampled_from(OPEN_FLAGS))
        if path in OWN[:5] and folder == "cwd" and draw(st.booleans()):
            flags = O_CREAT | 2
        resolve = draw(st.sampled_from(RESOLVE)) if name == "openat2" else 0
        return Call(name, path, where, folder, flags, resolve)
    flags = draw(st.sampled_from((0, NOFOLLOW))) if "A" in CALLS[name][1].split() else 0
    return Call(name, path, where, folder, flags)


def sequences() -> st.SearchStrategy[list[Worker]]:
    """Return the examples: a main thread and up to three others."""
    body = st.lists(calls(), min_size=1, max_size=12).map(tuple)
    others = st.lists(st.tuples(st.sampled_from("tf"), body), max_size=3)
    return st.tuples(body, others).map(
        lambda drawn: [Worker("m", drawn[0]), *(Worker(kind, made) for kind, made in drawn[1])]
    )


def with_prologue(workers: Sequence[Worker], number: int) -> list[Worker]:
    """Give each worker a folder of its own, which is its working directory, and its descriptors."""
    made = []
    for index, worker in enumerate(workers):
        own = f"{{W}}/work/{number}-{index}"
        opens = (Call("openat", path, slot=name) for name, path in OPENED.items())
        begin = (Call("mkdir", own), Call("chdir", own), *opens)
        made.append(replace(worker, calls=(*begin, *_kept_apart(worker.calls, own))))
    return made


def _kept_apart(given: Sequence[Call], own: str) -> Iterator[Call]:
    """Let calls that change something do so in the worker's own folder, where no other is."""
    away = False
    for call in given:
        away = away or call.name == "fchdir" or (call.name == "chdir" and call.path != "d0")
        yield replace(call, path=f"{own}/{call.path}") if away and call.changes else call


class Places:
    """Where a worker is and what its descriptors are of: a model of its own, kept from what calls gave."""

    def __init__(self) -> None:
        """Be nowhere yet."""
        self.cwd = "/"
        self.slots: dict[str, str | None] = {}

    def absolute(self, call: Call) -> str | None:
        """Return the path of a call as absolute text, dots resolved; None where there is none to be read."""
        if not call.path or call.where in "u01":
            return None
        base: str | None = self.cwd if call.folder == "cwd" else self.slots.get(call.folder)
        path = call.path
        if not path.startswith(("/", "{W}")):
            if base is None:
                return None
            path = f"{base}/{path}"
        root, _, rest = path.partition("{W}")
        clean = posixpath.normpath(f"/W/{rest}" if not root else path).replace("//", "/")
        return "{W}" + clean[2:] if clean == "/W" or clean.startswith("/W/") else clean

    def note(self, call: Call, seen: Seen) -> None:
        """Follow a call that was made."""
        if call.name in OPENS:
            self.slots[call.slot] = self.absolute(call) if seen.result >= 0 else None
        elif call.name == "chdir" and seen.result == 0:
            self.cwd = self.absolute(call) or "/"
        elif call.name == "fchdir" and seen.result == 0:
            self.cwd = self.slots.get(call.slot) or "/"
        elif call.name == "close" and seen.result == 0:
            self.slots[call.slot] = None


class Program:
    """differential.c, running; carries out one example after another.

    Args:
        argv: Its command line, with the tracer in front of it.
        tree: The files that its examples work on, as it sees them.
    """

    def __init__(self, argv: Sequence[str], tree: Path) -> None:
        """Start it, and wait until it answers."""
        self.tree = tree
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.run([Worker("m", ())])

    def run(self, workers: Sequence[Worker]) -> list[tuple[int, list[Seen]]]:
        """Return the thread id of each worker, and what its calls gave."""
        lines = []
        for worker in workers:
            lines += [f"worker {worker.kind}", *(call.line(self.tree) for call in worker.calls)]
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write("\n".join([*lines, "go\n"]))
        stdin.flush()
        answers: list[tuple[int, list[Seen]]] = []
        for line in _until_end(stdout):
            if line.startswith("worker "):
                answers.append((int(line.split()[1]), []))
            else:
                result, errno, data = line.split()
                answers[-1][1].append(Seen(int(result), int(errno), bytes.fromhex(data.rstrip("."))))
        return answers

    def close(self) -> int:
        """End it; return its exit code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            code = self._process.wait(timeout=ANSWER_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
        return code


def _until_end(stdout: IO[str]) -> Iterator[str]:
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        assert selector.select(ANSWER_SECONDS), "the program hangs"
    for line in stdout:
        if line.startswith("end"):
            assert line == "end 0\n", f"the example's process ended with wait status {line.split()[1]}"
            return
        yield line
    raise AssertionError("the program has ended")


@dataclass
class StraceCall:
    """A call as strace saw it.

    Attributes:
        name: The call.
        result: What it returned; -1 for an error.
        errno: The error's name, or an empty text.
        text: The arguments as strace printed them.
        strings: The byte strings among them.
    """

    name: str
    result: int
    errno: str
    text: str
    strings: list[bytes] = field(default_factory=list)


_STRACE = re.compile(
    r"(?P<name>\w+)\((?P<text>.*)\)\s+= (?P<result>-?\d+|0x[0-9a-f]+)(?: (?P<errno>E\w+))?.*"
)
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def parse_strace(text: str) -> list[StraceCall]:
    """Return the calls in the log of one thread, of ``strace -ff -xx -X raw``.

    Raises:
        ValueError: A line is not understood.
    """
    found = []
    for line in text.splitlines():
        if line.startswith(("+++", "---")):
            continue
        match = _STRACE.fullmatch(line)
        if match is None:
            raise ValueError(f"not a call: {line!r}")
        strings = [bytes.fromhex(s.replace("\\x", "")) for s in _STRING.findall(match["text"])]
        found.append(
            StraceCall(match["name"], int(match["result"], 0), match["errno"] or "", match["text"], strings)
        )
    return found
