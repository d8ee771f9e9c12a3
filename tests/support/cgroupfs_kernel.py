"""The kernel's side of the FUSE protocol: requests as bytes, answers taken apart."""

from __future__ import annotations

import errno
import os
import struct
from typing import NamedTuple

import pytest

from pytest_k3s_sandbox.layers.cgroupfs import protocol
from pytest_k3s_sandbox.layers.cgroupfs.filesystem import CgroupFilesystem

NUMBERS = {name: number for number, name in protocol.OPERATIONS.items()}


class Attributes(NamedTuple):
    """What stat(2) would show."""

    node: int
    size: int
    mode: int
    links: int
    uid: int
    gid: int


def attributes(data: bytes) -> Attributes:
    """Take fuse_attr apart."""
    fields = struct.unpack("<6Q10I", data)
    return Attributes(fields[0], fields[1], *fields[9:13])


class Kernel:
    """Asks a filesystem as the kernel does, by paths."""

    def __init__(self, filesystem: CgroupFilesystem, *, thread: int = 1) -> None:
        """Remember the filesystem."""
        self.filesystem = filesystem
        self.thread = thread
        self._unique = 0

    def request(self, operation: str, node: int, body: bytes = b"") -> bytes:
        """Return a request's bytes."""
        self._unique += 2
        length = 40 + len(body)
        head = struct.pack("<IIQQIIII", length, NUMBERS[operation], self._unique, node, 0, 0, self.thread, 0)
        return head + body

    def ask(self, operation: str, node: int, body: bytes = b"") -> bytes:
        """Return what answers a request; an errno is raised."""
        answer = self.filesystem.answer(memoryview(self.request(operation, node, body)))
        assert answer is not None
        length, number, unique = struct.unpack_from("<IiQ", answer)
        assert (length, unique) == (len(answer), self._unique)
        if number:
            assert number in {-known for known in errno.errorcode}
            assert length == 16
            raise OSError(-number, os.strerror(-number))
        return answer[16:]

    def lookup(self, path: str) -> int:
        """Return the node of a path."""
        node = protocol.ROOT
        for part in path.split("/"):
            if part:
                node = struct.unpack_from("<Q", self.ask("lookup", node, os.fsencode(part) + b"\0"))[0]
        return node

    def stat(self, path: str) -> Attributes:
        """Return the attributes of a path."""
        answer = self.ask("getattr", self.lookup(path), struct.pack("<IIQ", 0, 0, 0))
        return attributes(answer[16:])

    def open(self, path: str, flags: int = os.O_RDONLY) -> tuple[int, int]:
        """Return the node and the handle of a file."""
        node = self.lookup(path)
        return node, int(struct.unpack_from("<Q", self.ask("open", node, struct.pack("<II", flags, 0)))[0])

    def pread(self, file: tuple[int, int], size: int, offset: int) -> bytes:
        """Read a part of an open file."""
        return self.ask("read", file[0], struct.pack("<QQIIQII", file[1], offset, size, 0, 0, 0, 0))

    def pwrite(self, file: tuple[int, int], data: bytes, offset: int = 0) -> int:
        """Write to an open file."""
        body = struct.pack("<QQIIQII", file[1], offset, len(data), 0, 0, 0, 0) + data
        return int(struct.unpack("<II", self.ask("write", file[0], body))[0])

    def close(self, file: tuple[int, int]) -> None:
        """Close a file."""
        self.ask("flush", file[0], struct.pack("<QIIQ", file[1], 0, 0, 0))
        self.ask("release", file[0], struct.pack("<QIIQ", file[1], 0, 0, 0))

    def read(self, path: str, size: int = 4096) -> bytes:
        """Return a file's content, read in parts."""
        file = self.open(path)
        content = b""
        try:
            while part := self.pread(file, size, len(content)):
                assert len(part) <= size
                content += part
        finally:
            self.close(file)
        return content

    def write(self, path: str, data: bytes, offset: int = 0) -> None:
        """Give a file what one system call writes."""
        file = self.open(path, os.O_WRONLY)
        try:
            assert self.pwrite(file, data, offset) == len(data)
        finally:
            self.close(file)

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        """Make a group."""
        above, _, name = path.rpartition("/")
        self.ask("mkdir", self.lookup(above), struct.pack("<II", mode, 0o022) + os.fsencode(name) + b"\0")

    def rmdir(self, path: str) -> None:
        """Remove a group."""
        above, _, name = path.rpartition("/")
        self.ask("rmdir", self.lookup(above), os.fsencode(name) + b"\0")

    def rename(self, old: str, new: str) -> None:
        """Rename."""
        above, _, name = old.rpartition("/")
        target, _, fresh = new.rpartition("/")
        body = struct.pack("<Q", self.lookup(target)) + os.fsencode(name) + b"\0" + os.fsencode(fresh) + b"\0"
        self.ask("rename", self.lookup(above), body)

    def setattr(
        self, path: str, *, mode: int | None = None, uid: int | None = None, gid: int | None = None
    ) -> None:
        """Do chmod(2) and chown(2)."""
        valid = (mode is not None) | (uid is not None) << 1 | (gid is not None) << 2
        body = struct.pack("<II6Q8I", valid, 0, *(0,) * 6, *(0,) * 3, mode or 0, 0, uid or 0, gid or 0, 0)
        self.ask("setattr", self.lookup(path), body)

    def listdir(self, path: str, size: int = 4096) -> dict[str, tuple[int, int]]:
        """Return inode and type of the names in a directory, read in parts."""
        node = self.lookup(path)
        handle = struct.unpack_from("<Q", self.ask("opendir", node, struct.pack("<II", 0, 0)))[0]
        found: dict[str, tuple[int, int]] = {}
        last = 0
        while part := self.ask("readdir", node, struct.pack("<QQIIQII", handle, last, size, 0, 0, 0, 0)):
            at = 0
            while at < len(part):
                inode, last, length, kind = struct.unpack_from("<QQII", part, at)
                name = os.fsdecode(part[at + 24 : at + 24 + length])
                assert name not in found, "a name came twice"
                found[name] = (inode, kind)
                at += (24 + length + 7) // 8 * 8
        self.ask("releasedir", node, struct.pack("<QIIQ", handle, 0, 0, 0))
        return found


def error(kernel: Kernel, operation: str, path: str, body: bytes = b"") -> int:
    """Return the errno of an operation that fails."""
    with pytest.raises(OSError, match="Errno") as caught:
        kernel.ask(operation, kernel.lookup(path), body)
    return caught.value.errno or 0
