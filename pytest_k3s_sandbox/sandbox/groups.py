"""Control groups of our own, by which the machine limits a sandbox: cgroup v1 and v2.

A group is made below the group of this process, so that a limit that this process has holds for the sandbox,
too. Nothing is written to a group that is not ours. A group of version 2 has only the controllers that the
group above gives (cgroups(7), ``cgroup.subtree_control``), and one with processes in it gives none. Then the
nearest group above that gives them is taken, unless that would leave a group with a limit.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pytest_k3s_sandbox.sandbox import processes
from pytest_k3s_sandbox.sandbox.limits import Limits, in_words

CONTROLLERS = ("memory", "pids")
COUNTER = "cpuacct"
"""The controller of version 1 that counts processor time; a group of version 2 always counts it."""
NAMES = {"memory": "memory", "pids": "processes"}
"""What each controller limits, in words."""

JOIN = """
n=$1; shift
while [ "$n" -gt 0 ]; do echo 0 > "$1/cgroup.procs" || exit 97; shift; n=$((n - 1)); done
exec "$@"
"""
"""A script for sh that puts itself into groups and becomes a command: COUNT GROUP... COMMAND..."""

LIMIT_FILES = {"memory": ("memory.max", "memory.limit_in_bytes"), "pids": ("pids.max",)}
UNLIMITED = 1 << 62
"""Larger limits of version 1 mean no limit: the kernel shows the largest number of pages."""

NEARLY = 0.9
"""A group that never took this share of its limit hit the limit of a group above."""


@dataclass(frozen=True)
class Places:
    """Where groups of our own can be made.

    Attributes:
        parents: The groups below which they go; one for each hierarchy.
        lacking: Why a controller has no place, by the controller.
        around: Limits of memory in bytes that this process has itself.
    """

    parents: tuple[Path, ...] = ()
    lacking: dict[str, str] | None = None
    around: tuple[int, ...] = ()


def find(proc: Path = Path("/proc/self"), root: Path = Path("/")) -> Places:
    """Return where groups can be made; nothing is changed.

    Args:
        proc: The folder of this process in /proc.
        root: The folder to which the mount points in ``mountinfo`` belong.
    """
    try:
        mounts = processes.lines(proc / "mountinfo")
        memberships = processes.lines(proc / "cgroup")
    except OSError as error:
        why = f"its groups cannot be read ({error.strerror})"
        return Places(lacking=dict.fromkeys(CONTROLLERS, why))
    parents: dict[Path, None] = {}
    lacking: dict[str, str] = {}
    around: list[int] = []
    groups = dict(_hierarchies(mounts, memberships, root))
    for controller in CONTROLLERS:
        parent: Path | str
        if controller in groups:
            parent = groups[controller][1]
        elif "" in groups:
            parent = _giving(*groups[""], controller)
        else:
            parent = "the machine has no such control group"
        if isinstance(parent, Path) and not os.access(parent, os.W_OK):
            parent = f"{parent} cannot be written"
        if isinstance(parent, str):
            lacking[controller] = parent
        else:
            parents[parent] = None
    if COUNTER in groups and os.access(groups[COUNTER][1], os.W_OK):  # nothing is lacking without it
        parents[groups[COUNTER][1]] = None
    for top, own in groups.values():
        around += _limits_above(top, own)
    return Places(tuple(parents), lacking, tuple(around))


def _hierarchies(
    mounts: Iterable[str], memberships: Iterable[str], root: Path
) -> Iterator[tuple[str, tuple[Path, Path]]]:
    """Give the mount point and this process' own group of each hierarchy of use.

    The key is the controller; it is empty for version 2.
    """
    own = {}
    for line in memberships:
        number, names, path = line.split(":", 2)
        own.update(dict.fromkeys(names.split(",") if number != "0" else [""], path))
    for line in mounts:
        fields, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        words = fields.split(" ")
        useful = {"cgroup2": {""}, "cgroup": set(options.split(",")) & {*CONTROLLERS, COUNTER}}.get(
            kind, set()
        )
        top = root / words[4].lstrip("/")
        for name in useful & own.keys():
            yield name, (top, _below(top, words[3], own[name]))


def _below(top: Path, shown: str, own: str) -> Path:
    """Return a group's folder; the top of the mount where the group lies outside of it."""
    path, base = PurePosixPath(own), PurePosixPath(shown)
    if ".." in path.parts or not path.is_relative_to(base):
        return top
    found = top / path.relative_to(base)
    return found if found.is_dir() else top


def _giving(top: Path, own: Path, controller: str) -> Path | str:
    """Return the nearest group of version 2 that gives a controller, or why no group does."""
    group = own
    while True:
        if controller in _words(group / "cgroup.subtree_control"):
            return group
        if _number(group / LIMIT_FILES[controller][0]) is not None:
            return f"the control group {group} limits this process, and gives no limits on to others"
        if group == top:
            return f"the control group {own} and those above it give no such limit to others"
        group = group.parent


def _limits_above(top: Path, own: Path) -> Iterator[int]:
    """Give the limits of memory of a group and those above it."""
    for group in (own, *own.parents):
        for name in LIMIT_FILES["memory"]:
            limit = _number(group / name)
            if limit is not None:
                yield limit
        if group == top:
            return


def make(parents: Iterable[Path], name: str, limits: Limits) -> tuple[Path, ...]:
    """Make groups with limits, or none at all.

    Args:
        parents: What :func:`find` gives.
        name: What each is called.
        limits: The limits.

    Raises:
        OSError: One cannot be made, or takes no limit.
    """
    made: list[Path] = []
    try:
        for parent in parents:
            group = parent / name
            group.mkdir()
            made.append(group)
            limit(group, limits)
    except OSError:
        for group in made:
            with contextlib.suppress(OSError):
                group.rmdir()
        raise
    return tuple(made)


def limit(group: Path, limits: Limits) -> set[str]:
    """Write limits to a group of ours, where it has the files for them.

    Args:
        group: The group.
        limits: The limits.

    Returns:
        The controllers that limit it.

    Raises:
        OSError: A limit was not taken.
    """
    done = set()
    for controller, value in (("memory", limits.memory_bytes), ("pids", limits.processes)):
        for name in LIMIT_FILES[controller]:
            if value is not None and (group / name).exists():
                (group / name).write_text(str(value))
                done.add(controller)
    if "memory" in done:
        # Swap would get around the limit. After the kill of one process of many, results of the sandbox
        # would mean nothing, so that all are killed together. Kernels without swap accounting lack the files.
        for name, text in (
            ("memory.memsw.limit_in_bytes", str(limits.memory_bytes)),
            ("memory.swap.max", "0"),
            ("memory.oom.group", "1"),
        ):
            with contextlib.suppress(OSError):
                if (group / name).exists():
                    (group / name).write_text(text)
    return done


def used(groups: Iterable[str]) -> float | None:
    """Return the seconds of processor time of everything that was ever in a sandbox's groups.

    Args:
        groups: Its groups, one for each hierarchy.

    Returns:
        The time by ``cpuacct.usage`` (version 1: nanoseconds, cpuacct.rst) or by ``usage_usec`` of
        ``cpu.stat`` (version 2: cgroup-v2.rst); None if no group counts it.
    """
    for group in map(Path, groups):
        nanoseconds = _number(group / "cpuacct.usage")
        if nanoseconds is not None:
            return nanoseconds / 1e9
        microseconds = _counter(group / "cpu.stat", "usage_usec")
        if microseconds:
            return microseconds / 1e6
    return None


def joining(groups: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Return the command that becomes a command within groups."""
    if not groups:
        return list(argv)
    return ["sh", "-c", JOIN, "join", str(len(groups)), *groups, *argv]


class Gauge:
    """Tells whether a sandbox has reached a limit of its groups.

    Args:
        groups: The groups.
        limits: The limits that were asked for.
    """

    def __init__(self, groups: Iterable[str], limits: Limits) -> None:
        """Have the kernel tell of memory that ran out (version 1: cgroups(7), ``cgroup.event_control``)."""
        self._groups = [Path(group) for group in groups]
        self._limits = limits
        self._told: dict[Path, int] = {}
        for group in self._groups:
            with contextlib.suppress(OSError):
                self._told[group] = _told_of_ooms(group)

    def close(self) -> None:
        """Let go of the kernel's notices."""
        while self._told:
            os.close(self._told.popitem()[1])

    def exceeded(self) -> str | None:
        """Return how the sandbox reached a limit; None if it did not."""
        return next((why for group in self._groups if (why := self._of(group)) is not None), None)

    def _of(self, group: Path) -> str | None:
        limits = self._limits
        if limits.processes is not None:
            current = _number(group / "pids.current") or 0
            # Of the group itself: those below it, of pods, have limits of their own.
            local = group / "pids.events.local"
            events = local if local.exists() else group / "pids.events"
            if current >= limits.processes or _counter(events, "max"):
                return f"it had {limits.processes} processes and threads on the machine, which is its limit"
        if limits.memory_bytes is None or not self._ran_out(group):
            return None
        peaks = (_number(group / name) for name in ("memory.max_usage_in_bytes", "memory.peak"))
        peak = next((peak for peak in peaks if peak is not None), None)
        if peak is not None and peak < NEARLY * limits.memory_bytes:
            return (
                f"the machine ran out of memory while it had {in_words(peak)} of "
                f"the {in_words(limits.memory_bytes)} that it may take"
            )
        return f"it took more than its {in_words(limits.memory_bytes)} of memory"

    def _ran_out(self, group: Path) -> bool:
        descriptor = self._told.get(group)
        if descriptor is not None and group.exists():
            poll = select.poll()  # select(2) refuses descriptors from 1024 on
            poll.register(descriptor, select.POLLIN)
            if poll.poll(0):
                return True
        if _counter(group / "memory.oom_control", "oom_kill"):
            return True
        return bool(
            _counter(group / "memory.events.local", "oom")
            or _counter(group / "memory.events.local", "oom_kill")
        )


def _told_of_ooms(group: Path) -> int:
    """Return a descriptor that can be read once memory has run out in a group of version 1."""
    control = os.open(group / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
    try:
        descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            (group / "cgroup.event_control").write_text(f"{descriptor} {control}")
        except BaseException:
            os.close(descriptor)
            raise
    finally:
        os.close(control)
    return descriptor


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    """Return the limit in a file; None for a missing file, ``max`` or a number that means no limit."""
    words = _words(path)
    if len(words) != 1 or not words[0].isdecimal():
        return None
    return value if (value := int(words[0])) < UNLIMITED else None


def _counter(path: Path, name: str) -> int:
    """Return a number of a file with lines of a name and a number; 0 if the name is missing."""
    words = _words(path)
    found = dict(zip(words[::2], words[1::2], strict=False))
    return int(found[name]) if found.get(name, "").isdecimal() else 0
