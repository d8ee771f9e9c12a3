"""Reads and writes a tracee's memory: process_vm_readv(2), else /proc/PID/mem."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

_PAGE: Final = 4096
PATH_MAX: Final = 4096
_FIRST: Final = 256  # nearly every path ends in its first 256 bytes


class Memory:
    """Reads and writes the memory of tracees, one access at a time."""

    def __init__(self) -> None:
        """Allocate the buffers, which every access uses."""
        libc = ctypes.CDLL(None, use_errno=True)
        argtypes = (ctypes.c_int, *(ctypes.c_ulong, ctypes.c_ulong) * 2, ctypes.c_ulong)
        self._readv = libc.process_vm_readv
        self._readv.argtypes = argtypes
        self._readv.restype = ctypes.c_ssize_t
        self._writev = libc.process_vm_writev
        self._writev.argtypes = argtypes
        self._writev.restype = ctypes.c_ssize_t
        self._buffer = ctypes.create_string_buffer(PATH_MAX)
        self._start = ctypes.addressof(self._buffer)
        # struct iovec twice (uapi linux/uio.h): base and length, here and in the tracee.
        self._iovec = (ctypes.c_ulong * 4)(self._start, 0, 0, 0)
        self._local = ctypes.addressof(self._iovec)
        self._remote = self._local + 16

    def read(self, tid: int, address: int, length: int) -> bytes:
        """Return up to ``length`` bytes (at most PATH_MAX); fewer where memory ends.

        A failed transfer skips whole iovecs, so each page has its own.
        """
        out = b""
        while length > 0:
            part = min(length, _PAGE - (address & (_PAGE - 1)))
            text = self._read(tid, address, part)
            out += text
            if len(text) < part:
                break
            address += part
            length -= part
        return out

    def _read(self, tid: int, address: int, length: int) -> bytes:
        if not 0 <= address < 1 << 64:
            return b""
        iovec = self._iovec
        iovec[1] = iovec[3] = length
        iovec[2] = address
        count: int = self._readv(tid, self._local, 1, self._remote, 1, 0)
        if count >= 0:
            return ctypes.string_at(self._start, count)
        return b"" if ctypes.get_errno() == errno.EFAULT else _read_mem(tid, address, length)

    def read_path(self, tid: int, address: int) -> bytes | None:
        """Return a string up to its NUL; None if it is unreadable or longer than PATH_MAX."""
        # One read is usually enough. It ends at the page's end, or after a path's usual length.
        first = min(_FIRST, _PAGE - (address & (_PAGE - 1)))
        text = self._read(tid, address, first)
        end = text.find(b"\0")
        if end >= 0:
            return text[:end]
        if len(text) < first:
            return None
        text += self.read(tid, address + first, PATH_MAX - first)
        end = text.find(b"\0")
        return text[:end] if end >= 0 else None

    def write(self, tid: int, address: int, data: bytes) -> bool:
        """Write ``data`` (at most PATH_MAX bytes); return whether all of it was written."""
        ctypes.memmove(self._start, data, len(data))
        iovec = self._iovec
        iovec[1] = iovec[3] = len(data)
        iovec[2] = address
        count: int = self._writev(tid, self._local, 1, self._remote, 1, 0)
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
