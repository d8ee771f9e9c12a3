"""What is known about the machine's processes at one moment, and who finds it out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

NANOSECONDS = 1_000_000_000


class Process(NamedTuple):
    """One process (a thread group), from ``/proc/PID/stat`` of proc_pid_stat(5).

    A thread that is in another group than its process is an entry of its own, with what it
    spent since it was set apart; that of its process has the rest.

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
        leader: For a thread that is set apart the id of its process, otherwise 0.
        kernel: Whether it is a thread of the kernel's, which no group can have.
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
    leader: int = 0
    kernel: bool = False

    @property
    def dead(self) -> bool:
        """Whether nothing of it but its exit status is left, so that it is in no group."""
        return self.state in "ZX" and self.threads <= 1  # the first thread may end before the others

    @property
    def process(self) -> int:
        """The id of the process that it is or is a thread of."""
        return self.leader or self.pid


@dataclass(frozen=True, slots=True)
class Sample:
    """The processes and the totals of a machine at one moment.

    Attributes:
        processes: Every process that is not dead, by id.
        cpu: Nanoseconds in user and kernel mode since boot, by CPU number.
        memory: ``/proc/meminfo`` in bytes, by its names.
        apart: Ids of the threads that are entries of their own.
    """

    processes: Mapping[int, Process]
    cpu: Mapping[int, tuple[int, int]]
    memory: Mapping[str, int]
    apart: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Change:
    """What happened between two samples.

    Attributes:
        old: The earlier one.
        new: The later one.
        gone: Ids of processes that are dead, or were and are another's now.
        fresh: Processes that the earlier one did not have, parents before children.
        changed: Every process whose numbers may differ, with what they were, if it was there.
    """

    old: Sample
    new: Sample
    gone: list[int]
    fresh: list[Process]
    changed: list[tuple[Process, Process | None]]

    @classmethod
    def between(cls, old: Sample, new: Sample) -> Change:
        """Compare two samples."""
        before, after = old.processes, new.processes
        gone = [p for p, was in before.items() if (now := after.get(p)) is None or now.started != was.started]
        fresh: list[Process] = []
        changed: list[tuple[Process, Process | None]] = []
        for pid, now in after.items():
            was = before.get(pid)
            if was is now:
                continue
            if was is None or was.started != now.started:
                was = None
                fresh.append(now)
            changed.append((now, was))
        fresh.sort(key=lambda process: (process.started, process.pid))
        return cls(old, new, gone, fresh, changed)


class Accounting(Protocol):
    """Finds out about processes and stops them; everything that the model cannot do itself."""

    @property
    def cpus(self) -> frozenset[int]:
        """Numbers of the CPUs."""

    @property
    def mems(self) -> frozenset[int]:
        """Numbers of the memory nodes."""

    @property
    def limits(self) -> tuple[int, int]:
        """How many CPUs and memory nodes the kernel could have: what bounds a list of them."""

    @property
    def huge_pages(self) -> Sequence[int]:
        """Sizes of huge pages in bytes."""

    def sample(self) -> Sample:
        """Return a sample that may be as old as the accounting allows (about a second)."""

    def census(self, refresh: Iterable[int] = (), *, ended: bool = False, started: bool = True) -> Sample:
        """Return a sample that has every process of now, and the numbers of now of some.

        Args:
            refresh: Processes whose numbers have to be of now; those of the others may be
                as old as those of :meth:`sample`.
            ended: Whether none may be in it that has ended since; otherwise only none of ``refresh``.
            started: Whether every process has to be in it; otherwise only those of ``refresh``.
        """

    def thread_group(self, tid: int) -> int | None:
        """Return the process that a thread belongs to, or None when there is no such thread."""

    def threads(self, pid: int) -> list[int]:
        """Return the ids of a process' threads, none when it has ended."""

    def set_apart(self, tids: Iterable[int]) -> None:
        """Make threads entries of their own in every sample from now on, until they end."""

    def may_move(self, writer: int, tid: int) -> bool:
        """Tell whether the owner of a thread may move another: root's, or the same user's."""

    def freeze(self, pid: int, *, frozen: bool) -> None:
        """Stop a process or let it run; does nothing when it has ended."""

    def release(self, agent: str, path: str) -> None:
        """Run a release agent for a group that became empty."""

    def setting(self, name: str) -> int | None:
        """Return a number out of ``/proc/sys``, None when it has none of that name."""

    def disk(self, device: str) -> bool:
        """Tell whether there is a disk, not a partition, of that ``major:minor``."""

    def interfaces(self) -> list[str]:
        """Return the names of the network interfaces."""

    def opened(self, writer: int, descriptor: int) -> str | None:
        """Return what a descriptor of a thread leads to, as proc_pid_fd(5) says; None when it is closed."""

    def signaller(self, writer: int, descriptor: int) -> Callable[[], None] | None:
        """Return what signals another process' eventfd, None where that cannot be had."""
