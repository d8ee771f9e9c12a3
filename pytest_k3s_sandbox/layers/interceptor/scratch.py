# ruff: noqa: PTH101, PTH102, PTH106, PTH108, PTH208 - a few plain calls; pathlib would be imported for nothing else here
"""Files that stand in for what a program opens: a private folder, gone with its tracer."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from typing import Final

_NAME: Final = "k3s-interceptor-"
_LOCK: Final = "lock"
_KEPT: Final = 64


class Scratch:
    """A folder of generated files, by content.

    Attributes:
        folder: Where the files are, or None before the first one.
    """

    def __init__(self, parent: str | None = None) -> None:
        """Choose the place; nothing is created yet."""
        self.folder: str | None = None
        self._parent = parent or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - the folder in it is exclusive
        self._lock = -1
        self._files: dict[bytes, str] = {}
        self._count = 0

    def file(self, content: bytes) -> str:
        """Return a file with this content; the oldest files go when there are many.

        Raises:
            OSError: It could not be written.
        """
        path = self._files.get(content)
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
            os.fchmod(fd, 0o444)  # whatever the umask: tracees may be other users
        finally:
            os.close(fd)
        self._files[content] = path
        return path

    def close(self) -> None:
        """Remove the folder and what is in it."""
        if self.folder is not None:
            _remove(self.folder)
            os.close(self._lock)
            self.folder = None

    def _create(self) -> None:
        for stale in _stale(self._parent):
            _remove(stale)
        folder = f"{self._parent}/{_NAME}{os.getpid()}-{time.monotonic_ns()}"
        os.mkdir(folder)
        os.chmod(folder, 0o755)  # noqa: S103 - whatever the umask: tracees may be other users
        self._lock = os.open(f"{folder}/{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.folder = folder


def _stale(parent: str) -> Iterator[str]:
    """Yield folders of ours whose tracer was killed: nobody holds their lock."""
    for name in os.listdir(parent):
        if not name.startswith(_NAME):
            continue
        folder = f"{parent}/{name}"
        try:
            fd = os.open(f"{folder}/{_LOCK}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
        except OSError:
            continue
        finally:
            os.close(fd)


def _remove(folder: str) -> None:
    try:
        for name in os.listdir(folder):
            os.unlink(f"{folder}/{name}")
        os.rmdir(folder)
    except OSError:
        pass  # somebody else removes it, or the file system has gone: nothing depends on it
