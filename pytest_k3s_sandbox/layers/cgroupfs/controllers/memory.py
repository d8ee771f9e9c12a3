"""The memory controller: usage from resident sizes; limits are kept and checked, not enforced.

Sources: ``mm/memcontrol-v1.c``, ``Documentation/admin-guide/cgroup-v1/memory.rst``.

A group's ``rss`` is the anonymous resident memory of its processes. Its ``cache`` is their file-backed
memory. Each process that maps a page counts it, while the kernel charges a page once, to its first user. All
cache is ``inactive_file``, so that it does not enlarge a working set. The root has the machine's numbers,
from ``/proc/meminfo`` and ``/proc/vmstat``. Peaks are those of samples. Kernel memory, swap, page-in counts
and dirty pages of a group are unknown: 0. If the kernel has the controller, as gVisor does, its usage
applies, and ``cache`` is that usage less ``rss``.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from pytest_k3s_sandbox.layers.cgroupfs.controllers.base import constant
from pytest_k3s_sandbox.layers.cgroupfs.controllers.limits import limit_for_children, zero
from pytest_k3s_sandbox.layers.cgroupfs.controllers.memory_events import register
from pytest_k3s_sandbox.layers.cgroupfs.controllers.memory_state import (
    MACHINE,
    NOTHING,
    STAT,
    MemoryState,
    Node,
    Numbers,
    Resident,
    numbers_of,
    resident,
)
from pytest_k3s_sandbox.layers.cgroupfs.group import File, HierarchyView
from pytest_k3s_sandbox.layers.cgroupfs.sample import Change, Process
from pytest_k3s_sandbox.layers.cgroupfs.values import (
    PAGE_COUNTER_MAX,
    PAGE_SIZE,
    fail,
    parse_memory,
    parse_u64,
)

_MAX_SWAPPINESS = 200


def _kmem(group: Node, text: str) -> None:
    """Accept a deprecated limit, which the kernel ignores, too."""
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
    return f"{60 if found is None else found}\n"  # Linux' default


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
        """Create the files, which share one table of sums for each sample."""
        self._made_of: tuple[object, int] = (None, -1)
        self._sums: dict[Node, Resident] = {}
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

    def child(self, parent: Node) -> MemoryState:
        """Return the state of a new group, with inherited settings."""
        return MemoryState(
            swappiness=int(_swappiness(parent)), oom_kill_disable=parent.state.oom_kill_disable
        )

    def attach(self, group: Node, process: Process) -> None:
        """Accept the process; its memory counts for its current group."""

    def removed(self, group: Node) -> None:
        """Signal the listeners of events."""
        if group.state.listeners is not None:
            group.state.listeners.removed()

    def sampled(self, hierarchy: HierarchyView[MemoryState], change: Change) -> None:
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
            # The kernel's own group costs a read, so only groups with listeners are read.
            if hierarchy.backing is None or state.listeners is not None:
                usage = sums.usage if hierarchy.backing is None else self._usage(group)
                state.peak = max(state.peak, usage)
                state.memsw_peak = max(state.memsw_peak, usage)
                if state.listeners is not None:
                    state.listeners.used(usage)

    def _table(self, hierarchy: HierarchyView[MemoryState]) -> dict[Node, Resident]:
        made_of = hierarchy.last, hierarchy.version
        if self._made_of[0] is not made_of[0] or self._made_of[1] != made_of[1]:
            self._sums, self._made_of = resident(hierarchy), made_of
        return self._sums

    def _stats(self, group: Node) -> tuple[Numbers, Numbers]:
        """Return a group's own numbers, and its sums with the groups below."""
        group.hierarchy.refresh()
        table = self._table(group.hierarchy)
        state = group.state
        if group.parent is not None:
            sums = table.get(group, NOTHING)
            rss, cache = sums.total_rss, sums.total_cache
            if group.hierarchy.backing is not None:
                usage = self._usage(group)
                rss = min(rss, usage)
                cache = usage - rss
            return (
                numbers_of(min(sums.rss, rss), min(sums.cache, cache), state.faults, state.major_faults)
                if group.children
                else numbers_of(rss, cache, state.faults, state.major_faults),
                numbers_of(rss, cache, state.total_faults, state.total_major_faults),
            )
        machine = group.hierarchy.last.memory
        total = dict.fromkeys(STAT, 0)
        # For what the machine does not count, the sums over processes apply.
        total.update(pgfault=state.total_faults, pgmajfault=state.total_major_faults)
        total.update({name: machine[field] for name, field in MACHINE.items() if field in machine})
        total["cache"] = machine.get("Cached", 0) + machine.get("Buffers", 0)
        total["swap"] = self._swap(group)
        tops = [table.get(child, NOTHING) for child in group.children.values()]
        below = numbers_of(
            sum(sums.total_rss for sums in tops),
            sum(sums.total_cache for sums in tops),
            state.total_faults - state.faults,
            state.total_major_faults - state.major_faults,
        )
        return {name: max(0, total[name] - below[name]) for name in STAT}, total

    def _usage(self, group: Node) -> int:
        group.hierarchy.refresh()
        if group.parent is not None:
            return self._counted(group)
        machine = group.hierarchy.last.memory
        return sum(machine.get(name, 0) for name in ("Cached", "Buffers", "AnonPages"))

    def _counted(self, group: Node) -> int:
        """Return the usage of the kernel's own group, read once a sample, or else the sum over processes."""
        hierarchy, state = group.hierarchy, group.state
        if hierarchy.backing is not None and state.taken_at is not hierarchy.last:
            state.taken_at = hierarchy.last
            found = hierarchy.backing.numbers(group.path, "memory.usage_in_bytes")
            state.taken = found[0] if found else None
            state.peak = max(state.peak, state.taken or 0)
            state.memsw_peak = max(state.memsw_peak, state.taken or 0)
        if state.taken is not None:
            return state.taken
        return self._table(hierarchy).get(group, NOTHING).usage

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
            "".join([f"{name} {own[name]}\n" for name in STAT])
            + f"hierarchical_memory_limit {limit}\nhierarchical_memsw_limit {memsw}\n"
            + "".join([f"total_{name} {total[name]}\n" for name in STAT])
        )

    def _numa(self, group: Node) -> str:
        mems = sorted(group.hierarchy.accounting.mems)
        # The node of memory is unknown: all is attributed to the first.
        others = "".join(f" N{node}=0" for node in mems[1:])
        lines = []
        for prefix, numbers in zip(("", "hierarchical_"), self._stats(group), strict=True):
            counts = {
                "total": numbers["cache"] + numbers["rss"],
                # Shared memory is cache, but on the lists of anonymous pages.
                "file": max(0, numbers["cache"] - numbers["shmem"]),
                "anon": numbers["rss"] + numbers["shmem"],
                "unevictable": numbers["unevictable"],
            }
            for name, value in counts.items():
                pages = value // PAGE_SIZE
                lines.append(f"{prefix}{name}={pages} N{min(mems, default=0)}={pages}{others}\n")
        return "".join(lines)

    def _check(self, group: Node, value: int) -> None:
        """Refuse (EBUSY) a limit below the anonymous memory, which cannot be reclaimed."""
        if value < PAGE_COUNTER_MAX:
            group.hierarchy.refresh()
            if value < self._table(group.hierarchy).get(group, NOTHING).total_rss:
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
