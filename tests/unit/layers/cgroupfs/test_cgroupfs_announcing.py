"""Samples that come while hierarchies are told of an earlier one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_k3s_sandbox.layers.cgroupfs.sample import Change
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree
from support.cgroupfs_fakes import FakeMachine, Files

ORDER = ("memory", "pids", "freezer")


def at_the_next_sample(
    tree: Tree, name: str, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let a controller do something when it is told of a sample, once."""
    controller = tree.hierarchies[name].controller
    usual = controller.sampled

    def sampled(hierarchy: object, change: Change) -> None:
        monkeypatch.undo()
        act()
        usual(hierarchy, change)  # type: ignore[arg-type]  # the hierarchy that calls it

    monkeypatch.setattr(controller, "sampled", sampled)


@pytest.mark.parametrize("name", ORDER)
def test_a_newer_sample_in_between_leaves_no_dead_member(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tree = Tree(machine, ORDER)
    files, pid = Files(tree), machine.fork()
    for each in ORDER:
        tree.mkdir(f"/{each}/a")
        files.write(f"/{each}/a/cgroup.procs", str(pid))
    child = machine.fork(pid)

    def end() -> None:
        machine.exit(child)
        tree.refresh()

    at_the_next_sample(tree, name, end, monkeypatch)
    tree.refresh()
    for each, hierarchy in tree.hierarchies.items():
        assert set(hierarchy.members) == {pid}, each
        assert hierarchy.members.keys() <= hierarchy.last.processes.keys()
    assert files.read("/pids/a/pids.current") == "1\n"


def test_a_controller_that_fails_is_told_again(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(machine, ORDER)
    files, pid = Files(tree), machine.fork()
    for each in ORDER:
        tree.mkdir(f"/{each}/a")
        files.write(f"/{each}/a/cgroup.procs", str(pid))

    def fail() -> None:
        raise RuntimeError("a defect")

    at_the_next_sample(tree, "memory", fail, monkeypatch)
    machine.exit(pid)
    with pytest.raises(RuntimeError, match="a defect"):
        tree.refresh()
    tree.refresh()
    assert all(not hierarchy.members for hierarchy in tree.hierarchies.values())
