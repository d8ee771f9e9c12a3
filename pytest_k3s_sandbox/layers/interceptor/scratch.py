"""A private folder of generated files, which the tracer removes at its end."""

from __future__ import annotations

import fcntl
import os
from typing import Final

_NAME: Final = "k3s-interceptor-"
_LOCK: Final = "lock"
_KEPT: Final = 64
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Scratch:
    """A folder of generated files, by content.

    Attributes:
        folder: Where the files are, or None before the first one.
    """

    def __init__(self, parent: str | None = None) -> None:
        """Choose the parent folder; nothing is created yet."""
        self.folder: str | None = None
        self._parent = parent or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - the folder in it is exclusive
        self._lock = -1
        self._files: dict[tuple[int, bytes], str] = {}
        self._count = 0

    def file(self, content: bytes, mode: int = 0o444) -> str:
        """Return a file with this content; beyond a limit, remove the oldest files.

        Args:
            content: The content.
            mode: Who may read it, whatever the umask: tracees may be other users.

        Raises:
            OSError: The file cannot be written.
        """
        path = self._files.get((mode, content))
        if path is not None:
            return path
        if self.folder is None:
            self._create()
        while len(self._files) >= _KEPT:
            os.unlink(self._files.pop(next(iter(self._files))))
        self._count += 1
        path = f"{self.folder}/{self._count}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, content)
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
        self._files[mode, content] = path
        return path

    def close(self) -> None:
        """Remove the folder with its files."""
        if self.folder is not None:
            fd = os.open(self.folder, _FOLDER)
            try:
                _remove(self.folder, fd)
            finally:
                os.close(fd)
                os.close(self._lock)
                self.folder = None

    def _create(self) -> None:
        _remove_stale(self._parent)
        while self.folder is None:
            # No other user can guess the name, and create it first.
            folder = f"{self._parent}/{_NAME}{os.getpid()}-{os.urandom(8).hex()}"
            os.mkdir(folder, 0o700)
            fd = os.open(folder, _FOLDER)
            try:
                os.fchmod(fd, 0o755)  # whatever the umask: tracees may be other users
                how = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._lock = os.open(_LOCK, how, 0o600, dir_fd=fd)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                if os.path.exists(folder):
                    self.folder = folder
                else:  # another tracer removed the folder before it was locked
                    os.close(self._lock)
            finally:
                os.close(fd)


def _remove_stale(parent: str) -> None:
    """Remove the folders of killed tracers, whose lock no process holds.

    Another user may have created a folder or link of such a name. A tracer's folder belongs to this user, is
    not a link, and contains only a lock and numbered files.
    """
    for name in os.listdir(parent):
        pid, dash, number = name.removeprefix(_NAME).partition("-")
        if not (name.startswith(_NAME) and pid.isdecimal() and dash and number.isalnum()):
            continue
        try:
            fd = os.open(f"{parent}/{name}", _FOLDER)
        except OSError:
            continue
        try:
            _remove_if_ours(f"{parent}/{name}", fd)
        except OSError:
            continue  # another user's, or a running tracer's
        finally:
            os.close(fd)


def _remove_if_ours(folder: str, fd: int) -> None:
    if os.fstat(fd).st_uid != os.geteuid():
        return
    lock = os.open(_LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if all(name == _LOCK or name.isdecimal() for name in os.listdir(fd)):
            _remove(folder, fd)
    finally:
        os.close(lock)


def _remove(folder: str, fd: int) -> None:
    try:
        for name in os.listdir(fd):
            os.unlink(name, dir_fd=fd)
        os.rmdir(folder)
    except OSError:
        pass  # another process removes it, or the file system is gone
