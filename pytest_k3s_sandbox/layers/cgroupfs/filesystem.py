"""Answers the kernel's FUSE requests about a tree, without I/O.

Every operation that a program can cause is implemented, because gVisor does not take ENOSYS for "not needed".
A read at offset 0 renders the content, and later reads of the open file continue it, so that a reader with a
small buffer gets a consistent text, as from the kernel's seq_file. Refusals have the kernel's errno
(``fs/kernfs``, ``kernel/cgroup/cgroup-v1.c``).
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from pytest_k3s_sandbox.layers.cgroupfs import protocol
from pytest_k3s_sandbox.layers.cgroupfs.group import Group
from pytest_k3s_sandbox.layers.cgroupfs.nodes import PROCESSES, Nodes
from pytest_k3s_sandbox.layers.cgroupfs.openfiles import (
    Listings,
    OpenFile,
    OpenFiles,
    ProcessFile,
    UnopenedReads,
)
from pytest_k3s_sandbox.layers.cgroupfs.protocol import HEADER
from pytest_k3s_sandbox.layers.cgroupfs.refusals import Refusals
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree
from pytest_k3s_sandbox.layers.cgroupfs.values import fail
from pytest_k3s_sandbox.layers.cgroupfs.xattrs import Xattrs

_LONG = 3600  # seconds; only requests change anything, so the kernel's cache stays right
_BLOCK = 4096
_NAME_MAX = 255  # for statfs(2); kernfs accepts longer names, and FUSE up to 1024
_BY_HANDLE = 1  # FUSE_GETATTR_FH
_OPENED = protocol.FOPEN_DIRECT_IO | protocol.FOPEN_NOFLUSH

Request = memoryview
Mode = tuple[int, int, int]  # user, group and permission bits


class CgroupFilesystem(Refusals):
    """Answers requests about a tree. Not safe for threads: the caller locks.

    Args:
        tree: The tree to serve.
        started: Called after the kernel's FUSE_INIT.

    Attributes:
        size: The files' size in stat(2). Files of the kernel's cgroups have 0, and with direct I/O Linux
            reads such FUSE files whole. gVisor lacks direct I/O, and never reads beyond the size
            (``fsimpl/fuse/regular_file.go``).
        unopened: Whether FUSE_OPEN gets ENOSYS, after which the kernel sends none. That saves requests, and a
            signal cannot interrupt an open. For gVisor only: Linux would cache the content.
        report: Called with a line for each change by a program.
    """

    def __init__(self, tree: Tree, *, started: Callable[[], None] = lambda: None) -> None:
        """Keep the tree; nothing runs yet."""
        self.tree = tree
        self.counts = dict.fromkeys((*protocol.OPERATIONS.values(), "unknown"), 0)
        self.errors: dict[str, int] = {}
        self.spent_ns = 0
        self.report: Callable[[str], None] = lambda _line: None
        self.size = 0
        self.unopened = False
        self._started = started
        self._born = int(time.time())
        self._nodes = Nodes(tree)
        self._handlers: dict[int, tuple[str, Callable[[int, int, Request], bytes]]] = {
            number: (name, getattr(self, f"do_{name}")) for number, name in protocol.OPERATIONS.items()
        }
        self._files = OpenFiles()
        self._reads = UnopenedReads()
        self._lists = Listings()
        self._longest: dict[int, int] = {}
        self._modes: dict[int, Mode] = {}
        self._xattrs = Xattrs()

    def answer(self, request: Request) -> bytes | None:
        """Carry out one request.

        Args:
            request: The bytes of a read from ``/dev/fuse``.

        Returns:
            The bytes to write there, None if the kernel expects no answer.
        """
        begun = time.perf_counter_ns()
        _, number, unique, node, _, _, thread, _ = protocol.IN.unpack_from(request)
        name, handler = self._handlers.get(number, ("unknown", _unknown))
        try:
            result = protocol.reply(unique, handler(node, thread, request))
        except OSError as error:
            result = self._refuse(name, unique, error.errno or errno.EIO)
        except (struct.error, ValueError):  # not a request
            result = self._refuse(name, unique, errno.EINVAL)
        except Exception as error:  # noqa: BLE001  # a defect in one file must not take a node's cgroups away
            sys.stderr.write(f"cgroupfs: defect in {name} of node {node}: {error!r}\n")
            result = self._refuse(name, unique, errno.EIO)
        self.counts[name] += 1
        self.spent_ns += time.perf_counter_ns() - begun
        return None if name in protocol.NO_REPLY else result

    def statistics(self) -> dict[str, object]:
        """Return how often each operation ran and failed, and the seconds spent in all."""
        return {
            "operations": {name: count for name, count in self.counts.items() if count},
            "errors": dict(self.errors),
            "seconds": self.spent_ns / 1e9,
            "groups": sum(1 for h in self.tree.hierarchies.values() for _ in h.root.subtree()),
        }

    def _refuse(self, name: str, unique: int, number: int) -> bytes:
        what = f"{name} {errno.errorcode.get(number, number)}"
        self.errors[what] = self.errors.get(what, 0) + 1
        return protocol.refusal(unique, number)

    def _attributes(self, node: int) -> bytes:
        """Return what stat(2) shows."""
        if node >= PROCESSES:
            return self._pack(node, stat.S_IFREG | 0o444, 1, (0, 0), self.size)
        target = self._nodes.target(node)
        if target is not None:
            return self._pack(node, stat.S_IFLNK | 0o777, 1, (0, 0), len(target))
        group, name = self._nodes.place(node)
        *owner, mode = self._mode(node, group, name)
        if name:
            size = max(self.size, self._longest.get(node, 0)) if self.size else 0
            return self._pack(node, stat.S_IFREG | mode, 1, owner, size)
        below = len(self.tree.hierarchies) if group is None else len(group.children)
        return self._pack(node, stat.S_IFDIR | mode, 2 + below, owner, 0)

    def _pack(self, node: int, mode: int, links: int, owner: Sequence[int], size: int) -> bytes:
        born = self._born
        return protocol.ATTRIBUTES.pack(
            node, size, 0, born, born, born, 0, 0, 0, mode, links, *owner, 0, _BLOCK, 0
        )

    def _mode(self, node: int, group: Group[Any] | None, name: str) -> Mode:
        if group is None:
            return 0, 0, 0o555
        if not name:
            return (*group.owner, group.mode)
        return self._modes.get(node) or (0, 0, group.hierarchy.files[name].mode)

    def _entry(self, node: int) -> bytes:
        return protocol.entry(node, self._attributes(node), _LONG)

    # The operations, each do_ and its name in the protocol.

    def do_init(self, _node: int, _thread: int, request: Request) -> bytes:
        """Agree on a version; requests of programs follow."""
        major, minor, readahead, flags = protocol.INIT_IN.unpack_from(request, HEADER)
        if major != protocol.MAJOR:
            fail(errno.EPROTO)
        self._started()
        return protocol.initialized(minor, readahead, flags)

    def do_lookup(self, node: int, _thread: int, request: Request) -> bytes:
        """Find a name in a directory."""
        return self._entry(self._nodes.child(self._nodes.directory(node), _name(request, HEADER)))

    def do_getattr(self, node: int, _thread: int, request: Request) -> bytes:
        """Return what stat(2) shows; an open file keeps its attributes after its group's removal."""
        flags, _, handle = protocol.GETATTR_IN.unpack_from(request, HEADER)
        if flags & _BY_HANDLE and self._files.outlives(handle):
            return protocol.attributes_out(self._pack(node, stat.S_IFREG | 0o444, 0, (0, 0), self.size), 0)
        return protocol.attributes_out(self._attributes(node), _LONG)

    def do_setattr(self, node: int, _thread: int, request: Request) -> bytes:
        """Change mode and owner; ignore sizes and times, as the kernel does."""
        fields = protocol.SETATTR_IN.unpack_from(request, HEADER)
        valid, mode, uid, gid = fields[0], fields[11], fields[13], fields[14]
        group, name = self._nodes.place(node)
        before = self._mode(node, group, name)
        after = (
            uid if valid & protocol.FATTR_UID else before[0],
            gid if valid & protocol.FATTR_GID else before[1],
            stat.S_IMODE(mode) if valid & protocol.FATTR_MODE else before[2],
        )
        if after != before:
            if group is None:
                fail(errno.EPERM)
            if name:
                self._modes[node] = after
            else:
                group.owner, group.mode = after[:2], after[2]
        return protocol.attributes_out(self._attributes(node), _LONG)

    def do_open(self, node: int, _thread: int, request: Request) -> bytes:
        """Open a file with any flags: reads and writes that it lacks fail later.

        With a size (in gVisor), a failed read looks like the end of the file. Therefore a file opened for
        reading only is read now, so that the open returns the errno.
        """
        if node >= PROCESSES:
            if self.unopened:
                fail(errno.ENOSYS)
            return protocol.opened(0, _OPENED)
        group, name = self._nodes.place(node, gone=errno.ENODEV)
        if group is None or not name:
            fail(errno.EISDIR)
        if self.unopened:
            fail(errno.ENOSYS)
        ahead = bool(self.size) and struct.unpack_from("<I", request, HEADER)[0] & os.O_ACCMODE == os.O_RDONLY
        handle = self._files.open(group, name, ahead=ahead)
        return protocol.opened(handle, _OPENED)

    def do_read(self, node: int, thread: int, request: Request) -> bytes:
        """Return a part of a file's content."""
        handle, offset, size = protocol.READ_IN.unpack_from(request, HEADER)
        if node >= PROCESSES:
            file = ProcessFile(self.tree, node - PROCESSES)
            content = self._reads.read(node, file, thread, offset)
        elif handle:
            content = self._files.get(handle).read(offset)
        else:
            content = self._reads.read(node, self._file(node), thread, offset)
        if len(content) > self.size > 0:
            self._longest[node] = max(len(content), self._longest.get(node, 0))
        return content[offset : offset + size]

    def do_write(self, node: int, thread: int, request: Request) -> bytes:
        """Pass a write to the file, and ignore its offset."""
        handle, _, size = protocol.READ_IN.unpack_from(request, HEADER)
        file = self._files.get(handle) if handle else self._file(node)
        data = bytes(request[protocol.WRITE_DATA : protocol.WRITE_DATA + size])
        self.report(f"write {data!r} to {file.name} by {thread}")
        file.write(data, thread)
        return protocol.size_out(size)

    def _file(self, node: int) -> OpenFile:
        """Return a file that is used without an open, after ENOSYS for FUSE_OPEN."""
        group, name = self._nodes.place(node, gone=errno.ENODEV)
        if group is None or not (name and self.unopened):
            fail(errno.EBADF)
        return OpenFile(group, name)

    def do_release(self, _node: int, _thread: int, request: Request) -> bytes:
        """Close a file."""
        self._files.close(protocol.HANDLE.unpack_from(request, HEADER)[0])
        return b""

    def do_opendir(self, node: int, _thread: int, _request: Request) -> bytes:
        """Open a directory."""
        self._nodes.directory(node)
        return protocol.opened(self._lists.open())

    def do_readdir(self, node: int, _thread: int, request: Request) -> bytes:
        """Return names; a reader that continues gets each name once."""
        handle, offset, size = protocol.READ_IN.unpack_from(request, HEADER)
        listing = self._lists.get(handle) if offset else None
        if listing is None:
            found = self._nodes.entries(self._nodes.directory(node))
            listing = [(inode, kind, os.fsencode(name)) for inode, kind, name in found]
            self._lists.keep(handle, listing)
        return protocol.directory(listing, offset, size)

    def do_releasedir(self, _node: int, _thread: int, request: Request) -> bytes:
        """Close a directory."""
        self._lists.close(protocol.HANDLE.unpack_from(request, HEADER)[0])
        return b""

    def do_mkdir(self, node: int, _thread: int, request: Request) -> bytes:
        """Make a group; the kernel has applied the umask."""
        mode, umask = struct.unpack_from("<II", request, HEADER)
        above, name = self._nodes.directory(node), _name(request, HEADER + 8)
        self.report(f"mkdir {name}")
        if above is None:  # the controllers' directories
            fail(errno.EEXIST if name in self.tree.hierarchies or name in self.tree.links else errno.EPERM)
        group = above.hierarchy.mkdir(above, name)
        group.mode = stat.S_IMODE(mode & ~umask)
        return self._entry(self._nodes.of(group))

    def do_rmdir(self, node: int, _thread: int, request: Request) -> bytes:
        """Remove a group."""
        above, name = self._nodes.directory(node), _name(request, HEADER)
        group = self._nodes.group(self._nodes.child(above, name))
        self.report(f"rmdir {name}")
        group.hierarchy.rmdir(group)
        gone = self._nodes.forget(group)
        for kept in (self._longest, self._modes, self._xattrs.of):
            for stale in [known for known in kept if known in gone]:
                kept.pop(stale)
        return b""

    def do_rename(self, node: int, _thread: int, request: Request) -> bytes:
        """Rename a group within its directory; cgroup v1 allows no other rename."""
        return self._rename(node, request, HEADER + 8)

    def do_rename2(self, node: int, _thread: int, request: Request) -> bytes:
        """Rename a group, without flags (``fs/kernfs/dir.c``)."""
        if struct.unpack_from("<QI", request, HEADER)[1]:
            fail(errno.EINVAL)
        return self._rename(node, request, HEADER + 16)

    def _rename(self, node: int, request: Request, begin: int) -> bytes:
        old, new, _ = bytes(request[begin:]).split(b"\0", 2)
        group = self._nodes.group(self._nodes.child(self._nodes.directory(node), os.fsdecode(old)))
        target = self._nodes.directory(protocol.HANDLE.unpack_from(request, HEADER)[0])
        if target is None:
            fail(errno.EPERM)
        self.report(f"rename {old!r} to {new!r}")
        group.hierarchy.rename(group, target, os.fsdecode(new))
        return b""

    def do_readlink(self, node: int, _thread: int, _request: Request) -> bytes:
        """Return where a link leads."""
        target = self._nodes.target(node)
        if target is None:
            fail(errno.EINVAL)
        return target.encode()

    def do_statfs(self, _node: int, _thread: int, _request: Request) -> bytes:
        """Return what statfs(2) shows: no blocks, and FUSE's magic."""
        return protocol.statfs_out(_BLOCK, _NAME_MAX)

    def do_setxattr(self, node: int, _thread: int, request: Request) -> bytes:
        """Set an extended attribute."""
        size, flags = protocol.XATTR_IN.unpack_from(request, HEADER)
        name, _, value = bytes(request[HEADER + 8 :]).partition(b"\0")
        self._nodes.place(node)
        self._xattrs.put(node, name, value[:size], flags)
        return b""

    def do_getxattr(self, node: int, _thread: int, request: Request) -> bytes:
        """Return an extended attribute."""
        return _sized(self._xattrs.get(node, os.fsencode(_name(request, HEADER + 8))), request)

    def do_listxattr(self, node: int, _thread: int, request: Request) -> bytes:
        """Return the names of a node's extended attributes."""
        return _sized(b"".join(name + b"\0" for name in self._xattrs.names(node)), request)

    def do_removexattr(self, node: int, _thread: int, request: Request) -> bytes:
        """Remove an extended attribute."""
        self._xattrs.remove(node, os.fsencode(_name(request, HEADER)))
        return b""


def _unknown(_node: int, _thread: int, _request: Request) -> NoReturn:
    fail(errno.ENOSYS)


def _name(request: Request, begin: int) -> str:
    return os.fsdecode(bytes(request[begin:]).partition(b"\0")[0])


def _sized(value: bytes, request: Request) -> bytes:
    """Return a value if it fits the reader's buffer, or its size for a buffer of size 0."""
    size, _ = protocol.XATTR_IN.unpack_from(request, HEADER)
    if not size:
        return protocol.size_out(len(value))
    if len(value) > size:
        fail(errno.ERANGE)
    return value
