"""Opening what lies beneath a folder without following a link, and reading it with a limit."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path, PurePosixPath
from typing import IO

READ_LIMIT = 64 << 20
"""Bytes that a read returns at most: an hour's log of a kubelet has a tenth of it."""

NR_OPENAT2 = 437
"""The call's number, which is the same on every architecture (openat2(2))."""

RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x02, 0x04, 0x08
"""Flags of ``open_how.resolve`` in linux/openat2.h."""

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""How a file is opened that may be anything: a FIFO or a terminal must not block or become ours."""

LACKING = (errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.E2BIG)
"""Errors of openat2(2) that mean that the kernel, or a filter in front of it, does not offer it."""


class RefusedError(OSError):
    """The machine must not use a file that the inside can write: a link, a device, a file that is too large.

    Args:
        path: The file.
        cause: The reason.
    """

    def __init__(self, path: str | Path, cause: str) -> None:
        """Say which file, and why."""
        super().__init__(errno.ELOOP, f"{cause}; something inside the sandbox may have made it", str(path))


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_LIBC = ctypes.CDLL(None, use_errno=True)


def _openat2(folder: int, name: str, flags: int) -> int:
    how = _OpenHow(flags, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
    # The first four arguments are passed as longs: a variadic function widens nothing by itself.
    got = _LIBC.syscall(
        ctypes.c_long(NR_OPENAT2),
        ctypes.c_long(folder),
        ctypes.c_char_p(os.fsencode(name)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if got < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return int(got)


def _walk(folder: int, parts: tuple[str, ...], flags: int) -> int:
    """Open a path one component after another, following no link."""
    here = os.dup(folder)
    try:
        for part in parts[:-1]:
            following = os.open(part, FOLDER, dir_fd=here)
            os.close(here)
            here = following
        return os.open(parts[-1], flags | os.O_NOFOLLOW, dir_fd=here)
    finally:
        os.close(here)


def open_beneath(folder: int, path: str | PurePosixPath, flags: int) -> int:
    """Open an existing file or folder beneath an open folder, without following any link.

    Args:
        folder: A descriptor of the folder.
        path: The path relative to it; empty or ``.`` for the folder itself.
        flags: Flags of open(2) that create nothing.

    Returns:
        A new descriptor.

    Raises:
        RefusedError: A component is a link, or leads out of the folder.
        OSError: It is not there, or cannot be opened.
    """
    parts = PurePosixPath(path).parts
    if any(part in {"..", "/"} for part in parts):
        raise RefusedError(str(path), "it leads out of the folder")
    if not parts:
        return os.open(".", flags, dir_fd=folder)
    try:
        try:
            return _openat2(folder, "/".join(parts), flags | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in LACKING:
                raise
            return _walk(folder, parts, flags)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EXDEV}:
            raise RefusedError(str(path), "a link is on the way") from error
        if error.errno == errno.ENXIO:  # a socket, or a FIFO without a reader
            raise RefusedError(str(path), "it is not a regular file") from error
        raise


def _regular(descriptor: int, path: str | Path) -> os.stat_result:
    """Return the file of a descriptor, which must be a regular file with a single name.

    A hard link would show, or change, a file of another folder by a name in this one.
    """
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise RefusedError(path, "it is not a regular file")
    if found.st_nlink > 1:
        raise RefusedError(path, f"it has {found.st_nlink} names (hard links)")
    return found


def open_regular(root: int, relative: PurePosixPath, how: int = os.O_RDONLY) -> IO[bytes]:
    """Open a regular file beneath an open folder for reading.

    Args:
        root: A descriptor of the folder.
        relative: The path beneath it.
        how: ``O_RDWR`` for a descriptor that can be truncated, too.

    Raises:
        RefusedError: It is not a regular file with a single name, or a link is on the way.
        OSError: It is not there or cannot be read.
    """
    descriptor = open_beneath(root, relative, LOOK | how)
    try:
        _regular(descriptor, str(relative))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_limited(file: IO[bytes], path: str, limit: int) -> bytes:
    """Return what an open file holds; raises RefusedError if that is more than ``limit`` bytes."""
    data = file.read(limit + 1)
    if len(data) > limit:
        raise RefusedError(path, f"it is larger than {limit} bytes")
    return data


def private(path: str, flags: int) -> int:
    """Open a file as open() asks, readable by its owner only: an ``opener``."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


class Limited:
    """A file with a limit of the bytes that are read, because it may grow meanwhile.

    Args:
        file: The file.
        limit: The bytes.
    """

    def __init__(self, file: IO[bytes], limit: int) -> None:
        """Keep the file."""
        self._file = file
        self._left = limit

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; none when the limit is reached."""
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data
