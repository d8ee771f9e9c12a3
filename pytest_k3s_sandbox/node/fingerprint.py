"""The record of a run's environment: sandbox, kernel, programs, machine."""

from __future__ import annotations

import os
import platform
import sys

from pytest_k3s_sandbox.layers.stack import LayerStack
from pytest_k3s_sandbox.node.runtime import runtime_of
from pytest_k3s_sandbox.node.spec import NodeSpec, kubernetes_version, programs_of
from pytest_k3s_sandbox.report.records import Environment, Machine, ProgramRecord
from pytest_k3s_sandbox.sandbox import gateway
from pytest_k3s_sandbox.sandbox.base import Sandbox
from pytest_k3s_sandbox.sandbox.groups import NAMES
from pytest_k3s_sandbox.sandbox.limits import Limits
from pytest_k3s_sandbox.sandbox.started import StartedSandbox
from pytest_k3s_sandbox.settings import variables
from pytest_k3s_sandbox.support import clock
from pytest_k3s_sandbox.support.version import __version__
from pytest_k3s_sandbox.toolchain import Toolchain


def fingerprint(stack: LayerStack, spec: NodeSpec, toolchain: Toolchain, experiment: str) -> Environment:
    """Return the record of a run's environment."""
    runtime = runtime_of(spec, toolchain)
    found = {name: toolchain.get(name) for name in (*programs_of(spec.distribution), *runtime.programs)}
    sandbox = stack.sandbox
    magic = sandbox.root_magic() if isinstance(sandbox, StartedSandbox) else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Environment(
        experiment=experiment,
        sandbox=sandbox.kind,
        root_magic=magic,
        kernel=sandbox.run(["uname", "-r"]).stdout.strip(),
        programs={name: ProgramRecord(version=p.version, origin=p.origin) for name, p in found.items()},
        pins={pin.group: pin.version for pin in toolchain.pins.programs.values()},
        layers=stack.names,
        python=platform.python_version(),
        project_version=__version__,
        started=clock.now().isoformat(timespec="seconds"),
        argv=tuple(sys.argv),
        machine=Machine(cores=len(os.sched_getaffinity(0)), memory_bytes=memory),
        distribution=spec.distribution,
        kubernetes=kubernetes_version(spec, toolchain),
        runtime=runtime.words,
        variables=variables(os.environ),
        network=described_network(stack.sandbox, spec),
        limits=described_limits(stack.sandbox),
    )


def described_network(sandbox: Sandbox, spec: NodeSpec) -> str | None:
    """Return a description of the addresses that programs inside can reach; None if unknown."""
    found = getattr(sandbox, "network", None)
    if found is None:
        return None
    opened = f"; opened: {', '.join(map(str, spec.open_ports))}" if spec.open_ports else ""
    return f"{found.isolation}: {gateway.MEANING[found.isolation]}{opened}"


def described_limits(sandbox: Sandbox) -> str | None:
    """Return a description of the sandbox's limits on the machine; None if unknown."""
    limits: Limits | None = getattr(sandbox, "limits", None)
    if limits is None:
        return None
    lacking: dict[str, str] = getattr(sandbox, "unlimited", {})
    return "; ".join((str(limits), *(f"not limited: {NAMES[name]} ({why})" for name, why in lacking.items())))
