"""Control groups of both versions, on trees that stand in for the machine's."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import subprocess
from pathlib import Path

import pytest

from pytest_k3s_sandbox.sandbox import groups
from pytest_k3s_sandbox.sandbox.groups import Gauge, Places, find, joining, limit, make, used
from pytest_k3s_sandbox.sandbox.limits import Limits

MIB = 1 << 20
LIMITS = Limits(memory_bytes=100 * MIB, processes=500)

# Lines as in proc_pid_mountinfo(5), from machines of each kind.
V1 = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
39 31 0:36 {root} /sys/fs/cgroup/pids,rdma rw - cgroup cgroup rw,pids,rdma
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""
V2 = "30 23 0:26 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
CANNOT_BE_WRITTEN = pytest.mark.skipif(os.geteuid() == 0, reason="not applicable: root may write everywhere")


class Tree:
    """A machine with a process in a group."""

    def __init__(self, folder: Path) -> None:
        """Be a machine without groups."""
        self.root = folder / "machine"
        self.proc = folder / "proc"
        self.proc.mkdir()

    def is_(self, mounts: str, memberships: str) -> None:
        """Say what is mounted, and the groups of the process."""
        (self.proc / "mountinfo").write_text(mounts)
        (self.proc / "cgroup").write_text(memberships)

    def group(self, path: str, **files: str) -> Path:
        """Make a group with files; a dot in a name is two underscores here."""
        folder = self.root / "sys/fs/cgroup" / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)
        return folder

    def find(self) -> Places:
        """Look for places."""
        return find(self.proc, self.root)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Give a machine without groups."""
    return Tree(tmp_path)


def test_in_version_1_a_group_goes_below_that_of_the_process(tree: Tree) -> None:
    tree.is_(V1.format(root="/"), "4:memory:/user/me\n8:pids,rdma:/\n9:name=systemd:/\n0::/\n")
    tree.group("unified", cgroup__subtree_control="hugetlb")
    memory, pids = tree.group("memory/user/me"), tree.group("pids,rdma")
    assert tree.find() == Places((memory, pids), {}, ())


def test_a_container_of_version_1_sees_its_own_group_at_the_top(tree: Tree) -> None:
    tree.is_(V1.format(root="/docker/abc"), "4:memory:/docker/abc\n8:pids,rdma:/docker/abc/sub\n")
    memory, pids = tree.group("memory"), tree.group("pids,rdma/sub")
    assert tree.find().parents == (memory, pids)
    tree.is_(V1.format(root="/docker/abc"), "4:memory:/../else\n8:pids,rdma:/elsewhere\n")
    assert tree.find().parents == (memory, pids.parent)


def test_limits_that_the_process_has_itself_are_found(tree: Tree) -> None:
    tree.is_(V1.format(root="/"), "4:memory:/outer/inner\n")
    tree.group("memory", memory__limit_in_bytes="9223372036854771712")
    tree.group("memory/outer", memory__limit_in_bytes=f"{300 * MIB}")
    tree.group("memory/outer/inner", memory__limit_in_bytes=f"{700 * MIB}")
    assert sorted(tree.find().around) == [300 * MIB, 700 * MIB]


def test_in_version_2_the_nearest_group_that_gives_its_controllers_is_taken(tree: Tree) -> None:
    tree.is_(V2.format(root="/"), "0::/user.slice/user-0.slice/session-1.scope\n")
    tree.group("", cgroup__subtree_control="cpu memory pids")
    tree.group("user.slice", cgroup__subtree_control="cpu memory pids", pids__max="max", memory__max="max")
    near = tree.group("user.slice/user-0.slice", cgroup__subtree_control="memory pids", memory__max="max")
    tree.group("user.slice/user-0.slice/session-1.scope", cgroup__subtree_control="", memory__max="max")
    assert tree.find() == Places((near,), {}, ())


def test_a_group_of_version_2_with_a_limit_is_not_left(tree: Tree) -> None:
    tree.is_(V2.format(root="/"), "0::/system.slice/ci.service\n")
    tree.group("", cgroup__subtree_control="memory pids")
    above = tree.group("system.slice", cgroup__subtree_control="memory pids", memory__max="max")
    tree.group("system.slice/ci.service", cgroup__subtree_control="", memory__max=f"{MIB}", pids__max="max")
    found = tree.find()
    assert found.parents == (above,)
    assert found.lacking is not None
    assert "limits this process" in found.lacking.pop("memory")
    assert found.lacking == {}
    assert found.around == (MIB,)


def test_controllers_of_version_2_that_no_group_gives_are_lacking(tree: Tree) -> None:
    """A container whose processes are in the group at the top, as Docker starts it."""
    tree.is_(V2.format(root="/"), "0::/\n")
    tree.group("", cgroup__subtree_control="")
    found = tree.find()
    assert found.parents == ()
    assert found.lacking is not None
    assert set(found.lacking) == {"memory", "pids"}
    assert all("give no such limit" in why for why in found.lacking.values())


def test_a_machine_without_groups_lacks_them_all(tree: Tree) -> None:
    tree.is_("23 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "")
    assert tree.find() == Places(
        (), dict.fromkeys(groups.CONTROLLERS, "the machine has no such control group")
    )
    (tree.proc / "cgroup").unlink()
    lacking = tree.find().lacking or {}
    assert set(lacking) == {"memory", "pids"}


def test_a_group_that_cannot_be_written_is_lacking(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.is_(V1.format(root="/"), "4:memory:/\n8:pids,rdma:/\n")
    memory, pids = tree.group("memory"), tree.group("pids,rdma")
    monkeypatch.setattr(os, "access", lambda path, _mode: path == pids)
    assert tree.find() == Places((pids,), {"memory": f"{memory} cannot be written"})


def test_a_group_that_counts_processor_time_is_taken_where_it_can_be(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = "42 31 0:39 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    tree.is_(V1.format(root="/") + more, "4:memory:/\n8:pids,rdma:/\n9:cpu,cpuacct:/me\n")
    memory, pids, time = tree.group("memory"), tree.group("pids,rdma"), tree.group("cpu,cpuacct/me")
    assert tree.find() == Places((memory, pids, time), {}, ())
    monkeypatch.setattr(os, "access", lambda path, _mode: path != time)
    assert tree.find() == Places((memory, pids), {}, ())


def test_used_is_the_processor_time_of_either_version(tree: Tree) -> None:
    memory = str(tree.group("memory/x"))
    one = str(tree.group("cpuacct/x", cpuacct__usage="1500000000"))
    two = str(tree.group("x", cpu__stat="usage_usec 2500000\nuser_usec 1\nsystem_usec 2\n"))
    assert used([memory, one]) == 1.5
    assert used([two]) == 2.5
    assert used([memory]) is None
    assert used([]) is None


def test_groups_are_made_with_their_limits(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel makes a group's files with it."""
    files = {"memory": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), "pids": ("pids.max",)}
    mkdir = Path.mkdir

    def as_the_kernel_does(folder: Path) -> None:
        mkdir(folder)
        for name in files[folder.parent.name]:
            (folder / name).write_text("")

    parents = [tree.group("memory"), tree.group("pids")]
    monkeypatch.setattr(Path, "mkdir", as_the_kernel_does)
    memory, pids = make(parents, "k3ssb-00000000", LIMITS)
    assert (memory / "memory.limit_in_bytes").read_text() == str(100 * MIB)
    assert (memory / "memory.memsw.limit_in_bytes").read_text() == str(100 * MIB)
    assert (pids / "pids.max").read_text() == "500"


def test_nothing_is_left_of_groups_that_cannot_all_be_made(tree: Tree) -> None:
    first, second = tree.group("memory"), tree.group("pids")
    (second / "k3ssb-00000000").mkdir()
    with pytest.raises(OSError, match="exists") as caught:
        make([first, second], "k3ssb-00000000", LIMITS)
    assert caught.value.errno == errno.EEXIST
    assert not (first / "k3ssb-00000000").exists()
    assert (second / "k3ssb-00000000").exists()  # another's


def test_a_group_of_version_2_ends_as_a_whole_and_swaps_nothing(tree: Tree) -> None:
    files = {"memory__max": "max", "memory__swap__max": "max", "memory__oom__group": "0", "pids__max": "max"}
    group = tree.group("it", **files)
    assert limit(group, LIMITS) == {"memory", "pids"}
    found = {path.name: path.read_text() for path in group.iterdir()}
    assert found == {
        "memory.max": str(100 * MIB),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "500",
    }
    before = {**found, "memory.max": "max", "memory.oom.group": "0", "pids.max": "max"}
    for name, text in before.items():
        (group / name).write_text(text)
    assert limit(group, Limits()) == set()
    assert {path.name: path.read_text() for path in group.iterdir()} == before


def test_the_command_joins_its_groups_first_and_keeps_its_arguments(tree: Tree) -> None:
    made = [tree.group("one"), tree.group("two words")]
    argv = ["printf", "%s|", "a b", "$x", ""]
    assert joining([], argv) == argv
    done = subprocess.run(
        joining([str(group) for group in made], argv), capture_output=True, text=True, check=True
    )
    assert done.stdout == "a b|$x||"
    assert [(group / "cgroup.procs").read_text() for group in made] == ["0\n", "0\n"]
    refused = subprocess.run(joining([f"{tree.root}/none"], ["true"]), capture_output=True, check=False)
    assert refused.returncode != 0


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, None),
        ({"pids__current": "499", "pids__events": "max 0\n", "memory__oom_control": "oom_kill 0\n"}, None),
        ({"pids__current": "500"}, "it had 500 processes and threads"),
        ({"pids__current": "3", "pids__events": "max 2\n"}, "it had 500 processes and threads"),
        ({"pids__current": "3", "pids__events": "max 2\n", "pids__events__local": "max 0\n"}, None),
        (
            {"memory__oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"},
            "it took more than its 100 MiB",
        ),
        ({"memory__events__local": "low 0\noom 1\noom_kill 0\n"}, "it took more than its 100 MiB of memory"),
        ({"memory__events__local": "oom 0\noom_kill 0\n", "memory__events": "oom 7\noom_kill 7\n"}, None),
        (
            {"memory__events__local": "oom_kill 1\n", "memory__peak": f"{40 * MIB}"},
            "the machine ran out of memory while it had 40 MiB of the 100 MiB",
        ),
        ({"memory__events__local": "oom_kill nonsense\n", "pids__current": "many"}, None),
    ],
)
def test_a_limit_that_was_reached_is_told(tree: Tree, files: dict[str, str], said: str | None) -> None:
    """Limits of groups below, such as pods', are the node's own."""
    gauge = Gauge([str(tree.group("it", **files))], LIMITS)
    found = gauge.exceeded()
    assert found is None if said is None else said in (found or "")
    assert Gauge([str(tree.group("it"))], Limits()).exceeded() is None
    gauge.close()


def test_memory_that_ran_out_is_told_by_any_descriptor(tree: Tree) -> None:
    """select(2) takes none from 1024 on; a test run with many open files has such."""
    group = tree.group("it")
    gauge = Gauge([str(group)], LIMITS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    try:
        notice = os.eventfd(0)
        gauge._told[group] = fcntl.fcntl(notice, fcntl.F_DUPFD_CLOEXEC, 1500)
        assert gauge.exceeded() is None
        os.eventfd_write(notice, 1)
        assert "it took more than its 100 MiB of memory" in (gauge.exceeded() or "")
        os.close(notice)
    finally:
        gauge.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_group_that_is_gone_has_reached_nothing(tree: Tree) -> None:
    assert Gauge([str(tree.root / "none")], LIMITS).exceeded() is None
