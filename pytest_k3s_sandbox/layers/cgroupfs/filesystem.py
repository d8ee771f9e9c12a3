"""The tree as a FUSE filesystem. Everything about FUSE is here, and nothing else.

gVisor has no rule that ENOSYS means "not needed": every operation that a program can cause
is implemented. Content is of the moment of a read at offset 0 and stays for that open file,
so that a reader with a small buffer gets one consistent text, as from the kernel's seq_file.
"""

from __future__ import annotations

import errno
import itertools
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from pytest_k3s_sandbox.layers.cgroupfs.hierarchy import Group
from pytest_k3s_sandbox.layers.cgroupfs.tree import Entry, Tree
from pytest_k3s_sandbox.layers.cgroupfs.values import fail

Attributes = dict[str, int]

_BLOCK = 4096
_NAME_MAX = 255


class CgroupOperations:
    """The operations as fusepy calls them: by name, with paths from the mountpoint.

    Args:
        tree: What is served.
        caller: Returns the thread that caused the current request.
        started: Called once requests are served.
    """

    use_ns = True  # times are integers, in nanoseconds
    bmap = None  # these two must not even be offered
    lock = None

    def __init__(
        self,
        tree: Tree,
        *,
        caller: Callable[[], int],
        started: Callable[[], None] = lambda: None,
    ) -> None:
        """Remember what is served; nothing runs yet."""
        self.tree = tree
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.spent_ns = 0
        self.mutex = threading.Lock()
        self._caller = caller
        self._size = 0
        self._started = started
        self._born = time.time_ns()
        self._handles: dict[int, tuple[Entry, bytes | None]] = {}
        self._numbers = itertools.count(1)
        self._longest: dict[str, int] = {}
        self._owners: WeakKeyDictionary[Group[Any], dict[str, tuple[int, int, int]]] = WeakKeyDictionary()

    def __call__(self, operation: str, *arguments: Any) -> Any:  # noqa: ANN401  # each operation has its own
        """Carry out one request; the lock keeps the sampling thread and the server apart."""
        begun = time.perf_counter_ns()
        method = getattr(self, operation)
        try:
            with self.mutex:
                return method(*arguments)
        except OSError as error:
            self.errors[f"{operation} {errno.errorcode.get(error.errno or 0, '?')}"] += 1
            raise
        finally:
            self.counts[operation] += 1
            self.spent_ns += time.perf_counter_ns() - begun

    def pretend(self, size: int) -> None:
        """Let files say that they are long.

        The kernel says 0, and with direct I/O Linux reads FUSE files whole all the same.
        gVisor knows no direct I/O: it never reads beyond the size that it was told,
        and asks again before each read that would (``fsimpl/fuse/regular_file.go``).

        Args:
            size: Bytes; a longer content shows its own length.
        """
        self._size = size

    def sample(self) -> None:
        """Bring the numbers up to date while any group has processes."""
        if self.tree.populated:
            with self.mutex:
                self.tree.refresh()

    def init(self, _path: str) -> None:
        """Announce that requests are served now."""
        self._started()

    def destroy(self, _path: str) -> None:
        """Do nothing: whoever mounted cleans up."""

    def getattr(self, path: str, _handle: int | None = None) -> Attributes:
        """Return what stat(2) shows."""
        entry = self.tree.find(path)
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), self._born)
        if entry.file is None:
            group = entry.group
            mode = 0o555 if group is None else group.mode
            below = len(self.tree.hierarchies) if group is None else len(group.children)
            uid, gid = (0, 0) if group is None else group.owner
            return {
                "st_mode": stat.S_IFDIR | mode,
                "st_nlink": 2 + below,
                "st_uid": uid,
                "st_gid": gid,
                "st_size": 0,
                **times,
            }
        uid, gid, mode = self._owner(entry)
        return {
            "st_mode": stat.S_IFREG | mode,
            "st_nlink": 1,
            "st_uid": uid,
            "st_gid": gid,
            "st_size": max(self._size, self._longest.get(path, 0)) if self._size else 0,
            **times,
        }

    def access(self, path: str, _mode: int) -> int:
        """Accept: with default_permissions the kernel checks modes itself."""
        self.tree.find(path)
        return 0

    def opendir(self, path: str) -> int:
        """Open a directory; it needs no handle."""
        if self.tree.find(path).file is not None:
            fail(errno.ENOTDIR)
        return 0

    def readdir(self, path: str, _handle: int) -> list[str]:
        """Return the names in a directory."""
        return [".", "..", *self.tree.names(self.tree.find(path).group)]

    def releasedir(self, _path: str, _handle: int) -> int:
        """Close a directory."""
        return 0

    def fsyncdir(self, _path: str, _datasync: int, _handle: int) -> int:
        """Do nothing: nothing is stored."""
        return 0

    def open(self, path: str, _flags: int) -> int:
        """Open a file."""
        entry = self.tree.find(path)
        if entry.file is None:
            fail(errno.EISDIR)
        handle = next(self._numbers)
        self._handles[handle] = (entry, None)
        return handle

    def read(self, path: str, size: int, offset: int, handle: int) -> bytes:
        """Return a part of a file's content."""
        entry, content = self._handles[handle]
        if content is None or offset == 0:
            content = self._group(entry).read(entry.name).encode("ascii", "surrogateescape")
            self._handles[handle] = (entry, content)
            if self._size and len(content) > self._size:
                self._longest[path] = max(len(content), self._longest.get(path, 0))
        return content[offset : offset + size]

    def write(self, _path: str, data: bytes, _offset: int, handle: int) -> int:
        """Hand a write to the file, wherever it is said to start."""
        entry, _ = self._handles[handle]
        writer = self._caller() if entry.name in {"cgroup.procs", "tasks"} else 0
        self._group(entry).write(entry.name, data, writer=writer)
        return len(data)

    def truncate(self, path: str, _length: int, _handle: int | None = None) -> int:
        """Let O_TRUNC pass without effect, as the kernel does."""
        if self.tree.find(path).file is None:
            fail(errno.EISDIR)
        return 0

    def flush(self, _path: str, _handle: int) -> int:
        """Do nothing: writes took effect at once."""
        return 0

    def fsync(self, _path: str, _datasync: int, _handle: int) -> int:
        """Refuse as the kernel's cgroup files do, which have no fsync."""
        fail(errno.EINVAL)

    def release(self, _path: str, handle: int) -> int:
        """Close a file."""
        self._handles.pop(handle, None)
        return 0

    def statfs(self, _path: str) -> Attributes:
        """Return what statvfs(3) shows: nothing is stored. The magic is FUSE's own."""
        return {"f_bsize": _BLOCK, "f_frsize": _BLOCK, "f_namemax": _NAME_MAX}

    def mkdir(self, path: str, mode: int) -> int:
        """Make a group."""
        self.tree.mkdir(path)
        group = self.tree.find(path).group
        if group is not None:
            group.mode = stat.S_IMODE(mode)
        return 0

    def rmdir(self, path: str) -> int:
        """Remove a group."""
        self.tree.rmdir(path)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        """Change permission bits."""
        entry = self.tree.find(path)
        if entry.group is None:
            fail(errno.EPERM)
        if entry.file is None:
            entry.group.mode = stat.S_IMODE(mode)
        else:
            uid, gid, _ = self._owner(entry)
            self._owners.setdefault(entry.group, {})[entry.name] = (uid, gid, stat.S_IMODE(mode))
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        """Change the owner, the group, or (with -1 for the other) one of them."""
        entry = self.tree.find(path)
        if entry.group is None:
            fail(errno.EPERM)
        if entry.file is None:
            old = entry.group.owner
            entry.group.owner = (old[0] if uid == -1 else uid, old[1] if gid == -1 else gid)
        else:
            was = self._owner(entry)
            now = (was[0] if uid == -1 else uid, was[1] if gid == -1 else gid, was[2])
            self._owners.setdefault(entry.group, {})[entry.name] = now
        return 0

    def utimens(self, path: str, _times: tuple[int, int] | None = None) -> int:
        """Accept times without keeping them."""
        self.tree.find(path)
        return 0

    def create(self, _path: str, _mode: int, _info: object = None) -> int:
        """Refuse: the files of a group are its controller's."""
        fail(errno.EACCES)

    def mknod(self, _path: str, _mode: int, _device: int) -> int:
        """Refuse, as the kernel does for a cgroup directory."""
        fail(errno.EPERM)

    def unlink(self, _path: str) -> int:
        """Refuse likewise."""
        fail(errno.EPERM)

    def symlink(self, _target: str, _source: str) -> int:
        """Refuse likewise."""
        fail(errno.EPERM)

    def link(self, _target: str, _source: str) -> int:
        """Refuse likewise."""
        fail(errno.EPERM)

    def rename(self, _old: str, _new: str) -> int:
        """Refuse likewise."""
        fail(errno.EPERM)

    def readlink(self, _path: str) -> str:
        """Refuse: there are no links."""
        fail(errno.EINVAL)

    def getxattr(self, _path: str, _name: str, _position: int = 0) -> bytes:
        """Say that there is no such attribute."""
        fail(errno.ENODATA)

    def listxattr(self, _path: str) -> list[str]:
        """Return no attributes."""
        return []

    def setxattr(self, _path: str, _name: str, _value: bytes, _options: int, _position: int = 0) -> int:
        """Refuse extended attributes."""
        fail(errno.EOPNOTSUPP)

    def removexattr(self, _path: str, _name: str) -> int:
        """Refuse likewise."""
        fail(errno.ENODATA)

    def ioctl(self, *_arguments: object) -> int:
        """Refuse: there are none."""
        fail(errno.ENOTTY)

    def statistics(self) -> dict[str, object]:
        """Return how often each operation ran and failed, and the seconds spent in all."""
        return {
            "operations": dict(self.counts),
            "errors": dict(self.errors),
            "seconds": self.spent_ns / 1e9,
            "groups": sum(1 for h in self.tree.hierarchies.values() for _ in h.root.subtree()),
        }

    def _group(self, entry: Entry) -> Group[Any]:
        """Return the group of an open file; ENODEV when it was removed, as from the kernel."""
        group = entry.group
        if group is None or (group.parent is not None and group.parent.children.get(group.name) is not group):
            fail(errno.ENODEV)
        return group

    def _owner(self, entry: Entry) -> tuple[int, int, int]:
        mode = entry.file.mode if entry.file is not None else 0
        known = {} if entry.group is None else self._owners.get(entry.group, {})
        return known.get(entry.name, (0, 0, mode))
