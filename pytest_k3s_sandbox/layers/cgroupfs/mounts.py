"""Mounting, unmounting, and the mount table, through the system calls themselves."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from functools import cache
from typing import NamedTuple

MS_NOSUID = 2
"""Flag of mount(2)."""

MS_NODEV = 4
"""Flag of mount(2)."""

MS_BIND = 4096
"""Flag of mount(2)."""

MNT_DETACH = 2
"""Flag of umount2(2): the mount goes from the tree at once, and ends with its last user."""

_FIELDS_BEFORE = 6  # that every line of mountinfo has before its separator
_FIELDS_AFTER = 3


class Mount(NamedTuple):
    """One line of ``/proc/PID/mountinfo``, as in proc_pid_mountinfo(5).

    Attributes:
        target: The mount point.
        root: Which directory of the filesystem is mounted.
        kind: The filesystem's type.
        source: What is mounted.
        options: The superblock's options.
    """

    target: str
    root: str
    kind: str
    source: str
    options: tuple[str, ...]


def parse_mountinfo(text: str) -> list[Mount]:
    """Parse ``/proc/PID/mountinfo``.

    Raises:
        ValueError: A line is not as proc_pid_mountinfo(5) says.
    """
    mounts = []
    for line in text.splitlines():
        before, found, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if not found or len(left) < _FIELDS_BEFORE or len(right) < _FIELDS_AFTER:
            raise ValueError(f"not a line of mountinfo: {line!r}")
        mounts.append(
            Mount(_plain(left[4]), _plain(left[3]), right[0], _plain(right[1]), tuple(right[2].split(",")))
        )
    return mounts


def mounted() -> list[Mount]:
    """Return the mounts that this process sees, in the order in which they were made."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return parse_mountinfo(file.read())


def kind(target: str) -> str | None:
    """Return the type of the topmost filesystem that is mounted exactly there, None without one."""
    return {mount.target: mount.kind for mount in mounted()}.get(target)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Put a filesystem on a directory with the system call of that name.

    Raises:
        OSError: What the system call said, naming the target.
    """
    arguments = (
        os.fsencode(source),
        os.fsencode(target),
        kind.encode(),
        ctypes.c_ulong(flags),
        data.encode(),
    )
    if _libc().mount(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def unmount(target: str) -> None:
    """Take the topmost mount off a directory, also one that is in use.

    Raises:
        OSError: What umount2(2) said, naming the target.
    """
    if _libc().umount2(os.fsencode(target), MNT_DETACH):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def is_dead(path: str) -> bool:
    """Tell whether a FUSE mount lies there whose server is gone ("Transport endpoint is not connected")."""
    try:
        # Opening asks the server; stat(2) can be answered out of the kernel's cache.
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        return error.errno in {errno.ENOTCONN, errno.ECONNABORTED}
    os.close(fd)
    return False


def clear_dead(path: str) -> int:
    """Unmount every dead FUSE mount from the top of a directory.

    Returns:
        How many there were.

    Raises:
        OSError: One cannot be unmounted.
    """
    count = 0
    while is_dead(path):
        unmount(path)
        count += 1
    return count


def refuse_others(path: str) -> None:
    """Make sure that a place for a mount is not another user's: in /tmp it may lead anywhere.

    Args:
        path: The place; one that is missing is no error.

    Raises:
        PermissionError: It, or the link that it is, belongs to another user.
    """
    try:
        user = os.lstat(path).st_uid
    except OSError:  # missing, or a dead mount: that is root's
        return
    if user != os.geteuid():
        raise PermissionError(errno.EPERM, f"it belongs to the user {user}", path)


def make_directory(path: str) -> bool:
    """Make a directory; where its parent refuses, put a tmpfs on the parent first.

    Returns:
        Whether a tmpfs was mounted.

    Raises:
        OSError: Neither was possible.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOENT, errno.EOPNOTSUPP}:
            raise
    else:
        return False
    mount("tmpfs", os.path.dirname(path), "tmpfs", 0, "mode=755")
    os.mkdir(path)
    return True


def _plain(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
