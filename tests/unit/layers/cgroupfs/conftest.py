"""A tree on a machine without processes of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.layers.cgroupfs.filesystem import CgroupFilesystem
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree

if TYPE_CHECKING:
    from tests.unit.layers.cgroupfs.cgroupfs_fakes import FakeMachine, Files
    from tests.unit.layers.cgroupfs.cgroupfs_kernel import Kernel
else:  # the folder is not a package: pytest puts it on sys.path
    from cgroupfs_fakes import FakeMachine, Files
    from cgroupfs_kernel import Kernel


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
