"""Strace's view of random call sequences, the program's own, and the program's under the interceptor.

Each example is a few threads and processes that make random calls. It is carried out three
times, each in a tree of files of its own, which are alike:

- under strace, which says what the kernel answered: the program has to say the same;
- under the interceptor;
- under nothing, with the paths of the calls that a rule is about replaced as the rule says. The program
  under the interceptor has to see just this, in every thread, in every field.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import re
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from pytest_k3s_sandbox.lab.programs import Recipe, compiled
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.toolchain import Toolchain, ensure_system_packages
from pytest_k3s_sandbox.toolchain.packages import TRACERS
from support.differential_tools import (
    CALLS,
    EMPTY_PATH,
    OPENS,
    SPOOFED,
    Call,
    Places,
    Program,
    Seen,
    Worker,
    parse_strace,
    sequences,
    with_prologue,
)
from support.installed import installed
from support.interceptor_tools import MODULE, f_type
from support.outside import outside

pytestmark = pytest.mark.k3s_requires("ptrace")

RULES = """
[[statfs]]
original = {magic}
replacement = {spoofed}
under = "{tree}/spoofed"

[[redirect]]
path = "{tree}/file"
target = "{tree}/targets/file"
calls = ["open", "stat", "access", "readlink"]

[[redirect]]
path = "{tree}/gone"
target = "{tree}/targets/gone"

[[redirect]]
prefix = "{tree}/tree"
target = "{tree}/targets/tree"
calls = ["open", "stat"]

[[mask]]
under = "{tree}/masked"
"""

FILES = {
    "file": "source", "dir/x": "x", "tree/a": "source a", "tree/sub/c": "source c",
    "tree/only-source": "only", "treetop": "beside", "spoofed/inner/x": "spoofed", "masked/m": "masked",
    "targets/file": "the target", "targets/tree/a": "target a, longer", "targets/tree/sub/c": "target c",
    "targets/tree/extra": "extra",
}  # fmt: skip
LINKS = {
    "link": "file",
    "dirlink": "dir",
    "dangling": "nowhere",
    "tree/link": "a",
    "targets/tree/link": "extra",
}


def plant(tree: Path) -> None:
    """Write the files of one tree."""
    for name, text in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    for name, target in LINKS.items():
        (tree / name).symlink_to(target)
    (tree / "work").mkdir()


THERE = {"{W}/" + name for name in (*FILES, *LINKS)} | {
    "{W}/" + str(parent) for name in FILES for parent in Path(name).parents if str(parent) != "."
}


def by_rules(call: Call, places: Places) -> Call:
    """Return the call as the rules above make it: documentation, not implementation."""
    path = places.absolute(call)
    group = CALLS[call.name][2]
    target = None
    if path == "{W}/file" and group in {"open", "stat", "access", "readlink"}:
        target = "{W}/targets/file"
    elif path is not None and (path + "/").startswith("{W}/tree/") and group in {"open", "stat"}:
        target = path.replace("{W}/tree", "{W}/targets/tree")
    if target not in THERE:
        return call
    # Only a folder has a name that ends so.
    slash = "/" if (call.path or "").endswith(("/", "/.", "/..")) else ""
    return replace(call, path=target + slash, where="n", folder="cwd", resolve=0)


class Scene:
    """The three programs, and where they work.

    Args:
        start: Starts a program, given the argv before differential.c and its tree.
        base: The folder of the trees as the programs see it.
        outside: The same folder as the tests see it.
        magic: ``f_type`` of the file system of ``base``.

    Attributes:
        native: Whether it is on the machine itself.
    """

    def __init__(
        self, start: Callable[[list[str], Path], Program], base: Path, outside: Path, magic: int
    ) -> None:
        """Plant the trees and start the programs."""
        self.native = base == outside
        self._numbers = itertools.count()
        self._logs = outside / "strace"
        self._logs.mkdir()
        for name in "soe":
            plant(outside / name)
        (outside / "rules.toml").write_text(RULES.format(magic=magic, spoofed=SPOOFED, tree=base / "o"))
        traced = ",".join(CALLS)
        strace = ["strace", "-ff", "-q", "-xx", "-X", "raw", "-s", "9999", "-v", "-e", f"trace={traced}"]
        strace += ["-e", "signal=none", "-o", str(base / "strace/log")]
        ours = [sys.executable, "-m", MODULE, "--rules", str(base / "rules.toml"), "--"]
        self.under_strace = start(strace, base / "s")
        self.under_ours = start(ours, base / "o")
        self.expected = start([], base / "e")

    def close(self) -> None:
        """End the programs."""
        codes = [program.close() for program in (self.under_strace, self.under_ours, self.expected)]
        assert codes == [0, 0, 0]

    def compare(self, drawn: Sequence[Worker]) -> None:
        """Carry out an example, and compare."""
        workers = with_prologue(drawn, next(self._numbers))
        self._compare_with_strace(workers)
        self._compare_with_rules(workers)

    def _compare_with_strace(self, workers: Sequence[Worker]) -> None:
        answers = self.under_strace.run(workers)
        assert len(answers) == len(workers)
        for worker, (tid, seen) in zip(workers, answers, strict=True):
            log = self._logs / f"log.{tid}"
            lines = parse_strace(log.read_text())
            # The main thread's process ends after its calls; what it did before them is not traced.
            assert [line.name for line in lines] == [call.name for call in worker.calls]
            for call, line, mine in zip(worker.calls, lines, seen, strict=True):
                assert (line.result, line.errno) == (mine.result, errno.errorcode.get(mine.errno, "")), (
                    call,
                    line,
                )
                if call.path and call.where in "nxe" and len(call.path) < 4000:
                    assert call.path.replace("{W}", str(self.under_strace.tree)).encode() in line.strings
                if mine.result == 0 and call.name in {"statfs", "fstatfs"}:
                    assert _number(line.text, "f_type") == int.from_bytes(mine.data[:8], "little")
                if mine.result == 0 and CALLS[call.name][2] == "stat":
                    key = "stx_mode" if call.name == "statx" else "st_mode"
                    assert _number(line.text, key) == _mode_and_size(call, mine)[0]
            log.unlink()

    def _compare_with_rules(self, workers: Sequence[Worker]) -> None:
        ours = self.under_ours.run(workers)
        # A worker's own calls decide where it is, so that its calls are rewritten one after the other.
        wanted = self.expected.run(
            [self._rewritten(worker, seen) for worker, (_, seen) in zip(workers, ours, strict=True)]
        )
        for worker, (_, got), (_, expected) in zip(workers, ours, wanted, strict=True):
            places = Places()
            for number, (call, mine, theirs) in enumerate(zip(worker.calls, got, expected, strict=True)):
                made = by_rules(call, places)
                path = places.slots.get(call.slot) if call.name == "fstatfs" else places.absolute(call)
                under = path is not None and (path + "/").startswith("{W}/spoofed/")
                magic = SPOOFED if under and "statfs" in call.name else None
                assert normal(call, mine) == normal(call, theirs, magic), (number, call, made)
                places.note(made, mine)

    @staticmethod
    def _rewritten(worker: Worker, seen: Sequence[Seen]) -> Worker:
        places = Places()
        made = []
        for call, mine in zip(worker.calls, seen, strict=True):
            made.append(by_rules(call, places))
            places.note(made[-1], mine)
        return replace(worker, calls=tuple(made))


def _number(text: str, key: str) -> int:
    found = re.search(rf"\b{key}=(0x[0-9a-f]+|0[0-7]*|\d+)", text)
    assert found is not None, text
    digits = found[1]
    return int(digits, 16) if digits.startswith("0x") else int(digits, 8 if digits.startswith("0") else 10)


def _mode_and_size(call: Call, seen: Seen) -> tuple[int, int]:
    """Return st_mode and st_size: struct stat of asm/stat.h, struct statx of linux/stat.h."""
    if call.name == "statx":
        return struct.unpack_from("<H", seen.data, 28)[0], struct.unpack_from("<Q", seen.data, 40)[0]
    return struct.unpack_from("<I", seen.data, 24)[0], struct.unpack_from("<q", seen.data, 48)[0]


def normal(call: Call, seen: Seen, magic: int | None = None) -> object:
    """Return what has to be the same in two trees; ``magic`` is what a rule makes of f_type."""
    if seen.result < 0:
        return errno.errorcode[seen.errno]
    if call.name in OPENS or call.name in {"dup", "getpgid"}:
        return "a descriptor or number"
    if "statfs" in call.name:
        words = list(struct.unpack_from("<15Q", seen.data))
        # f_bfree, f_bavail and f_ffree are as the machine's other programs make them: statfs(2).
        return [magic or words[0], words[1], words[2], *words[7:11]]
    if CALLS[call.name][2] == "stat":
        mode, size = _mode_and_size(call, seen)
        return mode, None if mode & 0o170000 == 0o040000 else size
    return seen.result, seen.data


def driver() -> Path:
    """Return differential.c, compiled."""
    source = Path(__file__).with_name("differential.c")
    return compiled("differential", Recipe(source, ("-static", "-pthread")), Toolchain())


@pytest.fixture(scope="module", params=["host", "gvisor"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The three programs on the machine itself, or in gVisor."""
    ensure_system_packages([package for package in TRACERS if package.name == "strace"])
    program = driver()
    if request.param == "host":
        base = tmp_path_factory.mktemp("differential")
        start = functools.partial(_start, str(program), lambda argv: argv)
        yield from _served(Scene(start, base, base, f_type(str(base))))
        return
    if os.geteuid() != 0:
        pytest.skip("sandboxes need root")
    with GvisorSandbox(installed("runsc").path, programs=[program]) as sandbox:
        base = Path(f"{STATE_DIR}/differential")
        seen = outside(sandbox, str(base))
        seen.mkdir()
        start = functools.partial(_start, f"{BIN_DIR}/{program.name}", sandbox.shell_argv)
        yield from _served(Scene(start, base, seen, sandbox.statfs_magic(STATE_DIR)))


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Replace the check after each test: these programs end with the module, which checks it itself."""


def _start(program: str, wrap: Callable[[list[str]], list[str]], argv: list[str], tree: Path) -> Program:
    return Program(wrap([*argv, program]), tree)


def _served(scene: Scene) -> Iterator[Scene]:
    yield scene
    scene.close()


def compare_many(scene: Scene, examples: int) -> None:
    """Compare random examples; without shrinking across programs that remember nothing."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(sequences())
    def every(workers: list[Worker]) -> None:
        scene.compare(workers)

    every()


def test_a_sequence_that_was_chosen(scene: Scene) -> None:
    """What random examples may leave out, and that the comparison itself notices what rules do."""
    calls = [
        Call("statfs", "{W}/spoofed/inner/x"),
        Call("open", "{W}/spoofed/inner/x"),
        Call("fstatfs"),
        Call("open", "{W}/file"),
        Call("read"),
        Call("stat", "{W}/tree/sub/c", where="x"),
        EMPTY_PATH,
    ]
    workers = [Worker("m", tuple(calls)), Worker("t", tuple(calls)), Worker("f", tuple(calls))]
    scene.compare(workers)
    plain = scene.under_strace.run(with_prologue(workers, 10**6))
    for _, seen in scene.under_ours.run(with_prologue(workers, 10**6 + 1)):
        made = seen[5:]
        assert int.from_bytes(made[0].data[:8], "little") == SPOOFED
        assert int.from_bytes(made[2].data[:8], "little") == SPOOFED
        assert made[4].data == b"the target"
    assert all(seen[5 + 4].data == b"source" for _, seen in plain)


@pytest.mark.parametrize("path", ["file/", "file/.", "tree/a/", "tree/sub/", "tree/sub/../a/.", "tree/."])
def test_only_a_folder_has_a_name_with_a_slash_at_its_end(scene: Scene, path: str) -> None:
    for name in ("access", "open", "stat", "lstat", "readlink"):
        scene.compare([Worker("m", (Call(name, f"{{W}}/{path}"),))])


@pytest.mark.timeout(300)
def test_random_sequences(scene: Scene) -> None:
    compare_many(scene, 120 if scene.native else 40)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_many_random_sequences(scene: Scene) -> None:
    compare_many(scene, 5000 if scene.native else 1000)
