"""Reads facts of the machine for the model, besides the numbers of processes.

Sources: ``Documentation/ABI/``, proc_pid_fd(5), proc_pid_status(5), pidfd_getfd(2), eventfd(2),
``kernel/cgroup/cgroup-v1.c`` (cgroup1_release_agent).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_k3s_sandbox.layers.cgroupfs.values import digits, parse_list

if TYPE_CHECKING:  # imported in the function that uses it: its import slows every start
    import subprocess

_MAX_NUMBER = range(1 << 16)  # the largest number of a CPU or memory node that a list file may name
_WORD = 32  # bits in a word of a mask
_KIB = 1024
_SYS_PIDFD_GETFD = 438
_AGENT_ENVIRONMENT = {"HOME": "/", "PATH": "/sbin:/bin:/usr/sbin:/usr/bin"}


def read_text(path: str) -> str | None:
    """Return a small file's content; None if the file does not exist."""
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


def names(path: str) -> list[str]:
    """Return the names in a directory; none if it does not exist."""
    try:
        return os.listdir(path)
    except OSError:
        return []


class Machine:
    """Facts of the kernel; implements that part of :class:`~.sample.Accounting`.

    Args:
        proc: Where procfs is mounted.
        cpus: Numbers of the CPUs, as ``/proc/stat`` has them.
    """

    def __init__(self, proc: str, cpus: frozenset[int]) -> None:
        """Read the facts that do not change."""
        self._proc = proc
        self._agents: list[subprocess.Popen[bytes]] = []
        self.cpus = cpus
        # A kernel without NUMA has no list, and memory node 0.
        self.mems = _numbers("/sys/devices/system/node/online") or frozenset({0})
        possible = max(cpus | _numbers("/sys/devices/system/cpu/possible")) + 1
        # The width of this mask is the only place that shows MAX_NUMNODES.
        mask = self.status(os.getpid()).get("Mems_allowed", "1")
        self.limits = possible, _WORD * len(mask.split(","))
        sizes = (digits(name.removeprefix("hugepages-"))[0] for name in names("/sys/kernel/mm/hugepages"))
        self.huge_pages = sorted((size * _KIB for size in sizes if size), reverse=True)

    def status(self, tid: int) -> dict[str, str]:
        """Return the fields of a thread's status file; none without such a thread."""
        lines = (read_text(f"{self._proc}/{tid}/status") or "").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def thread_group(self, tid: int) -> int | None:
        """Return the process of a thread, from its status file."""
        tgid = self.status(tid).get("Tgid")
        return None if tgid is None else int(tgid)

    def threads(self, pid: int) -> list[int]:
        """Return the threads of a process."""
        return sorted(int(name) for name in names(f"{self._proc}/{pid}/task"))

    def may_move(self, writer: int, tid: int) -> bool:
        """Compare the writer's effective user with the real and saved one of the other."""
        effective = self.status(writer).get("Uid", "0 0 0 0").split()[1]
        real, _, saved, *_ = self.status(tid).get("Uid", "0 0 0 0").split()
        return effective in {"0", real, saved}

    def freeze(self, pid: int, *, frozen: bool) -> None:
        """Send SIGSTOP or SIGCONT, except to this server, which could not continue itself."""
        if pid != os.getpid():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def release(self, agent: str, path: str) -> None:
        """Start the agent with the group's path and the kernel's environment, without waiting for its end."""
        import subprocess

        self._agents = [process for process in self._agents if process.poll() is None]
        with suppress(OSError):  # the kernel does not report the error either
            self._agents.append(
                subprocess.Popen(
                    [agent, path],
                    cwd="/",
                    env=_AGENT_ENVIRONMENT,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )

    def setting(self, name: str) -> int | None:
        """Return a number out of ``/proc/sys``."""
        return digits(read_text(f"{self._proc}/sys/{name}") or "", 10)[0]

    def disk(self, device: str) -> bool:
        """Look for the disk in sysfs."""
        folder = f"/sys/dev/block/{device}"
        return os.path.exists(folder) and not os.path.exists(f"{folder}/partition")

    def interfaces(self) -> list[str]:
        """Return the names in ``/proc/net/dev``."""
        lines = (read_text(f"{self._proc}/net/dev") or "").splitlines()
        return [line.partition(":")[0].strip() for line in lines if ":" in line]

    def opened(self, writer: int, descriptor: int) -> str | None:
        """Return the target of a descriptor."""
        try:
            return os.readlink(f"{self._proc}/{writer}/fd/{descriptor}")
        except OSError:
            return None

    def signaller(self, writer: int, descriptor: int) -> Callable[[], None] | None:
        """Duplicate the eventfd into this process, if the kernel can (pidfd_getfd(2), Linux 5.6)."""
        import ctypes

        try:
            pidfd = os.pidfd_open(self.thread_group(writer) or writer)
        except OSError:
            return None
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            found = int(libc.syscall(_SYS_PIDFD_GETFD, pidfd, descriptor, 0))
        finally:
            os.close(pidfd)
        return None if found < 0 else _Event(found).signal


class _Event:
    """A duplicate of another process' eventfd, closed with its last reference."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)

    def signal(self) -> None:
        with suppress(OSError):
            os.eventfd_write(self._descriptor, 1)


def _numbers(path: str) -> frozenset[int]:
    return parse_list(read_text(path) or "", possible=_MAX_NUMBER)
