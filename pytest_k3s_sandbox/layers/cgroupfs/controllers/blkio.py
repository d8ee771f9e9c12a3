"""The blkio controller: weights and throttles, kept, not enforced; its counters stay 0.

Sources: ``block/blk-throttle.c``, ``block/bfq-cgroup.c``,
``Documentation/admin-guide/cgroup-v1/blkio-controller.rst``. Which process did what
input and output on which device cannot be known from outside the kernel.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_k3s_sandbox.layers.cgroupfs.controllers.base import Passive, constant, ignore, kept
from pytest_k3s_sandbox.layers.cgroupfs.hierarchy import File, Group
from pytest_k3s_sandbox.layers.cgroupfs.values import fail, parse_u64

_DEVICE = re.compile(r"\s*([0-9]+):([0-9]+)\s+(\S+)\s*\Z")
_WEIGHTS = (1, 1000)  # BFQ_MIN_WEIGHT, BFQ_MAX_WEIGHT


@dataclass
class BlkioState:
    """What one group keeps: its weight, and numbers by file and device."""

    weight: int = 100
    devices: dict[str, dict[str, int]] = field(default_factory=dict)


Node = Group[BlkioState]


def _device(name: str, *, weight: bool = False) -> File[BlkioState]:
    """Return a file with a number for each device; 0 removes the device's."""

    def write(group: Node, text: str) -> None:
        found = _DEVICE.match(text)
        if found is None:
            fail(errno.EINVAL)
        value = parse_u64(found[3])
        if weight and value and not _WEIGHTS[0] <= value <= _WEIGHTS[1]:
            fail(errno.ERANGE)
        entries = group.state.devices.setdefault(name, {})
        device = f"{int(found[1])}:{int(found[2])}"
        if value:
            entries[device] = value
        else:
            entries.pop(device, None)

    def read(group: Node) -> str:
        return "".join(f"{device} {value}\n" for device, value in group.state.devices.get(name, {}).items())

    return File(read, write, on_root=not weight)


def _reset(group: Node, text: str) -> None:
    parse_u64(text)
    ignore(group, text)


_COUNTERS = ("bfq.io_service_bytes", "bfq.io_serviced", "throttle.io_service_bytes", "throttle.io_serviced")
_THROTTLES = ("read_bps", "read_iops", "write_bps", "write_iops")


class Blkio(Passive[BlkioState]):
    """The controller."""

    name = "blkio"
    files: Mapping[str, File[BlkioState]] = {
        **{f"blkio.{name}{end}": constant("Total 0\n") for name in _COUNTERS for end in ("", "_recursive")},
        **{f"blkio.throttle.{name}_device": _device(f"blkio.throttle.{name}_device") for name in _THROTTLES},
        "blkio.reset_stats": File(None, _reset),
        "blkio.bfq.weight": kept(
            "weight", valid=lambda v: _WEIGHTS[0] <= v <= _WEIGHTS[1], on_root=False, error=errno.ERANGE
        ),
        "blkio.bfq.weight_device": _device("blkio.bfq.weight_device", weight=True),
    }

    def root(self) -> BlkioState:
        """Return the root's state."""
        return BlkioState()

    def child(self, parent: Node, *, clone: bool) -> BlkioState:  # noqa: ARG002  # the hook's signature
        """Return the state of a new group."""
        return BlkioState()
