"""The memory controller's state of a group, and its sums over processes.

Source: ``mm/memcontrol-v1.c`` (memcg1_stat_format), proc_meminfo(5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pytest_k3s_sandbox.layers.cgroupfs.group import Group, HierarchyView
from pytest_k3s_sandbox.layers.cgroupfs.sample import Sample
from pytest_k3s_sandbox.layers.cgroupfs.values import PAGE_COUNTER_MAX

STAT = (
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
"""The lines of memory.stat, in its order."""

MACHINE = {
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
"""The fields of /proc/meminfo and /proc/vmstat with the machine's values."""


@dataclass(slots=True)
class Threshold:
    """A usage with a listener: crossing it signals, in both directions."""

    usage: int
    signal: Callable[[], None]
    above: bool


@dataclass(slots=True)
class Listeners:
    """The event listeners of one group."""

    thresholds: list[Threshold] = field(default_factory=list)
    others: list[Callable[[], None]] = field(default_factory=list)

    def used(self, usage: int) -> None:
        """Signal the thresholds that a usage crossed."""
        for threshold in self.thresholds:
            above = usage >= threshold.usage
            if above != threshold.above:
                threshold.above = above
                threshold.signal()

    def removed(self) -> None:
        """Signal every listener, as the kernel does when the group goes."""
        for signal in [*self.others, *(threshold.signal for threshold in self.thresholds)]:
            signal()


@dataclass
class MemoryState:
    """The state of a group: bytes, and page faults; ``total_`` counts include the groups below.

    Attributes:
        swappiness: The value that was set; None for the machine's.
        peak: The highest usage since the last reset; ``memsw_peak`` with swap.
        listeners: The listeners of events, None without any.
        taken: The usage of the kernel's own group at the sample ``taken_at``.
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
    taken: int | None = None
    taken_at: Sample | None = None


Node = Group[MemoryState]
Numbers = dict[str, int]


@dataclass(slots=True)
class Resident:
    """Resident bytes of a group's own processes; ``total_`` sums include the groups below."""

    rss: int = 0
    cache: int = 0
    total_rss: int = 0
    total_cache: int = 0

    @property
    def usage(self) -> int:
        """The sum of both totals."""
        return self.total_rss + self.total_cache


NOTHING = Resident()


def resident(hierarchy: HierarchyView[MemoryState]) -> dict[Node, Resident]:
    """Return the sums of each populated group and its ancestors, except the root."""
    result: dict[Node, Resident] = {}
    for pid, group in hierarchy.members.items():
        process = hierarchy.last.processes[pid]
        own = result.setdefault(group, Resident())
        own.rss += process.anonymous
        own.cache += process.mapped
    for group, own in list(result.items()):
        for above in group.ancestry():
            if above.parent is not None:
                total = result.setdefault(above, Resident())
                total.total_rss += own.rss
                total.total_cache += own.cache
    return result


def numbers_of(rss: int, cache: int, faults: int, major_faults: int) -> Numbers:
    """Return the lines of memory.stat for a group."""
    numbers = dict.fromkeys(STAT, 0)
    numbers["rss"] = numbers["inactive_anon"] = rss
    numbers["cache"] = numbers["mapped_file"] = numbers["inactive_file"] = cache
    numbers["pgfault"], numbers["pgmajfault"] = faults, major_faults
    return numbers
