"""Mounts, unmounts and reads the mount table, by system calls alone."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import NamedTuple

from pytest_k3s_sandbox.support.mountinfo import unescape

MS_NOSUID = 2
"""Flag of mount(2)."""

MS_NODEV = 4
"""Flag of mount(2)."""

MS_BIND = 4096
"""Flag of mount(2)."""

MNT_DETACH = 2
"""Flag of umount2(2): detach the mount at once, and end it with its last user."""

_FIELDS_BEFORE = 6  # of every line of mountinfo, before and after its separator
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
        ValueError: A line is malformed.
    """
    mounts = []
    for line in text.splitlines():
        before, found, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if not found or len(left) < _FIELDS_BEFORE or len(right) < _FIELDS_AFTER:
            raise ValueError(f"not a line of mountinfo: {line!r}")
        target, root, source = (unescape(field) for field in (left[4], left[3], right[1]))
        mounts.append(Mount(target, root, right[0], source, tuple(right[2].split(","))))
    return mounts


def mounted() -> list[Mount]:
    """Return the mounts that this process sees, in the order in which they were made."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return parse_mountinfo(file.read())


def kind(target: str) -> str | None:
    """Return the type of the topmost file system on a mountpoint; None if it is not one."""
    return {mount.target: mount.kind for mount in mounted()}.get(target)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mount a file system, with the system call of that name.

    Raises:
        OSError: The error of mount(2), with the target.
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
    """Unmount the topmost file system of a directory, even in use.

    Raises:
        OSError: The error of umount2(2), with the target.
    """
    if _libc().umount2(os.fsencode(target), MNT_DETACH):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def is_dead(path: str) -> bool:
    """Return whether a directory is a FUSE mount without a server ("Transport endpoint is not connected")."""
    try:
        # An open asks the server; the kernel may answer stat(2) from its cache.
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        return error.errno in {errno.ENOTCONN, errno.ECONNABORTED}
    os.close(fd)
    return False


def clear_dead(path: str) -> int:
    """Unmount every dead FUSE mount from the top of a directory.

    Returns:
        The number of mounts.

    Raises:
        OSError: An unmount failed.
    """
    count = 0
    while is_dead(path):
        unmount(path)
        count += 1
    return count


def refuse_others(path: str) -> None:
    """Check that a mountpoint does not belong to another user: in /tmp it may be a link to anywhere.

    Args:
        path: The mountpoint; it may be missing.

    Raises:
        PermissionError: The directory or link belongs to another user.
    """
    try:
        user = os.lstat(path).st_uid
    except OSError:  # missing, or a dead mount, which is root's
        return
    if user != os.geteuid():
        raise PermissionError(errno.EPERM, f"it belongs to the user {user}", path)


def make_directory(path: str) -> bool:
    """Make a directory; if its parent refuses, mount a tmpfs on the parent first.

    Returns:
        Whether a tmpfs was mounted.

    Raises:
        OSError: Both failed.
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


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
