"""A sample of the machine's processes, and the contract of accounting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

NANOSECONDS = 1_000_000_000


class Process(NamedTuple):
    """One process (a thread group), from ``/proc/PID/stat`` of proc_pid_stat(5).

    A thread in another group than its process has its own entry, with its time since then. The entry of its
    process has the rest.

    Attributes:
        pid: Its id, which is also that of its first thread.
        started: Clock ticks after boot at which it started; tells a reused id apart.
        parent: The id of its parent.
        session: The id of its session.
        state: The state's letter.
        user: Nanoseconds in user mode.
        system: Nanoseconds in kernel mode.
        reaped_user: Nanoseconds in user mode of its reaped children.
        reaped_system: Nanoseconds in kernel mode of its reaped children.
        processor: The CPU it ran on last.
        threads: Number of its threads.
        anonymous: Resident bytes that no file backs.
        mapped: Resident bytes that files or shared memory back.
        faults: Page faults so far.
        major_faults: Page faults that needed I/O so far.
        leader: The id of its process for a thread with its own entry, otherwise 0.
        kernel: Whether it is a kernel thread, which no group accepts.
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
        """Whether it is a zombie, which is in no group."""
        return self.state in "ZX" and self.threads <= 1  # the first thread may end before the others

    @property
    def process(self) -> int:
        """The id of the process, also for a thread."""
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
    """The difference between two samples.

    Attributes:
        old: The earlier one.
        new: The later one.
        gone: Ids of dead processes, including ids that were reused.
        fresh: Processes that the earlier one did not have, parents before children.
        changed: Every process whose numbers may differ, with its earlier entry, if any.
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
    """Everything that the model needs of the machine: finds processes, and stops them."""

    @property
    def cpus(self) -> frozenset[int]:
        """Numbers of the CPUs."""

    @property
    def mems(self) -> frozenset[int]:
        """Numbers of the memory nodes."""

    @property
    def limits(self) -> tuple[int, int]:
        """The kernel's limits on CPUs and memory nodes, which bound a list of them."""

    @property
    def huge_pages(self) -> Sequence[int]:
        """Sizes of huge pages in bytes."""

    def sample(self) -> Sample:
        """Return a sample that may be as old as the accounting allows (about a second)."""

    def census(self, refresh: Iterable[int] = (), *, ended: bool = False, started: bool = True) -> Sample:
        """Return a sample with the current processes, and the current numbers of some.

        Args:
            refresh: Processes whose numbers must be current; others may be as old as in :meth:`sample`.
            ended: Whether the sample must omit every ended process, or only those of ``refresh``.
            started: Whether the sample must have every process, or only those of ``refresh``.
        """

    def thread_group(self, tid: int) -> int | None:
        """Return the process of a thread; None without such a thread."""

    def threads(self, pid: int) -> list[int]:
        """Return the ids of a process' threads; none after its end."""

    def set_apart(self, tids: Iterable[int]) -> None:
        """Give threads their own entries in later samples, until they end."""

    def may_move(self, writer: int, tid: int) -> bool:
        """Return whether a thread's user may move another thread: as root, or the same user."""

    def freeze(self, pid: int, *, frozen: bool) -> None:
        """Stop or continue a process; does nothing after its end."""

    def release(self, agent: str, path: str) -> None:
        """Run a release agent for a group that became empty."""

    def setting(self, name: str) -> int | None:
        """Return a number out of ``/proc/sys``; None without such a file."""

    def disk(self, device: str) -> bool:
        """Return whether ``major:minor`` is a disk and not a partition."""

    def interfaces(self) -> list[str]:
        """Return the names of the network interfaces."""

    def opened(self, writer: int, descriptor: int) -> str | None:
        """Return the target of a thread's descriptor, as in proc_pid_fd(5); None if it is closed."""

    def signaller(self, writer: int, descriptor: int) -> Callable[[], None] | None:
        """Return a function that signals another process' eventfd; None if the kernel refuses access."""
