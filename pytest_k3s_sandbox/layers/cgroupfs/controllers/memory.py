"""The memory controller: usage from resident sizes; limits kept and checked, not enforced.

Sources: ``mm/memcontrol-v1.c``, ``Documentation/admin-guide/cgroup-v1/memory.rst``.

A group's ``rss`` is the resident memory of its processes that no file backs. Its ``cache``
is what files back of it, counted once for each process that maps it (the kernel counts a page
once, for its first user), and is called ``inactive_file``, so that it never makes a working
set larger. The root's numbers are the machine's, from ``/proc/meminfo``. Peaks are those that
samples saw. Kernel memory, swap, page-in counts and dirty pages of a group cannot be known: 0.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pytest_k3s_sandbox.layers.cgroupfs.controllers.base import constant, ignore, kept
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
_EVENT = re.compile(r"[0-9]+ [0-9]+(?:\s.*)?\Z", re.DOTALL)

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

_MEMINFO = {
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
}


@dataclass
class MemoryState:
    """What one group keeps; bytes, and counts of its own processes' faults."""

    limit: int = PAGE_COUNTER_MAX
    memsw_limit: int = PAGE_COUNTER_MAX
    soft_limit: int = PAGE_COUNTER_MAX
    tcp_limit: int = PAGE_COUNTER_MAX
    peak: int = 0
    swappiness: int = 60
    oom_kill_disable: int = 0
    faults: int = 0
    major_faults: int = 0


Node = Group[MemoryState]
Numbers = dict[str, int]


def _own(group: Node) -> Numbers:
    """Return the lines of memory.stat for a group's own processes."""
    numbers = dict.fromkeys(_STAT, 0)
    processes = group.hierarchy.last.processes
    for pid in group.processes():
        numbers["rss"] += processes[pid].anonymous
        numbers["cache"] += processes[pid].mapped
    numbers["inactive_anon"] = numbers["rss"]
    numbers["mapped_file"] = numbers["inactive_file"] = numbers["cache"]
    numbers["pgfault"], numbers["pgmajfault"] = group.state.faults, group.state.major_faults
    return numbers


def _below(group: Node) -> Numbers:
    """Return the sums over a group's descendants."""
    numbers = dict.fromkeys(_STAT, 0)
    for child in group.children.values():
        for member in child.subtree():
            for name, value in _own(member).items():
                numbers[name] += value
    return numbers


def _stats(group: Node) -> tuple[Numbers, Numbers]:
    """Return a group's own numbers and those with everything below."""
    below = _below(group)
    if group.parent is not None:
        own = _own(group)
        return own, {name: own[name] + below[name] for name in _STAT}
    machine = group.hierarchy.last.memory
    total = dict.fromkeys(_STAT, 0)
    total.update({name: machine.get(field, 0) for name, field in _MEMINFO.items()})
    total["cache"] = machine.get("Cached", 0) + machine.get("Buffers", 0)
    total["swap"] = max(0, machine.get("SwapTotal", 0) - machine.get("SwapFree", 0))
    total["pgfault"] = below["pgfault"] + group.state.faults
    total["pgmajfault"] = below["pgmajfault"] + group.state.major_faults
    return {name: max(0, total[name] - below[name]) for name in _STAT}, total


def _usage(group: Node) -> int:
    if group.parent is None:
        total = _stats(group)[1]
        return total["cache"] + total["rss"]
    processes = group.hierarchy.last.processes
    members = [processes[pid] for below in group.subtree() for pid in below.pids]
    return sum(process.anonymous + process.mapped for process in members)


def _show_usage(group: Node) -> str:
    group.hierarchy.refresh()
    usage = _usage(group)
    group.state.peak = max(group.state.peak, usage)
    return f"{usage}\n"


def _show_peak(group: Node) -> str:
    _show_usage(group)
    return f"{group.state.peak}\n"


def _reset_peak(group: Node, _text: str) -> None:
    group.hierarchy.refresh()
    group.state.peak = _usage(group)


def _show_stat(group: Node) -> str:
    group.hierarchy.refresh()
    own, total = _stats(group)
    limit = min(above.state.limit for above in group.ancestry())
    memsw = min(above.state.memsw_limit for above in group.ancestry())
    return (
        "".join(f"{name} {own[name]}\n" for name in _STAT)
        + f"hierarchical_memory_limit {limit}\nhierarchical_memsw_limit {memsw}\n"
        + "".join(f"total_{name} {total[name]}\n" for name in _STAT)
    )


def _show_numa(group: Node) -> str:
    group.hierarchy.refresh()
    node = min(group.hierarchy.accounting.mems, default=0)
    lines = []
    for prefix, numbers in zip(("", "hierarchical_"), _stats(group), strict=True):
        # Shared memory is cache as well, but on the lists of anonymous pages.
        file = max(0, numbers["cache"] - numbers["shmem"])
        counts = {
            "total": numbers["cache"] + numbers["rss"],
            "file": file,
            "anon": numbers["rss"] + numbers["shmem"],
            "unevictable": numbers["unevictable"],
        }
        for name, value in counts.items():
            pages = value // PAGE_SIZE
            others = "".join(f" N{n}=0" for n in sorted(group.hierarchy.accounting.mems) if n != node)
            lines.append(f"{prefix}{name}={pages} N{node}={pages}{others}\n")
    return "".join(lines)


def _check(group: Node, value: int) -> None:
    """Refuse a limit for the root (EINVAL) and one that memory without a file exceeds (EBUSY)."""
    if group.parent is None:
        fail(errno.EINVAL)
    if value < PAGE_COUNTER_MAX:
        group.hierarchy.refresh()
        if value < _stats(group)[1]["rss"]:
            fail(errno.EBUSY)


def _limit(group: Node, text: str) -> None:
    value = parse_memory(text)
    _check(group, 0 if group.parent is None else PAGE_COUNTER_MAX)
    if value > group.state.memsw_limit:
        fail(errno.EINVAL)
    _check(group, value)
    group.state.limit = value


def _memsw(group: Node, text: str) -> None:
    value = parse_memory(text)
    _check(group, 0 if group.parent is None else PAGE_COUNTER_MAX)
    if value < group.state.limit:
        fail(errno.EINVAL)
    _check(group, value)
    group.state.memsw_limit = value


def _plain_limit(attribute: str) -> Callable[[Node, str], None]:
    def write(group: Node, text: str) -> None:
        setattr(group.state, attribute, parse_memory(text))

    return write


def _tcp(group: Node, text: str) -> None:
    value = parse_memory(text)
    if group.parent is None:
        fail(errno.EINVAL)
    group.state.tcp_limit = value


def _kmem(group: Node, text: str) -> None:
    parse_memory(text)
    if group.parent is None:
        fail(errno.EINVAL)


def _hierarchical(_group: Node, text: str) -> None:
    if parse_u64(text) != 1:
        fail(errno.EINVAL)


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


def _event(_group: Node, text: str) -> None:
    """Take a registration (``event_fd control_fd arguments``); its event never comes."""
    if _EVENT.match(text.strip()) is None:
        fail(errno.EINVAL)


_ZERO: File[MemoryState] = File(lambda _: "0\n", ignore)


class Memory:
    """The controller."""

    name = "memory"
    files: Mapping[str, File[MemoryState]] = {
        "cgroup.event_control": File(None, _event),
        "memory.failcnt": _ZERO,
        "memory.force_empty": File(None, _empty),
        "memory.kmem.failcnt": _ZERO,
        "memory.kmem.limit_in_bytes": File(lambda _: f"{PAGE_COUNTER_MAX}\n", _kmem),
        "memory.kmem.max_usage_in_bytes": _ZERO,
        "memory.kmem.slabinfo": constant(""),
        "memory.kmem.tcp.failcnt": _ZERO,
        "memory.kmem.tcp.limit_in_bytes": File(lambda g: f"{g.state.tcp_limit}\n", _tcp),
        "memory.kmem.tcp.max_usage_in_bytes": _ZERO,
        "memory.kmem.tcp.usage_in_bytes": constant("0\n"),
        "memory.kmem.usage_in_bytes": constant("0\n"),
        "memory.limit_in_bytes": File(lambda g: f"{g.state.limit}\n", _limit),
        "memory.max_usage_in_bytes": File(_show_peak, _reset_peak),
        "memory.memsw.failcnt": _ZERO,
        "memory.memsw.limit_in_bytes": File(lambda g: f"{g.state.memsw_limit}\n", _memsw),
        "memory.memsw.max_usage_in_bytes": File(_show_peak, _reset_peak),
        "memory.memsw.usage_in_bytes": File(_show_usage),
        "memory.move_charge_at_immigrate": File(lambda _: "0\n", _immigrate),
        "memory.numa_stat": File(_show_numa),
        "memory.oom_control": File(
            lambda g: f"oom_kill_disable {g.state.oom_kill_disable}\nunder_oom 0\noom_kill 0\n", _oom
        ),
        "memory.pressure_level": File(readable=True),
        "memory.soft_limit_in_bytes": File(lambda g: f"{g.state.soft_limit}\n", _plain_limit("soft_limit")),
        "memory.stat": File(_show_stat),
        "memory.swappiness": kept("swappiness", valid=lambda v: v <= _MAX_SWAPPINESS),
        "memory.usage_in_bytes": File(_show_usage),
        "memory.use_hierarchy": File(lambda _: "1\n", _hierarchical),
    }

    def root(self) -> MemoryState:
        """Return the root's state."""
        return MemoryState()

    def child(self, parent: Node, *, clone: bool) -> MemoryState:  # noqa: ARG002  # the hook's signature
        """Return the state of a new group, with what it inherits."""
        state = MemoryState(swappiness=parent.state.swappiness)
        state.oom_kill_disable = parent.state.oom_kill_disable
        return state

    def attach(self, group: Node, process: Process) -> None:
        """Accept the process; its memory counts where it is."""

    def sampled(self, hierarchy: Hierarchy[MemoryState], change: Change) -> None:
        """Count page faults for the groups that took them, and note peaks."""
        for pid, process in change.new.processes.items():
            was = change.before(process)
            if process is was:
                continue
            state = hierarchy.members.get(pid, hierarchy.root).state
            state.faults += max(0, process.faults - (was.faults if was else 0))
            state.major_faults += max(0, process.major_faults - (was.major_faults if was else 0))
        populated = {above for below in hierarchy.members.values() for above in below.ancestry()}
        for group in populated - {hierarchy.root}:
            group.state.peak = max(group.state.peak, _usage(group))
