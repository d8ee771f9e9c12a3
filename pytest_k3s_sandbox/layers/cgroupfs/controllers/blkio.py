"""The blkio controller: keeps weights and throttles without enforcing them; its counters stay 0.

Sources: ``block/blk-cgroup.c``, ``block/blk-throttle.c``, ``block/bfq-cgroup.c``,
``Documentation/admin-guide/cgroup-v1/blkio-controller.rst``. Only the kernel knows the I/O of a process by
device.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_k3s_sandbox.layers.cgroupfs.controllers.base import Passive, constant, kept
from pytest_k3s_sandbox.layers.cgroupfs.group import File, Group
from pytest_k3s_sandbox.layers.cgroupfs.values import SPACE, U32_MAX, U64_MAX, digits, fail, parse_u64, strip

_DEVICE = re.compile(rf"[{SPACE}]*([0-9]+):([0-9]+)(?=[{SPACE}])")  # sscanf("%u:%u"), then white space
_WEIGHTS = range(1, 1001)  # BFQ_MIN_WEIGHT to BFQ_MAX_WEIGHT


@dataclass
class BlkioState:
    """The state of a group: its weight, and throttles by file and device."""

    weight: int = 100
    devices: dict[str, dict[str, int]] = field(default_factory=dict)


Node = Group[BlkioState]


def _device(group: Node, text: str) -> tuple[str, str]:
    """Parse ``major:minor`` at the start; the device must be a disk (``blkg_conf_open_bdev``)."""
    found = _DEVICE.match(text)
    if found is None:
        fail(errno.EINVAL)
    device = f"{int(found[1])}:{int(found[2])}"
    if not group.hierarchy.accounting.disk(device):
        fail(errno.ENODEV)
    return device, text[found.end() :].lstrip(SPACE)


def _throttle(name: str, *, most: int) -> File[BlkioState]:
    """Return a file with a rate for each device; 0 removes a rate (``tg_set_conf``)."""

    def write(group: Node, text: str) -> None:
        device, rest = _device(group, text)
        value, _ = digits(rest, 10)
        if value is None:
            fail(errno.EINVAL)
        # The kernel drops the bits above 64. If 0 remains, it is a rate.
        value = value & most if value & U64_MAX else most
        entries = group.state.devices.setdefault(name, {})
        if value == most:
            entries.pop(device, None)
        else:
            entries[device] = value

    def read(group: Node) -> str:
        return "".join(f"{device} {value}\n" for device, value in group.state.devices.get(name, {}).items())

    return File(read, write)


def _set_weight(group: Node, value: int) -> None:
    if value not in _WEIGHTS:
        fail(errno.ERANGE)
    group.state.weight = value


def _weight_device(group: Node, text: str) -> None:
    """Take ``WEIGHT``, ``default WEIGHT`` or a device's weight (``bfq_io_set_weight``)."""
    text = strip(text)
    value, rest = digits(text)
    if not rest:
        _set_weight(group, value or 0)
        return
    value, _ = digits(text.removeprefix("default").lstrip(SPACE), 10)
    if text.startswith("default") and value is not None:
        _set_weight(group, value)
        return
    _device(group, text)
    fail(errno.EOPNOTSUPP)  # no disk has the BFQ scheduler here


def _reset(_group: Node, text: str) -> None:
    parse_u64(text)


_COUNTERS = ("bfq.io_service_bytes", "bfq.io_serviced", "throttle.io_service_bytes", "throttle.io_serviced")
_THROTTLES = {"read_bps": U64_MAX, "read_iops": U32_MAX, "write_bps": U64_MAX, "write_iops": U32_MAX}


class Blkio(Passive[BlkioState]):
    """The controller."""

    name = "blkio"
    files: Mapping[str, File[BlkioState]] = {
        **{f"blkio.{name}{end}": constant("Total 0\n") for name in _COUNTERS for end in ("", "_recursive")},
        **{
            f"blkio.throttle.{name}_device": _throttle(f"blkio.throttle.{name}_device", most=most)
            for name, most in _THROTTLES.items()
        },
        "blkio.reset_stats": File(None, _reset),
        "blkio.bfq.weight": kept("weight", valid=_WEIGHTS.__contains__, on_root=False, error=errno.ERANGE),
        "blkio.bfq.weight_device": File(
            lambda g: f"default {g.state.weight}\n", _weight_device, on_root=False
        ),
    }

    def root(self) -> BlkioState:
        """Return the root's state."""
        return BlkioState()

    def child(self, _parent: Node) -> BlkioState:
        """Return the state of a new group."""
        return BlkioState()
