"""What a hierarchy of the kernel's own below ours is asked and told."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from pytest_k3s_sandbox.layers.cgroupfs.adopting import adopt
from pytest_k3s_sandbox.layers.cgroupfs.backing import Backing
from pytest_k3s_sandbox.layers.cgroupfs.sample import Process, Sample
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree
from support.cgroupfs_fakes import FakeMachine, Files

MIB = 1 << 20


class Kernel(Backing):
    """A few files by path, and what was done, in order."""

    def __init__(self) -> None:
        """Begin with no group."""
        self.said: dict[str, str] = {}
        self.done: list[tuple[str, ...]] = []
        self.busy: set[str] = set()

    def groups(self) -> list[str]:
        """Return those that have a list of processes."""
        return [path.removesuffix("/cgroup.procs") for path in self.said if path.endswith("/cgroup.procs")]

    def make(self, group: str) -> None:
        """Note it."""
        self.done.append(("make", group))
        self.said.setdefault(f"{group}/cgroup.procs", "")
        self.said.setdefault(f"{group}/tasks", "")

    def remove(self, group: str) -> bool:
        """Note it."""
        self.done.append(("remove", group))
        return group not in self.busy

    def rename(self, old: str, new: str) -> None:
        """Note it."""
        self.done.append(("rename", old, new))

    def read(self, group: str, name: str) -> str | None:
        """Look it up."""
        return self.said.get(f"{group}/{name}")

    def write(self, group: str, name: str, text: str) -> None:
        """Note it."""
        self.done.append(("write", group, name, text))

    def close(self) -> None:
        """Note it."""
        self.done.append(("close",))


@pytest.fixture
def kernel(tree: Tree) -> Kernel:
    """Put one kernel below all hierarchies."""
    made = Kernel()
    for hierarchy in tree.hierarchies.values():
        hierarchy.backing = made
    return made


def test_groups_and_processes_are_passed_on(
    tree: Tree, files: Files, machine: FakeMachine, kernel: Kernel
) -> None:
    tree.mkdir("/pids/a")
    tree.mkdir("/pids/a/b")
    pid = machine.fork(threads=2)
    kernel.said["/a/b/cgroup.procs"] = f"{pid}\n"
    files.write("/pids/a/b/cgroup.procs", str(pid))
    files.write("/pids/a/b/pids.max", "7")
    files.write("/pids/a/b/pids.max", "max")
    root = tree.hierarchies["pids"].root
    tree.hierarchies["pids"].rename(root.children["a"], root, "c")
    assert kernel.done == [
        ("make", "/a"),
        ("make", "/a/b"),
        ("write", "/a/b", "cgroup.procs", str(pid)),
        ("write", "/a/b", "pids.max", "7"),
        ("write", "/a/b", "pids.max", "4194304"),
        ("rename", "/a", "/c"),
    ]
    assert files.read("/pids/c/b/pids.max") == "max\n"


def test_the_kernel_knows_who_is_where(
    tree: Tree, files: Files, machine: FakeMachine, kernel: Kernel
) -> None:
    tree.mkdir("/pids/a")
    missed, gone = machine.fork(), machine.fork()
    kernel.said["/a/cgroup.procs"] = f"{gone}\n{missed}\n"
    kernel.said["/a/tasks"] = f"{gone}\n{missed}\n{missed * 1000 + 1}\n"
    assert files.read("/pids/a/cgroup.procs") == f"{missed}\n{gone}\n"
    assert files.read("/pids/a/tasks").count("\n") == 3
    assert files.read("/pids/a/pids.current") == "3\n"
    assert tree.hierarchies["pids"].root.children["a"].pids == {missed, gone}
    kernel.said["/a/cgroup.procs"] = f"{missed}\n"
    files.read("/pids/a/cgroup.procs")
    assert tree.hierarchies["pids"].root.children["a"].pids == {missed}


def test_a_group_that_the_kernel_calls_busy_stays(tree: Tree, kernel: Kernel) -> None:
    tree.mkdir("/cpu/a")
    kernel.busy.add("/a")
    with pytest.raises(OSError, match="busy"):
        tree.rmdir("/cpu/a")
    kernel.busy.clear()
    tree.rmdir("/cpu/a")


def test_cpu_time_is_the_kernels(tree: Tree, files: Files, machine: FakeMachine, kernel: Kernel) -> None:
    tree.mkdir("/cpuacct/a")
    pid = machine.fork(processor=2)
    kernel.said["/a/cgroup.procs"] = f"{pid}\n"
    kernel.said.update({"/a/cpuacct.usage_user": "70\n", "/a/cpuacct.usage_sys": "30\n"})
    files.write("/cpuacct/a/tasks", str(pid))
    machine.spend(pid, user=5)
    assert files.read("/cpuacct/a/cpuacct.usage") == "100\n"
    assert files.read("/cpuacct/a/cpuacct.usage_percpu") == "0 0 100 0 \n"
    machine.change(pid, processor=3)
    kernel.said["/a/cpuacct.usage_user"] = "90\n"
    tree.refresh()
    assert files.read("/cpuacct/a/cpuacct.usage_percpu_user") == "0 0 70 20 \n"
    kernel.said["/a/cpuacct.usage_user"] = "80\n"
    assert files.read("/cpuacct/a/cpuacct.usage_user") == "90\n", "usage went back"
    files.write("/cpuacct/a/cpuacct.usage", "0")
    assert files.read("/cpuacct/a/cpuacct.usage") == "0\n"
    kernel.said["/a/cpuacct.usage_sys"] = "31\n"
    assert files.read("/cpuacct/a/cpuacct.usage") == "1\n"


def test_memory_is_the_kernels(tree: Tree, files: Files, machine: FakeMachine, kernel: Kernel) -> None:
    tree.mkdir("/memory/a")
    pid = machine.fork(anonymous=8 * MIB)
    kernel.said["/a/memory.usage_in_bytes"] = f"{9 * MIB}\n"
    files.write("/memory/a/tasks", str(pid))
    stat = dict(line.split() for line in files.read("/memory/a/memory.stat").splitlines())
    assert (int(stat["rss"]), int(stat["total_cache"])) == (8 * MIB, MIB)
    kernel.said["/a/memory.usage_in_bytes"] = f"{5 * MIB}\n"
    stat = dict(line.split() for line in files.read("/memory/a/memory.stat").splitlines())
    assert (int(stat["rss"]), int(stat["cache"])) == (5 * MIB, 0)
    assert files.read("/memory/a/memory.max_usage_in_bytes") == f"{9 * MIB}\n"


def test_nothing_is_left_there(tree: Tree, kernel: Kernel) -> None:
    hierarchy = tree.hierarchies["cpu"]
    tree.mkdir("/cpu/a")
    tree.mkdir("/cpu/a/b")
    kernel.said["/a/b/cgroup.procs"] = "42\n"
    kernel.done.clear()
    hierarchy.close()
    hierarchy.close()
    assert kernel.done == [
        ("write", "/", "cgroup.procs", "42"),
        ("remove", "/a/b"),
        ("remove", "/a"),
        ("close",),
    ]


def test_by_system_calls(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("1\n20\n")
    backing = Backing.at(str(tmp_path))
    assert backing is not None
    assert backing.numbers("/", "cgroup.procs") == [1, 20]
    backing.make("/a")
    backing.make("/a/b")
    backing.make("/a/b")
    (tmp_path / "a" / "b" / "tasks").write_text("")
    backing.write("/a/b", "tasks", "7")
    backing.write("/a/b", "nothing", "7")
    assert backing.read("/a/b", "tasks") == "7"
    assert backing.read("/a/b", "nothing") is None
    assert backing.numbers("/a/b", "nothing") is None
    assert not backing.remove("/a")
    backing.rename("/a", "/c")
    backing.rename("/a", "/d")
    assert (tmp_path / "c" / "b").is_dir()
    assert backing.remove("/nothing")
    (tmp_path / "c" / "b" / "tasks").unlink()
    assert backing.remove("/c/b")
    backing.close()


def test_a_hierarchy_of_linux_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "notify_on_release").write_text("0\n")
    assert Backing.at(str(tmp_path)) is None


def test_groups_that_the_kernel_has_kept_are_in_every_hierarchy(
    tree: Tree, files: Files, machine: FakeMachine
) -> None:
    kept, pid, ended = Kernel(), machine.fork(), 4_000_000
    kept.said = {"/pods/one/cgroup.procs": f"{pid}\n{ended}\n", "/pods/cgroup.procs": ""}
    tree.hierarchies["pids"].backing = kept
    assert adopt(tree) == 2
    for name in tree.hierarchies:
        assert files.read(f"/{name}/pods/one/cgroup.procs").split() == (
            [str(pid), str(ended)] if name == "pids" else [str(pid)]
        )
        assert files.read(f"/{name}/pods/cgroup.procs") == ""


def test_a_kernel_without_groups_gives_none(tree: Tree, kernel: Kernel) -> None:
    assert adopt(tree) == 0
    assert not any(hierarchy.root.children for hierarchy in tree.hierarchies.values())
    assert kernel.done == []


def test_the_groups_of_a_real_folder_are_found(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    (tmp_path / "tasks").touch()
    backing = Backing.at(str(tmp_path))
    assert backing is not None
    assert sorted(backing.groups()) == ["/a", "/a/b", "/c"]
    backing.close()


class Stale(FakeMachine):
    """A machine that is looked at anew only where that is asked for."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        super().__init__()
        self.seen: dict[int, Process] = {}

    def census(self, refresh: Iterable[int] = (), *, ended: bool = False, started: bool = True) -> Sample:
        """Return what was seen, and what is of some."""
        del ended, started
        now, asked = super().sample(), set(refresh)
        self.seen = {
            pid: process if pid in asked else self.seen.get(pid, process)
            for pid, process in now.processes.items()
        }
        return Sample(self.seen, now.cpu, now.memory, now.apart)

    def sample(self) -> Sample:
        """Return what was seen."""
        return self.census()


def test_a_group_is_frozen_as_soon_as_its_processes_stand() -> None:
    """Not when they are looked at again, up to ten seconds later: crun refuses an exec by this file."""
    machine, kernel = Stale(), Kernel()
    tree = Tree(machine, ["freezer"])
    tree.hierarchies["freezer"].backing = kernel
    tree.mkdir("/freezer/a")
    pid = machine.fork()
    files = Files(tree)
    kernel.said["/a/cgroup.procs"] = f"{pid}\n"
    files.write("/freezer/a/cgroup.procs", str(pid))
    files.write("/freezer/a/freezer.state", "FROZEN")
    assert machine.stopped == {pid}
    assert files.read("/freezer/a/freezer.state") == "FROZEN\n"
    files.write("/freezer/a/freezer.state", "THAWED")
    assert files.read("/freezer/a/freezer.state") == "THAWED\n"
