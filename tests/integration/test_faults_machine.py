"""Faults of what a node stands on: its clock jumps."""

from __future__ import annotations

import pytest

from pytest_k3s_sandbox.bringup import Wish, start_sandbox
from pytest_k3s_sandbox.toolchain import Toolchain

pytestmark = [pytest.mark.requires("root", "gvisor"), pytest.mark.nightly]


def test_the_clock_cannot_jump(k3s_toolchain: Toolchain) -> None:
    """Nobody in gVisor can set its clock, and natively it is the machine's: it cannot be made to jump."""
    with start_sandbox(Wish(), k3s_toolchain) as sandbox:
        done = sandbox.run(["date", "--set", "+1 hour"], check=False)
        assert done.returncode != 0
        assert "cannot set date: Operation not permitted" in done.stderr
