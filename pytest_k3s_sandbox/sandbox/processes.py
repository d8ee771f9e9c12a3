"""Which process a number means, and how one is signalled that may have ended meanwhile.

A process id means something only within one boot of one machine and within one pid namespace
(pid_namespaces(7)), and only until another process gets it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return what tells this boot of the machine from every other one (random(4))."""
    with contextlib.suppress(OSError):
        return BOOT_ID.read_text().strip()
    stat = Path("/proc/stat").read_text()  # proc(5): the line `btime` is the time of the boot
    return next(line for line in stat.splitlines() if line.startswith("btime "))


def lines(path: Path) -> list[str]:
    """Return the lines of a file in /proc.

    The names in it (of processes, mount points and control groups) may hold any byte but the newline: bytes
    that are not UTF-8, and characters at which ``str.splitlines`` would break a line.

    Raises:
        OSError: It cannot be read.
    """
    return [line for line in os.fsdecode(path.read_bytes()).split("\n") if line]


def pid_namespace() -> str:
    """Return this process' pid namespace, like ``pid:[4026531836]`` (namespaces(7))."""
    return str(Path("/proc/self/ns/pid").readlink())


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None when it has ended.

    proc(5): the fields after the command's closing parenthesis count from 3.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()  # the command may hold any byte
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] == b"Z" else int(fields[19])


@dataclass(frozen=True)
class Identity:
    """A process that no other one can be taken for.

    Attributes:
        pid: Its id.
        start: Its start time in clock ticks since boot.
        boot: The boot in which it runs; see :func:`boot_id`.
        pid_namespace: The pid namespace in which it has its id.
    """

    pid: int
    start: int
    boot: str
    pid_namespace: str

    @classmethod
    def own(cls) -> Self:
        """Return the one of this process."""
        return cls(os.getpid(), start_time(os.getpid()) or 0, boot_id(), pid_namespace())

    @property
    def local(self) -> bool:
        """Whether its id means a process here: in this boot, and in this process' pid namespace."""
        return self.this_boot and self.pid_namespace == pid_namespace()

    @property
    def this_boot(self) -> bool:
        """Whether it ran since the machine was started."""
        return self.boot == boot_id()

    @property
    def alive(self) -> bool:
        """Whether it is seen to run; False also for one of another pid namespace."""
        return self.local and start_time(self.pid) == self.start


def send(pid: int, number: int, meant: Callable[[int], bool]) -> bool:
    """Signal a process if it is the one that is meant.

    The check is made while a descriptor holds the process (pidfd_open(2)), so that its id cannot be
    given to another one meanwhile.

    Args:
        pid: Its id.
        number: The signal.
        meant: Whether the process that has this id now is meant.

    Returns:
        Whether it was signalled.
    """
    if pid <= 1 or pid == os.getpid():
        return False
    with contextlib.ExitStack() as stack, contextlib.suppress(ProcessLookupError):
        fd = None
        with contextlib.suppress(OSError):  # ENOSYS on an old kernel: then without the descriptor
            fd = os.pidfd_open(pid)
            stack.callback(os.close, fd)
        if not meant(pid):
            return False
        if fd is None:
            os.kill(pid, number)
        else:
            signal.pidfd_send_signal(fd, signal.Signals(number))
        return True
    return False


def every() -> Iterator[int]:
    """Return the ids of all processes that are seen here."""
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def in_network_namespace(pid: int, namespace: os.stat_result) -> bool:
    """Return whether a process is in a network namespace.

    Args:
        pid: The process.
        namespace: What stat(2) gives for the namespace's file.
    """
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), namespace)
    except OSError:
        return False


def runs_container(pid: int, program: str, root: Path) -> bool:
    """Return whether a process is a runsc of ours.

    Args:
        pid: The process.
        program: The runsc program.
        root: The folder in which that runsc keeps its state: no other one is called with it.
    """
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        word = os.fsencode(root)
        if b"--root=" + word not in argv and word not in argv[argv.index(b"--root") :][1:2]:
            return False
        executable = str(Path(f"/proc/{pid}/exe").readlink()).removesuffix(" (deleted)")
        return executable == str(Path(program).resolve()) and Path(f"/proc/{pid}").stat().st_uid == 0
    except (OSError, ValueError):  # it has ended; or it has no such word
        return False


def in_control_groups(pid: int, groups: Iterable[str]) -> bool:
    """Tell whether a process is in one of these control groups, or below one (cgroups(7), /proc/pid/cgroup).

    Args:
        pid: The process.
        groups: The groups' folders, each with a name that no other group has.
    """
    try:
        memberships = lines(Path(f"/proc/{pid}/cgroup"))
    except OSError:
        return False
    paths = [PurePosixPath(line.split(":", 2)[2]) for line in memberships]
    return any(
        part.name == PurePosixPath(group).name and group.endswith(str(part))
        for group in groups
        for path in paths
        for part in (path, *path.parents)
    )
