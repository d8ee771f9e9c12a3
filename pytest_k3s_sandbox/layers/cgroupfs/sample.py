"""What is known about the machine's processes at one moment, and who finds it out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Process:
    """One process (a thread group), from ``/proc/PID/stat`` of proc_pid_stat(5).

    Attributes:
        pid: Its id, which is also that of its first thread.
        started: Clock ticks after boot at which it started; tells a reused id apart.
        parent: The id of its parent.
        session: The id of its session.
        state: The state's letter.
        user: Nanoseconds in user mode.
        system: Nanoseconds in kernel mode.
        reaped_user: Nanoseconds in user mode of its children that ended and were waited for.
        reaped_system: Likewise in kernel mode.
        processor: The CPU it ran on last.
        threads: Number of its threads.
        anonymous: Resident bytes that no file backs.
        mapped: Resident bytes that files or shared memory back.
        faults: Page faults so far.
        major_faults: Page faults that needed I/O so far.
    """

    pid: int
    started: int
    parent: int
    session: int = 0
    state: str = "S"
    user: int = 0
    system: int = 0
    reaped_user: int = 0
    reaped_system: int = 0
    processor: int = 0
    threads: int = 1
    anonymous: int = 0
    mapped: int = 0
    faults: int = 0
    major_faults: int = 0

    @property
    def dead(self) -> bool:
        """Whether nothing of it but its exit status is left, so that it is in no group."""
        return self.state in "ZX"


@dataclass(frozen=True, slots=True)
class Sample:
    """The processes and the totals of a machine at one moment.

    Attributes:
        processes: Every process that is not dead, by id.
        cpu: Nanoseconds in user and kernel mode since boot, by CPU number.
        memory: ``/proc/meminfo`` in bytes, by its names.
    """

    processes: Mapping[int, Process]
    cpu: Mapping[int, tuple[int, int]]
    memory: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Change:
    """What happened between two samples.

    Attributes:
        old: The earlier one.
        new: The later one.
        gone: Ids of processes that are dead, or were and are another's now.
        fresh: Processes that the earlier one did not have, parents before children.
    """

    old: Sample
    new: Sample
    gone: list[int]
    fresh: list[Process]

    @classmethod
    def between(cls, old: Sample, new: Sample) -> Change:
        """Compare two samples."""
        before, after = old.processes, new.processes
        gone = [p for p, was in before.items() if (now := after.get(p)) is None or now.started != was.started]
        fresh = [
            now for p, now in after.items() if (was := before.get(p)) is None or was.started != now.started
        ]
        return cls(old, new, gone, sorted(fresh, key=lambda process: (process.started, process.pid)))

    def before(self, process: Process) -> Process | None:
        """Return what the earlier sample has of the same process."""
        was = self.old.processes.get(process.pid)
        return was if was is not None and was.started == process.started else None


class Accounting(Protocol):
    """Finds out about processes and stops them; everything that the model cannot do itself."""

    @property
    def cpus(self) -> frozenset[int]:
        """Numbers of the CPUs."""

    @property
    def mems(self) -> frozenset[int]:
        """Numbers of the memory nodes."""

    def sample(self) -> Sample:
        """Return a sample that may be as old as the accounting allows (about a second)."""

    def census(self, refresh: Iterable[int] = ()) -> Sample:
        """Return a sample whose set of processes is of now.

        Args:
            refresh: Processes whose numbers have to be of now as well; those of the
                others may be as old as those of :meth:`sample`.
        """

    def thread_group(self, tid: int) -> int | None:
        """Return the process that a thread belongs to, or None when there is no such thread."""

    def threads(self, pid: int) -> list[int]:
        """Return the ids of a process' threads, none when it has ended."""

    def freeze(self, pid: int, *, frozen: bool) -> None:
        """Stop a process or let it run; does nothing when it has ended."""
