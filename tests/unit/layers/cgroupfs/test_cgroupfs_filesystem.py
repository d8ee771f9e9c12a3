"""The filesystem asked as the kernel does, without a kernel."""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.cgroupfs import protocol
from pytest_k3s_sandbox.layers.cgroupfs.filesystem import CgroupFilesystem
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree

if TYPE_CHECKING:
    from tests.unit.layers.cgroupfs.cgroupfs_fakes import FakeMachine, refused
    from tests.unit.layers.cgroupfs.cgroupfs_kernel import NUMBERS, Kernel
else:  # the folder is no package: pytest puts it on sys.path
    from cgroupfs_fakes import FakeMachine, refused
    from cgroupfs_kernel import NUMBERS, Kernel

DIR, REG, LNK = 4, 8, 10


@pytest.fixture
def filesystem(tree: Tree) -> CgroupFilesystem:
    return CgroupFilesystem(tree)


@pytest.fixture
def kernel(filesystem: CgroupFilesystem) -> Kernel:
    return Kernel(filesystem)


def error(kernel: Kernel, operation: str, path: str, body: bytes = b"") -> int:
    with pytest.raises(OSError, match="Errno") as caught:
        kernel.ask(operation, kernel.lookup(path), body)
    return caught.value.errno or 0


def test_hello() -> None:
    said: list[str] = []
    kernel = Kernel(CgroupFilesystem(Tree(FakeMachine()), started=lambda: said.append("started")))
    answer = kernel.ask("init", 0, struct.pack("<4I", 7, 45, 131072, 0xFFFFFFFF))
    major, minor, _, flags, _, _, longest, nanoseconds = struct.unpack_from("<4I2H2I", answer)
    assert (major, minor, nanoseconds, len(answer)) == (7, 31, 1, 64)
    assert longest + 80 <= protocol.BUFFER
    assert flags == protocol.ATOMIC_O_TRUNC | protocol.BIG_WRITES | protocol.PARALLEL_DIROPS
    assert said == ["started"]
    assert struct.unpack_from("<II", kernel.ask("init", 0, struct.pack("<4I", 7, 26, 0, 0)))[1] == 26
    with pytest.raises(OSError, match="Protocol error"):
        kernel.ask("init", 0, struct.pack("<4I", 8, 0, 0, 0))


def test_attributes(kernel: Kernel) -> None:
    assert kernel.stat("/").mode == stat.S_IFDIR | 0o555
    assert kernel.stat("/cpu").mode == stat.S_IFDIR | 0o555
    kernel.mkdir("/cpu/a", 0o777)
    assert kernel.stat("/cpu/a").mode == stat.S_IFDIR | 0o755
    assert kernel.stat("/cpu").links == 3
    file = (
        kernel.stat("/cpu/cpu.shares")
        if "cpu.shares" in kernel.listdir("/cpu")
        else kernel.stat("/cpu/a/cpu.stat")
    )
    assert (file.size, stat.S_ISREG(file.mode)) == (0, True)
    with pytest.raises(FileNotFoundError):
        kernel.stat("/cpu/b")
    kernel.mkdir("/cpu/" + "b" * 1000)
    assert kernel.stat("/cpu/" + "b" * 1000).links == 2


def test_lookups_and_lists_agree(kernel: Kernel) -> None:
    kernel.mkdir("/memory/a")
    kernel.mkdir("/memory/a/b")
    for path in ("", "/cpu", "/memory", "/memory/a"):
        names = kernel.listdir(path)
        assert names.pop(".")[0] == kernel.lookup(path)
        assert names.pop("..")[0] == kernel.lookup(path.rpartition("/")[0])
        for name, (inode, kind) in names.items():
            seen = kernel.stat(f"{path}/{name}")
            assert (seen.node, stat.S_IFMT(seen.mode) >> 12) == (inode, kind)
    assert kernel.listdir("/memory", 200) == kernel.listdir("/memory")
    assert "b" in kernel.listdir("/memory/a")
    nodes = [
        kernel.lookup(f"/memory/{name}") for name in kernel.listdir("/memory") if name not in {".", ".."}
    ]
    assert len(nodes) == len(set(nodes)) > 20


def test_small_reads_give_one_consistent_text(kernel: Kernel) -> None:
    assert kernel.read("/memory/memory.stat", 7) == kernel.read("/memory/memory.stat")


def test_a_second_pass_of_an_open_file_is_of_now(kernel: Kernel) -> None:
    kernel.mkdir("/cpu/a")
    file = kernel.open("/cpu/a/cpu.shares")
    assert kernel.pread(file, 100, 0) == b"1024\n"
    kernel.pwrite(file, b"7", 1000)
    assert kernel.pread(file, 100, 5) == b""
    assert kernel.pread(file, 100, 0) == b"7\n"


def test_pretended_sizes_cover_the_content(kernel: Kernel) -> None:
    kernel.mkdir("/devices/a")
    kernel.write("/devices/a/devices.deny", b"a")
    for number in range(50):
        kernel.write("/devices/a/devices.allow", b"c %d:0 rwm" % number)
    kernel.filesystem.size = 64
    assert kernel.stat("/devices/a/devices.list").size == 64
    content = kernel.read("/devices/a/devices.list")
    assert kernel.stat("/devices/a/devices.list").size == len(content) > 64
    assert kernel.stat("/devices").size == 0


def test_an_open_file_of_a_removed_group_is_gone(kernel: Kernel) -> None:
    kernel.mkdir("/cpu/a")
    file = kernel.open("/cpu/a/cpu.shares")
    kernel.rmdir("/cpu/a")
    kernel.mkdir("/cpu/a")
    assert kernel.lookup("/cpu/a/cpu.shares") != file[0], "a number was used again"
    with pytest.raises(OSError, match="No such device"):
        kernel.pread(file, 10, 0)
    with pytest.raises(OSError, match="No such device"):
        kernel.pwrite(file, b"1")
    # fstat(2) goes on working, as on the kernel's.
    assert stat.S_ISREG(
        struct.unpack_from("<6Q10I", kernel.ask("getattr", file[0], struct.pack("<IIQ", 1, 0, file[1])), 16)[
            9
        ]
    )
    with pytest.raises(OSError, match="No such device"):
        kernel.ask("open", file[0], bytes(16))
    for operation in ("getattr", "lookup", "opendir", "mkdir"):
        with pytest.raises(OSError, match="No such file"):
            kernel.ask(operation, file[0], bytes(16))
    kernel.close(file)
    with pytest.raises(OSError, match="Bad file descriptor"):
        kernel.pread(file, 10, 0)


def test_a_directory_that_goes_while_it_is_looked_at_is_not_there(kernel: Kernel) -> None:
    """CAdvisor takes ENOENT for a group that has just ended, and anything else for an error."""
    kernel.mkdir("/cpu/a")
    node = kernel.lookup("/cpu/a")
    handle = struct.unpack_from("<Q", kernel.ask("opendir", node, struct.pack("<II", 0, 0)))[0]
    kernel.rmdir("/cpu/a")
    with pytest.raises(OSError, match="No such file"):
        kernel.ask("readdir", node, struct.pack("<QQIIQII", handle, 0, 4096, 0, 0, 0, 0))
    kernel.ask("releasedir", node, struct.pack("<QIIQ", handle, 0, 0, 0))
    with pytest.raises(OSError, match="No such file"):
        kernel.ask("opendir", node, struct.pack("<II", 0, 0))


def test_in_gvisor_a_file_is_read_when_it_is_opened(kernel: Kernel) -> None:
    kernel.mkdir("/cpu/a")
    with pytest.raises(OSError, match="Invalid argument"):
        kernel.read("/devices/devices.allow")
    kernel.filesystem.size = 8192
    with pytest.raises(OSError, match="Invalid argument"):  # a failing read would be an empty file there
        kernel.open("/devices/devices.allow")
    kernel.write("/devices/devices.allow", b"a")
    file = kernel.open("/cpu/a/cpu.shares")
    kernel.write("/cpu/a/cpu.shares", b"7")
    assert kernel.pread(file, 100, 0) == b"1024\n"
    assert kernel.pread(file, 100, 0) == b"7\n"
    file = kernel.open("/cpu/a/cpu.shares")
    kernel.rmdir("/cpu/a")
    assert kernel.pread(file, 100, 0) == b"7\n"
    with pytest.raises(OSError, match="No such device"):
        kernel.pread(file, 100, 0)


def test_files_are_used_without_an_open_where_that_was_agreed_on(filesystem: CgroupFilesystem) -> None:
    one, two = Kernel(filesystem, thread=1), Kernel(filesystem, thread=2)
    one.mkdir("/cpu/a")
    node = one.lookup("/cpu/a/cpu.shares")
    with pytest.raises(OSError, match="Bad file descriptor"):
        one.pread((node, 0), 100, 0)
    filesystem.size, filesystem.unopened = 8192, True
    with pytest.raises(OSError, match="not implemented"):
        one.open("/cpu/a/cpu.shares")
    one.pwrite((node, 0), b"12345")
    assert one.pread((node, 0), 3, 0) == b"123"
    two.pwrite((node, 0), b"54321")
    assert two.pread((node, 0), 3, 0) == b"543"
    assert one.pread((node, 0), 3, 3) == b"45\n", "another reader's text"
    assert two.pread((node, 0), 3, 3) == b"21\n"
    assert Kernel(filesystem, thread=3).pread((node, 0), 3, 3) in {b"45\n", b"21\n"}
    for kernel in (one, two):
        assert kernel.pread((node, 0), 3, 6) == b""
    assert one.pread((node, 0), 100, 0) == b"54321\n"
    one.rmdir("/cpu/a")
    with pytest.raises(OSError, match="No such device"):
        one.pread((node, 0), 100, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        one.pread((one.lookup("/cpu"), 0), 100, 0)


def test_what_is_kept_of_unopened_reads_is_bounded(filesystem: CgroupFilesystem) -> None:
    filesystem.size, filesystem.unopened = 8192, True
    kernel = Kernel(filesystem)
    nodes = []
    for number in range(300):
        kernel.mkdir(f"/cpu/g{number}")
        for file in ("cpu.shares", "cpu.stat", "cpu.cfs_period_us", "cpu.cfs_quota_us"):
            nodes.append(kernel.lookup(f"/cpu/g{number}/{file}"))
            for thread in range(10):
                kernel.thread = thread
                assert kernel.pread((nodes[-1], 0), 1, 0)
    kept = filesystem._reads._texts
    assert len(kept) == 1024
    assert max(map(len, kept.values())) == 4


def test_what_is_kept_of_directories_that_nobody_closes_is_bounded(filesystem: CgroupFilesystem) -> None:
    """As in gVisor, which tells of no close where files are read without opens."""
    kernel = Kernel(filesystem)
    node = kernel.lookup("/cpu")

    def part(handle: int, last: int) -> tuple[bytes, int]:
        names = kernel.ask("readdir", node, struct.pack("<QQIIQII", handle, last, 64, 0, 0, 0, 0))
        return names[24:], struct.unpack_from("<QQ", names)[1]

    handles = [
        struct.unpack_from("<Q", kernel.ask("opendir", node, struct.pack("<II", 0, 0)))[0] for _ in range(200)
    ]
    first = [part(handle, 0) for handle in handles]
    assert len(filesystem._lists) == 64
    # A reader whose listing was dropped, and one whose was not, go on all the same.
    after = [part(handle, first[0][1]) for handle in (handles[0], handles[-1])]
    assert after[0] == after[1] != first[0]


def test_the_writer_of_zero_moves(filesystem: CgroupFilesystem) -> None:
    kernel = Kernel(filesystem, thread=1)
    kernel.mkdir("/cpu/a")
    kernel.write("/cpu/a/tasks", b"0")
    assert kernel.read("/cpu/a/tasks") == b"1\n"


def test_groups_are_renamed_where_they_are(kernel: Kernel) -> None:
    for path in ("/cpu/a", "/cpu/a/sub", "/cpu/b", "/memory/c"):
        kernel.mkdir(path)
    before = kernel.lookup("/cpu/a/cpu.shares")
    kernel.rename("/cpu/a", "/cpu/d")
    assert kernel.lookup("/cpu/d/cpu.shares") == before
    assert "a" not in kernel.listdir("/cpu")
    for old, new, number in (
        ("/cpu/d", "/cpu/b", errno.EEXIST),
        ("/cpu/d", "/cpu/b/d", errno.EIO),
        ("/cpu/tasks", "/cpu/x", errno.ENOTDIR),
        ("/cpu", "/x", errno.EPERM),
        ("/cpu/none", "/cpu/x", errno.ENOENT),
    ):
        with refused(number):
            kernel.rename(old, new)
    flags = struct.pack("<QII", kernel.lookup("/cpu"), 1, 0) + b"d\0e\0"
    assert error(kernel, "rename2", "/cpu", flags) == errno.EINVAL
    kernel.ask("rename2", kernel.lookup("/cpu"), struct.pack("<QII", kernel.lookup("/cpu"), 0, 0) + b"d\0e\0")
    assert "e" in kernel.listdir("/cpu")


def test_controllers_that_share_a_hierarchy_have_links() -> None:
    tree = Tree(FakeMachine(), ["cpu", "memory"])
    tree.hierarchies["a,b"] = tree.hierarchies.pop("cpu")
    tree.links = {"a": "a,b", "b": "a,b"}
    kernel = Kernel(CgroupFilesystem(tree))
    names = kernel.listdir("")
    assert (names["a"][1], names["a,b"][1]) == (LNK, DIR)
    assert kernel.stat("/b").mode == stat.S_IFLNK | 0o777
    assert kernel.ask("readlink", kernel.lookup("/b")) == b"a,b"
    assert error(kernel, "lookup", "/b", b"tasks\0") == errno.ENOTDIR
    assert error(kernel, "rmdir", "/", b"b\0") == errno.ENOTDIR
    assert error(kernel, "mkdir", "/", struct.pack("<II", 0o755, 0) + b"b\0") == errno.EEXIST


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


def test_what_needs_no_doing_is_agreed_to(kernel: Kernel, filesystem: CgroupFilesystem) -> None:
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


def test_a_defect_is_said_and_costs_one_request(
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
