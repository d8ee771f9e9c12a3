"""The hugetlb controller: keeps limits by page size without enforcing them; usage is unknown.

Sources: ``mm/hugetlb_cgroup.c``, ``Documentation/admin-guide/cgroup-v1/hugetlb.rst``. Without huge pages, as
in gVisor, it has no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_k3s_sandbox.layers.cgroupfs.controllers.base import Passive, constant
from pytest_k3s_sandbox.layers.cgroupfs.controllers.limits import limit_for_children, zero
from pytest_k3s_sandbox.layers.cgroupfs.group import File, Group
from pytest_k3s_sandbox.layers.cgroupfs.sample import Accounting
from pytest_k3s_sandbox.layers.cgroupfs.values import PAGE_COUNTER_MAX

_UNITS = ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB"))


@dataclass
class HugetlbState:
    """The state of a group: limits in bytes, by file."""

    limits: dict[str, int] = field(default_factory=dict)


Node = Group[HugetlbState]


def page_name(size: int) -> str:
    """Return a page size as in the files' names (``mem_fmt``), for example ``2MB``."""
    unit, name = next((unit, name) for unit, name in _UNITS if size >= unit or name == "KB")
    return f"{size // unit}{name}"


def _limit(name: str, size: int) -> File[HugetlbState]:
    def write(group: Node, text: str) -> None:
        # Rounded down, as in the kernel; no limit stays unlimited.
        value = limit_for_children(group, text) // size * size
        group.state.limits[name] = value

    return File(lambda g: f"{g.state.limits.get(name, PAGE_COUNTER_MAX)}\n", write)


def _files(size: int, mems: frozenset[int]) -> dict[str, File[HugetlbState]]:
    name = f"hugetlb.{page_name(size)}"
    nodes = "".join(f" N{node}=0" for node in sorted(mems))
    result: dict[str, File[HugetlbState]] = {
        f"{name}.numa_stat": constant(f"total=0{nodes}\nhierarchical_total=0{nodes}\n")
    }
    for part in (name, f"{name}.rsvd"):
        result[f"{part}.failcnt"] = zero()
        result[f"{part}.limit_in_bytes"] = _limit(f"{part}.limit_in_bytes", size)
        result[f"{part}.max_usage_in_bytes"] = zero()
        result[f"{part}.usage_in_bytes"] = constant("0\n")
    return result


class Hugetlb(Passive[HugetlbState]):
    """The controller.

    Args:
        accounting: Knows the sizes of huge pages.
    """

    name = "hugetlb"

    def __init__(self, accounting: Accounting) -> None:
        """Make the files for each size."""
        self.files: Mapping[str, File[HugetlbState]] = {
            name: file
            for size in accounting.huge_pages
            for name, file in _files(size, accounting.mems).items()
        }

    def root(self) -> HugetlbState:
        """Return the root's state."""
        return HugetlbState()

    def child(self, _parent: Node) -> HugetlbState:
        """Return the state of a new group, which inherits nothing."""
        return HugetlbState()
