"""Accounting from ``/proc``, read about once a second at most.

Sources: proc_pid_stat(5), proc_pid_statm(5), proc_stat(5), proc_meminfo(5).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

from pytest_k3s_sandbox.layers.cgroupfs.machine import Machine, names, read_text
from pytest_k3s_sandbox.layers.cgroupfs.sample import NANOSECONDS, Process, Sample
from pytest_k3s_sandbox.layers.cgroupfs.values import PAGE_SIZE

_TICK = NANOSECONDS // os.sysconf("SC_CLK_TCK")
_KIB = 1024
_PROCESSOR = 36  # of the fields of proc_pid_stat(5) after the name: the CPU it ran on last
_SHARED = 2  # of the fields of proc_pid_statm(5): resident pages of files and shared memory
_COST, _MOST = (
    30,
    10,
)  # a sample is good for _COST times as long as it took, and for _MOST times max_age at most
_COUNTED = {"pgfault", "pgmajfault", "workingset_refault_anon", "workingset_refault_file"}
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD of include/linux/sched.h


def parse_stat(text: str) -> Process:
    """Parse ``/proc/PID/stat``, and count all resident memory as anonymous.

    Raises:
        ValueError: The text has another form.
    """
    head, _, tail = text.rpartition(")")
    pid = int(head.partition(" ")[0])
    # The numbers of proc_pid_stat(5) less 3, which is the first after the name.
    fields = tail.split()
    processor = int(fields[_PROCESSOR]) if len(fields) > _PROCESSOR else 0
    return Process(
        pid=pid,
        started=int(fields[19]),
        parent=int(fields[1]),
        session=int(fields[3]),
        state=fields[0],
        user=int(fields[11]) * _TICK,
        system=int(fields[12]) * _TICK,
        reaped_user=int(fields[13]) * _TICK,
        reaped_system=int(fields[14]) * _TICK,
        processor=processor,
        threads=int(fields[17]),
        anonymous=int(fields[21]) * PAGE_SIZE,
        faults=int(fields[7]),
        major_faults=int(fields[9]),
        kernel=bool(int(fields[6]) & _KERNEL_THREAD),
    )


def parse_cpu(text: str) -> dict[int, tuple[int, int]]:
    """Parse the lines of ``/proc/stat`` for each CPU.

    Returns:
        Nanoseconds in user mode (with nice) and kernel mode (with interrupts), by CPU.
    """
    result = {}
    for line in text.splitlines():
        name, *fields = line.split()
        if not name.startswith("cpu"):
            break
        if name == "cpu":
            continue
        user, nice, system, _idle, _iowait, irq, softirq = (int(field) for field in fields[:7])
        result[int(name[3:])] = ((user + nice) * _TICK, (system + irq + softirq) * _TICK)
    return result


def parse_meminfo(text: str) -> dict[str, int]:
    """Parse ``/proc/meminfo``.

    Returns:
        Bytes by name; counts without a unit as they are.
    """
    result = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        result[name] = int(number) * (_KIB if unit == "kB" else 1)
    return result


def parse_vmstat(text: str) -> dict[str, int]:
    """Parse the fields of ``/proc/vmstat`` that memory.stat has; gVisor lacks the file."""
    pairs = (line.partition(" ") for line in text.splitlines())
    return {name: int(value) for name, _, value in pairs if name in _COUNTED}


@dataclass(slots=True)
class _Apart:
    """A thread with an entry of its own.

    Attributes:
        leader: Its process.
        started: When it started; tells a reused id apart.
        before: Its user and system time when the entry began.
        spent: Its user and system time since then.
        alive: Whether it still runs; its time stays out of its process' entry after its end, too.
    """

    leader: int
    started: int
    before: tuple[int, int]
    spent: tuple[int, int] = (0, 0)
    alive: bool = True


class ProcAccounting(Machine):
    """Reads processes and totals, and caches samples for ``max_age``.

    Args:
        max_age: Seconds for which a sample is good. If samples take long, up to ten times that, so that
            sampling takes a thirtieth of the time at most.
        proc: Where procfs is mounted.
    """

    def __init__(self, max_age: float = 1.0, proc: str = "/proc") -> None:
        """Read the CPUs and memory nodes, but no process yet."""
        super().__init__(proc, frozenset(parse_cpu(read_text(f"{proc}/stat") or "")) or frozenset({0}))
        self.max_age = max_age
        self._good_for = max_age
        self._taken = float("-inf")
        self._sample = Sample({}, {}, {})
        self._forked = ""
        self._apart: dict[int, _Apart] = {}
        # gVisor does not count file pages, so statm adds nothing there.
        self._split = self._mapped(os.getpid()) > 0

    def sample(self) -> Sample:
        """Return a sample no older than ``max_age`` seconds."""
        begun = time.monotonic()
        if begun - self._taken < self._good_for:
            return self._sample
        self._forked = self._last_fork()
        processes: dict[int, Process] = {}
        for pid in self._pids():
            self._add(processes, pid)
        cpu = parse_cpu(read_text(f"{self._proc}/stat") or "")
        memory = parse_meminfo(read_text(f"{self._proc}/meminfo") or "")
        memory.update(parse_vmstat(read_text(f"{self._proc}/vmstat") or ""))
        self._sample = self._set_apart(Sample(processes, cpu, memory))
        self._taken = time.monotonic()
        # On a machine with many processes or a slow /proc, sampling must not become a load.
        cost = self._taken - begun
        self._good_for = max(self.max_age, min(_COST * cost, _MOST * self.max_age))
        return self._sample

    def census(self, refresh: Iterable[int] = (), *, ended: bool = False, started: bool = True) -> Sample:
        """Return a sample of the current processes; read the list again only after a fork."""
        known = self.sample().processes
        again = set(refresh)
        processes = dict(known)
        forked = self._last_fork() if started else self._forked
        if started and (ended or not forked or forked != self._forked):
            self._forked = forked
            pids = set(self._pids())
            again.update(pids - known.keys())
            for pid in known.keys() - pids - self._apart.keys():
                del processes[pid]
        for pid in again - self._apart.keys():
            processes.pop(pid, None)
            self._add(processes, pid)
        if self._apart or processes != known:
            self._sample = self._set_apart(Sample(processes, self._sample.cpu, self._sample.memory))
        return self._sample

    def set_apart(self, tids: Iterable[int]) -> None:
        """Give threads entries of their own from now on."""
        for tid in tids:
            leader = self.thread_group(tid)
            now = None if leader is None else self._thread(leader, tid)
            if leader is not None and now is not None and tid not in self._apart:
                self._apart[tid] = _Apart(leader, now.started, (now.user, now.system))

    def _set_apart(self, sample: Sample) -> Sample:
        """Split the threads with their own entries from their processes' entries."""
        if not self._apart:
            return sample
        processes = dict(sample.processes)
        for tid, apart in list(self._apart.items()):
            processes.pop(tid, None)
            whole = self._process(apart.leader)
            if whole is None or whole.dead:
                del self._apart[tid]
                processes.pop(apart.leader, None)
            else:
                processes[apart.leader] = whole
        for tid, apart in self._apart.items():
            now = self._thread(apart.leader, tid) if apart.alive else None
            apart.alive = now is not None and now.started == apart.started and not now.dead
            whole = processes[apart.leader]
            if now is not None and apart.alive:
                apart.spent = now.user - apart.before[0], now.system - apart.before[1]
                processes[tid] = now._replace(
                    user=apart.spent[0], system=apart.spent[1], leader=apart.leader, threads=1
                )._replace(anonymous=0, mapped=0, faults=0, major_faults=0, reaped_user=0, reaped_system=0)
            processes[apart.leader] = whole._replace(
                user=max(0, whole.user - apart.spent[0]),
                system=max(0, whole.system - apart.spent[1]),
                threads=whole.threads - apart.alive,
            )
        alive = frozenset(tid for tid, apart in self._apart.items() if apart.alive)
        return Sample(processes, sample.cpu, sample.memory, alive)

    def _last_fork(self) -> str:
        """Return the last process id, which changes with every fork; empty if the kernel does not tell it."""
        last = (read_text(f"{self._proc}/loadavg") or "").rpartition(" ")[2].strip()
        return "" if last == "0" else last  # always 0 in gVisor

    def _pids(self) -> list[int]:
        return [int(name) for name in names(self._proc) if name.isdigit()]

    def _add(self, processes: dict[int, Process], pid: int) -> None:
        process = self._process(pid)
        if process is not None and not process.dead:
            processes[pid] = process

    def _thread(self, pid: int, tid: int) -> Process | None:
        return _parse(read_text(f"{self._proc}/{pid}/task/{tid}/stat"))

    def _process(self, pid: int) -> Process | None:
        process = _parse(read_text(f"{self._proc}/{pid}/stat"))
        if process is None or not self._split or not process.anonymous:
            return process
        mapped = min(self._mapped(pid), process.anonymous)
        return process._replace(anonymous=process.anonymous - mapped, mapped=mapped)

    def _mapped(self, pid: int) -> int:
        """Return the resident bytes of a process that files or shared memory back."""
        fields = (read_text(f"{self._proc}/{pid}/statm") or "").split()
        return int(fields[_SHARED]) * PAGE_SIZE if len(fields) > _SHARED else 0


def _parse(text: str | None) -> Process | None:
    """Parse a stat file; None for a missing or malformed one."""
    try:
        return parse_stat(text) if text else None
    except (ValueError, IndexError):
        return None
