"""All hierarchies in one tree, which the file system serves."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pytest_k3s_sandbox.layers.cgroupfs.controllers import CONTROLLERS, DEFAULT
from pytest_k3s_sandbox.layers.cgroupfs.group import File, Group
from pytest_k3s_sandbox.layers.cgroupfs.hierarchy import Hierarchy
from pytest_k3s_sandbox.layers.cgroupfs.sample import Accounting, Change, Sample
from pytest_k3s_sandbox.layers.cgroupfs.values import fail


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """The target of a path: the top, a group, or a file in a group.

    Attributes:
        group: The group, None for the top.
        name: The file's name, empty for a directory.
        file: The file, None for a directory.
    """

    group: Group[Any] | None
    name: str = ""
    file: File[Any] | None = None


class Tree:
    """The hierarchies of several controllers, ``/<controller>/<group>/.../<file>``.

    Not safe for threads: the caller locks.

    Args:
        accounting: Finds processes.
        controllers: Names out of :data:`~.controllers.CONTROLLERS`.
    """

    def __init__(self, accounting: Accounting, controllers: Iterable[str] = DEFAULT) -> None:
        """Make each hierarchy with its root group."""
        self.hierarchies = {
            name: Hierarchy(CONTROLLERS[name](accounting), accounting) for name in controllers
        }
        self.links = {
            part: name
            for name in self.hierarchies
            if "," in name
            for part in name.split(",")
            if part not in self.hierarchies
        }
        """The symbolic links from a controller's own name to the hierarchy that it shares."""
        self._last = Sample({}, {}, {})
        self._accounting = accounting
        for hierarchy in self.hierarchies.values():
            hierarchy.last = self._last
            hierarchy.announce = self._announce

    @property
    def populated(self) -> bool:
        """Whether any group but the roots has a process."""
        return any(hierarchy.members for hierarchy in self.hierarchies.values())

    def refresh(self) -> None:
        """Bring all numbers up to date, within the age that the accounting allows."""
        self._announce(self._accounting.sample())

    def find(self, path: str) -> TreeEntry:
        """Return the target of a path.

        Args:
            path: Absolute, from the top of the tree.

        Raises:
            OSError: ENOENT or ENOTDIR.
        """
        parts = [part for part in path.split("/") if part]
        if not parts:
            return TreeEntry(None)
        hierarchy = self.hierarchies.get(parts[0])
        if hierarchy is None:
            fail(errno.ENOENT)
        group = hierarchy.root
        for position, part in enumerate(parts[1:], 2):
            child = group.children.get(part)
            if child is not None:
                group = child
                continue
            file = group.file(part)
            if file is None:
                fail(errno.ENOENT)
            if position != len(parts):
                fail(errno.ENOTDIR)
            return TreeEntry(group, part, file)
        return TreeEntry(group)

    def names(self, group: Group[Any] | None) -> list[str]:
        """Return the names in a directory: the controllers at the top, else files and groups."""
        return list(self.hierarchies) if group is None else [*group.files(), *group.children]

    def mkdir(self, path: str) -> None:
        """Make a group.

        Raises:
            OSError: EPERM at the top, otherwise as :meth:`Hierarchy.mkdir`.
        """
        above, _, name = path.rstrip("/").rpartition("/")
        entry = self.find(above)
        if entry.file is not None:
            fail(errno.ENOTDIR)
        if entry.group is None:
            fail(errno.EEXIST if name in self.hierarchies else errno.EPERM)
        entry.group.hierarchy.mkdir(entry.group, name)

    def rmdir(self, path: str) -> None:
        """Remove a group.

        Raises:
            OSError: ENOTDIR for a file, otherwise as :meth:`Hierarchy.rmdir`.
        """
        entry = self.find(path)
        if entry.file is not None:
            fail(errno.ENOTDIR)
        if entry.group is None:
            fail(errno.EBUSY)
        entry.group.hierarchy.rmdir(entry.group)

    def memberships(self, pid: int) -> str:
        """Return the groups of a process, in the hierarchies that the kernel itself does not have.

        Args:
            pid: The process, or a thread of one.

        Returns:
            A line for each hierarchy: its controllers, the number of its groups, the kernel's name for it,
            and the group's path, with tabs between them. Nothing without such a process.
        """
        leader = self._accounting.thread_group(pid)
        if leader is None:
            return ""
        # A process that no sample has yet is in its parent's group: its ancestors must be known.
        new, above = self._accounting.census((leader,), started=False), leader
        while (process := new.processes.get(above)) is not None and process.parent not in new.processes:
            above = process.parent
            new = self._accounting.census((above,), started=False)
        self._announce(new)
        return "".join(
            f"{name}\t{sum(1 for _ in hierarchy.root.subtree())}\t{hierarchy.stand_in}\t"
            f"{hierarchy.members.get(pid, hierarchy.members.get(leader, hierarchy.root)).path}\n"
            for name, hierarchy in self.hierarchies.items()
            if hierarchy.backing is None or hierarchy.stand_in
        )

    def _announce(self, new: Sample) -> None:
        """Tell every hierarchy of a sample.

        A controller that is told may ask for a newer sample. All hierarchies have that one then, and must not
        go back to this one: a process that ended in between would be a member for ever.
        """
        if new is self._last:
            return
        change = Change.between(self._last, new)
        self._last = new
        for hierarchy in self.hierarchies.values():
            if self._last is not new:
                return
            old = hierarchy.last
            hierarchy.advance(change if old is change.old else Change.between(old, new))
