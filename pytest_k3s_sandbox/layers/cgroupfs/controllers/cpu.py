"""The cpu controller: keeps and checks shares and bandwidth, without enforcing them.

Sources: ``kernel/sched/core.c`` (cpu_legacy_files), ``Documentation/scheduler/sched-bwc.rst``.
Throttling counters stay 0.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_k3s_sandbox.layers.cgroupfs.controllers.base import Passive, constant
from pytest_k3s_sandbox.layers.cgroupfs.group import File, Group
from pytest_k3s_sandbox.layers.cgroupfs.values import U64_MAX, fail, parse_s64, parse_u64

_IDLE_SHARES = 3  # WEIGHT_IDLEPRIO
_SHARES = (2, 1 << 18)  # MIN_SHARES, MAX_SHARES
_MIN_US, _MAX_PERIOD_US = 1_000, 1_000_000  # sched-bwc: periods and quotas are 1 ms to 1 s
_MAX_QUOTA_US = (2**44 - 1) // 1000 * 1000  # max_bw_runtime_us, MAX_BW bits of nanoseconds
_MAX_US = U64_MAX // 1000  # the largest value in nanoseconds
_RATIO_BITS = 20  # BW_SHIFT


@dataclass
class CpuState:
    """The state of a group; times in microseconds, a quota of -1 for none."""

    shares: int = 1024
    idle: int = 0
    period: int = 100_000
    quota: int = -1
    burst: int = 0
    rt_period: int = 1_000_000
    rt_runtime: int = 0


Node = Group[CpuState]


def _not_root(group: Node) -> None:
    if group.parent is None:
        fail(errno.EINVAL)


def _shares(group: Node, text: str) -> None:
    value = parse_u64(text)
    _not_root(group)
    if group.state.idle:
        fail(errno.EINVAL)
    group.state.shares = min(max(value, _SHARES[0]), _SHARES[1])


def _idle(group: Node, text: str) -> None:
    value = parse_s64(text)
    _not_root(group)
    if value not in {0, 1}:
        fail(errno.EINVAL)
    group.state.idle = value


def _ratio(period: int, runtime: int) -> int:
    """Return a share of one CPU as the kernel rounds it (``to_ratio``)."""
    return (runtime << _RATIO_BITS) // period


def _schedulable(group: Node, limit: int | None) -> bool:
    """Return whether every quota below fits the nearest quota above it."""
    own = None if group.state.quota < 0 else _ratio(group.state.period, group.state.quota)
    if own is None:
        own = limit
    elif limit is not None and own > limit:
        return False
    return all(_schedulable(child, own) for child in group.children.values())


def _bandwidth(group: Node, *, period: int, quota: int, burst: int) -> None:
    _not_root(group)
    if not _MIN_US <= period <= _MAX_PERIOD_US or 0 <= quota < _MIN_US or quota > _MAX_QUOTA_US:
        fail(errno.EINVAL)
    if quota >= 0 and (burst > quota or burst + quota > _MAX_QUOTA_US):
        fail(errno.EINVAL)
    state = group.state
    before = state.period, state.quota, state.burst
    state.period, state.quota, state.burst = period, quota, burst
    if not _schedulable(group.hierarchy.root, None):
        state.period, state.quota, state.burst = before
        fail(errno.EINVAL)


def _quota(group: Node, text: str) -> None:
    value = parse_s64(text)
    _bandwidth(group, period=group.state.period, quota=max(value, -1), burst=group.state.burst)


def _period(group: Node, text: str) -> None:
    value = parse_u64(text)
    if value > _MAX_US:
        fail(errno.EINVAL)
    _bandwidth(group, period=value, quota=group.state.quota, burst=group.state.burst)


def _burst(group: Node, text: str) -> None:
    value = parse_u64(text)
    if value > _MAX_US:
        fail(errno.EINVAL)
    _bandwidth(group, period=group.state.period, quota=group.state.quota, burst=value)


def _rt_ratio(group: Node) -> int:
    return _ratio(group.state.rt_period, group.state.rt_runtime)


def _realtime(group: Node, *, period: int, runtime: int) -> None:
    """Check as ``__rt_schedulable``: the shares of siblings add up to their parent's at most."""
    if period == 0 or period > _MAX_US or runtime > period or (group.parent is None and runtime == 0):
        fail(errno.EINVAL)
    wanted = _ratio(period, runtime)
    if sum(map(_rt_ratio, group.children.values())) > wanted:
        fail(errno.EINVAL)
    if group.parent is not None:
        others = sum(_rt_ratio(child) for child in group.parent.children.values() if child is not group)
        if others + wanted > _rt_ratio(group.parent):
            fail(errno.EINVAL)
    group.state.rt_period, group.state.rt_runtime = period, runtime


def _rt_runtime(group: Node, text: str) -> None:
    value = parse_s64(text)
    if value < 0:
        fail(errno.EINVAL)
    _realtime(group, period=group.state.rt_period, runtime=value)


def _rt_period(group: Node, text: str) -> None:
    _realtime(group, period=parse_u64(text), runtime=group.state.rt_runtime)


class Cpu(Passive[CpuState]):
    """The controller."""

    name = "cpu"
    files: Mapping[str, File[CpuState]] = {
        "cpu.cfs_burst_us": File(lambda g: f"{g.state.burst}\n", _burst),
        "cpu.cfs_period_us": File(lambda g: f"{g.state.period}\n", _period),
        "cpu.cfs_quota_us": File(lambda g: f"{g.state.quota}\n", _quota),
        "cpu.idle": File(lambda g: f"{g.state.idle}\n", _idle),
        "cpu.rt_period_us": File(lambda g: f"{g.state.rt_period}\n", _rt_period),
        "cpu.rt_runtime_us": File(lambda g: f"{g.state.rt_runtime}\n", _rt_runtime),
        "cpu.shares": File(lambda g: f"{_IDLE_SHARES if g.state.idle else g.state.shares}\n", _shares),
        "cpu.stat": constant("nr_periods 0\nnr_throttled 0\nthrottled_time 0\nnr_bursts 0\nburst_time 0\n"),
        "cpu.stat.local": constant("throttled_time 0\n"),
    }

    def root(self) -> CpuState:
        """Return the root's state, with the real-time share that Linux gives it."""
        return CpuState(rt_runtime=950_000)

    def child(self, _parent: Node) -> CpuState:
        """Return the state of a new group, which inherits nothing."""
        return CpuState()
