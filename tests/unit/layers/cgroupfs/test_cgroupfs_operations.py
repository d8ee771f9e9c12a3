"""Refusals, attributes, statistics and arbitrary requests of the file system, without a kernel."""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.cgroupfs import protocol
from pytest_k3s_sandbox.layers.cgroupfs.filesystem import CgroupFilesystem
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree
from support.cgroupfs_fakes import FakeMachine, refused
from support.cgroupfs_kernel import NUMBERS, Kernel, error

DIR, REG, LNK = 4, 8, 10


@pytest.mark.parametrize(
    ("operation", "path", "body", "number"),
    [
        ("create", "/cpu", bytes(16) + b"x\0", errno.EACCES),
        ("mknod", "/cpu", bytes(16) + b"x\0", errno.EPERM),
        ("unlink", "/cpu", b"tasks\0", errno.EPERM),
        ("symlink", "/cpu", b"x\0y\0", errno.EPERM),
        ("link", "/cpu", bytes(8) + b"x\0", errno.EPERM),
        ("readlink", "/cpu", b"", errno.EINVAL),
        ("open", "/cpu", bytes(8), errno.EISDIR),
        ("opendir", "/cpu/tasks", bytes(8), errno.ENOTDIR),
        ("getxattr", "/cpu", struct.pack("<II", 9, 0) + b"user.x\0", errno.ENODATA),
        ("setxattr", "/cpu", struct.pack("<II", 1, 0) + b"x\0v", errno.EOPNOTSUPP),
        ("removexattr", "/cpu", b"user.x\0", errno.ENODATA),
        ("ioctl", "/cpu/tasks", bytes(32), errno.ENOTTY),
        ("rmdir", "/", b"cpu\0", errno.EBUSY),
        ("rmdir", "/cpu", b"tasks\0", errno.ENOTDIR),
        ("rmdir", "/cpu", b"none\0", errno.ENOENT),
        ("mkdir", "/", struct.pack("<II", 0o755, 0) + b"new\0", errno.EPERM),
        ("mkdir", "/", struct.pack("<II", 0o755, 0) + b"cpu\0", errno.EEXIST),
        ("mkdir", "/cpu", struct.pack("<II", 0o755, 0) + b"tasks\0", errno.EEXIST),
        ("fsyncdir", "/cpu", bytes(16), errno.EINVAL),
        ("fallocate", "/cpu/tasks", bytes(32), errno.EOPNOTSUPP),
        ("lseek", "/cpu/tasks", bytes(24), errno.ENXIO),
        ("tmpfile", "/cpu", bytes(16), errno.EOPNOTSUPP),
        ("read", "/cpu/tasks", bytes(40), errno.EBADF),
        ("write", "/cpu/tasks", bytes(4), errno.EINVAL),
    ],
)
def test_refusals(kernel: Kernel, operation: str, path: str, body: bytes, number: int) -> None:
    assert error(kernel, operation, path, body) == number


def test_the_top_cannot_be_given_away(kernel: Kernel) -> None:
    with pytest.raises(OSError, match="not permitted"):
        kernel.setattr("/", mode=0o777)
    kernel.setattr("/", mode=0o555)


def test_operations_without_effect_succeed(kernel: Kernel, filesystem: CgroupFilesystem) -> None:
    node = kernel.lookup("/cpu/tasks")
    for operation in ("access", "flush", "fsync", "destroy", "release"):
        assert kernel.ask(operation, node, bytes(24)) == b""
    assert struct.unpack_from("<5Q3I", kernel.ask("statfs", 1))[5:] == (4096, 255, 4096)
    for operation in ("forget", "batch_forget", "interrupt"):
        assert filesystem.answer(memoryview(kernel.request(operation, node, bytes(8)))) is None
    unknown = struct.pack("<IIQQIIII", 40, 4000, 2, node, 0, 0, 1, 0)
    answer = filesystem.answer(memoryview(unknown))
    assert answer is not None
    assert struct.unpack("<IiQ", answer) == (16, -errno.ENOSYS, 2)


def test_owners_and_modes_are_kept(kernel: Kernel) -> None:
    kernel.mkdir("/cpu/a")
    kernel.setattr("/cpu/a", uid=7)
    kernel.setattr("/cpu/a/tasks", gid=8)
    kernel.setattr("/cpu/a/tasks", mode=0o600)
    kernel.setattr("/cpu/a", mode=0o700)
    group, file = kernel.stat("/cpu/a"), kernel.stat("/cpu/a/tasks")
    assert (group.uid, group.gid, stat.S_IMODE(group.mode)) == (7, 0, 0o700)
    assert (file.uid, file.gid, stat.S_IMODE(file.mode)) == (0, 8, 0o600)
    kernel.rmdir("/cpu/a")
    kernel.mkdir("/cpu/a")
    assert kernel.stat("/cpu/a/tasks").gid == 0, "a new group has a dead one's owner"


def test_extended_attributes(kernel: Kernel) -> None:
    kernel.mkdir("/cpu/a")
    node = kernel.lookup("/cpu/a")

    def put(name: bytes, value: bytes, flags: int = 0) -> None:
        kernel.ask("setxattr", node, struct.pack("<II", len(value), flags) + name + b"\0" + value)

    put(b"trusted.delegate", b"1", 1)
    put(b"user.a", b"two")
    for flags, name, number in ((1, b"user.a", errno.EEXIST), (2, b"user.b", errno.ENODATA)):
        with refused(number):
            put(name, b"x", flags)
    assert kernel.ask("getxattr", node, struct.pack("<II", 100, 0) + b"user.a\0") == b"two"
    assert kernel.ask("getxattr", node, struct.pack("<II", 0, 0) + b"user.a\0") == struct.pack("<II", 3, 0)
    with pytest.raises(OSError, match="out of range"):
        kernel.ask("getxattr", node, struct.pack("<II", 2, 0) + b"user.a\0")
    assert kernel.ask("listxattr", node, struct.pack("<II", 100, 0)) == b"trusted.delegate\0user.a\0"
    kernel.ask("removexattr", node, b"user.a\0")
    assert kernel.ask("listxattr", node, struct.pack("<II", 0, 0)) == struct.pack("<II", 17, 0)
    kernel.rmdir("/cpu/a")
    kernel.mkdir("/cpu/a")
    assert kernel.ask("listxattr", kernel.lookup("/cpu/a"), struct.pack("<II", 100, 0)) == b""


def test_statistics_and_what_is_reported(kernel: Kernel, filesystem: CgroupFilesystem) -> None:
    said: list[str] = []
    filesystem.report = said.append
    kernel.mkdir("/cpu/a")
    kernel.write("/cpu/a/cpu.shares", b"7")
    with pytest.raises(FileNotFoundError):
        kernel.stat("/x")
    statistics = filesystem.statistics()
    operations = {"lookup": 5, "mkdir": 1, "open": 1, "write": 1, "flush": 1, "release": 1}
    assert statistics["operations"] == operations
    assert statistics["errors"] == {"lookup ENOENT": 1}
    assert said == ["mkdir a", "write b'7' to cpu.shares by 1"]


def test_a_defect_is_logged_and_fails_one_request(
    kernel: Kernel, tree: Tree, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    group = tree.hierarchies["cpu"].root
    with monkeypatch.context() as broken:
        broken.setattr(type(group), "read", lambda *_: 1 // 0)
        with pytest.raises(OSError, match="Input/output"):
            kernel.read("/cpu/tasks")
    assert "defect in read" in capfd.readouterr().err
    assert kernel.read("/cpu/tasks") == b"1\n"


def test_readers_and_makers_at_once(filesystem: CgroupFilesystem) -> None:
    lock = threading.Lock()

    class Locked(Kernel):
        def ask(self, operation: str, node: int, body: bytes = b"") -> bytes:
            with lock:  # the server's, around each request
                return super().ask(operation, node, body)

    def work(name: str) -> None:
        kernel = Locked(filesystem)
        for _ in range(50):
            kernel.mkdir(f"/memory/{name}")
            assert kernel.read(f"/memory/{name}/memory.stat", 100).count(b"\n") > 40
            kernel.listdir("/memory", 300)
            kernel.rmdir(f"/memory/{name}")

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, f"t{n}") for n in range(4)]:
            done.result(30)


PATHS = st.builds(
    "/{}{}/{}".format,
    st.sampled_from(["cpu", "memory", "devices", "cpuset", "none"]),
    st.sampled_from(["", "/a", "/a/b"]),
    st.one_of(
        st.sampled_from(
            ["tasks", "cpu.shares", "devices.allow", "devices.deny", "devices.list", "cpuset.cpus"]
        ),
        st.sampled_from(["memory.stat", "memory.limit_in_bytes", "cgroup.procs", "a", "b", ""]),
        st.binary(max_size=5).filter(lambda name: not {0, 47} & set(name)).map(os.fsdecode),
    ),
)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["mkdir", "rmdir", "read", "write", "stat", "listdir", "rename"]),
            PATHS,
            st.one_of(st.binary(max_size=9), st.sampled_from([b"a", b"1", b"0-1", b"c 1:* rw", b"1G"])),
            st.integers(0, 5000),
        ),
        max_size=30,
    )
)
def test_no_operation_fails_other_than_with_an_errno(steps: list[tuple[str, str, bytes, int]]) -> None:
    kernel = Kernel(CgroupFilesystem(Tree(FakeMachine())))
    found = []
    for name, path, data, offset in steps:
        try:
            if name == "write":
                kernel.write(path, data, offset)
            elif name == "read":
                kernel.read(path, offset + 1)
            elif name == "rename":
                kernel.rename(path, path.rpartition("/")[0] + "/b")
            else:
                getattr(kernel, name)(path)
        except OSError as failure:
            found.append((name, failure.errno))
    assert not [step for step in found if step[1] == errno.EIO and step[0] != "rename"], "a defect"


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(NUMBERS)), st.integers(0, 2**64 - 1), st.binary(max_size=120))
def test_any_bytes_are_answered(operation: str, node: int, body: bytes) -> None:
    kernel = Kernel(CgroupFilesystem(Tree(FakeMachine())))
    answer = kernel.filesystem.answer(memoryview(kernel.request(operation, node, body)))
    if operation not in protocol.NO_REPLY:
        assert answer is not None
        length, number, _ = struct.unpack_from("<IiQ", answer)
        assert length == len(answer)
        assert number != -errno.EIO, "a defect"
