"""Each controller's files: what they take, what they refuse, what they say then."""

from __future__ import annotations

import errno

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree
from support.cgroupfs_fakes import FakeMachine, Files

UNLIMITED = 9223372036854771712
OK = 0
MIB = 1 << 20


@pytest.fixture(autouse=True)
def group(tree: Tree) -> None:
    """Make the group /g in every hierarchy."""
    for name in tree.hierarchies:
        tree.mkdir(f"/{name}/g")


@pytest.mark.parametrize(
    ("path", "text", "number", "after"),
    [
        ("/cpu/g/cpu.shares", "512\n", OK, "512"),
        ("/cpu/g/cpu.shares", "0", OK, "2"),
        ("/cpu/g/cpu.shares", "1000000000", OK, "262144"),
        ("/cpu/g/cpu.shares", "-1", errno.EINVAL, "1024"),
        ("/cpu/g/cpu.shares", "x", errno.EINVAL, "1024"),
        ("/cpu/cpu.shares", "512", errno.EINVAL, "1024"),
        ("/cpu/g/cpu.idle", "1", OK, "1"),
        ("/cpu/g/cpu.idle", "2", errno.EINVAL, "0"),
        ("/cpu/cpu.idle", "1", errno.EINVAL, "0"),
        ("/cpu/g/cpu.cfs_quota_us", "50000", OK, "50000"),
        ("/cpu/g/cpu.cfs_quota_us", "-7", OK, "-1"),
        ("/cpu/g/cpu.cfs_quota_us", "999", errno.EINVAL, "-1"),
        ("/cpu/g/cpu.cfs_quota_us", "0", errno.EINVAL, "-1"),
        ("/cpu/cpu.cfs_quota_us", "50000", errno.EINVAL, "-1"),
        ("/cpu/g/cpu.cfs_quota_us", str(2**63), errno.ERANGE, "-1"),
        ("/cpu/g/cpu.cfs_period_us", "10000", OK, "10000"),
        ("/cpu/g/cpu.cfs_period_us", "999", errno.EINVAL, "100000"),
        ("/cpu/g/cpu.cfs_period_us", "1000001", errno.EINVAL, "100000"),
        ("/cpu/g/cpu.cfs_period_us", str(2**64 - 1), errno.EINVAL, "100000"),
        ("/cpu/g/cpu.cfs_burst_us", "1", OK, "1"),
        ("/cpu/g/cpu.stat", "1", errno.EINVAL, None),
        ("/cpu/g/cpu.rt_runtime_us", "-1", errno.EINVAL, "0"),
        ("/cpu/g/cpu.rt_runtime_us", "950001", errno.EINVAL, "0"),
        ("/cpu/g/cpu.rt_runtime_us", "950000", OK, "950000"),
        ("/cpu/g/cpu.rt_period_us", "0", errno.EINVAL, "1000000"),
        ("/cpu/cpu.rt_runtime_us", "0", errno.EINVAL, "950000"),
        ("/cpuacct/g/cpuacct.usage", "0", OK, "0"),
        ("/cpuacct/g/cpuacct.usage", "1", errno.EINVAL, "0"),
        ("/cpuset/g/cpuset.cpus", "0-1", OK, "0-1"),
        ("/cpuset/g/cpuset.cpus", "9", errno.ERANGE, ""),
        ("/cpuset/g/cpuset.cpus", "1-0", errno.EINVAL, ""),
        ("/cpuset/cpuset.cpus", "0", errno.EACCES, "0-3"),
        ("/cpuset/g/cpuset.mems", "0", OK, "0"),
        ("/cpuset/g/cpuset.cpu_exclusive", "1", OK, "1"),
        ("/cpuset/g/cpuset.sched_load_balance", "0", OK, "0"),
        ("/cpuset/g/cpuset.sched_relax_domain_level", "-1", OK, "-1"),
        ("/cpuset/g/cpuset.sched_relax_domain_level", "-2", errno.EINVAL, "-1"),
        ("/cpuset/g/cpuset.memory_pressure", "1", errno.EINVAL, "0"),
        ("/cpuset/g/cpuset.effective_cpus", "0", errno.EINVAL, ""),
        ("/memory/g/memory.limit_in_bytes", "64M", OK, str(64 * MIB)),
        ("/memory/g/memory.limit_in_bytes", "5000", OK, "4096"),
        ("/memory/g/memory.limit_in_bytes", "-1", OK, str(UNLIMITED)),
        ("/memory/g/memory.limit_in_bytes", "lots", errno.EINVAL, str(UNLIMITED)),
        ("/memory/memory.limit_in_bytes", "64M", errno.EINVAL, str(UNLIMITED)),
        ("/memory/g/memory.memsw.limit_in_bytes", "64M", errno.EINVAL, str(UNLIMITED)),
        ("/memory/g/memory.soft_limit_in_bytes", "32M", OK, str(32 * MIB)),
        ("/memory/g/memory.swappiness", "200", OK, "200"),
        ("/memory/g/memory.swappiness", "201", errno.EINVAL, "60"),
        ("/memory/g/memory.oom_control", "1", OK, "oom_kill_disable 1\nunder_oom 0\noom_kill 0"),
        ("/memory/g/memory.oom_control", "2", errno.EINVAL, None),
        ("/memory/memory.oom_control", "1", errno.EINVAL, None),
        ("/memory/g/memory.use_hierarchy", "1", OK, "1"),
        ("/memory/g/memory.use_hierarchy", "0", errno.EINVAL, "1"),
        ("/memory/g/memory.force_empty", "0", OK, None),
        ("/memory/memory.force_empty", "0", errno.EINVAL, None),
        ("/memory/g/memory.failcnt", "0", OK, "0"),
        ("/memory/g/memory.move_charge_at_immigrate", "3", errno.EINVAL, "0"),
        ("/memory/g/cgroup.event_control", "5 6 oom", errno.EBADF, None),
        ("/blkio/g/blkio.throttle.read_bps_device", "9:9 1", errno.ENODEV, ""),
        ("/memory/g/cgroup.event_control", "five", errno.EINVAL, None),
        ("/memory/g/memory.usage_in_bytes", "1", errno.EINVAL, "0"),
        ("/memory/g/memory.kmem.tcp.limit_in_bytes", "1M", OK, str(MIB)),
        ("/pids/g/pids.max", "100", OK, "100"),
        ("/pids/g/pids.max", "max\n", OK, "max"),
        ("/pids/g/pids.max", "-1", errno.EINVAL, "max"),
        ("/pids/g/pids.max", "4194305", errno.EINVAL, "max"),
        ("/pids/g/pids.current", "1", errno.EINVAL, "0"),
        ("/freezer/g/freezer.state", "FROZEN\n", OK, "FROZEN"),
        ("/freezer/g/freezer.state", "frozen", errno.EINVAL, "THAWED"),
        ("/freezer/g/freezer.self_freezing", "1", errno.EINVAL, "0"),
        ("/blkio/g/blkio.bfq.weight", "500", OK, "500"),
        ("/blkio/g/blkio.bfq.weight", "1001", errno.ERANGE, "100"),
        ("/blkio/g/blkio.throttle.read_bps_device", "8:0 1048576", OK, "8:0 1048576"),
        ("/blkio/g/blkio.throttle.read_bps_device", "8:0", errno.EINVAL, ""),
        ("/blkio/g/blkio.reset_stats", "1", OK, None),
        ("/blkio/g/blkio.throttle.io_serviced", "1", errno.EINVAL, "Total 0"),
        ("/devices/g/devices.allow", "c 1:3 rwm", OK, None),
        ("/devices/g/devices.allow", "x 1:3 rwm", errno.EINVAL, None),
        ("/devices/g/devices.allow", "c 1 rwm", errno.EINVAL, None),
        ("/devices/g/devices.allow", "c 1:3 rwx", errno.EINVAL, None),
        ("/devices/g/devices.deny", f"c {2**32}:3 rwm", errno.EINVAL, None),
        ("/devices/g/devices.list", "a", errno.EINVAL, "a *:* rwm"),
    ],
)
def test_writes(files: Files, path: str, text: str, number: int, after: str | None) -> None:
    assert files.error(path, text) == number
    if after is not None:
        assert files.read(path) == after + "\n" * bool(after) or (files.read(path), after) == ("\n", "")


@pytest.mark.parametrize(
    "path",
    [
        "/devices/g/devices.allow",
        "/devices/g/devices.deny",
        "/memory/g/memory.pressure_level",
        "/memory/g/cgroup.event_control",
        "/memory/g/memory.force_empty",
        "/blkio/g/blkio.reset_stats",
    ],
)
def test_reads_that_are_refused(files: Files, path: str) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        files.read(path)


def test_every_file_reads_in_every_group(tree: Tree, files: Files) -> None:
    for name in tree.hierarchies:
        for path in (f"/{name}", f"/{name}/g"):
            group = tree.find(path).group
            assert group is not None
            for file in group.files():
                entry = tree.find(f"{path}/{file}")
                assert entry.file is not None
                if entry.file.read is not None:
                    text = files.read(f"{path}/{file}")
                    assert text == "" or text.endswith("\n"), file


def test_a_child_gets_no_more_quota_than_its_parent(tree: Tree, files: Files) -> None:
    tree.mkdir("/cpu/g/h")
    files.write("/cpu/g/cpu.cfs_quota_us", "50000")
    assert files.error("/cpu/g/h/cpu.cfs_quota_us", "50001") == errno.EINVAL
    assert files.error("/cpu/g/h/cpu.cfs_quota_us", "50000") == OK
    assert files.error("/cpu/g/cpu.cfs_quota_us", "40000") == errno.EINVAL
    assert files.error("/cpu/g/cpu.cfs_burst_us", "50001") == errno.EINVAL
    assert files.error("/cpu/g/cpu.cfs_burst_us", "50000") == OK


def test_cpuset_rules(tree: Tree, files: Files, machine: FakeMachine) -> None:
    pid = machine.fork()
    assert files.error("/cpuset/g/tasks", str(pid)) == errno.ENOSPC
    files.write("/cpuset/g/cpuset.cpus", "0-1")
    assert files.error("/cpuset/g/tasks", str(pid)) == errno.ENOSPC
    files.write("/cpuset/g/cpuset.mems", "0")
    assert files.error("/cpuset/g/tasks", str(pid)) == OK
    assert files.error("/cpuset/g/cpuset.cpus", "\n") == errno.ENOSPC
    tree.mkdir("/cpuset/g/h")
    assert files.error("/cpuset/g/h/cpuset.cpus", "2") == errno.EACCES
    files.write("/cpuset/g/h/cpuset.cpus", "1")
    assert files.error("/cpuset/g/cpuset.cpus", "0") == errno.EBUSY
    assert files.error("/cpuset/g/h/cpuset.cpu_exclusive", "1") == errno.EACCES
    files.write("/cpuset/g/cpuset.cpu_exclusive", "1")
    tree.mkdir("/cpuset/k")
    assert files.error("/cpuset/k/cpuset.cpus", "1-2") == errno.EINVAL
    assert files.error("/cpuset/k/cpuset.cpus", "2-3") == OK


def test_cpu_time_is_charged_where_it_is_spent(tree: Tree, files: Files, machine: FakeMachine) -> None:
    tree.mkdir("/cpuacct/g/h")
    pid = machine.fork()
    machine.spend(pid, user=1000)
    files.write("/cpuacct/g/h/tasks", str(pid))
    machine.spend(pid, user=20_000_000, system=10_000_000)
    machine.change(pid, processor=2)
    for path in ("/cpuacct/g", "/cpuacct/g/h"):
        assert files.read(f"{path}/cpuacct.usage") == "30000000\n"
        assert files.read(f"{path}/cpuacct.usage_user") == "20000000\n"
        assert files.read(f"{path}/cpuacct.usage_sys") == "10000000\n"
        assert files.read(f"{path}/cpuacct.stat") == "user 2\nsystem 1\n"
        assert files.read(f"{path}/cpuacct.usage_percpu") == "0 0 30000000 0 \n"
    files.write("/cpuacct/g/tasks", str(pid))
    machine.spend(pid, user=5)
    machine.exit(pid)
    assert files.read("/cpuacct/g/h/cpuacct.usage") == "30000000\n"
    files.write("/cpuacct/g/h/cpuacct.usage", "0")
    assert files.read("/cpuacct/g/h/cpuacct.usage_all").splitlines()[3] == "2 0 0"


@given(
    # Each child: what it spends before it is seen, what before it ends, whether it is seen at all.
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), max_size=6)
)
def test_time_of_children_that_are_waited_for_is_never_lost(spent: list[tuple[int, int, bool]]) -> None:
    machine = FakeMachine()
    tree = Tree(machine, ["cpuacct"])
    files = Files(tree)
    tree.mkdir("/cpuacct/g")
    parent = machine.fork()
    files.write("/cpuacct/g/tasks", str(parent))
    for first, second, seen in spent:
        child = machine.fork(parent)
        machine.spend(child, user=first)
        if seen:
            tree.refresh()
        machine.spend(child, system=second)
        machine.exit(child)
    total = sum(first + second for first, second, _ in spent)
    assert files.read("/cpuacct/g/cpuacct.usage") == f"{total}\n"


def test_the_root_shows_the_machine(files: Files, machine: FakeMachine) -> None:
    machine.cpu = {n: (10 * n, n) for n in machine.cpus}
    assert files.read("/cpuacct/cpuacct.usage_percpu") == "0 11 22 33 \n"
    machine.cpu = dict.fromkeys(machine.cpus, (0, 0))
    assert files.read("/cpuacct/cpuacct.usage") == "66\n", "usage went back"
    stat = dict(line.split() for line in files.read("/memory/memory.stat").splitlines())
    assert int(stat["total_cache"]) == 300 * MIB
    assert int(files.read("/memory/memory.usage_in_bytes")) == 500 * MIB


def test_memory_of_groups(tree: Tree, files: Files, machine: FakeMachine) -> None:
    tree.mkdir("/memory/g/h")
    first = machine.fork(anonymous=8 * MIB, mapped=2 * MIB)
    second = machine.fork(anonymous=3 * MIB)
    files.write("/memory/g/tasks", str(first))
    files.write("/memory/g/h/tasks", str(second))
    stat = dict(line.split() for line in files.read("/memory/g/memory.stat").splitlines())
    assert (int(stat["rss"]), int(stat["total_rss"])) == (8 * MIB, 11 * MIB)
    assert (int(stat["cache"]), int(stat["total_mapped_file"])) == (2 * MIB, 2 * MIB)
    assert files.read("/memory/g/memory.usage_in_bytes") == f"{13 * MIB}\n"
    assert files.read("/memory/g/memory.numa_stat").splitlines()[0] == "total=2560 N0=2560 N1=0"
    assert files.error("/memory/g/memory.limit_in_bytes", "10M") == errno.EBUSY
    assert files.error("/memory/g/memory.limit_in_bytes", "11M") == OK
    machine.change(first, anonymous=MIB)
    assert files.read("/memory/g/memory.usage_in_bytes") == f"{6 * MIB}\n"
    assert files.read("/memory/g/memory.max_usage_in_bytes") == f"{13 * MIB}\n"
    files.write("/memory/g/memory.max_usage_in_bytes", "0")
    assert files.read("/memory/g/memory.max_usage_in_bytes") == f"{6 * MIB}\n"
    stat = dict(line.split() for line in files.read("/memory/g/h/memory.stat").splitlines())
    assert int(stat["hierarchical_memory_limit"]) == 11 * MIB


def test_faults_stay_when_processes_die(files: Files, machine: FakeMachine) -> None:
    pid = machine.fork(faults=5)
    files.write("/memory/g/tasks", str(pid))
    machine.change(pid, faults=12, major_faults=1)
    files.read("/memory/g/memory.stat")
    machine.exit(pid)
    stat = dict(line.split() for line in files.read("/memory/g/memory.stat").splitlines())
    assert (stat["pgfault"], stat["pgmajfault"]) == ("7", "1")


def test_tasks_are_counted(tree: Tree, files: Files, machine: FakeMachine) -> None:
    tree.mkdir("/pids/g/h")
    first, second = machine.fork(threads=3), machine.fork()
    files.write("/pids/g/cgroup.procs", str(first))
    files.write("/pids/g/h/tasks", str(second))
    assert files.read("/pids/g/pids.current") == "4\n"
    assert files.read("/pids/g/h/pids.current") == "1\n"
    machine.exit(first)
    assert files.read("/pids/g/pids.current") == "1\n"
    assert files.read("/pids/g/pids.peak") == "4\n"


def test_the_freezer_stops_what_is_in_it(tree: Tree, files: Files, machine: FakeMachine) -> None:
    tree.mkdir("/freezer/g/h")
    inside, below, late = machine.fork(), machine.fork(), machine.fork()
    files.write("/freezer/g/tasks", str(inside))
    files.write("/freezer/g/h/tasks", str(below))
    files.write("/freezer/g/freezer.state", "FROZEN")
    assert machine.stopped == {inside, below}
    assert files.read("/freezer/g/h/freezer.state") == "FROZEN\n"
    assert files.read("/freezer/g/h/freezer.self_freezing") == "0\n"
    assert files.read("/freezer/g/h/freezer.parent_freezing") == "1\n"
    files.write("/freezer/g/tasks", str(late))
    assert late in machine.stopped
    files.write("/freezer/tasks", str(late))
    assert late not in machine.stopped
    forked = machine.fork(inside)
    assert files.read("/freezer/g/freezer.state") == "FREEZING\n"
    assert files.read("/freezer/g/freezer.state") == "FROZEN\n"
    files.write("/freezer/g/freezer.state", "THAWED")
    assert not machine.stopped, forked
    assert files.read("/freezer/g/freezer.state") == "THAWED\n"


def test_what_runc_does_to_devices(tree: Tree, files: Files) -> None:
    files.write("/devices/g/devices.deny", "a")
    assert files.read("/devices/g/devices.list") == ""
    rules = ["c 1:3 rwm", "c *:* m", "b *:* m", "c 136:* rwm"]
    for text in rules:
        files.write("/devices/g/devices.allow", text)
    assert files.read("/devices/g/devices.list").splitlines() == rules
    files.write("/devices/g/devices.deny", "c 1:3 w")
    files.write("/devices/g/devices.allow", "c 1:5 r\n")
    assert files.read("/devices/g/devices.list").splitlines() == ["c 1:3 rm", *rules[1:], "c 1:5 r"]
    tree.mkdir("/devices/g/h")
    assert files.error("/devices/g/devices.deny", "a") == errno.EINVAL
    assert files.error("/devices/g/h/devices.allow", "a") == errno.EPERM
    assert files.error("/devices/g/h/devices.allow", "c 9:9 r") == errno.EPERM
    assert files.error("/devices/g/h/devices.allow", "c 136:7 rw") == OK
    files.write("/devices/g/devices.deny", "c 136:* rwm")
    assert files.read("/devices/g/h/devices.list").splitlines() == ["c 1:3 rm", *rules[1:3], "c 1:5 r"]


DEVICE = st.tuples(
    st.sampled_from("bc"),
    st.sampled_from(["1", "2", "*"]),
    st.sampled_from(["1", "*"]),
    st.sampled_from(["r", "w", "rw", "rwm"]),
)


@example(
    [
        ("/g", "allow", "c 1:1 w"),
        ("/g", "allow", "c 1:* r"),
        ("/g/h", "allow", "c 1:1 r"),
        ("/g/h", "allow", "c 1:1 w"),
    ]
)
@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["/g", "/g/h"]),
            st.sampled_from(["allow", "deny"]),
            st.one_of(st.just("a"), DEVICE.map(lambda d: f"{d[0]} {d[1]}:{d[2]} {d[3]}")),
        ),
        max_size=12,
    )
)
def test_a_child_is_never_allowed_more_than_its_parent(steps: list[tuple[str, str, str]]) -> None:
    tree = Tree(FakeMachine(), ["devices"])
    files = Files(tree)
    tree.mkdir("/devices/g")
    files.write("/devices/g/devices.deny", "a")
    tree.mkdir("/devices/g/h")
    for path, what, text in steps:
        assert files.error(f"/devices{path}/devices.{what}", text) in {OK, errno.EPERM, errno.EINVAL}
    parent, child = (tree.find(f"/devices{path}").group for path in ("/g", "/g/h"))
    assert parent is not None
    assert child is not None
    if not child.state.allow and not parent.state.allow:
        for key, access in child.state.exceptions.items():
            for letter in access:  # the kernel asks of each rule that is written, and merges them then
                assert parent.state.covers(key, frozenset(letter)), (key, letter)
