"""The net_cls and net_prio controllers: keep marks for network traffic without marking packets.

Sources: ``net/core/netclassid_cgroup.c``, ``net/core/netprio_cgroup.c``,
``Documentation/admin-guide/cgroup-v1/net_cls.rst`` and ``net_prio.rst``.
"""

from __future__ import annotations

import errno
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_k3s_sandbox.layers.cgroupfs.controllers.base import Passive
from pytest_k3s_sandbox.layers.cgroupfs.group import File, Group
from pytest_k3s_sandbox.layers.cgroupfs.values import U32_MAX, fail, parse_u64

_PRIORITY = re.compile(r"\s*(\S{1,16})\s*([0-9]+)")  # sscanf("%16s %u"); IFNAMSIZ is 16


@dataclass
class NetClsState:
    """The state of a group: its class, as in tc(8)."""

    classid: int = 0


@dataclass
class NetPrioState:
    """The state of a group: its number, and priorities by interface."""

    index: int = 1
    priorities: dict[str, int] = field(default_factory=dict)


def _classid(group: Group[NetClsState], text: str) -> None:
    group.state.classid = parse_u64(text) & U32_MAX


def _priorities(group: Group[NetPrioState]) -> str:
    names = group.hierarchy.accounting.interfaces()
    return "".join(f"{name} {group.state.priorities.get(name, 0)}\n" for name in names)


def _priority(group: Group[NetPrioState], text: str) -> None:
    found = _PRIORITY.match(text)
    if found is None:
        fail(errno.EINVAL)
    if found[1] not in group.hierarchy.accounting.interfaces():
        fail(errno.ENODEV)
    group.state.priorities[found[1]] = int(found[2]) & U32_MAX


class NetCls(Passive[NetClsState]):
    """The net_cls controller."""

    name = "net_cls"
    files: Mapping[str, File[NetClsState]] = {
        "net_cls.classid": File(lambda g: f"{g.state.classid}\n", _classid)
    }

    def root(self) -> NetClsState:
        """Return the root's state."""
        return NetClsState()

    def child(self, parent: Group[NetClsState]) -> NetClsState:
        """Return the state of a new group: its parent's class."""
        return NetClsState(parent.state.classid)


class NetPrio(Passive[NetPrioState]):
    """The net_prio controller."""

    name = "net_prio"
    files: Mapping[str, File[NetPrioState]] = {
        "net_prio.ifpriomap": File(_priorities, _priority),
        "net_prio.prioidx": File(lambda g: f"{g.state.index}\n"),
    }

    def __init__(self) -> None:
        """Begin to number groups."""
        self._numbers = itertools.count(1)

    def root(self) -> NetPrioState:
        """Return the root's state."""
        return NetPrioState(next(self._numbers))

    def child(self, parent: Group[NetPrioState]) -> NetPrioState:
        """Return the state of a new group: its parent's priorities."""
        return NetPrioState(next(self._numbers), dict(parent.state.priorities))
