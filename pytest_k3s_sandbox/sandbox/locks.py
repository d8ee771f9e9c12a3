"""Locks that a process holds for its life: the kernel lets go of them, however the process ends.

They are flock(2) locks.
They hold between processes that do not see each other, as in two containers that share a folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from pathlib import Path
from typing import Self

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.support import forks

POLL_SECONDS = 0.01
GLANCE_SECONDS = 0.03
"""How long :func:`take` waits at least: :func:`held` has the lock for a moment."""


class Lock:
    """A lock that this process holds.

    Args:
        path: The file.
        fd: Its descriptor, which has the lock. A process that inherits it has the lock, too.
    """

    def __init__(self, path: Path, fd: int) -> None:
        """Keep both."""
        self.path = path
        self.fd = fd
        self._held = True
        forks.watch(self)

    @classmethod
    def inherited(cls, path: Path, fd: int) -> Self:
        """Return the lock of a descriptor that this process got from the one that had it."""
        os.set_inheritable(fd, False)
        return cls(path, fd)

    def release(self, *, remove: bool = False) -> None:
        """Release it; do nothing the second time.

        Args:
            remove: Whether the file goes, too.
        """
        if not self._held:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        self.forked()
        forks.forget(self)

    def forked(self) -> None:
        """Close it in a child that was forked: it must not keep alive what its parent owns."""
        self._held = False
        os.close(self.fd)


def take(path: Path, seconds: float = 0.0) -> Lock:
    """Take a lock; its file is made when it is missing.

    Args:
        path: The file. It is never followed when it is a link.
        seconds: How long to wait for another holder at most.

    Raises:
        BlockingIOError: Another process has it.
        PermissionError: The file is not a regular file of this user's.
        OSError: The file cannot be opened; ELOOP when it is a link.
    """
    deadline = Deadline.after(max(seconds, GLANCE_SECONDS))
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            found = _own(fd, path)
            _wait(fd, deadline)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(found, os.lstat(path)):
                    return Lock(path, fd)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its holder has removed the file: the lock is on a new one


def _own(fd: int, path: Path) -> os.stat_result:
    """Return the status of an open file.

    Raises:
        PermissionError: It is not a regular file of this user's.
    """
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "it is not a regular file of this user's", str(path))
    return found


def _wait(fd: int, deadline: Deadline) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if deadline.expired:
                raise
            time.sleep(POLL_SECONDS)
        else:
            return


def held(path: Path) -> bool:
    """Return whether a process has a lock; one whose file is missing is free."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
