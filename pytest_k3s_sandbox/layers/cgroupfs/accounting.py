"""Where the numbers come from: ``/proc``, read at most about once a second.

Sources: proc_pid_stat(5), proc_pid_statm(5), proc_stat(5), proc_meminfo(5).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from pytest_k3s_sandbox.layers.cgroupfs.sample import NANOSECONDS, Process, Sample
from pytest_k3s_sandbox.layers.cgroupfs.values import PAGE_SIZE, parse_list

_TICK = NANOSECONDS // os.sysconf("SC_CLK_TCK")
_KIB = 1024
_MAX_NUMBER = range(1 << 16)  # of a CPU or a memory node; bounds what a list file may name


def parse_stat(text: str) -> Process:
    """Parse ``/proc/PID/stat``; all resident memory is taken for anonymous.

    Raises:
        ValueError: It is not such a file.
    """
    head, _, tail = text.rpartition(")")
    pid = int(head.partition(" ")[0])
    # The numbers of proc_pid_stat(5) less 3, which is the first after the name.
    fields = tail.split()
    processor = int(fields[36]) if len(fields) > 36 else 0  # noqa: PLR2004  # field 39
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


def _read(path: str) -> str | None:
    """Return a small file's content, None when it is not there (any more)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts).decode("utf-8", "surrogateescape")
    except OSError:
        return None
    finally:
        os.close(fd)


def _names(path: str) -> list[str]:
    return os.listdir(path)  # noqa: PTH208  # often, and of many: no Path objects


class ProcAccounting:
    """Reads processes and totals; numbers are as old as ``max_age``, or the reader asks for now.

    Args:
        max_age: Seconds for which a sample is good.
        proc: Where procfs is mounted.
    """

    def __init__(self, max_age: float = 1.0, proc: str = "/proc") -> None:
        """Find out the CPUs and memory nodes; reads no process yet."""
        self.max_age = max_age
        self._proc = proc
        self._taken = float("-inf")
        self._sample = Sample({}, {}, {})
        # gVisor keeps no count of file pages: there a second file to read would tell nothing.
        self._split = self._mapped(os.getpid()) > 0
        cpu = parse_cpu(_read(f"{proc}/stat") or "")
        self.cpus = frozenset(cpu) or frozenset({0})
        nodes = (_read("/sys/devices/system/node/online") or "").strip()
        # Without a list there is no NUMA, which is node 0.
        self.mems = parse_list(nodes, possible=_MAX_NUMBER) if nodes else frozenset({0})

    def sample(self) -> Sample:
        """Return a sample no older than ``max_age`` seconds."""
        if time.monotonic() - self._taken < self.max_age:
            return self._sample
        processes = {pid: process for pid in self._pids() if (process := self._process(pid)) is not None}
        cpu = parse_cpu(_read(f"{self._proc}/stat") or "")
        memory = parse_meminfo(_read(f"{self._proc}/meminfo") or "")
        self._sample = Sample({p: x for p, x in processes.items() if not x.dead}, cpu, memory)
        self._taken = time.monotonic()
        return self._sample

    def census(self, refresh: Iterable[int] = ()) -> Sample:
        """Return a sample with the processes of now, and the numbers of now of some."""
        known: Mapping[int, Process] = self.sample().processes
        pids = self._pids()
        again = set(refresh)
        processes = {}
        for pid in pids:
            process = known.get(pid)
            if process is None or pid in again:
                process = self._process(pid)
            if process is not None and not process.dead:
                processes[pid] = process
        if processes != known:
            self._sample = Sample(processes, self._sample.cpu, self._sample.memory)
        return self._sample

    def thread_group(self, tid: int) -> int | None:
        """Return the process of a thread, from its status file."""
        for line in (_read(f"{self._proc}/{tid}/status") or "").splitlines():
            name, _, value = line.partition(":")
            if name == "Tgid":
                return int(value)
        return None

    def threads(self, pid: int) -> list[int]:
        """Return the threads of a process."""
        try:
            return sorted(int(name) for name in _names(f"{self._proc}/{pid}/task"))
        except OSError:
            return []

    def freeze(self, pid: int, *, frozen: bool) -> None:
        """Send SIGSTOP or SIGCONT, never to ourselves: nobody could thaw us."""
        if pid != os.getpid():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def _pids(self) -> list[int]:
        return [int(name) for name in _names(self._proc) if name.isdigit()]

    def _process(self, pid: int) -> Process | None:
        text = _read(f"{self._proc}/{pid}/stat")
        if not text:
            return None
        try:
            process = parse_stat(text)
        except (ValueError, IndexError):
            return None
        if not self._split:
            return process
        mapped = min(self._mapped(pid), process.anonymous)
        return replace(process, anonymous=process.anonymous - mapped, mapped=mapped)

    def _mapped(self, pid: int) -> int:
        """Return the resident bytes of a process that files or shared memory back."""
        fields = (_read(f"{self._proc}/{pid}/statm") or "").split()
        return int(fields[2]) * PAGE_SIZE if len(fields) > 2 else 0  # noqa: PLR2004  # proc_pid_statm(5)
