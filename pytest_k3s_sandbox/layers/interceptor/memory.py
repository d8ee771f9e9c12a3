"""A tracee's memory, in blocks: process_vm_readv(2), else /proc/PID/mem."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_PAGE: Final = 4096
PATH_MAX: Final = 4096
_FIRST: Final = 256  # nearly every path ends in its first 256 bytes


class Memory:
    """Reads and writes the memory of tracees, one access at a time."""

    def __init__(self) -> None:
        """Prepare the buffers; they are used again for each access."""
        libc = ctypes.CDLL(None, use_errno=True)
        argtypes = (ctypes.c_int, *(ctypes.c_void_p, ctypes.c_ulong) * 2, ctypes.c_ulong)
        self._readv = libc.process_vm_readv
        self._readv.argtypes = argtypes
        self._readv.restype = ctypes.c_ssize_t
        self._writev = libc.process_vm_writev
        self._writev.argtypes = argtypes
        self._writev.restype = ctypes.c_ssize_t
        self._buffer = ctypes.create_string_buffer(PATH_MAX)
        self._start = ctypes.addressof(self._buffer)
        self._local = _Iovec(self._start, 0)
        self._remote = (_Iovec * 2)()
        self._local_at = ctypes.addressof(self._local)
        self._remote_at = ctypes.addressof(self._remote)

    def read(self, tid: int, address: int, length: int) -> bytes:
        """Return up to ``length`` bytes (at most PATH_MAX); fewer where memory ends.

        The request is cut at the first page boundary, because a transfer that
        fails leaves out whole pieces.
        """
        first, second = self._remote
        head = min(length, _PAGE - (address & (_PAGE - 1)))
        first.base, first.length = address, head
        second.base, second.length = address + head, length - head
        self._local.length = length
        count: int = self._readv(tid, self._local_at, 1, self._remote_at, 1 + (length > head), 0)
        if count < 0:
            if ctypes.get_errno() == errno.EFAULT:
                return b""
            return _read_mem(tid, address, length)
        return ctypes.string_at(self._start, count)

    def read_path(self, tid: int, address: int) -> bytes | None:
        """Return the string that ends with NUL, or None: no such memory, or longer than a path may be."""
        text, end, _ = self.read(tid, address, _FIRST).partition(b"\0")
        if end:
            return text
        text, end, _ = self.read(tid, address, PATH_MAX).partition(b"\0")
        return text if end else None

    def write(self, tid: int, address: int, data: bytes) -> bool:
        """Write ``data`` (at most PATH_MAX bytes); tell whether all of it was written."""
        ctypes.memmove(self._start, data, len(data))
        first = self._remote[0]
        first.base, first.length = address, len(data)
        self._local.length = len(data)
        count: int = self._writev(tid, self._local_at, 1, self._remote_at, 1, 0)
        if count < 0 and ctypes.get_errno() != errno.EFAULT:
            return _write_mem(tid, address, data)
        return count == len(data)


def _read_mem(tid: int, address: int, length: int) -> bytes:
    try:
        fd = os.open(f"/proc/{tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, length, address)
    except (OSError, OverflowError):
        return b""
    finally:
        os.close(fd)


def _write_mem(tid: int, address: int, data: bytes) -> bool:
    try:
        fd = os.open(f"/proc/{tid}/mem", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.pwrite(fd, data, address) == len(data)
    except (OSError, OverflowError):
        return False
    finally:
        os.close(fd)
