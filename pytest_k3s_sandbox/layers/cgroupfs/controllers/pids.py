"""The pids controller: counts the tasks of a group. Only a kernel with the controller enforces the limit.

Sources: ``kernel/cgroup/pids.c``, ``Documentation/admin-guide/cgroup-v1/pids.rst``.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_k3s_sandbox.layers.cgroupfs.controllers.base import Passive, constant
from pytest_k3s_sandbox.layers.cgroupfs.group import File, Group, HierarchyView
from pytest_k3s_sandbox.layers.cgroupfs.sample import Change, Process
from pytest_k3s_sandbox.layers.cgroupfs.values import fail, parse_s64, strip

_MAX = 4 * 1024 * 1024  # PID_MAX_LIMIT


@dataclass
class PidsState:
    """The state of a group: its limit (None for none), and the highest number of tasks."""

    limit: int | None = None
    peak: int = 0


Node = Group[PidsState]


def _limit(group: Node, text: str) -> None:
    text = strip(text)
    value = None if text == "max" else parse_s64(text)
    if value is not None and not 0 <= value <= _MAX:
        fail(errno.EINVAL)
    group.state.limit = value
    if group.hierarchy.backing is not None:
        # gVisor accepts numbers only.
        group.hierarchy.backing.write(group.path, "pids.max", str(_MAX if value is None else value))


def _count(group: Node) -> int:
    processes = group.hierarchy.last.processes
    count = sum(processes[pid].threads for below in group.subtree() for pid in below.pids)
    group.state.peak = max(group.state.peak, count)
    return count


def _current(group: Node) -> str:
    listed = [group.hierarchy.listed(below, "tasks") for below in group.subtree()]
    known = [len(tids) for tids in listed if tids is not None]
    if known:
        count = sum(known)
        group.state.peak = max(group.state.peak, count)
        return f"{count}\n"
    group.hierarchy.census(group)
    return f"{_count(group)}\n"


class Pids(Passive[PidsState]):
    """The controller."""

    name = "pids"
    files: Mapping[str, File[PidsState]] = {
        "pids.current": File(_current, on_root=False),
        "pids.events": constant("max 0\n", on_root=False),
        "pids.max": File(
            lambda g: f"{'max' if g.state.limit is None else g.state.limit}\n", _limit, on_root=False
        ),
        "pids.peak": File(lambda g: f"{g.state.peak}\n", on_root=False),
    }

    def root(self) -> PidsState:
        """Return the root's state."""
        return PidsState()

    def child(self, _parent: Node) -> PidsState:
        """Return the state of a new group."""
        return PidsState()

    def attach(self, group: Node, process: Process) -> None:
        """Count the process in both groups, as the kernel does during a move, for the peak."""
        before = group.hierarchy.members.get(process.pid, group.hierarchy.root)
        common = set(before.ancestry())
        for above in group.ancestry():
            if above.parent is not None:
                most = _count(above) + (1 if above in common else process.threads)
                above.state.peak = max(above.state.peak, most)

    def sampled(self, hierarchy: HierarchyView[PidsState], _change: Change) -> None:
        """Update the peak of each populated group and its ancestors."""
        for group in {above for below in hierarchy.members.values() for above in below.ancestry()}:
            if group.parent is not None:
                _count(group)
