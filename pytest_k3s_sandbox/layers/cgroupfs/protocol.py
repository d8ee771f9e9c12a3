"""The FUSE protocol of ``/dev/fuse``: numbers, structures, and answers.

Sources: ``include/uapi/linux/fuse.h`` (the structures of minor version 31, which Linux and gVisor support),
fuse(4). docs/cgroupfs.md says how much of a server's start the absence of libfuse saves.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

MAJOR, MINOR = 7, 31
"""The protocol version; a kernel with a later minor version falls back to it."""

ROOT = 1
"""The node of the mountpoint."""

OPERATIONS = {
    1: "lookup",
    2: "forget",
    3: "getattr",
    4: "setattr",
    5: "readlink",
    6: "symlink",
    8: "mknod",
    9: "mkdir",
    10: "unlink",
    11: "rmdir",
    12: "rename",
    13: "link",
    14: "open",
    15: "read",
    16: "write",
    17: "statfs",
    18: "release",
    20: "fsync",
    21: "setxattr",
    22: "getxattr",
    23: "listxattr",
    24: "removexattr",
    25: "flush",
    26: "init",
    27: "opendir",
    28: "readdir",
    29: "releasedir",
    30: "fsyncdir",
    34: "access",
    35: "create",
    36: "interrupt",
    38: "destroy",
    39: "ioctl",
    42: "batch_forget",
    43: "fallocate",
    45: "rename2",
    46: "lseek",
    51: "tmpfile",
}
"""The operations that a program can cause, by number; the answer to others is ENOSYS."""

NO_REPLY = frozenset({"forget", "interrupt", "batch_forget"})
"""The operations without an answer; an interrupted request takes only microseconds."""

ATOMIC_O_TRUNC = 1 << 3
BIG_WRITES = 1 << 5
PARALLEL_DIROPS = 1 << 18

FOPEN_DIRECT_IO = 1 << 0
FOPEN_NOFLUSH = 1 << 5

FATTR_MODE, FATTR_UID, FATTR_GID = 1 << 0, 1 << 1, 1 << 2

MAX_WRITE = 32 * 1024  # more than the page that a cgroup file accepts, so that too long a write arrives whole
BUFFER = MAX_WRITE + 4096  # fuse(4): a write's data and its headers, and no less than 8 KiB

IN = struct.Struct("<IIQQIIII")
"""Length, operation, number of the request, node, uid, gid, thread, padding."""

OUT = struct.Struct("<IiQ")
"""Length, minus the errno, number of the request."""

HEADER = IN.size
"""The offset of a request's own part."""

ATTRIBUTES = struct.Struct("<6Q10I")
"""Inode, size, blocks, three times, their nanoseconds, mode, links, user, group, rdev, blksize, flags."""

_ENTRY = struct.Struct("<4Q2I")
_ATTR_OUT = struct.Struct("<QII")
_OPENED = struct.Struct("<QII")
_INIT_OUT = struct.Struct("<4I2H2I2H8I")
_STATFS = struct.Struct("<5Q10I")
_DIRENT = struct.Struct("<QQII")

READ_IN = struct.Struct("<QQI")
"""Handle, offset, size; of write as well, whose data begins at :data:`WRITE_DATA`."""

WRITE_DATA = HEADER + 40
INIT_IN = struct.Struct("<4I")
"""Major and minor version, readahead, flags."""

GETATTR_IN = struct.Struct("<IIQ")
"""Flags (1: the handle is valid), padding, handle."""

SETATTR_IN = struct.Struct("<II6Q8I")
"""Valid, padding, handle, size, lock owner, times, their nanoseconds, mode, (unused), uid, gid, (unused)."""

HANDLE = struct.Struct("<Q")
XATTR_IN = struct.Struct("<II")
"""Size of the value (set) or of the buffer (get, list), flags or padding."""

_SIZE = struct.Struct("<II")


def entry(node: int, attributes: bytes, seconds: int) -> bytes:
    """Return the answer to a lookup: the node, its attributes, and how long both are valid."""
    return _ENTRY.pack(node, 0, seconds, seconds, 0, 0) + attributes


def attributes_out(attributes: bytes, seconds: int) -> bytes:
    """Return the answer to getattr and setattr."""
    return _ATTR_OUT.pack(seconds, 0, 0) + attributes


def opened(handle: int, flags: int = 0) -> bytes:
    """Return the answer to open and opendir."""
    return _OPENED.pack(handle, flags, 0)


def initialized(minor: int, readahead: int, flags: int) -> bytes:
    """Return the answer to init: the version, and the accepted flags of the kernel."""
    wanted = flags & (ATOMIC_O_TRUNC | BIG_WRITES | PARALLEL_DIROPS)
    nanoseconds, unused = 1, (0,) * 8
    return _INIT_OUT.pack(
        MAJOR, min(minor, MINOR), readahead, wanted, 12, 9, MAX_WRITE, nanoseconds, 0, 0, *unused
    )


def size_out(size: int) -> bytes:
    """Return the answer to write, and to getxattr and listxattr for a size."""
    return _SIZE.pack(size, 0)


def statfs_out(block: int, longest_name: int) -> bytes:
    """Return the answer to statfs of a file system without blocks."""
    return _STATFS.pack(0, 0, 0, 0, 0, block, longest_name, block, *(0,) * 7)


def directory(entries: Sequence[tuple[int, int, bytes]], offset: int, size: int) -> bytes:
    """Return as much of a directory as fits.

    Args:
        entries: Inode, type (``DT_DIR`` and so on) and name of each.
        offset: The number of entries that the reader has.
        size: The size of the reader's buffer.
    """
    parts = []
    for number, (inode, kind, name) in enumerate(entries[offset:], offset + 1):
        record = _DIRENT.pack(inode, number, len(name), kind) + name
        record += b"\0" * (-len(record) % 8)
        size -= len(record)
        if size < 0:
            break
        parts.append(record)
    return b"".join(parts)


def reply(unique: int, payload: bytes) -> bytes:
    """Return a whole answer."""
    return OUT.pack(OUT.size + len(payload), 0, unique) + payload


def refusal(unique: int, number: int) -> bytes:
    """Return the answer that is an errno."""
    return OUT.pack(OUT.size, -number, unique)
