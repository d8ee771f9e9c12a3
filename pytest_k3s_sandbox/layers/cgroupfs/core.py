"""The files that every group of every hierarchy has.

Source: ``kernel/cgroup/cgroup-v1.c`` (cgroup1_base_files),
``Documentation/admin-guide/cgroup-v1/cgroups.rst``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

from pytest_k3s_sandbox.layers.cgroupfs.group import File, Group
from pytest_k3s_sandbox.layers.cgroupfs.values import fail, parse_s64, parse_u64, strip

S = TypeVar("S")

_MAX_AGENT = 4095  # PATH_MAX without its NUL
_MAX_PID = 2**31 - 1


def _procs(group: Group[S]) -> str:
    listed = group.hierarchy.listed(group, "cgroup.procs")
    if listed is not None:
        return "".join(f"{pid}\n" for pid in listed)
    group.hierarchy.census(group)
    processes = group.hierarchy.last.processes
    if group.hierarchy.last.apart:
        return "".join(f"{pid}\n" for pid in sorted({processes[pid].process for pid in group.processes()}))
    return "".join(f"{pid}\n" for pid in sorted(group.processes()))


def _tasks(group: Group[S]) -> str:
    listed = group.hierarchy.listed(group, "tasks")
    if listed is not None:
        return "".join(f"{tid}\n" for tid in listed)
    group.hierarchy.census(group)
    apart, threads = group.hierarchy.last.apart, group.hierarchy.accounting.threads
    tids: set[int] = set()
    for pid in group.processes():
        tids.update([pid] if pid in apart else (tid for tid in threads(pid) if tid not in apart))
    return "".join(f"{tid}\n" for tid in sorted(tids))


def _attach(*, whole: bool) -> Callable[[Group[S], str], None]:
    def write(group: Group[S], text: str) -> None:
        try:
            tid = parse_s64(strip(text))
        except OSError:
            tid = -1  # a number with too many digits is EINVAL here, too
        if not 0 <= tid <= _MAX_PID:
            fail(errno.EINVAL)
        group.hierarchy.attach(group, tid, whole=whole)

    return write


def _clone(group: Group[S], text: str) -> None:
    group.clone_children = bool(parse_u64(text))


def _notify(group: Group[S], text: str) -> None:
    group.notify_on_release = bool(parse_u64(text))


def _agent(group: Group[S], text: str) -> None:
    group.hierarchy.release_agent = strip(text)


def core_files() -> dict[str, File[S]]:
    """Return the files that every group has (``cgroup1_base_files``)."""
    return {
        "cgroup.procs": File(_procs, _attach(whole=True)),
        "cgroup.clone_children": File(lambda g: f"{int(g.clone_children)}\n", _clone),
        "cgroup.sane_behavior": File(lambda _: "0\n", on_child=False),
        "tasks": File(_tasks, _attach(whole=False)),
        "notify_on_release": File(lambda g: f"{int(g.notify_on_release)}\n", _notify),
        "release_agent": File(
            lambda g: f"{g.hierarchy.release_agent}\n", _agent, on_child=False, longest=_MAX_AGENT
        ),
    }
