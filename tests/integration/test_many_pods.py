"""Thirty pods on one node: the targets of issue 6, in gVisor and natively in one run."""

from __future__ import annotations

import pytest

from pytest_k3s_sandbox.bench.pods import GONE_SECONDS, RATIO, READY_SECONDS, run
from pytest_k3s_sandbox.toolchain import Toolchain


@pytest.mark.nightly
@pytest.mark.requires("root", "fuse", "ptrace", "gvisor")
@pytest.mark.timeout(1500)
def test_thirty_pods_come_and_go(k3s_toolchain: Toolchain) -> None:
    gvisor, native = (run(kind, k3s_toolchain) for kind in ("gvisor", "here"))
    print(f"{gvisor}\n{native}")  # noqa: T201 - with a target missed, the other figures are wanted, too
    assert (gvisor.failure, native.failure) == (None, None)
    assert (gvisor.left, native.left) == ((), ())
    assert gvisor.ready is not None
    assert gvisor.gone is not None
    assert native.ready is not None
    assert gvisor.gone <= GONE_SECONDS
    assert gvisor.ready <= READY_SECONDS
    assert gvisor.ready <= RATIO * native.ready
