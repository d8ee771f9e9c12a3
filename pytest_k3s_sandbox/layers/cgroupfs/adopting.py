"""Adopts the kernel's groups after a server was killed."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pytest_k3s_sandbox.layers.cgroupfs.group import Group
from pytest_k3s_sandbox.layers.cgroupfs.hierarchy import Hierarchy
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree


def adopt(tree: Tree) -> int:
    """Make the groups of the kernel's hierarchies in the tree, with their members.

    A group of one hierarchy is made in all, because a container has the same path in each, and the kernel
    lacks some hierarchies. Values written to the groups' files are lost.

    Args:
        tree: A tree without groups.

    Returns:
        The number of groups in each hierarchy.
    """
    members: dict[str, set[int]] = {}
    for hierarchy in tree.hierarchies.values():
        if (backing := hierarchy.backing) is not None:
            for path in backing.groups():
                members.setdefault(path, set()).update(backing.numbers(path, "cgroup.procs") or ())
    for hierarchy in tree.hierarchies.values():
        groups: dict[str, Group[Any]] = {"": hierarchy.root}
        for path in sorted(members):  # a parent's path sorts before its children's
            parent, _, name = path.rpartition("/")
            groups[path] = _made(hierarchy, groups[parent], name)
            for pid in sorted(members[path]):
                with suppress(OSError):  # the process has ended meanwhile
                    hierarchy.attach(groups[path], pid, whole=True)
    return len(members)


def _made(hierarchy: Hierarchy[Any], parent: Group[Any], name: str) -> Group[Any]:
    """Make a group with its parent's settings: a cpuset without CPUs accepts no process."""
    usual, parent.clone_children = parent.clone_children, True
    group = hierarchy.mkdir(parent, name)
    group.clone_children = parent.clone_children = usual
    return group
