"""Programs of the machine that a test needs, and sandboxes of both kinds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.sandbox.host import HostSandbox
from pytest_k3s_sandbox.sandbox.started import StartedSandbox
from pytest_k3s_sandbox.toolchain import Toolchain
from pytest_k3s_sandbox.toolchain.resolve import Program

Make = Callable[..., StartedSandbox]
"""Starts a sandbox; takes the options that both kinds have."""


def installed(name: str) -> Program:
    """Return a program that is there already; skip the test without it."""
    found = Toolchain().find(name)
    if found is None:
        pytest.skip(f"no {name} on this machine: run `k3s-sandbox provision`")
    return found


def maker(kind: str) -> Make:
    """Return what starts a sandbox of a kind; skip the test where that is impossible.

    Args:
        kind: ``gvisor`` or ``host``.
    """
    if kind == "host":
        return HostSandbox
    runsc = installed("runsc").path
    return lambda **options: GvisorSandbox(runsc, **options)
