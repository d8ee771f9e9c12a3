"""The operations that change nothing, and those that cgroup file systems refuse.

The errnos are those of cgroup v1 in Linux 6.18 (``fs/kernfs``, ``fs/namei.c``).
"""

from __future__ import annotations

import errno
from typing import NoReturn

from pytest_k3s_sandbox.layers.cgroupfs.values import fail

Request = memoryview


class Refusals:
    """Handlers as :class:`~.filesystem.CgroupFilesystem` calls them: node, thread, request."""

    def do_nothing(self, _node: int, _thread: int, _request: Request) -> bytes:
        """Succeed: writes are complete, the kernel checks modes, and nothing is stored."""
        return b""

    do_access = do_flush = do_fsync = do_destroy = do_nothing
    do_forget = do_batch_forget = do_interrupt = do_nothing

    def do_fsyncdir(self, _node: int, _thread: int, _request: Request) -> bytes:
        """Refuse, as the kernel's cgroup directories do."""
        fail(errno.EINVAL)

    def do_create(self, _node: int, _thread: int, _request: Request) -> NoReturn:
        """Refuse: the files of a group are its controller's."""
        fail(errno.EACCES)

    def do_mknod(self, _node: int, _thread: int, _request: Request) -> NoReturn:
        """Refuse, as the kernel does for a cgroup directory."""
        fail(errno.EPERM)

    do_unlink = do_symlink = do_link = do_mknod

    def do_ioctl(self, _node: int, _thread: int, _request: Request) -> NoReturn:
        """Refuse: there are none."""
        fail(errno.ENOTTY)

    def do_fallocate(self, _node: int, _thread: int, _request: Request) -> NoReturn:
        """Refuse: nothing is stored."""
        fail(errno.EOPNOTSUPP)

    do_tmpfile = do_fallocate

    def do_lseek(self, _node: int, _thread: int, _request: Request) -> NoReturn:
        """Refuse to look for data or holes: the size is 0."""
        fail(errno.ENXIO)
