"""Start the sandbox of a specification, with the programs of a node in it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pytest_k3s_sandbox.cluster import dns
from pytest_k3s_sandbox.layers import stack
from pytest_k3s_sandbox.layers.stack import FULL, NATIVE
from pytest_k3s_sandbox.node.runtime import has_dns, runtime_of
from pytest_k3s_sandbox.node.spec import FORMS, NodeSpec
from pytest_k3s_sandbox.sandbox.base import V9FS_MAGIC
from pytest_k3s_sandbox.sandbox.started import StartedSandbox
from pytest_k3s_sandbox.toolchain import Toolchain


def start_sandbox(
    spec: NodeSpec, toolchain: Toolchain, layers: Sequence[str] | None = None
) -> StartedSandbox:
    """Start the sandbox of a specification, with the programs of a node in it.

    Args:
        spec: The specification.
        toolchain: The source of the programs.
        layers: The words of the layers that the sandbox gets; None for the specification's.

    Raises:
        SandboxError: A program is not available, or the sandbox does not start; nothing is left.
    """
    words = (spec.layers or ()) if layers is None else layers
    names = [
        *FORMS[spec.distribution]().programs,
        *runtime_of(spec, toolchain).programs,
        *stack.programs_of(words),
        *([dns.PROGRAM] if has_dns(spec, toolchain) else []),
    ]
    found = {name: toolchain.get(name).path for name in names}
    with tempfile.TemporaryDirectory() as folder:
        # Inside, each program has its usual name, even if the user's file has another name.
        programs = [Path(folder, name) for name in found]
        for program, path in zip(programs, found.values(), strict=True):
            program.symlink_to(path.resolve())
        if spec.sandbox == "host":
            from pytest_k3s_sandbox.sandbox.host import HostSandbox

            return HostSandbox(programs=programs, opened=spec.open_ports, limits=spec.limits)
        from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox

        return GvisorSandbox(
            toolchain.get("runsc").path,
            programs=programs,
            one_root=spec.one_root,
            opened=spec.open_ports,
            limits=spec.limits,
        )


def default_layers(sandbox: StartedSandbox) -> tuple[str, ...]:
    """Return the layers that a node needs in a sandbox: all on a 9p root, few on plain Linux."""
    return FULL if sandbox.root_magic() == V9FS_MAGIC else NATIVE
