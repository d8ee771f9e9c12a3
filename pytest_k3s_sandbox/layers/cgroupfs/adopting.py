"""What a server that takes the place of a killed one knows: the groups that the kernel has kept."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pytest_k3s_sandbox.layers.cgroupfs.group import Group
from pytest_k3s_sandbox.layers.cgroupfs.hierarchy import Hierarchy
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree


def adopt(tree: Tree) -> int:
    """Make the groups that are in the kernel's own hierarchies below ours, with their members.

    A group of any hierarchy is made in all: a container has the same path in each, and some hierarchies
    are ours alone. What was written to the groups' files is lost.

    Args:
        tree: A tree without groups.

    Returns:
        How many groups there are in each hierarchy.
    """
    members: dict[str, set[int]] = {}
    for hierarchy in tree.hierarchies.values():
        if (backing := hierarchy.backing) is not None:
            for path in backing.groups():
                members.setdefault(path, set()).update(backing.numbers(path, "cgroup.procs") or ())
    for hierarchy in tree.hierarchies.values():
        groups: dict[str, Group[Any]] = {"": hierarchy.root}
        for path in sorted(members):  # a parent's path is a part of its children's, and comes first
            parent, _, name = path.rpartition("/")
            groups[path] = _made(hierarchy, groups[parent], name)
            for pid in sorted(members[path]):
                with suppress(OSError):  # it has ended meanwhile
                    hierarchy.attach(groups[path], pid, whole=True)
    return len(members)


def _made(hierarchy: Hierarchy[Any], parent: Group[Any], name: str) -> Group[Any]:
    """Make a group as its parent is: a cpuset without processors takes no process."""
    usual, parent.clone_children = parent.clone_children, True
    group = hierarchy.mkdir(parent, name)
    group.clone_children = parent.clone_children = usual
    return group
