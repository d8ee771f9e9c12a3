"""The cpuset controller: keeps and checks sets of CPUs and memory nodes, without enforcing them.

Sources: cpuset(7), ``kernel/cgroup/cpuset-v1.c`` (cpuset1_validate_change) and
``Documentation/admin-guide/cgroup-v1/cpusets.rst``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from pytest_k3s_sandbox.layers.cgroupfs.controllers.base import Passive, constant, flag, kept
from pytest_k3s_sandbox.layers.cgroupfs.group import File, Group
from pytest_k3s_sandbox.layers.cgroupfs.sample import Accounting, Process
from pytest_k3s_sandbox.layers.cgroupfs.values import fail, format_list, parse_list, parse_u64

Kind = Literal["cpus", "mems"]
_EXCLUSIVE: dict[Kind, str] = {"cpus": "cpu_exclusive", "mems": "mem_exclusive"}
_MAX_DOMAIN_LEVEL = 5  # sched_domain_level_max + 1 depends on the machine; the deepest that Linux builds


@dataclass
class CpusetState:
    """The state of a group."""

    cpus: frozenset[int] = frozenset()
    mems: frozenset[int] = frozenset()
    cpu_exclusive: bool = False
    mem_exclusive: bool = False
    mem_hardwall: bool = False
    memory_migrate: bool = False
    memory_pressure_enabled: bool = False
    memory_spread_page: bool = False
    memory_spread_slab: bool = False
    sched_load_balance: bool = True
    sched_relax_domain_level: int = -1


Node = Group[CpusetState]


def _members(group: Node, kind: Kind) -> frozenset[int]:
    found: frozenset[int] = getattr(group.state, kind)
    return found


def _apart(group: Node, parent: Node, kind: Kind, wanted: frozenset[int]) -> None:
    """Refuse (EINVAL) an overlap of siblings if one of them is exclusive."""
    exclusive = _EXCLUSIVE[kind]
    for sibling in parent.children.values():
        either = getattr(group.state, exclusive) or getattr(sibling.state, exclusive)
        if sibling is not group and either and wanted & _members(sibling, kind):
            fail(errno.EINVAL)


def _set(kind: Kind) -> Callable[[Node, str], None]:
    def write(group: Node, text: str) -> None:
        accounting = group.hierarchy.accounting
        if group.parent is None:
            fail(errno.EACCES)
        wanted = parse_list(text, possible=range(accounting.limits[0 if kind == "cpus" else 1]))
        if not wanted <= (accounting.cpus if kind == "cpus" else accounting.mems):
            fail(errno.EINVAL)
        if wanted == _members(group, kind):
            return
        if any(not _members(child, kind) <= wanted for child in group.children.values()):
            fail(errno.EBUSY)
        if not wanted <= _members(group.parent, kind):
            fail(errno.EACCES)
        if not wanted and group.pids:
            group.hierarchy.census(group)
            if group.pids:
                fail(errno.ENOSPC)
        _apart(group, group.parent, kind, wanted)
        setattr(group.state, kind, wanted)

    return write


def _exclusive(kind: Kind) -> File[CpusetState]:
    attribute = _EXCLUSIVE[kind]

    def write(group: Node, text: str) -> None:
        value = bool(parse_u64(text))
        if not value and any(getattr(child.state, attribute) for child in group.children.values()):
            fail(errno.EBUSY)
        if value and group.parent is not None:
            if not getattr(group.parent.state, attribute):
                fail(errno.EACCES)
            for sibling in group.parent.children.values():
                if sibling is not group and _members(group, kind) & _members(sibling, kind):
                    fail(errno.EINVAL)
        setattr(group.state, attribute, value)

    return File(lambda g: f"{int(getattr(g.state, attribute))}\n", write)


class Cpuset(Passive[CpusetState]):
    """The controller.

    Args:
        accounting: Knows the machine's CPUs and memory nodes.
    """

    name = "cpuset"
    files: Mapping[str, File[CpusetState]] = {
        "cpuset.cpus": File(lambda g: format_list(g.state.cpus) + "\n", _set("cpus")),
        "cpuset.mems": File(lambda g: format_list(g.state.mems) + "\n", _set("mems")),
        "cpuset.effective_cpus": File(lambda g: format_list(g.state.cpus) + "\n"),
        "cpuset.effective_mems": File(lambda g: format_list(g.state.mems) + "\n"),
        "cpuset.cpu_exclusive": _exclusive("cpus"),
        "cpuset.mem_exclusive": _exclusive("mems"),
        "cpuset.mem_hardwall": flag("mem_hardwall"),
        "cpuset.memory_migrate": flag("memory_migrate"),
        "cpuset.memory_pressure": constant("0\n"),
        "cpuset.memory_pressure_enabled": flag("memory_pressure_enabled", on_child=False),
        "cpuset.memory_spread_page": flag("memory_spread_page"),
        "cpuset.memory_spread_slab": flag("memory_spread_slab"),
        "cpuset.sched_load_balance": flag("sched_load_balance"),
        "cpuset.sched_relax_domain_level": kept(
            "sched_relax_domain_level", valid=lambda v: -1 <= v <= _MAX_DOMAIN_LEVEL, signed=True
        ),
    }

    def __init__(self, accounting: Accounting) -> None:
        """Make the controller."""
        self._accounting = accounting

    def root(self) -> CpusetState:
        """Return the root's state: all CPUs and memory nodes, exclusively."""
        return CpusetState(
            self._accounting.cpus, self._accounting.mems, cpu_exclusive=True, mem_exclusive=True
        )

    def child(self, parent: Node) -> CpusetState:
        """Return the state of a new group: empty sets, or its parent's with clone_children."""
        state = CpusetState(
            memory_spread_page=parent.state.memory_spread_page,
            memory_spread_slab=parent.state.memory_spread_slab,
        )
        exclusive = any(c.state.cpu_exclusive or c.state.mem_exclusive for c in parent.children.values())
        if parent.clone_children and not exclusive:
            state.cpus, state.mems = parent.state.cpus, parent.state.mems
        return state

    def attach(self, group: Node, _process: Process) -> None:
        """Refuse processes for a group without CPUs or memory: ENOSPC."""
        if not group.state.cpus or not group.state.mems:
            fail(errno.ENOSPC)
