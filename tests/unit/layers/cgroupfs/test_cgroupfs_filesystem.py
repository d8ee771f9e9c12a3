"""The filesystem asked as the kernel does, without a kernel."""

from __future__ import annotations

import errno
import stat
import struct

import pytest

from pytest_k3s_sandbox.layers.cgroupfs import protocol
from pytest_k3s_sandbox.layers.cgroupfs.filesystem import CgroupFilesystem
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree
from support.cgroupfs_fakes import FakeMachine, refused
from support.cgroupfs_kernel import Kernel, error

DIR, REG, LNK = 4, 8, 10


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


def test_texts_of_unopened_reads_are_bounded(filesystem: CgroupFilesystem) -> None:
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


def test_listings_of_unclosed_directories_are_bounded(filesystem: CgroupFilesystem) -> None:
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
