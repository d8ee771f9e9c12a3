"""The system calls that rules can match, with their numbers on x86-64.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl. Arguments: the man page of each call.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

AT_FDCWD: Final = -100
CLOSE: Final = 3
MMAP: Final = 9
MPROTECT: Final = 10
MUNMAP: Final = 11
GETPID: Final = 39
GETDENTS: Final = 78
STATFS: Final = 137
FSTATFS: Final = 138
GETDENTS64: Final = 217
SECCOMP: Final = 317
STATX: Final = 332
OPENAT2: Final = 437


class Group(Enum):
    """What a call does with its path."""

    OPEN = "open"
    STAT = "stat"
    ACCESS = "access"
    READLINK = "readlink"
    CHANGE = "change"
    STATFS = "statfs"
    CLOSE = "close"
    UMOUNT = "umount"
    LIST = "list"


class PathCall(NamedTuple):
    """A call that names a path.

    Attributes:
        name: The call's name.
        group: The call's group.
        path: Index of the argument that points to the path.
        dirfd: Index of the argument with the folder that a relative path starts at,
            or None: the working directory.
    """

    name: str
    group: Group
    path: int
    dirfd: int | None


PATH_CALLS: Final = {
    2: PathCall("open", Group.OPEN, 0, None),
    4: PathCall("stat", Group.STAT, 0, None),
    6: PathCall("lstat", Group.STAT, 0, None),
    21: PathCall("access", Group.ACCESS, 0, None),
    83: PathCall("mkdir", Group.CHANGE, 0, None),
    84: PathCall("rmdir", Group.CHANGE, 0, None),
    85: PathCall("creat", Group.OPEN, 0, None),
    87: PathCall("unlink", Group.CHANGE, 0, None),
    89: PathCall("readlink", Group.READLINK, 0, None),
    STATFS: PathCall("statfs", Group.STATFS, 0, None),
    166: PathCall("umount2", Group.UMOUNT, 0, None),
    257: PathCall("openat", Group.OPEN, 1, 0),
    258: PathCall("mkdirat", Group.CHANGE, 1, 0),
    262: PathCall("newfstatat", Group.STAT, 1, 0),
    263: PathCall("unlinkat", Group.CHANGE, 1, 0),
    267: PathCall("readlinkat", Group.READLINK, 1, 0),
    269: PathCall("faccessat", Group.ACCESS, 1, 0),
    STATX: PathCall("statx", Group.STAT, 1, 0),
    OPENAT2: PathCall("openat2", Group.OPEN, 1, 0),
    439: PathCall("faccessat2", Group.ACCESS, 1, 0),
}
"""The calls with a path, by number; the filter passes x32 and 32-bit calls."""

STATFS_CALLS: Final = {STATFS: "statfs", FSTATFS: "fstatfs"}

LIST_CALLS: Final = {GETDENTS: "getdents", GETDENTS64: "getdents64"}
DESCRIPTOR_CALLS: Final = {CLOSE: "close", FSTATFS: "fstatfs", **LIST_CALLS}
"""The calls without a path that can be trapped."""

NUMBERS: Final = {
    **{name: number for number, name in DESCRIPTOR_CALLS.items()},
    **{call.name: number for number, call in PATH_CALLS.items()},
}
"""The number of every call that can be trapped, by its name."""


def returning(*groups: Group) -> frozenset[str]:
    """Return the names of the calls in the given groups that can stop at their return.

    An interrupted close has closed its descriptor (close(2)) and is not repeated.
    """
    found = names(*(group for group in groups if group is not Group.CLOSE))
    return found | frozenset(STATFS_CALLS.values()) if Group.STATFS in groups else found


def names(*groups: Group) -> frozenset[str]:
    """Return the names of all calls in the given groups."""
    found = {call.name for call in PATH_CALLS.values() if call.group in groups}
    if Group.CLOSE in groups:
        found.add("close")
    if Group.LIST in groups:
        found.update(LIST_CALLS.values())
    return frozenset(found)
