"""The freezer controller: stops processes with SIGSTOP, and continues them.

Source: ``Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst``. Unlike the kernel's freezer, a stop
signal is visible (waitpid with WUNTRACED in the parent). It stops every thread of a process. Therefore a
thread in the group without its process is not stopped, and the group stays FREEZING.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_k3s_sandbox.layers.cgroupfs.controllers.base import Passive
from pytest_k3s_sandbox.layers.cgroupfs.group import File, Group
from pytest_k3s_sandbox.layers.cgroupfs.sample import Process
from pytest_k3s_sandbox.layers.cgroupfs.values import fail, strip

_STOPPED = "TtD"


@dataclass
class FreezerState:
    """Whether the group itself has to freeze."""

    frozen: bool = False


Node = Group[FreezerState]


def _parents(group: Node) -> bool:
    return any(above.state.frozen for above in group.ancestry() if above is not group)


def _freezing(group: Node) -> bool:
    return group.state.frozen or _parents(group)


def _state(group: Node) -> str:
    if not _freezing(group):
        return "THAWED\n"
    for below in group.subtree():
        group.hierarchy.census(below)
    processes = group.hierarchy.last.processes
    running = [p for below in group.subtree() for p in below.pids if processes[p].state not in _STOPPED]
    for pid in set(running) - group.hierarchy.last.apart:
        # A process that was forked meanwhile got no SIGSTOP.
        group.hierarchy.accounting.freeze(pid, frozen=True)
    return "FREEZING\n" if running else "FROZEN\n"


def _change(group: Node, text: str) -> None:
    wanted = {"FROZEN": True, "THAWED": False}.get(strip(text))
    if wanted is None:
        fail(errno.EINVAL)
    group.state.frozen = wanted
    for below in group.subtree():
        group.hierarchy.census(below)
        for pid in below.pids - group.hierarchy.last.apart:
            group.hierarchy.accounting.freeze(pid, frozen=_freezing(below))


class Freezer(Passive[FreezerState]):
    """The controller."""

    name = "freezer"
    files: Mapping[str, File[FreezerState]] = {
        "freezer.parent_freezing": File(lambda g: f"{int(_parents(g))}\n", on_root=False),
        "freezer.self_freezing": File(lambda g: f"{int(g.state.frozen)}\n", on_root=False),
        "freezer.state": File(_state, _change, on_root=False),
    }

    def root(self) -> FreezerState:
        """Return the root's state, which never freezes."""
        return FreezerState()

    def child(self, _parent: Node) -> FreezerState:
        """Return the state of a new group."""
        return FreezerState()

    def attach(self, group: Node, process: Process) -> None:
        """Stop a process that enters a frozen group; continue one that leaves it."""
        before = group.hierarchy.members.get(process.pid, group.hierarchy.root)
        if _freezing(before) != _freezing(group) and not process.leader:
            group.hierarchy.accounting.freeze(process.pid, frozen=_freezing(group))
