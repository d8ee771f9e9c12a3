"""A tree on a machine without processes of its own."""

from __future__ import annotations

import pytest

from pytest_k3s_sandbox.layers.cgroupfs.filesystem import CgroupFilesystem
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree
from support.cgroupfs_fakes import FakeMachine, Files
from support.cgroupfs_kernel import Kernel


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


@pytest.fixture
def filesystem(tree: Tree) -> CgroupFilesystem:
    """Serve the tree."""
    return CgroupFilesystem(tree)


@pytest.fixture
def kernel(filesystem: CgroupFilesystem) -> Kernel:
    """Ask the file system as the kernel does."""
    return Kernel(filesystem)
