"""Notifications of the memory controller: ``cgroup.event_control`` and its eventfds.

Source: ``mm/memcontrol-v1.c`` (memcg_write_event_control), eventfd(2). Each sample is compared with the usage
thresholds. Out-of-memory and pressure events never occur, because limits are not enforced. If the kernel does
not give one process another's eventfd, registrations are only checked.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from pytest_k3s_sandbox.layers.cgroupfs.controllers.memory_state import Listeners, MemoryState, Threshold
from pytest_k3s_sandbox.layers.cgroupfs.group import Group
from pytest_k3s_sandbox.layers.cgroupfs.values import digits, fail, parse_memory, strip

_THRESHOLDS = ("memory.usage_in_bytes", "memory.memsw.usage_in_bytes")
_LEVELS = {"low", "medium", "critical"}
_MODES = {"default", "hierarchy", "local"}


def _descriptors(text: str) -> tuple[int, int, str]:
    """Split ``eventfd controlfd arguments``."""
    first, rest = digits(strip(text), 10)
    if not rest.startswith(" "):
        fail(errno.EINVAL)
    second, rest = digits(rest[1:], 10)
    if rest and not rest.startswith(" "):
        fail(errno.EINVAL)
    return first or 0, second or 0, rest[1:]


def _check_arguments(name: str, arguments: str) -> int:
    """Refuse (EINVAL) wrong arguments, and return a threshold in bytes."""
    if name in _THRESHOLDS:
        return parse_memory(arguments)
    if name == "memory.pressure_level":
        level, _, mode = arguments.partition(",")
        if level not in _LEVELS or (mode or "default") not in _MODES:
            fail(errno.EINVAL)
    elif name != "memory.oom_control":
        fail(errno.EINVAL)
    return 0


def register(group: Group[MemoryState], text: str, usage: Callable[[], int]) -> None:
    """Register a listener.

    Args:
        group: The group whose events to signal.
        text: ``eventfd controlfd arguments``; the descriptors are the writer's.
        usage: Returns the group's usage.

    Raises:
        OSError: EINVAL or EBADF, as the kernel gives them.
    """
    event, control, arguments = _descriptors(text)
    hierarchy = group.hierarchy
    accounting, writer = hierarchy.accounting, hierarchy.writer
    opened = accounting.opened(writer, event), accounting.opened(writer, control)
    if opened[0] is None:
        fail(errno.EBADF)
    if "eventfd" not in opened[0]:
        fail(errno.EINVAL)
    if opened[1] is None:
        fail(errno.EBADF)
    folder, _, name = opened[1].rpartition("/")
    if not folder.endswith(group.path.rstrip("/")):
        fail(errno.EINVAL)
    threshold = _check_arguments(name, arguments)
    signal = accounting.signaller(writer, event)
    if signal is None:
        return
    if group.state.listeners is None:
        group.state.listeners = Listeners()
    if name in _THRESHOLDS:
        group.state.listeners.thresholds.append(Threshold(threshold, signal, above=usage() >= threshold))
    else:
        group.state.listeners.others.append(signal)
