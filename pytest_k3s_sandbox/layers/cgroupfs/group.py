"""The parts of a hierarchy: files, groups, and the contract of a controller."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from pytest_k3s_sandbox.layers.cgroupfs.backing import Backing
from pytest_k3s_sandbox.layers.cgroupfs.sample import Accounting, Change, Process, Sample
from pytest_k3s_sandbox.layers.cgroupfs.values import fail

S = TypeVar("S")

_MAX_WRITE = 4096  # kernfs refuses a longer write: E2BIG


@dataclass(frozen=True, slots=True)
class File(Generic[S]):
    """One file of a controller's groups.

    Attributes:
        read: Returns the content, or None for a write-only file.
        write: Takes the content of one write(2), or None for a read-only file.
        on_root: Whether the root group has it.
        on_child: Whether the other groups have it.
        readable: Whether the mode allows reads; some such files refuse them.
        longest: The most bytes of one write.
    """

    read: Callable[[Group[S]], str] | None = None
    write: Callable[[Group[S], str], None] | None = None
    on_root: bool = True
    on_child: bool = True
    readable: bool = False
    longest: int = _MAX_WRITE

    @property
    def mode(self) -> int:
        """The permission bits, which the kernel derives from the file's operations."""
        return (0o444 if self.read or self.readable else 0) | (0o200 if self.write else 0)


class HierarchyView(Protocol[S]):
    """What groups, files and controllers use of their hierarchy; see :class:`~.hierarchy.Hierarchy`.

    Attributes:
        accounting: Finds processes.
        files: The files of every group, by name.
        members: The group of each process outside the root, by process id.
        release_agent: The program that the kernel runs for an empty group.
        writer: The process that writes to a file now.
        last: The newest sample.
        backing: The kernel's own hierarchy of the same controller, if any.
        version: Changes whenever a process or a group comes, goes or moves.
    """

    accounting: Accounting
    files: dict[str, File[S]]
    members: dict[int, Group[S]]
    release_agent: str
    writer: int
    last: Sample
    backing: Backing | None
    version: int

    @property
    def root(self) -> Group[S]:
        """The root group."""

    def mkdir(self, parent: Group[S], name: str) -> Group[S]:
        """Make a group."""

    def rmdir(self, group: Group[S]) -> None:
        """Remove a group."""

    def rename(self, group: Group[S], parent: Group[S], name: str) -> None:
        """Give a group another name."""

    def census(self, group: Group[S]) -> None:
        """Bring the set of processes up to date, and the numbers of the group's own."""

    def listed(self, group: Group[S], name: str) -> list[int] | None:
        """Return the numbers in a list of the kernel's own group."""

    def refresh(self) -> None:
        """Bring all numbers up to date, within the age that the accounting allows."""

    def attach(self, group: Group[S], tid: int, *, whole: bool) -> None:
        """Move a process, or one thread of it, into a group."""


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

    def child(self, parent: Group[S], /) -> S:
        """Return the state of a group that is being made below another one.

        Raises:
            OSError: The group must not be made.
        """

    def attach(self, group: Group[S], process: Process, /) -> None:
        """Accept a process that moves into a group.

        Raises:
            OSError: The process must not move there.
        """

    def removed(self, group: Group[S]) -> None:
        """Release a group that is being removed."""

    def sampled(self, hierarchy: HierarchyView[S], change: Change, /) -> None:
        """Account for the processes between two samples."""


@dataclass(eq=False, slots=True, weakref_slot=True)
class Group(Generic[S]):
    """One group of a hierarchy: a directory.

    Attributes:
        hierarchy: The hierarchy it is in.
        name: Its directory's name, empty for the root.
        parent: The group above, None for the root.
        state: The controller's state of it.
        children: The groups below, by name.
        pids: Its own processes, and threads with their own entries. Unused in the root, which has the
            processes of no other group.
        owner: User and group id of the directory.
        mode: Permission bits of the directory.
    """

    hierarchy: HierarchyView[S]
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

    @property
    def path(self) -> str:
        """The path from the hierarchy's root, as in ``/proc/PID/cgroup``."""
        return "/" + "/".join(reversed([group.name for group in self.ancestry() if group.parent is not None]))

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
            OSError: ENOENT without such a file, EINVAL for a write-only one.
        """
        file = self.file(name)
        if file is None:
            fail(errno.ENOENT)
        if file.read is None:
            fail(errno.EINVAL)
        return file.read(self)

    def write(self, name: str, data: bytes, *, writer: int = 0) -> None:
        """Pass the data of one system call to a file; the offset does not matter.

        Args:
            name: The file.
            data: The data, used up to the first NUL.
            writer: The process or thread that writes; a written pid of 0 stands for it.

        Raises:
            OSError: ENOENT without such a file, E2BIG for more than a page, or the controller's errno.
        """
        file = self.file(name)
        if file is None:
            fail(errno.ENOENT)
        if len(data) > file.longest:
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
