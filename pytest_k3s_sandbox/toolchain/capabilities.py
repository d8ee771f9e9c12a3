"""The capabilities of the machine for ``@pytest.mark.k3s_requires``."""

from __future__ import annotations

import os

from pytest_k3s_sandbox.errors import MissingCapability
from pytest_k3s_sandbox.toolchain import Toolchain, probes


def missing(name: str) -> MissingCapability | None:
    """Return what the machine lacks for a capability, with its remedy; None when it has it.

    Args:
        name: ``root``, ``fuse``, ``ptrace`` or ``gvisor``.
    """
    what = f"this test requires {name}"
    if name == "root" and os.geteuid() != 0:
        return MissingCapability(what, cause="not root", remedy="run as root, for example with sudo")
    if name == "fuse":
        cause = probes.can_open("/dev/fuse")
        if cause is not None:
            return MissingCapability(what, cause=cause, remedy="load the kernel module fuse: modprobe fuse")
    if name == "ptrace" and not probes.can_trace():
        return MissingCapability(what, cause="ptrace is refused", remedy="see kernel.yama.ptrace_scope")
    if name == "gvisor" and (os.geteuid() != 0 or Toolchain().find("runsc") is None):
        return MissingCapability(
            what, cause="not root, or no runsc", remedy="run `k3s-sandbox provision` as root"
        )
    return None
