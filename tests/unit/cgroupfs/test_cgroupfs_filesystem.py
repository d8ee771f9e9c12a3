"""The FUSE operations, called as fusepy does, without FUSE."""

from __future__ import annotations

import errno
import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.cgroupfs.filesystem import CgroupOperations
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree

if TYPE_CHECKING:
    from tests.unit.cgroupfs.cgroupfs_fakes import FakeMachine
else:  # the folder is no package: pytest puts it on sys.path
    from cgroupfs_fakes import FakeMachine


@pytest.fixture
def operations(tree: Tree) -> CgroupOperations:
    return CgroupOperations(tree, caller=lambda: 1)


def read(operations: CgroupOperations, path: str, size: int = 4096) -> bytes:
    handle = operations("open", path, os.O_RDONLY)
    parts: list[bytes] = []
    while part := operations("read", path, size, len(b"".join(parts)), handle):
        assert len(part) <= size
        parts.append(part)
    operations("flush", path, handle)
    operations("release", path, handle)
    return b"".join(parts)


def write(operations: CgroupOperations, path: str, data: bytes, offset: int = 0) -> None:
    handle = operations("open", path, os.O_WRONLY)
    try:
        assert operations("write", path, data, offset, handle) == len(data)
    finally:
        operations("release", path, handle)


def test_attributes(operations: CgroupOperations) -> None:
    assert stat.S_ISDIR(operations("getattr", "/")["st_mode"])
    assert operations("getattr", "/cpu")["st_mode"] == stat.S_IFDIR | 0o555
    operations("mkdir", "/cpu/a", 0o755)
    assert operations("getattr", "/cpu/a")["st_mode"] == stat.S_IFDIR | 0o755
    assert operations("getattr", "/cpu")["st_nlink"] == 3
    file = operations("getattr", "/cpu/cpu.stat")
    assert (file["st_mode"], file["st_size"]) == (stat.S_IFREG | 0o444, 0)
    with pytest.raises(FileNotFoundError):
        operations("getattr", "/cpu/b")


def test_small_reads_give_one_consistent_text(operations: CgroupOperations) -> None:
    assert read(operations, "/memory/memory.stat", 7) == read(operations, "/memory/memory.stat")


def test_a_second_pass_of_an_open_file_is_of_now(operations: CgroupOperations) -> None:
    operations("mkdir", "/cpu/a", 0o755)
    path = "/cpu/a/cpu.shares"
    handle = operations("open", path, os.O_RDWR)
    assert operations("read", path, 100, 0, handle) == b"1024\n"
    operations("write", path, b"7", 1000, handle)
    assert operations("read", path, 100, 5, handle) == b""
    assert operations("read", path, 100, 0, handle) == b"7\n"


def test_pretended_sizes_cover_the_content(operations: CgroupOperations) -> None:
    operations("mkdir", "/devices/a", 0o755)
    write(operations, "/devices/a/devices.deny", b"a")
    for number in range(50):
        write(operations, "/devices/a/devices.allow", b"c %d:0 rwm" % number)
    operations.pretend(64)
    assert operations("getattr", "/devices/a/devices.list")["st_size"] == 64
    content = read(operations, "/devices/a/devices.list")
    assert operations("getattr", "/devices/a/devices.list")["st_size"] == len(content) > 64


def test_an_open_file_of_a_removed_group_is_gone(operations: CgroupOperations) -> None:
    operations("mkdir", "/cpu/a", 0o755)
    path = "/cpu/a/cpu.shares"
    handle = operations("open", path, os.O_RDWR)
    operations("rmdir", "/cpu/a")
    operations("mkdir", "/cpu/a", 0o755)
    for call in (("read", path, 10, 0, handle), ("write", path, b"1", 0, handle)):
        with pytest.raises(OSError, match="No such device"):
            operations(*call)


def test_the_writer_of_zero_moves(operations: CgroupOperations) -> None:
    operations("mkdir", "/cpu/a", 0o755)
    write(operations, "/cpu/a/tasks", b"0")
    assert read(operations, "/cpu/a/tasks") == b"1\n"


@pytest.mark.parametrize(
    ("call", "number"),
    [
        (("create", "/cpu/x", 0o644), errno.EACCES),
        (("mknod", "/cpu/x", 0o644, 0), errno.EPERM),
        (("unlink", "/cpu/tasks"), errno.EPERM),
        (("symlink", "/cpu/x", "y"), errno.EPERM),
        (("link", "/cpu/x", "/cpu/tasks"), errno.EPERM),
        (("rename", "/cpu", "/cpu2"), errno.EPERM),
        (("readlink", "/cpu"), errno.EINVAL),
        (("open", "/cpu", 0), errno.EISDIR),
        (("opendir", "/cpu/tasks"), errno.ENOTDIR),
        (("truncate", "/cpu", 0), errno.EISDIR),
        (("chmod", "/", 0o777), errno.EPERM),
        (("chown", "/", 1, 1), errno.EPERM),
        (("getxattr", "/cpu", "user.x"), errno.ENODATA),
        (("setxattr", "/cpu", "user.x", b"", 0), errno.EOPNOTSUPP),
        (("removexattr", "/cpu", "user.x"), errno.ENODATA),
        (("ioctl", "/cpu", 1, None, 0, 0, None), errno.ENOTTY),
        (("rmdir", "/cpu"), errno.EBUSY),
    ],
)
def test_refusals(operations: CgroupOperations, call: tuple[object, ...], number: int) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011  # the errno is looked at
        operations(*call)  # type: ignore[arg-type]  # the first is the name
    assert caught.value.errno == number


def test_what_gvisor_needs_answered_does_nothing_here(operations: CgroupOperations) -> None:
    handle = operations("open", "/cpu/tasks", os.O_WRONLY)
    for call in (
        ("access", "/cpu/tasks", 0),
        ("opendir", "/cpu"),
        ("releasedir", "/cpu", 0),
        ("fsyncdir", "/cpu", 0, 0),
        ("truncate", "/cpu/tasks", 0),
        ("flush", "/cpu/tasks", handle),
        ("release", "/cpu/tasks", handle),
    ):
        assert operations(*call) == 0
    assert operations("statfs", "/")["f_namemax"] == 255
    assert operations("listxattr", "/cpu") == []
    assert operations.lock is None, "an operation of that name would be offered to the kernel"


def test_owners_and_modes_are_kept(operations: CgroupOperations) -> None:
    operations("mkdir", "/cpu/a", 0o755)
    operations("chown", "/cpu/a", 7, -1)
    operations("chown", "/cpu/a/tasks", -1, 8)
    operations("chmod", "/cpu/a/tasks", 0o600)
    operations("chmod", "/cpu/a", 0o700)
    group, file = operations("getattr", "/cpu/a"), operations("getattr", "/cpu/a/tasks")
    assert (group["st_uid"], group["st_gid"], stat.S_IMODE(group["st_mode"])) == (7, 0, 0o700)
    assert (file["st_uid"], file["st_gid"], stat.S_IMODE(file["st_mode"])) == (0, 8, 0o600)
    operations("rmdir", "/cpu/a")
    operations("mkdir", "/cpu/a", 0o755)
    assert operations("getattr", "/cpu/a/tasks")["st_gid"] == 0, "a new group has a dead one's owner"


def test_statistics(operations: CgroupOperations) -> None:
    read(operations, "/cpu/cpu.shares")
    with pytest.raises(FileNotFoundError):
        operations("getattr", "/x")
    statistics = operations.statistics()
    assert statistics["operations"] == {"open": 1, "read": 2, "flush": 1, "release": 1, "getattr": 1}
    assert statistics["errors"] == {"getattr ENOENT": 1}
    assert statistics["groups"] == 8


def test_readers_and_makers_at_once(operations: CgroupOperations) -> None:
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for _ in range(50):
                operations("mkdir", f"/memory/{name}", 0o755)
                assert read(operations, f"/memory/{name}/memory.stat").count(b"\n") == 42
                operations("readdir", "/memory", 0)
                operations("rmdir", f"/memory/{name}")
        except BaseException as error:  # noqa: BLE001  # shown by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures


PATHS = st.builds(
    "/{}{}/{}".format,
    st.sampled_from(["cpu", "memory", "devices", "cpuset", "none"]),
    st.sampled_from(["", "/a", "/a/b"]),
    st.one_of(
        st.sampled_from(
            ["tasks", "cpu.shares", "devices.allow", "devices.deny", "devices.list", "cpuset.cpus"]
        ),
        st.sampled_from(["memory.stat", "memory.limit_in_bytes", "cgroup.procs", "a", "b", ""]),
        st.text(max_size=5),
    ),
)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["mkdir", "rmdir", "read", "write", "getattr", "readdir", "truncate"]),
            PATHS,
            st.one_of(st.binary(max_size=9), st.sampled_from([b"a", b"1", b"0-1", b"c 1:* rw", b"1G"])),
            st.integers(0, 5000),
        ),
        max_size=30,
    )
)
def test_no_operation_fails_other_than_with_an_errno(steps: list[tuple[str, str, bytes, int]]) -> None:
    operations = CgroupOperations(Tree(FakeMachine()), caller=lambda: 1)
    arguments = {"mkdir": (0o755,), "rmdir": (), "getattr": (), "readdir": (0,), "truncate": (0,)}
    found = []
    for name, path, data, offset in steps:
        try:
            if name == "write":
                write(operations, path, data, offset)
            elif name == "read":
                read(operations, path, offset + 1)
            else:
                operations(name, path, *arguments[name])
        except OSError as error:
            found.append(error.errno)
    assert set(found) <= errno.errorcode.keys()
