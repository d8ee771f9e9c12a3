"""Two trees that have to be alike: the kernel's own cgroup v1, and ours, bare or through FUSE.

The kernel's hierarchies are used only below a group of our own, which goes in the end. A hierarchy
that is not mounted is mounted in a mount namespace of ours, and dissolved again.
"""

# ruff: noqa: D102, D107  # three classes have the same methods, and each is the system call of its name

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import pytest

from pytest_k3s_sandbox.layers.cgroupfs.mounts import mounted
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree
from pytest_k3s_sandbox.layers.cgroupfs.values import fail

TOP = f"k3s-sandbox-test-{os.getpid()}"
"""The group that everything happens in."""


DIFFERENCES = {
    "memory.shown_ram_in_bytes": "not of Linux: the kernel of one cloud has it",
    "blkio.throttle.io_": "the kernel lists disks that a group used; what a group does on one is not known",
    "net_prio.prioidx": "numbers of groups, which the kernel uses again some time after they are removed",
}
"""Files, by the beginning of their names, that are not compared, and why."""

USAGE = (
    "cpu.stat",
    "cpu.stat.local",
    "usage_in_bytes",
    "max_usage_in_bytes",
    "memory.stat",
    "memory.numa_stat",
)
"""Files, by the end of their names, whose numbers never are equal: their form is compared. And cpuacct's."""

_TRIES = 20

LISTS = ("cgroup.procs", "tasks")
"""In the root group processes come and go; in the others these are equal."""


class Side(Protocol):
    """One of the trees, by paths relative to our own group in one hierarchy."""

    def mkdir(self, path: str) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def read(self, path: str) -> str: ...
    def write(self, path: str, text: str) -> None: ...
    def modes(self, path: str) -> dict[str, int]: ...
    def groups(self, path: str) -> list[str]: ...
    def clear(self, path: str = "") -> None: ...


class Folder:
    """A tree that is mounted somewhere.

    Args:
        base: Our own group in it.
        ours: The processes that may be moved; whatever text could mean another one is not written.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.ours: set[int] = set()

    def mkdir(self, path: str) -> None:
        (self.base / path).mkdir()

    def rmdir(self, path: str) -> None:
        (self.base / path).rmdir()

    def rename(self, old: str, new: str) -> None:
        (self.base / old).rename(self.base / new)

    def read(self, path: str) -> str:
        return (self.base / path).read_text()

    def write(self, path: str, text: str) -> None:
        if path.rpartition("/")[2] in {"tasks", "cgroup.procs"}:
            assert not _meant(text) - self.ours, f"{text!r} could move a process that is not ours"
        fd = os.open(self.base / path, os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def modes(self, path: str) -> dict[str, int]:
        entries = os.scandir(self.base / path)
        return {e.name: e.stat().st_mode & 0o7777 for e in entries if not e.is_dir()}

    def groups(self, path: str) -> list[str]:
        return sorted(e.name for e in os.scandir(self.base / path) if e.is_dir())

    def part(self, name: str) -> Folder:
        """Return one group of it as a tree of its own."""
        side = Folder(self.base / name)
        side.ours = self.ours
        return side

    def clear(self, path: str = "") -> None:
        """Remove a group and all below, also while processes that were killed leave it."""
        with suppress(FileNotFoundError):
            for name in self.groups(path):
                self.clear(f"{path}/{name}".lstrip("/"))
            wait_until(lambda: outcome(lambda: self.rmdir(path)) != errno.EBUSY)


def _meant(text: str) -> set[int]:
    """Return every thread of this machine that a text could mean, however it is parsed."""
    found: set[int] = set()
    for word in re.findall("0[xX][0-9a-fA-F]+|[0-9a-fA-F]+", text):
        plain = word.isdecimal() and not word.startswith("0")
        for base in (10,) if plain else (8, 10, 16):
            with suppress(ValueError):
                found.add(int(word, base))
    # 0 is whoever writes; no other number of no thread moves anything.
    return {tid for tid in found if tid == 0 or Path(f"/proc/{tid}").exists()}


class Model:
    """Our tree without any filesystem."""

    def __init__(self, tree: Tree, controller: str, base: str = TOP) -> None:
        self.tree = tree
        self._base = f"/{controller}/{base}".rstrip("/")

    def mkdir(self, path: str) -> None:
        self.tree.mkdir(self._path(path))

    def rmdir(self, path: str) -> None:
        self.tree.rmdir(self._path(path))

    def rename(self, old: str, new: str) -> None:
        entry = self.tree.find(self._path(old))
        above, _, name = self._path(new).rpartition("/")
        parent = self.tree.find(above).group
        assert entry.group is not None
        assert parent is not None
        # What is a directory and what is not, the system call finds out before any filesystem is asked.
        if entry.file is not None:
            fail(errno.EISDIR if name in parent.children else errno.ENOTDIR)
        if parent.file(name) is not None:
            fail(errno.ENOTDIR)
        entry.group.hierarchy.rename(entry.group, parent, name)

    def read(self, path: str) -> str:
        entry = self.tree.find(self._path(path))
        assert entry.group is not None
        return entry.group.read(entry.name)

    def write(self, path: str, text: str) -> None:
        entry = self.tree.find(self._path(path))
        assert entry.group is not None
        if entry.file is None:
            fail(errno.EISDIR)
        entry.group.write(entry.name, text.encode(), writer=os.getpid())

    def modes(self, path: str) -> dict[str, int]:
        group = self.tree.find(self._path(path)).group
        assert group is not None
        return {name: file.mode for name in group.files() if (file := group.file(name)) is not None}

    def groups(self, path: str) -> list[str]:
        group = self.tree.find(self._path(path)).group
        assert group is not None
        return sorted(group.children)

    def clear(self, path: str = "") -> None:
        """Remove a group and all below."""
        with suppress(FileNotFoundError):
            for name in self.groups(path):
                self.clear(f"{path}/{name}".lstrip("/"))
            wait_until(lambda: outcome(lambda: self.rmdir(path)) != errno.EBUSY)

    def _path(self, path: str) -> str:
        return f"{self._base}/{path}".rstrip("/")


def outcome(action: Callable[[], object]) -> int:
    """Return the errno of what is done, 0 for none."""
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return 0


def wait_until(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def form(text: str) -> list[str]:
    """Parse a content: each different line, numbers as N, and columns of numbers as one."""
    lines = re.sub(r"(?<![\w.])-?[0-9]+\b", "N", text).split("\n")
    return list(dict.fromkeys(re.sub(r"(?:N ){2,}", "N ", line) for line in lines))


def furnish(side: Side, controller: str) -> None:
    """Give a group what it needs to have processes."""
    if controller == "cpuset":
        side.write("cpuset.cpus", "0-1")
        side.write("cpuset.mems", "0")


def compared(name: str) -> bool:
    return not name.startswith(tuple(DIFFERENCES))


def contents(side: Side, path: str = "", *, root: bool = False) -> dict[str, object]:
    """Return what every file says, or why not; forms instead of numbers that never are the same."""
    found: dict[str, object] = {}
    for name in filter(compared, side.modes(path)):
        place = f"{path}/{name}".lstrip("/")
        try:
            text = side.read(place)
        except OSError as error:
            found[place] = error.errno
            continue
        moving = name.endswith(USAGE) or name.startswith("cpuacct.") or (root and name in LISTS)
        found[place] = form(text) if moving else text
    for group in [] if root else side.groups(path):
        found.update(contents(side, f"{path}/{group}".lstrip("/")))
    return found


def both(kernel: Side, ours: Side, *, root: bool = False) -> tuple[dict[str, object], dict[str, object]]:
    """Return what both sides say, of the same moment: again while they differ and the kernel's own changes.

    ``net_prio.ifpriomap`` lists the machine's interfaces, whatever network namespace reads it, and other
    sandboxes make and remove some meanwhile. A difference that is ours is there each time.
    """
    for _ in range(_TRIES):
        theirs, own = contents(kernel, root=root), contents(ours, root=root)
        if own == theirs or contents(kernel, root=root) == theirs:
            return theirs, own
    pytest.fail(f"the kernel's files never stay the same, at last {theirs}")


def kernel_mount(controller: str) -> Path | None:
    """Return where the kernel's hierarchy of exactly these controllers is mounted as a whole."""
    wanted = {"systemd": {"name=systemd"}}.get(controller, set(controller.split(",")))
    for mount in mounted():
        named = set(mount.options) - {"rw", "ro", "xattr", "clone_children", "noprefix"}
        if mount.kind == "cgroup" and mount.root == "/" and named == wanted:
            return Path(mount.target)
    return None


def _lines() -> list[str]:
    return [line.split(":")[1] for line in Path("/proc/self/cgroup").read_text().splitlines()]


def _alone(controller: str) -> bool:
    """Tell whether a controller has no group but the root any more; removed ones linger."""
    lines = (line.split() for line in Path("/proc/cgroups").read_text().splitlines())
    return all(line[2] == "1" for line in lines if line[0] in controller.split(","))


@contextmanager
def _borrowed(controller: str, folder: Path) -> Iterator[Path]:
    """Mount a hierarchy that does not exist yet, where only we see it; it exists no more afterwards."""
    folder.mkdir()
    hold = "mount -t cgroup -o $0 none $1 && echo mounted && exec cat"
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", hold, controller, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        if holder.stdout.readline() != "mounted\n":
            pytest.skip(f"not applicable: this machine's kernel mounts no cgroup v1 with {controller}")
        try:
            yield Path(f"/proc/{holder.pid}/root{folder}")
        finally:
            with suppress(AssertionError):
                wait_until(lambda: _alone(controller), 3)
            holder.communicate("")
    # A group that was just removed keeps its hierarchy for a moment: then only a later unmount ends it.
    again = ["unshare", "--mount", "--propagation=private", "mount", "-t", "cgroup", "-o", controller, "none"]
    for _ in range(5):
        end = time.monotonic() + 2
        while controller in _lines() and time.monotonic() < end:
            time.sleep(0.02)
        if controller not in _lines():
            return
        subprocess.run([*again, str(folder)], check=False, capture_output=True)
    pytest.fail(f"the hierarchy of {controller} stays on this machine")


@contextmanager
def kernel_side(controller: str, scratch: Path) -> Iterator[Folder]:
    """Give our own group in the kernel's hierarchy; skip the test where the kernel has none."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make cgroups")
    found = kernel_mount(controller)
    if found is None and any(part in _lines() for part in controller.split(",")):
        pytest.skip(f"not applicable: this machine has no cgroup v1 hierarchy of just {controller}")
    if found is None:
        with _borrowed(controller, scratch / "borrowed") as base, _own(base) as side:
            yield side
    else:
        with _own(found) as side:
            yield side


@contextmanager
def _own(base: Path) -> Iterator[Folder]:
    side = Folder(base / TOP)
    with suppress(FileExistsError):  # of the same module's other test, in a moment of its end
        side.base.mkdir()
    if outcome(lambda: side.read("notify_on_release")):
        pytest.skip(f"not applicable: {base} takes no groups")
    try:
        yield side
    finally:
        side.clear()
        assert not side.base.exists()


@contextmanager
def fuse_side(controller: str, scratch: Path) -> Iterator[Folder]:
    """Give our own group in our filesystem, as it is mounted."""
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("needs root and /dev/fuse")
    module = "pytest_k3s_sandbox.layers.cgroupfs"
    argv = [
        "unshare",
        "--mount",
        "--propagation=private",
        sys.executable,
        "-m",
        module,
        str(scratch / "fuse"),
    ]
    argv += ["--controllers", controller.replace(",", "+")]
    with (scratch / "log").open("wb") as log, subprocess.Popen(argv, stderr=log) as server:
        try:
            wait_until(lambda: "ready" in (scratch / "log").read_text() or server.poll() is not None)
            assert server.poll() is None, (scratch / "log").read_text()
            with _own(Path(f"/proc/{server.pid}/root{scratch}/fuse/{controller}")) as side:
                yield side
        finally:
            server.terminate()


@contextmanager
def sleeper(threads: int = 1) -> Iterator[int]:
    """Run a process that sleeps, with some threads; it has ended afterwards, and is waited for."""
    code = (
        "import sys, threading\n"
        f"for _ in range({threads - 1}):"
        " threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()
