"""Cgroup v1 hierarchies as a model: groups, files, tasks. No FUSE and no I/O.

Behaviour is that of ``kernel/cgroup/cgroup-v1.c`` and of
``Documentation/admin-guide/cgroup-v1/cgroups.rst``. Refusals are :class:`OSError`
with the kernel's errno.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from pytest_k3s_sandbox.layers.cgroupfs.sample import Accounting, Change, Process, Sample
from pytest_k3s_sandbox.layers.cgroupfs.values import fail, parse_s64, parse_u64

S = TypeVar("S")

_MAX_WRITE = 4096  # kernfs refuses a longer write: E2BIG
_MAX_PID = 2**31 - 1


@dataclass(frozen=True)
class File(Generic[S]):
    """One file that a controller puts into its groups.

    Attributes:
        read: Returns the content, or None for a file that only takes writes.
        write: Takes what one write(2) brought, or None for a file that is only read.
        on_root: Whether the root group has it.
        on_child: Whether the other groups have it.
        readable: Whether its mode says so; some that say so refuse the read.
    """

    read: Callable[[Group[S]], str] | None = None
    write: Callable[[Group[S], str], None] | None = None
    on_root: bool = True
    on_child: bool = True
    readable: bool = False

    @property
    def mode(self) -> int:
        """The permission bits, as the kernel derives them from what the file can do."""
        return (0o444 if self.read or self.readable else 0) | (0o200 if self.write else 0)


class Controller(Protocol[S]):
    """What one controller adds to a hierarchy: files, state for each group, and hooks."""

    @property
    def name(self) -> str:
        """The controller's name, as in ``/proc/cgroups``."""

    @property
    def files(self) -> Mapping[str, File[S]]:
        """Its files by name."""

    def root(self) -> S:
        """Return the state of the root group."""

    def child(self, parent: Group[S], *, clone: bool) -> S:
        """Return the state of a group that is being made, with ``cgroup.clone_children`` of its parent.

        Raises:
            OSError: The group must not be made.
        """

    def attach(self, group: Group[S], process: Process) -> None:
        """Agree to a process that moves into a group.

        Raises:
            OSError: It must not.
        """

    def sampled(self, hierarchy: Hierarchy[S], change: Change) -> None:
        """Account for what processes did between two samples."""


@dataclass(eq=False)
class Group(Generic[S]):
    """One group of a hierarchy: a directory.

    Attributes:
        hierarchy: The hierarchy it is in.
        name: Its directory's name, empty for the root.
        parent: The group above, None for the root.
        state: What its controller keeps for it.
        children: The groups below, by name.
        pids: Its own processes; unused in the root, which has those that no other has.
        owner: User and group id of the directory.
        mode: Permission bits of the directory.
    """

    hierarchy: Hierarchy[S]
    name: str
    parent: Group[S] | None
    state: S
    children: dict[str, Group[S]] = field(default_factory=dict)
    pids: set[int] = field(default_factory=set)
    clone_children: bool = False
    notify_on_release: bool = False
    owner: tuple[int, int] = (0, 0)
    mode: int = 0o755

    def ancestry(self) -> Iterator[Group[S]]:
        """Yield the group, its parent, and so on up to the root."""
        group: Group[S] | None = self
        while group is not None:
            yield group
            group = group.parent

    def subtree(self) -> Iterator[Group[S]]:
        """Yield the group and everything below, each before its children."""
        yield self
        for child in self.children.values():
            yield from child.subtree()

    def file(self, name: str) -> File[S] | None:
        """Return the file of that name, or None when the group has none."""
        found = self.hierarchy.files.get(name)
        if found is None:
            return None
        return found if (found.on_root if self.parent is None else found.on_child) else None

    def files(self) -> list[str]:
        """Return the names of the group's files."""
        root = self.parent is None
        return [
            name for name, file in self.hierarchy.files.items() if (file.on_root if root else file.on_child)
        ]

    def read(self, name: str) -> str:
        """Return the content of a file.

        Raises:
            OSError: ENOENT without such a file, EINVAL when it cannot be read.
        """
        file = self.file(name)
        if file is None:
            fail(errno.ENOENT)
        if file.read is None:
            fail(errno.EINVAL)
        return file.read(self)

    def write(self, name: str, data: bytes, *, writer: int = 0) -> None:
        """Give a file what one system call writes; the offset never matters.

        Args:
            name: The file.
            data: What is written; the kernel takes it up to the first NUL.
            writer: The process (or thread) that writes, meant by a pid of 0.

        Raises:
            OSError: ENOENT without such a file, E2BIG for more than a page, and
                whatever the controller refuses with.
        """
        file = self.file(name)
        if file is None:
            fail(errno.ENOENT)
        if len(data) > _MAX_WRITE:
            fail(errno.E2BIG)
        if not data:
            return
        if file.write is None:
            fail(errno.EINVAL)
        text = data.partition(b"\0")[0].decode("ascii", "surrogateescape")
        self.hierarchy.writer = writer
        file.write(self, text)

    def processes(self) -> set[int]:
        """Return the ids of the group's own processes."""
        if self.parent is not None:
            return self.pids
        return self.hierarchy.last.processes.keys() - self.hierarchy.members.keys()


class Hierarchy(Generic[S]):
    """One hierarchy: the groups of one controller, and which process is in which.

    Args:
        controller: The controller.
        accounting: Where processes are looked up.
    """

    def __init__(self, controller: Controller[S], accounting: Accounting) -> None:
        """Make the hierarchy with its root group."""
        self.controller = controller
        self.accounting = accounting
        self.files: dict[str, File[S]] = {**_core_files(), **controller.files}
        self.root = Group(self, "", None, controller.root(), mode=0o555)
        self.members: dict[int, Group[S]] = {}
        self.release_agent = ""
        self.writer = 0
        self.last = Sample({}, {}, {})
        self.announce: Callable[[Sample], None] = lambda new: self.advance(Change.between(self.last, new))
        """Called with each new sample; a tree puts itself here to pass it to all hierarchies."""

    def mkdir(self, parent: Group[S], name: str) -> Group[S]:
        """Make a group.

        Raises:
            OSError: EEXIST for a group or file of that name, EINVAL for a newline in it.
        """
        if "\n" in name:
            fail(errno.EINVAL)
        if name in parent.children or parent.file(name) is not None:
            fail(errno.EEXIST)
        state = self.controller.child(parent, clone=parent.clone_children)
        group = Group(self, name, parent, state)
        group.clone_children = parent.clone_children
        group.notify_on_release = parent.notify_on_release
        parent.children[name] = group
        return group

    def rmdir(self, group: Group[S]) -> None:
        """Remove a group.

        Raises:
            OSError: EBUSY while it has groups or processes, and for the root.
        """
        if group.parent is None or group.children:
            fail(errno.EBUSY)
        self.census(group)
        if group.pids:
            fail(errno.EBUSY)
        del group.parent.children[group.name]

    def census(self, group: Group[S]) -> None:
        """Bring the set of processes up to date, and the numbers of the group's own."""
        self.announce(self.accounting.census(tuple(group.pids)))

    def refresh(self) -> None:
        """Bring all numbers up to date, within the age that the accounting allows."""
        self.announce(self.accounting.sample())

    def attach(self, group: Group[S], pid: int) -> None:
        """Move a process into a group.

        Args:
            group: Where to.
            pid: One of its threads, 0 for the writer.

        Raises:
            OSError: ESRCH without such a process, or what the controller refuses with.
        """
        found = self.accounting.thread_group(pid or self.writer)
        if found is None:
            fail(errno.ESRCH)
        # Its time so far belongs to the group that it leaves.
        self.announce(self.accounting.census((found,)))
        process = self.last.processes.get(found)
        if process is None:
            fail(errno.ESRCH)
        self.controller.attach(group, process)
        self._place(found, group)

    def advance(self, change: Change) -> None:
        """Take a sample: forget the dead, let children follow their parents, account the rest."""
        self.last = change.new
        if self.members:
            for pid in change.gone:
                self._place(pid, self.root)
            for process in change.fresh:
                # The child of a dead parent is init's; its session still tells where it comes from.
                origin = process.session if process.parent == 1 else process.parent
                group = self.members.get(origin)
                if group is not None and process.pid != origin:
                    self._place(process.pid, group)
        self.controller.sampled(self, change)

    def _place(self, pid: int, group: Group[S]) -> None:
        before = self.members.pop(pid, None)
        if before is not None:
            before.pids.discard(pid)
        if group.parent is not None:
            self.members[pid] = group
            group.pids.add(pid)


def _procs(group: Group[S]) -> str:
    group.hierarchy.census(group)
    return "".join(f"{pid}\n" for pid in sorted(group.processes()))


def _tasks(group: Group[S]) -> str:
    group.hierarchy.census(group)
    threads = group.hierarchy.accounting.threads
    return "".join(f"{tid}\n" for pid in sorted(group.processes()) for tid in threads(pid))


def _attach(group: Group[S], text: str) -> None:
    pid = parse_s64(text.strip())
    if not 0 <= pid <= _MAX_PID:
        fail(errno.EINVAL)
    group.hierarchy.attach(group, pid)


def _clone(group: Group[S], text: str) -> None:
    group.clone_children = bool(parse_u64(text))


def _notify(group: Group[S], text: str) -> None:
    group.notify_on_release = bool(parse_u64(text))


def _agent(group: Group[S], text: str) -> None:
    group.hierarchy.release_agent = text.strip()


def _core_files() -> dict[str, File[S]]:
    """Return the files that every group has (``cgroup1_base_files``)."""
    return {
        "cgroup.procs": File(_procs, _attach),
        "cgroup.clone_children": File(lambda g: f"{int(g.clone_children)}\n", _clone),
        "cgroup.sane_behavior": File(lambda _: "0\n", on_child=False),
        "tasks": File(_tasks, _attach),
        "notify_on_release": File(lambda g: f"{int(g.notify_on_release)}\n", _notify),
        "release_agent": File(lambda g: f"{g.hierarchy.release_agent}\n", _agent, on_child=False),
    }
