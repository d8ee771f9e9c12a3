"""The memory controller: usage from resident sizes; limits kept and checked, not enforced.

Sources: ``mm/memcontrol-v1.c``, ``Documentation/admin-guide/cgroup-v1/memory.rst``.

A group's ``rss`` is the resident memory of its processes that no file backs. Its ``cache``
is what files back of it, counted once for each process that maps it (the kernel counts a page
once, for its first user), and is called ``inactive_file``, so that it never makes a working
set larger. The root's numbers are the machine's, from ``/proc/meminfo`` and ``/proc/vmstat``. Peaks
are those that samples saw. Kernel memory, swap, page-in counts and dirty pages of a group cannot be
known: 0.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_k3s_sandbox.layers.cgroupfs.controllers.base import constant
from pytest_k3s_sandbox.layers.cgroupfs.controllers.limits import limit_for_children, zero
from pytest_k3s_sandbox.layers.cgroupfs.controllers.memory_events import Listeners, register
from pytest_k3s_sandbox.layers.cgroupfs.hierarchy import File, Group, Hierarchy
from pytest_k3s_sandbox.layers.cgroupfs.sample import Change, Process
from pytest_k3s_sandbox.layers.cgroupfs.values import (
    PAGE_COUNTER_MAX,
    PAGE_SIZE,
    fail,
    parse_memory,
    parse_u64,
)

_MAX_SWAPPINESS = 200

_STAT = (
    "cache",
    "rss",
    "rss_huge",
    "shmem",
    "mapped_file",
    "dirty",
    "writeback",
    "workingset_refault_anon",
    "workingset_refault_file",
    "swap",
    "swapcached",
    "pgpgin",
    "pgpgout",
    "pgfault",
    "pgmajfault",
    "inactive_anon",
    "active_anon",
    "inactive_file",
    "active_file",
    "unevictable",
)

_MACHINE = {
    "shmem": "Shmem",
    "mapped_file": "Mapped",
    "dirty": "Dirty",
    "writeback": "Writeback",
    "swapcached": "SwapCached",
    "rss": "AnonPages",
    "rss_huge": "AnonHugePages",
    "inactive_anon": "Inactive(anon)",
    "active_anon": "Active(anon)",
    "inactive_file": "Inactive(file)",
    "active_file": "Active(file)",
    "unevictable": "Unevictable",
    "workingset_refault_anon": "workingset_refault_anon",
    "workingset_refault_file": "workingset_refault_file",
    "pgfault": "pgfault",
    "pgmajfault": "pgmajfault",
}


@dataclass
class MemoryState:
    """What one group keeps: bytes, and counts of page faults; ``total_`` ones with all groups below.

    Attributes:
        swappiness: None where it was never set, for the machine's own.
        peak: The most that was used since it was set back; ``memsw_peak`` with swap.
        listeners: Who wants to know of events, None for nobody.
    """

    limit: int = PAGE_COUNTER_MAX
    memsw_limit: int = PAGE_COUNTER_MAX
    soft_limit: int = PAGE_COUNTER_MAX
    tcp_limit: int = PAGE_COUNTER_MAX
    peak: int = 0
    memsw_peak: int = 0
    swappiness: int | None = None
    oom_kill_disable: int = 0
    faults: int = 0
    major_faults: int = 0
    total_faults: int = 0
    total_major_faults: int = 0
    listeners: Listeners | None = None


Node = Group[MemoryState]
Numbers = dict[str, int]


@dataclass(slots=True)
class _Resident:
    """Resident bytes of a group's own processes, and with those of all groups below."""

    rss: int = 0
    cache: int = 0
    total_rss: int = 0
    total_cache: int = 0

    @property
    def usage(self) -> int:
        return self.total_rss + self.total_cache


_NOTHING = _Resident()


def _resident(hierarchy: Hierarchy[MemoryState]) -> dict[Node, _Resident]:
    """Return the sums for each populated group and those above, but the root."""
    result: dict[Node, _Resident] = {}
    for pid, group in hierarchy.members.items():
        process = hierarchy.last.processes[pid]
        own = result.setdefault(group, _Resident())
        own.rss += process.anonymous
        own.cache += process.mapped
    for group, own in list(result.items()):
        for above in group.ancestry():
            if above.parent is not None:
                total = result.setdefault(above, _Resident())
                total.total_rss += own.rss
                total.total_cache += own.cache
    return result


def _numbers(rss: int, cache: int, faults: int, major_faults: int) -> Numbers:
    """Return the lines of memory.stat for a group."""
    numbers = dict.fromkeys(_STAT, 0)
    numbers["rss"] = numbers["inactive_anon"] = rss
    numbers["cache"] = numbers["mapped_file"] = numbers["inactive_file"] = cache
    numbers["pgfault"], numbers["pgmajfault"] = faults, major_faults
    return numbers


def _kmem(group: Node, text: str) -> None:
    """Take a limit that the kernel ignores as well, since 6.0."""
    limit_for_children(group, text)


def _tcp(group: Node, text: str) -> None:
    group.state.tcp_limit = limit_for_children(group, text)


def _soft(group: Node, text: str) -> None:
    group.state.soft_limit = parse_memory(text)


def _hierarchical(_group: Node, text: str) -> None:
    if parse_u64(text) != 1:
        fail(errno.EINVAL)


def _swappiness(group: Node) -> str:
    for above in group.ancestry():
        if above.state.swappiness is not None:
            return f"{above.state.swappiness}\n"
    found = group.hierarchy.accounting.setting("vm/swappiness")
    return f"{60 if found is None else found}\n"  # 60 is Linux' own default


def _set_swappiness(group: Node, text: str) -> None:
    value = parse_u64(text)
    if value > _MAX_SWAPPINESS:
        fail(errno.EINVAL)
    group.state.swappiness = value


def _oom(group: Node, text: str) -> None:
    value = parse_u64(text)
    if group.parent is None or value > 1:
        fail(errno.EINVAL)
    group.state.oom_kill_disable = value


def _immigrate(_group: Node, text: str) -> None:
    if parse_u64(text):
        fail(errno.EINVAL)


def _empty(group: Node, _text: str) -> None:
    if group.parent is None:
        fail(errno.EINVAL)


class Memory:
    """The controller."""

    name = "memory"

    def __init__(self) -> None:
        """Make the files, which share one table of sums for each sample."""
        self._made_of: tuple[object, int] = (None, -1)
        self._sums: dict[Node, _Resident] = {}
        self.files: Mapping[str, File[MemoryState]] = {
            "cgroup.event_control": File(None, lambda g, text: register(g, text, lambda: self._usage(g))),
            "memory.failcnt": zero(),
            "memory.force_empty": File(None, _empty),
            "memory.kmem.failcnt": zero(),
            "memory.kmem.limit_in_bytes": File(lambda _: f"{PAGE_COUNTER_MAX}\n", _kmem),
            "memory.kmem.max_usage_in_bytes": zero(),
            "memory.kmem.slabinfo": constant(""),
            "memory.kmem.tcp.failcnt": zero(),
            "memory.kmem.tcp.limit_in_bytes": File(lambda g: f"{g.state.tcp_limit}\n", _tcp),
            "memory.kmem.tcp.max_usage_in_bytes": zero(),
            "memory.kmem.tcp.usage_in_bytes": constant("0\n"),
            "memory.kmem.usage_in_bytes": constant("0\n"),
            "memory.limit_in_bytes": File(lambda g: f"{g.state.limit}\n", self._set_limit),
            "memory.max_usage_in_bytes": File(self._peak, self._reset_peak),
            "memory.memsw.failcnt": zero(),
            "memory.memsw.limit_in_bytes": File(lambda g: f"{g.state.memsw_limit}\n", self._set_memsw),
            "memory.memsw.max_usage_in_bytes": File(self._memsw_peak, self._reset_memsw_peak),
            "memory.memsw.usage_in_bytes": File(lambda g: f"{self._usage(g) + self._swap(g)}\n"),
            "memory.move_charge_at_immigrate": File(lambda _: "0\n", _immigrate),
            "memory.numa_stat": File(self._numa),
            "memory.oom_control": File(
                lambda g: f"oom_kill_disable {g.state.oom_kill_disable}\nunder_oom 0\noom_kill 0\n", _oom
            ),
            "memory.pressure_level": File(readable=True),
            "memory.soft_limit_in_bytes": File(lambda g: f"{g.state.soft_limit}\n", _soft),
            "memory.stat": File(self._stat),
            "memory.swappiness": File(_swappiness, _set_swappiness),
            "memory.usage_in_bytes": File(lambda g: f"{self._usage(g)}\n"),
            "memory.use_hierarchy": File(lambda _: "1\n", _hierarchical),
        }

    def root(self) -> MemoryState:
        """Return the root's state."""
        return MemoryState()

    def child(self, parent: Node, *, clone: bool) -> MemoryState:  # noqa: ARG002  # the hook's signature
        """Return the state of a new group, with what it inherits."""
        return MemoryState(
            swappiness=int(_swappiness(parent)), oom_kill_disable=parent.state.oom_kill_disable
        )

    def attach(self, group: Node, process: Process) -> None:
        """Accept the process; its memory counts where it is."""

    def removed(self, group: Node) -> None:
        """Tell those who wait for events."""
        if group.state.listeners is not None:
            group.state.listeners.removed()

    def sampled(self, hierarchy: Hierarchy[MemoryState], change: Change) -> None:
        """Count page faults for the groups that took them, note peaks, and signal thresholds."""
        for process, was in change.changed:
            faults = process.faults - (was.faults if was else 0)
            major = process.major_faults - (was.major_faults if was else 0)
            if faults > 0 or major > 0:
                group = hierarchy.members.get(process.pid, hierarchy.root)
                group.state.faults += max(0, faults)
                group.state.major_faults += max(0, major)
                for above in group.ancestry():
                    above.state.total_faults += max(0, faults)
                    above.state.total_major_faults += max(0, major)
        for group, sums in self._table(hierarchy).items():
            state = group.state
            state.peak = max(state.peak, sums.usage)
            state.memsw_peak = max(state.memsw_peak, sums.usage)
            if state.listeners is not None:
                state.listeners.used(sums.usage)

    def _table(self, hierarchy: Hierarchy[MemoryState]) -> dict[Node, _Resident]:
        made_of = hierarchy.last, hierarchy.version
        if self._made_of[0] is not made_of[0] or self._made_of[1] != made_of[1]:
            self._sums, self._made_of = _resident(hierarchy), made_of
        return self._sums

    def _stats(self, group: Node) -> tuple[Numbers, Numbers]:
        """Return a group's own numbers and those with everything below."""
        group.hierarchy.refresh()
        table = self._table(group.hierarchy)
        state = group.state
        if group.parent is not None:
            sums = table.get(group, _NOTHING)
            return (
                _numbers(sums.rss, sums.cache, state.faults, state.major_faults),
                _numbers(sums.total_rss, sums.total_cache, state.total_faults, state.total_major_faults),
            )
        machine = group.hierarchy.last.memory
        total = dict.fromkeys(_STAT, 0)
        # What the machine does not count itself is what its processes were seen to do.
        total.update(pgfault=state.total_faults, pgmajfault=state.total_major_faults)
        total.update({name: machine[field] for name, field in _MACHINE.items() if field in machine})
        total["cache"] = machine.get("Cached", 0) + machine.get("Buffers", 0)
        total["swap"] = self._swap(group)
        tops = [table.get(child, _NOTHING) for child in group.children.values()]
        below = _numbers(
            sum(sums.total_rss for sums in tops),
            sum(sums.total_cache for sums in tops),
            state.total_faults - state.faults,
            state.total_major_faults - state.major_faults,
        )
        return {name: max(0, total[name] - below[name]) for name in _STAT}, total

    def _usage(self, group: Node) -> int:
        group.hierarchy.refresh()
        if group.parent is not None:
            return self._table(group.hierarchy).get(group, _NOTHING).usage
        machine = group.hierarchy.last.memory
        return sum(machine.get(name, 0) for name in ("Cached", "Buffers", "AnonPages"))

    def _swap(self, group: Node) -> int:
        machine = group.hierarchy.last.memory
        if group.parent is not None:
            return 0
        return max(0, machine.get("SwapTotal", 0) - machine.get("SwapFree", 0))

    def _peak(self, group: Node) -> str:
        group.state.peak = max(group.state.peak, self._usage(group))
        return f"{group.state.peak}\n"

    def _reset_peak(self, group: Node, _text: str) -> None:
        group.state.peak = self._usage(group)

    def _memsw_peak(self, group: Node) -> str:
        usage = self._usage(group) + self._swap(group)
        group.state.memsw_peak = max(group.state.memsw_peak, usage)
        return f"{group.state.memsw_peak}\n"

    def _reset_memsw_peak(self, group: Node, _text: str) -> None:
        group.state.memsw_peak = self._usage(group) + self._swap(group)

    def _stat(self, group: Node) -> str:
        own, total = self._stats(group)
        limit = min(above.state.limit for above in group.ancestry())
        memsw = min(above.state.memsw_limit for above in group.ancestry())
        return (
            "".join([f"{name} {own[name]}\n" for name in _STAT])
            + f"hierarchical_memory_limit {limit}\nhierarchical_memsw_limit {memsw}\n"
            + "".join([f"total_{name} {total[name]}\n" for name in _STAT])
        )

    def _numa(self, group: Node) -> str:
        mems = sorted(group.hierarchy.accounting.mems)
        # Which node memory is on cannot be known: all of it is called the first's.
        others = "".join(f" N{node}=0" for node in mems[1:])
        lines = []
        for prefix, numbers in zip(("", "hierarchical_"), self._stats(group), strict=True):
            counts = {
                "total": numbers["cache"] + numbers["rss"],
                # Shared memory is cache as well, but on the lists of anonymous pages.
                "file": max(0, numbers["cache"] - numbers["shmem"]),
                "anon": numbers["rss"] + numbers["shmem"],
                "unevictable": numbers["unevictable"],
            }
            for name, value in counts.items():
                pages = value // PAGE_SIZE
                lines.append(f"{prefix}{name}={pages} N{min(mems, default=0)}={pages}{others}\n")
        return "".join(lines)

    def _check(self, group: Node, value: int) -> None:
        """Refuse (EBUSY) a limit that memory without a file exceeds: it could not be given back."""
        if value < PAGE_COUNTER_MAX:
            group.hierarchy.refresh()
            if value < self._table(group.hierarchy).get(group, _NOTHING).total_rss:
                fail(errno.EBUSY)

    def _set_limit(self, group: Node, text: str) -> None:
        value = limit_for_children(group, text)
        if value > group.state.memsw_limit:
            fail(errno.EINVAL)
        self._check(group, value)
        group.state.limit = value

    def _set_memsw(self, group: Node, text: str) -> None:
        value = limit_for_children(group, text)
        if value < group.state.limit:
            fail(errno.EINVAL)
        self._check(group, value)
        group.state.memsw_limit = value
