"""Events, huge pages, the network's controllers, and several controllers on one hierarchy."""

from __future__ import annotations

import errno

import pytest

from pytest_k3s_sandbox.layers.cgroupfs.controllers import CONTROLLERS, DEFAULT
from pytest_k3s_sandbox.layers.cgroupfs.controllers.hugetlb import page_name
from pytest_k3s_sandbox.layers.cgroupfs.controllers.joined import Joined
from pytest_k3s_sandbox.layers.cgroupfs.controllers.memory import Memory
from pytest_k3s_sandbox.layers.cgroupfs.controllers.pids import Pids
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree
from support.cgroupfs_fakes import FakeMachine, Files, refused

MIB = 1 << 20
WRITER = 1


@pytest.fixture
def all_files(machine: FakeMachine) -> Files:
    """Return every hierarchy that there is, each with a group g."""
    tree = Tree(machine, CONTROLLERS)
    for name in tree.hierarchies:
        tree.mkdir(f"/{name}/g")
    machine.descriptors = {(WRITER, 5): "anon_inode:[eventfd]"}
    for number, name in ((6, "usage_in_bytes"), (7, "oom_control"), (8, "pressure_level")):
        machine.descriptors[WRITER, number] = f"/sys/fs/cgroup/memory/g/memory.{name}"
    return Files(tree)


def test_a_threshold_is_signalled_when_it_is_crossed_either_way(
    all_files: Files, machine: FakeMachine
) -> None:
    pid = machine.fork(anonymous=MIB)
    all_files.write("/memory/g/cgroup.procs", str(pid))
    all_files.write("/memory/g/cgroup.event_control", "5 6 4M", writer=WRITER)
    all_files.tree.refresh()
    assert machine.signals == []
    for anonymous, signals in ((5, [5]), (6, [5]), (3, [5, 5]), (4, [5, 5, 5])):
        machine.change(pid, anonymous=anonymous * MIB)
        all_files.tree.refresh()
        assert machine.signals == signals


def test_the_end_of_a_group_is_an_event(all_files: Files, machine: FakeMachine) -> None:
    for arguments in ("5 6 4M", "5 7", "5 8 low"):
        all_files.write("/memory/g/cgroup.event_control", arguments, writer=WRITER)
    all_files.tree.rmdir("/memory/g")
    assert machine.signals == [5, 5, 5]


@pytest.mark.parametrize(
    ("text", "number"),
    [("5 99", errno.EBADF), ("99 6 1M", errno.EBADF), ("6 7", errno.EINVAL), ("5 6 x", errno.EINVAL)],
)
def test_bad_registrations(all_files: Files, text: str, number: int) -> None:
    with refused(number):
        all_files.write("/memory/g/cgroup.event_control", text, writer=WRITER)


@pytest.mark.parametrize(("size", "name"), [(1 << 30, "1GB"), (1 << 21, "2MB"), (1 << 16, "64KB")])
def test_sizes_of_pages(size: int, name: str) -> None:
    assert page_name(size) == name


def test_huge_pages(all_files: Files) -> None:
    all_files.write("/hugetlb/g/hugetlb.2MB.limit_in_bytes", "5M")
    assert all_files.read("/hugetlb/g/hugetlb.2MB.limit_in_bytes") == f"{4 * MIB}\n"
    assert all_files.error("/hugetlb/hugetlb.2MB.limit_in_bytes", "5M") == errno.EINVAL
    assert all_files.read("/hugetlb/g/hugetlb.2MB.numa_stat").startswith("total=0 N0=0 N1=0\n")


def test_a_kernel_without_huge_pages_has_no_files_for_them(machine: FakeMachine) -> None:
    machine.huge_pages = ()
    names = Tree(machine, ["hugetlb"]).hierarchies["hugetlb"].root.files()
    assert not [name for name in names if name.startswith("hugetlb")]


@pytest.mark.parametrize("both", ["net_cls,net_prio", ""])
def test_marks_for_network_traffic(all_files: Files, both: str) -> None:
    classes, priorities = (f"/{both or name}/g" for name in ("net_cls", "net_prio"))
    all_files.write(f"{classes}/net_cls.classid", "0x100001")
    all_files.write(f"{priorities}/net_prio.ifpriomap", "eth0 5")
    all_files.tree.mkdir(f"{classes}/h")
    if not both:
        all_files.tree.mkdir(f"{priorities}/h")
    assert all_files.read(f"{classes}/h/net_cls.classid") == f"{0x100001}\n"
    assert all_files.read(f"{priorities}/h/net_prio.ifpriomap") == "lo 0\neth0 5\n"
    numbers = {all_files.read(f"{priorities}{path}/net_prio.prioidx") for path in ("", "/h")}
    assert len(numbers) == 2


def test_two_controllers_on_one_hierarchy(all_files: Files, machine: FakeMachine) -> None:
    group = "/cpu,cpuacct/g"
    pid = machine.fork()
    all_files.write(f"{group}/cgroup.procs", str(pid))
    machine.spend(pid, user=500)
    all_files.write(f"{group}/cpu.shares", "7")
    all_files.tree.mkdir(f"{group}/h")
    assert all_files.read(f"{group}/cpuacct.usage") == "500\n"
    assert all_files.read(f"{group}/cpu.shares") == "7\n"
    assert all_files.read(f"{group}/h/cpu.shares") == "1024\n"
    names = {name: set(all_files.tree.hierarchies[name].files) for name in ("cpu", "cpuacct", "cpu,cpuacct")}
    assert names["cpu,cpuacct"] == names["cpu"] | names["cpuacct"]


def test_controllers_with_equal_state_names_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="memory,pids"):
        Joined([Memory(), Pids()])


def test_hierarchies_without_files_of_their_own(all_files: Files, machine: FakeMachine) -> None:
    pid = machine.fork()
    for name in ("systemd", "perf_event"):
        all_files.write(f"/{name}/g/tasks", str(pid))
        assert all_files.read(f"/{name}/g/cgroup.procs") == f"{pid}\n"


def test_a_node_gets_eight() -> None:
    assert set(DEFAULT) < set(CONTROLLERS)
    assert len(DEFAULT) == 8
