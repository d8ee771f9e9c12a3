"""Groups and the processes in them."""

from __future__ import annotations

import errno

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree
from support.cgroupfs_fakes import FakeMachine, Files, refused


def test_names_at_the_top_are_the_controllers(tree: Tree) -> None:
    expected = ["cpu", "cpuacct", "cpuset", "memory", "devices", "pids", "blkio", "freezer"]
    assert tree.names(None) == expected


def test_paths_that_lead_nowhere(tree: Tree) -> None:
    for path, number in (
        ("/nothing", errno.ENOENT),
        ("/cpu/nothing", errno.ENOENT),
        ("/cpu/cpu.shares/x", errno.ENOTDIR),
    ):
        with refused(number):
            tree.find(path)


def test_making_groups(tree: Tree) -> None:
    tree.mkdir("/cpu/a")
    tree.mkdir("/cpu/a/b")
    for path, number in (
        ("/cpu/a", errno.EEXIST),
        ("/cpu/tasks", errno.EEXIST),
        ("/cpu/x\ny", errno.EINVAL),
        ("/cpu", errno.EEXIST),
        ("/net", errno.EPERM),
        ("/cpu/no/b", errno.ENOENT),
        ("/cpu/tasks/b", errno.ENOTDIR),
    ):
        with refused(number):
            tree.mkdir(path)


def test_removing_groups(tree: Tree, files: Files, machine: FakeMachine) -> None:
    tree.mkdir("/cpu/a")
    tree.mkdir("/cpu/a/b")
    pid = machine.fork()
    files.write("/cpu/a/b/cgroup.procs", str(pid))
    for path, number in (
        ("/cpu/a", errno.EBUSY),
        ("/cpu/a/b", errno.EBUSY),
        ("/cpu", errno.EBUSY),
        ("/", errno.EBUSY),
        ("/cpu/tasks", errno.ENOTDIR),
    ):
        with refused(number):
            tree.rmdir(path)
    machine.exit(pid)
    tree.rmdir("/cpu/a/b")
    tree.rmdir("/cpu/a")
    assert "a" not in tree.names(tree.find("/cpu").group)


def test_files_only_of_the_root(tree: Tree) -> None:
    tree.mkdir("/pids/a")
    root, child = (set(tree.names(tree.find(path).group)) for path in ("/pids", "/pids/a"))
    assert root - child == {"release_agent", "cgroup.sane_behavior", "a"}
    assert child - root == {"pids.current", "pids.max", "pids.events", "pids.peak"}


def test_processes_move_and_children_follow(tree: Tree, files: Files, machine: FakeMachine) -> None:
    tree.mkdir("/cpu/a")
    tree.mkdir("/cpu/b")
    parent = machine.fork()
    files.write("/cpu/a/cgroup.procs", f"{parent}\n")
    child = machine.fork(parent)
    grandchild = machine.fork(child)
    assert files.read("/cpu/a/cgroup.procs") == f"{parent}\n{child}\n{grandchild}\n"
    assert files.read("/cpu/cgroup.procs") == "1\n"
    files.write("/cpu/b/tasks", str(child))
    assert files.read("/cpu/a/cgroup.procs") == f"{parent}\n{grandchild}\n"
    assert files.read("/cpu/b/cgroup.procs") == f"{child}\n"
    files.write("/cpu/cgroup.procs", str(child))
    assert files.read("/cpu/b/cgroup.procs") == ""
    assert files.read("/memory/cgroup.procs") == f"1\n{parent}\n{child}\n{grandchild}\n"


def test_an_orphan_is_found_by_its_session(tree: Tree, files: Files, machine: FakeMachine) -> None:
    tree.mkdir("/cpu/a")
    leader = machine.fork(session=101)
    files.write("/cpu/a/cgroup.procs", str(leader))
    between = machine.fork(leader)
    orphan = machine.fork(between)
    machine.exit(between)
    assert files.read("/cpu/a/cgroup.procs") == f"{leader}\n{orphan}\n"


def test_a_reused_id_is_another_process(tree: Tree, files: Files, machine: FakeMachine) -> None:
    tree.mkdir("/cpu/a")
    pid = machine.fork()
    files.write("/cpu/a/cgroup.procs", str(pid))
    machine.change(pid, started=999)
    assert files.read("/cpu/a/cgroup.procs") == ""
    assert files.read("/cpu/cgroup.procs") == f"1\n{pid}\n"


def test_threads_are_tasks(tree: Tree, files: Files, machine: FakeMachine) -> None:
    tree.mkdir("/cpu/a")
    tree.mkdir("/cpu/b")
    pid = machine.fork(threads=3)
    first, second = pid * 1000 + 1, pid * 1000 + 2
    files.write("/cpu/a/cgroup.procs", str(pid))
    assert files.read("/cpu/a/tasks") == f"{pid}\n{first}\n{second}\n"
    files.write("/cpu/b/tasks", str(second))
    assert files.read("/cpu/a/tasks") == f"{pid}\n{first}\n"
    assert files.read("/cpu/b/tasks") == f"{second}\n"
    assert files.read("/cpu/a/cgroup.procs") == files.read("/cpu/b/cgroup.procs") == f"{pid}\n"
    assert str(second) in files.read("/memory/tasks").split(), "moved in another hierarchy"
    with refused(errno.EBUSY):
        tree.rmdir("/cpu/b")
    files.write("/cpu/b/cgroup.procs", str(first))
    assert files.read("/cpu/a/tasks") == ""
    assert files.read("/cpu/b/tasks") == f"{pid}\n{first}\n{second}\n"
    machine.exit(pid)
    assert files.read("/cpu/b/tasks") == ""
    tree.rmdir("/cpu/b")


def test_the_first_thread_moves_without_the_others(tree: Tree, files: Files, machine: FakeMachine) -> None:
    tree.mkdir("/cpu/a")
    pid = machine.fork(threads=2)
    files.write("/cpu/a/tasks", str(pid))
    assert files.read("/cpu/a/tasks") == f"{pid}\n"
    assert files.read("/cpu/tasks") == f"1\n{pid * 1000 + 1}\n"


def test_threads_of_the_kernel_stay(tree: Tree, files: Files, machine: FakeMachine) -> None:
    tree.mkdir("/cpu/a")
    thread = machine.fork(kernel=True)
    assert files.error("/cpu/a/tasks", str(thread)) == errno.EINVAL


def test_only_the_owner_moves_a_process(tree: Tree, files: Files, machine: FakeMachine) -> None:
    tree.mkdir("/cpu/a")
    mine, root, writer = machine.fork(), machine.fork(), machine.fork()
    machine.users.update({mine: 7, writer: 7})
    files.write("/cpu/a/tasks", str(mine), writer=writer)
    with refused(errno.EACCES):
        files.write("/cpu/a/tasks", str(root), writer=writer)


def test_renaming_groups(tree: Tree, files: Files, machine: FakeMachine) -> None:
    tree.mkdir("/cpu/a")
    tree.mkdir("/cpu/a/b")
    tree.mkdir("/cpu/c")
    pid = machine.fork()
    files.write("/cpu/a/b/tasks", str(pid))
    root = tree.hierarchies["cpu"].root
    group, hierarchy = root.children["a"], root.hierarchy
    hierarchy.rename(group, root, "d")
    assert files.read("/cpu/d/b/tasks") == f"{pid}\n"
    assert group.children["b"].path == "/d/b"
    hierarchy.rename(group, root, "d")
    for parent, name, number in (
        (root, "c", errno.EEXIST),
        (root, "tasks", errno.EEXIST),
        (root, "x\ny", errno.EINVAL),
        (root.children["c"], "d", errno.EIO),
    ):
        with refused(number):
            hierarchy.rename(group, parent, name)
    with refused(errno.EBUSY):
        hierarchy.rename(root, root, "x")


def test_a_release_agent_hears_of_groups_that_become_empty(
    tree: Tree, files: Files, machine: FakeMachine
) -> None:
    files.write("/cpu/notify_on_release", "1")
    files.write("/cpu/release_agent", "/bin/agent\n")
    tree.mkdir("/cpu/a")
    tree.mkdir("/cpu/a/b")
    first, second = machine.fork(), machine.fork()
    files.write("/cpu/a/b/tasks", str(first))
    files.write("/cpu/a/b/tasks", str(second))
    files.write("/cpu/tasks", str(first))
    assert machine.released == []
    machine.exit(second)
    tree.refresh()
    assert machine.released == [("/bin/agent", "/a/b")]
    tree.rmdir("/cpu/a/b")
    assert machine.released == [("/bin/agent", "/a/b"), ("/bin/agent", "/a")]
    files.write("/cpu/a/notify_on_release", "0")
    files.write("/cpu/a/tasks", str(first))
    files.write("/cpu/tasks", str(first))
    assert len(machine.released) == 2


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("99999", errno.ESRCH),
        ("-1", errno.EINVAL),
        ("x", errno.EINVAL),
        (str(2**31), errno.EINVAL),
        (str(2**70), errno.EINVAL),
        ("  1 \n", 0),
        ("", 0),
    ],
)
def test_writes_to_procs(files: Files, text: str, number: int) -> None:
    assert files.error("/cpu/cgroup.procs", text) == number


def test_zero_is_the_writer(tree: Tree, files: Files, machine: FakeMachine) -> None:
    tree.mkdir("/cpu/a")
    writer = machine.fork()
    files.write("/cpu/a/cgroup.procs", "0", writer=writer)
    assert files.read("/cpu/a/cgroup.procs") == f"{writer}\n"


def test_what_a_new_group_inherits(tree: Tree, files: Files) -> None:
    files.write("/cpuset/cgroup.clone_children", "1")
    files.write("/cpuset/notify_on_release", "7")
    tree.mkdir("/cpuset/a")
    assert files.read("/cpuset/a/cgroup.clone_children") == "1\n"
    assert files.read("/cpuset/a/notify_on_release") == "1\n"
    assert files.read("/cpuset/a/cpuset.cpus") == "0-3\n"
    files.write("/cpuset/a/cgroup.clone_children", "0")
    tree.mkdir("/cpuset/a/b")
    assert files.read("/cpuset/a/b/cpuset.cpus") == "\n"


def test_common_files(tree: Tree, files: Files) -> None:
    tree.mkdir("/cpu/a")
    files.write("/cpu/release_agent", "/bin/agent\n")
    assert files.read("/cpu/release_agent") == "/bin/agent\n"
    assert files.read("/cpu/cgroup.sane_behavior") == "0\n"
    assert files.error("/cpu/cgroup.sane_behavior", "1") == errno.EINVAL
    assert files.error("/cpu/notify_on_release", "x") == errno.EINVAL
    assert files.error("/cpu/release_agent", "x" * 4097) == errno.E2BIG
    with refused(errno.ENOENT):
        files.read("/cpu/a/release_agent")


class _Groups(RuleBasedStateMachine):
    """Any order of operations against a simple model: a dict of groups, a dict of places."""

    groups: Bundle[str] = Bundle("groups")
    processes: Bundle[int] = Bundle("processes")

    def __init__(self) -> None:
        super().__init__()
        self.machine = FakeMachine()
        self.tree = Tree(self.machine, ["cpuacct"])
        self.files = Files(self.tree)
        self.existing = {"/cpuacct"}
        self.places: dict[int, str] = {1: "/cpuacct"}
        self.usage: dict[str, int] = {}

    @rule(target=groups)
    def root(self) -> str:
        return "/cpuacct"

    @rule(target=groups, parent=groups, name=st.sampled_from("abc"))
    def mkdir(self, parent: str, name: str) -> str:
        path = f"{parent}/{name}"
        if parent not in self.existing:
            with refused(errno.ENOENT):
                self.tree.mkdir(path)
        elif path in self.existing:
            with refused(errno.EEXIST):
                self.tree.mkdir(path)
        else:
            self.tree.mkdir(path)
            self.existing.add(path)
            self.usage[path] = 0
        return path

    @rule(path=groups)
    def rmdir(self, path: str) -> None:
        busy = path == "/cpuacct" or path in self.places.values()
        busy = busy or any(other.startswith(path + "/") for other in self.existing)
        if path not in self.existing:
            with refused(errno.ENOENT):
                self.tree.rmdir(path)
        elif busy:
            with refused(errno.EBUSY):
                self.tree.rmdir(path)
        else:
            self.tree.rmdir(path)
            self.existing.discard(path)

    @rule(target=processes, data=st.data())
    def fork(self, data: st.DataObject) -> int:
        parent = data.draw(st.sampled_from(sorted(self.places)))
        pid = self.machine.fork(parent)
        self.places[pid] = self.places[parent]
        self.tree.refresh()  # a child without a sample before its parent moves is out of reach
        return pid

    @rule(pid=consumes(processes), waited=st.booleans())
    def exit(self, pid: int, waited: bool) -> None:
        self.machine.exit(pid, waited=waited)
        del self.places[pid]

    @rule(pid=processes, path=groups, file=st.sampled_from(["tasks", "cgroup.procs"]))
    def attach(self, pid: int, path: str, file: str) -> None:
        if path in self.existing:
            self.files.write(f"{path}/{file}", str(pid))
            self.places[pid] = path

    @rule(pid=processes, user=st.integers(0, 5), system=st.integers(0, 5))
    def spend(self, pid: int, user: int, system: int) -> None:
        self.machine.spend(pid, user, system)

    @invariant()
    def every_process_is_where_it_was_put(self) -> None:
        for path in self.existing:
            listed = [int(line) for line in self.files.read(f"{path}/cgroup.procs").splitlines()]
            assert listed == sorted(pid for pid, place in self.places.items() if place == path)

    @invariant()
    def usage_never_falls_and_includes_what_is_below(self) -> None:
        for path in self.existing - {"/cpuacct"}:
            usage = int(self.files.read(f"{path}/cpuacct.usage"))
            assert usage >= self.usage[path]
            self.usage[path] = usage
            below = [other for other in self.existing if other.rpartition("/")[0] == path]
            assert usage >= sum(int(self.files.read(f"{other}/cpuacct.usage")) for other in below)


TestGroups = _Groups.TestCase
TestGroups.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
