"""A tree on a machine without processes of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree

if TYPE_CHECKING:
    from tests.unit.layers.cgroupfs.cgroupfs_fakes import FakeMachine, Files
else:  # the folder is no package: pytest puts it on sys.path
    from cgroupfs_fakes import FakeMachine, Files


@pytest.fixture
def machine() -> FakeMachine:
    """Return a machine with init alone."""
    return FakeMachine()


@pytest.fixture
def tree(machine: FakeMachine) -> Tree:
    """Return all controllers on that machine."""
    return Tree(machine)


@pytest.fixture
def files(tree: Tree) -> Files:
    """Return the tree's files."""
    return Files(tree)
