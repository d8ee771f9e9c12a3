"""The cpuacct controller: CPU time of groups, from the growth of each process' times.

Sources: ``kernel/sched/cpuacct.c``, ``Documentation/admin-guide/cgroup-v1/cpuacct.rst``.
The group of a process and all groups above are charged for its time, and keep it when the process moves or
dies. Times have the resolution of clock ticks. The time between a process' last sample and its end is charged
to its parent's group when the parent reaps it; otherwise it is lost. The CPU that the process ran on last is
charged. The root has the machine's numbers. If the kernel has the controller, as gVisor does, its sums are
used, and only their distribution over CPUs comes from samples.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_k3s_sandbox.layers.cgroupfs.controllers.base import Passive
from pytest_k3s_sandbox.layers.cgroupfs.group import File, Group, HierarchyView
from pytest_k3s_sandbox.layers.cgroupfs.sample import NANOSECONDS, Change, Process, Sample
from pytest_k3s_sandbox.layers.cgroupfs.values import fail, parse_u64

_USER_HZ = 100  # USER_HZ, the unit of cpuacct.stat


@dataclass
class CpuacctState:
    """Nanoseconds of one group and all below it, by CPU.

    Attributes:
        last_cpu: The CPU of one of its processes in the newest sample.
        taken_from: User and kernel time of the kernel's own group at the last reset.
        taken_at: The sample at the last read of the kernel's own group.
    """

    user: dict[int, int] = field(default_factory=dict)
    system: dict[int, int] = field(default_factory=dict)
    last_cpu: int = 0
    taken_from: tuple[int, int] = (0, 0)
    taken_at: Sample | None = None


Node = Group[CpuacctState]


@dataclass
class _Credit:
    """Nanoseconds charged for a process' children that it has not reaped yet."""

    user: int = 0
    system: int = 0

    def settle(self, now: Process, was: Process | None) -> tuple[int, int]:
        """Return the time of reaped children beyond the credit, and use the credit up."""
        user, system = _reaped(now, was)
        used = min(user, self.user), min(system, self.system)
        self.user -= used[0]
        self.system -= used[1]
        return user - used[0], system - used[1]


def _reaped(now: Process, was: Process | None) -> tuple[int, int]:
    before = (was.reaped_user, was.reaped_system) if was else (0, 0)
    return max(0, now.reaped_user - before[0]), max(0, now.reaped_system - before[1])


def _charge(group: Node, cpu: int, user: int, system: int) -> None:
    for above in group.ancestry():
        if above.parent is not None:
            state = above.state
            state.user[cpu] = state.user.get(cpu, 0) + user
            state.system[cpu] = state.system.get(cpu, 0) + system


def _counted(group: Node) -> tuple[int, int] | None:
    """Return user and kernel time of the kernel's own group; None without one."""
    backing = group.hierarchy.backing
    if backing is None:
        return None
    times = [backing.numbers(group.path, f"cpuacct.usage_{kind}") for kind in ("user", "sys")]
    return (times[0][0], times[1][0]) if times[0] and times[1] else None


def _columns(group: Node) -> list[tuple[int, int, int]]:
    group.hierarchy.refresh()
    state = group.state
    if group.parent is not None and state.taken_at is not group.hierarchy.last:
        state.taken_at = group.hierarchy.last
        for kept, counted, before in zip(
            (state.user, state.system), _counted(group) or (0, 0), state.taken_from, strict=True
        ):
            more = counted - before - sum(kept.values())
            if more > 0:
                kept[state.last_cpu] = kept.get(state.last_cpu, 0) + more
    return [
        (cpu, state.user.get(cpu, 0), state.system.get(cpu, 0))
        for cpu in sorted(group.hierarchy.accounting.cpus)
    ]


def _reset(group: Node, text: str) -> None:
    if parse_u64(text):
        fail(errno.EINVAL)
    if group.parent is not None:
        group.state.user.clear()
        group.state.system.clear()
        group.state.taken_from = _counted(group) or (0, 0)


def _stat(group: Node) -> str:
    columns = _columns(group)
    tick = NANOSECONDS // _USER_HZ
    user, system = (sum(row[i] for row in columns) // tick for i in (1, 2))
    return f"user {user}\nsystem {system}\n"


class Cpuacct(Passive[CpuacctState]):
    """The controller."""

    name = "cpuacct"
    files: Mapping[str, File[CpuacctState]] = {
        "cpuacct.stat": File(_stat),
        "cpuacct.usage": File(lambda g: f"{sum(u + s for _, u, s in _columns(g))}\n", _reset),
        "cpuacct.usage_all": File(
            lambda g: "cpu user system\n" + "".join(f"{c} {u} {s}\n" for c, u, s in _columns(g))
        ),
        "cpuacct.usage_percpu": File(lambda g: "".join(f"{u + s} " for _, u, s in _columns(g)) + "\n"),
        "cpuacct.usage_percpu_sys": File(lambda g: "".join(f"{s} " for _, _, s in _columns(g)) + "\n"),
        "cpuacct.usage_percpu_user": File(lambda g: "".join(f"{u} " for _, u, _ in _columns(g)) + "\n"),
        "cpuacct.usage_sys": File(lambda g: f"{sum(s for _, _, s in _columns(g))}\n"),
        "cpuacct.usage_user": File(lambda g: f"{sum(u for _, u, _ in _columns(g))}\n"),
    }

    def __init__(self) -> None:
        """Make the controller."""
        self._credits: dict[int, _Credit] = {}

    def root(self) -> CpuacctState:
        """Return the root's state."""
        return CpuacctState()

    def child(self, _parent: Node) -> CpuacctState:
        """Return the state of a new group."""
        return CpuacctState()

    def sampled(self, hierarchy: HierarchyView[CpuacctState], change: Change) -> None:
        """Charge what processes spent since the earlier sample."""
        root = hierarchy.root.state
        for cpu, (user, system) in change.new.cpu.items():
            root.user[cpu] = max(user, root.user.get(cpu, 0))
            root.system[cpu] = max(system, root.system.get(cpu, 0))
        self._note_ends(hierarchy, change)
        for now, was in change.changed:
            group = hierarchy.members.get(now.pid)
            if group is None:
                continue
            credit = self._credits.get(now.pid)
            waited = credit.settle(now, was) if credit else _reaped(now, was)
            user = waited[0] + max(0, now.user - (was.user if was else 0))
            system = waited[1] + max(0, now.system - (was.system if was else 0))
            if hierarchy.backing is not None:
                for above in group.ancestry():
                    above.state.last_cpu = now.processor
            elif user or system:
                _charge(group, now.processor, user, system)

    def _note_ends(self, hierarchy: HierarchyView[CpuacctState], change: Change) -> None:
        """Remember the charges of ended processes, which their parents' numbers contain again."""
        for pid in change.gone:
            self._credits.pop(pid, None)
            process = change.old.processes[pid]
            if process.parent in hierarchy.members:
                credit = self._credits.setdefault(process.parent, _Credit())
                credit.user += process.user + process.reaped_user
                credit.system += process.system + process.reaped_system
