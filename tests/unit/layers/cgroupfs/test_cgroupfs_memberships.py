"""The file of each process at the mountpoint, with its groups."""

from __future__ import annotations

import errno

import pytest

from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree
from support.cgroupfs_fakes import FakeMachine, refused
from support.cgroupfs_kernel import Kernel


def groups(kernel: Kernel, pid: int) -> dict[str, tuple[int, str]]:
    """Return the number of groups and the path, by the controllers' names."""
    rows = [line.split("\t") for line in kernel.read(f"/pid.{pid}").decode().splitlines()]
    return {name: (int(count), path) for name, count, _stand_in, path in rows}


def test_a_process_is_in_the_roots_until_it_is_moved(
    kernel: Kernel, machine: FakeMachine, tree: Tree
) -> None:
    pid = machine.fork()
    assert set(groups(kernel, pid)) == set(tree.hierarchies)
    assert {path for _, path in groups(kernel, pid).values()} == {"/"}
    kernel.mkdir("/freezer/a")
    kernel.mkdir("/freezer/a/b")
    kernel.write("/freezer/a/b/cgroup.procs", str(pid).encode())
    assert groups(kernel, pid)["freezer"] == (3, "/a/b")
    assert groups(kernel, pid)["blkio"] == (1, "/")


def test_a_child_that_no_sample_has_is_in_its_parents_group(kernel: Kernel, machine: FakeMachine) -> None:
    pid = machine.fork()
    kernel.mkdir("/freezer/a")
    kernel.write("/freezer/a/cgroup.procs", str(pid).encode())
    child = machine.fork(pid)
    grandchild = machine.fork(child)
    assert groups(kernel, grandchild)["freezer"] == (2, "/a")
    assert groups(kernel, child)["freezer"] == (2, "/a")


def test_a_process_that_is_not_there_has_no_groups(kernel: Kernel) -> None:
    assert kernel.read("/pid.4242") == b""


@pytest.mark.parametrize("name", ["pid.", "pid.x", "pid.-1", "pid.1.2", "pid.99999999999999", "pid"])
def test_other_names_are_not_there(kernel: Kernel, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        kernel.stat(f"/{name}")


def test_no_listing_has_it_and_it_cannot_be_changed(kernel: Kernel) -> None:
    assert not [name for name in kernel.listdir("/") if name.startswith("pid.")]
    with refused(errno.EPERM):
        kernel.mkdir("/pid.1")
