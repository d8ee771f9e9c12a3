"""Maps the numbers of FUSE nodes to groups and files.

A node is a group's number, and in its lowest bits the index of a file in its hierarchy; index 0 is the
directory itself. So files need no state, and FUSE_FORGET needs no handling. Numbers are not reused: nodes of
a removed group stay invalid.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

from pytest_k3s_sandbox.layers.cgroupfs.group import Group
from pytest_k3s_sandbox.layers.cgroupfs.protocol import ROOT
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree
from pytest_k3s_sandbox.layers.cgroupfs.values import fail

PROCESSES = 1 << 62
"""The node of a process' memberships is this number and the process' id."""

PROCESS = "pid."
"""The name of that file at the mountpoint, before the process' id; no listing has it."""

_SHIFT = 10
_FILE = (1 << _SHIFT) - 1
_DIGITS = 12  # more than a process' id has, fewer than a node
DT_DIR, DT_REG, DT_LNK = 4, 8, 10
"""Types of directory entries, as in readdir(3)."""

Place = tuple[Group[Any] | None, str]
"""A group (None for the mountpoint) and the name of a file in it (empty for the directory)."""


class Nodes:
    """The nodes of a tree.

    Args:
        tree: The hierarchies.
    """

    def __init__(self, tree: Tree) -> None:
        """Number the mountpoint; groups get their numbers at their first lookup."""
        self._tree = tree
        self._links = tuple(tree.links)
        self._groups: dict[int, tuple[Group[Any], tuple[str, ...]]] = {}
        self._numbers: dict[Group[Any], int] = {}
        self._files: dict[object, tuple[str, ...]] = {}
        self._last = 0

    def of(self, group: Group[Any] | None, name: str = "") -> int:
        """Return the node of a group, or of a file in it."""
        if group is None:
            return ROOT
        number = self._numbers.get(group)
        if number is None:
            self._last = number = self._last + 1
            self._numbers[group] = number
            files = self._files.get(group.hierarchy)
            if files is None:
                files = self._files[group.hierarchy] = tuple(group.hierarchy.files)
            self._groups[number] = (group, files)
        return number << _SHIFT | (self._groups[number][1].index(name) + 1 if name else 0)

    def place(self, node: int, *, gone: int = errno.ENOENT) -> Place:
        """Return the group and file of a node.

        Args:
            node: Its number.
            gone: The errno after the group's removal: ENOENT for requests by path, also for one that gVisor
                sent after the removal; ENODEV for open files (kernfs).

        Raises:
            OSError: Its group was removed.
        """
        if node == ROOT:
            return None, ""
        known = self._groups.get(node >> _SHIFT)
        index = node & _FILE
        if known is None or index > len(known[1]):
            fail(gone)
        return known[0], known[1][index - 1] if index else ""

    def directory(self, node: int) -> Group[Any] | None:
        """Return the group of a directory's node.

        Raises:
            OSError: ENOTDIR for another node, ENOENT when it was removed.
        """
        if self.target(node) is not None:
            fail(errno.ENOTDIR)
        group, name = self.place(node)
        if name:
            fail(errno.ENOTDIR)
        return group

    def group(self, node: int) -> Group[Any]:
        """Return the group of a directory's node that is not the mountpoint.

        Raises:
            OSError: EBUSY for the mountpoint, otherwise as :meth:`directory`.
        """
        group = self.directory(node)
        if group is None:
            fail(errno.EBUSY)
        return group

    def child(self, group: Group[Any] | None, name: str) -> int:
        """Return the node of a name in a directory.

        Raises:
            OSError: ENOENT.
        """
        if group is None:
            if name in self._links:
                return ROOT + 1 + self._links.index(name)
            number = name.removeprefix(PROCESS)
            if number != name and number.isdecimal() and len(number) < _DIGITS:
                return PROCESSES + int(number)
        below = self._below(group).get(name)
        if below is not None:
            return self.of(below)
        if group is None or group.file(name) is None:
            fail(errno.ENOENT)
        return self.of(group, name)

    def _below(self, group: Group[Any] | None) -> dict[str, Group[Any]]:
        if group is not None:
            return group.children
        return {name: hierarchy.root for name, hierarchy in self._tree.hierarchies.items()}

    def target(self, node: int) -> str | None:
        """Return the target of a symbolic link; None for another node."""
        place = node - ROOT - 1
        return self._tree.links[self._links[place]] if 0 <= place < len(self._links) else None

    def entries(self, group: Group[Any] | None) -> Iterator[tuple[int, int, str]]:
        """Yield node, type and name of everything in a directory."""
        above = None if group is None else group.parent
        yield self.of(group), DT_DIR, "."
        yield self.of(above), DT_DIR, ".."
        for name in self._links if group is None else ():
            yield self.child(None, name), DT_LNK, name
        for name in group.files() if group is not None else ():
            yield self.of(group, name), DT_REG, name
        for name, child in self._below(group).items():
            yield self.of(child), DT_DIR, name

    def forget(self, group: Group[Any]) -> range:
        """Drop a removed group.

        Returns:
            The group's nodes.
        """
        number = self._numbers.pop(group, None)
        if number is None:
            return range(0)
        del self._groups[number]
        return range(number << _SHIFT, (number + 1) << _SHIFT)
