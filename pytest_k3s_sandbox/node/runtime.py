"""The OCI runtime of a node: crun, or runc where crun cannot be had or would not work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_k3s_sandbox.cluster import dns
from pytest_k3s_sandbox.cluster.sandboxer import PROGRAM
from pytest_k3s_sandbox.errors import MissingCapability
from pytest_k3s_sandbox.layers import registry, stack
from pytest_k3s_sandbox.node.spec import FORMS, NodeSpec, programs_of
from pytest_k3s_sandbox.sandbox.base import BIN_DIR

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_k3s_sandbox.toolchain import Toolchain

CRUN = "crun"
RUNC = "runc"
WELCOME = (CRUN, PROGRAM, dns.PROGRAM, *stack.programs_of(registry.LAYERS))
"""Programs that a node can do without."""
_ASK_FOR_RUNC = "ask for runc"
_GET_CRUN = "install crun, name one by K3S_SANDBOX_CRUN, or ask for runc"


@dataclass(frozen=True)
class OciRuntime:
    """The OCI runtime that starts a node's containers.

    Attributes:
        name: ``crun`` or ``runc``.
        paths: The runtimes of the node, paths inside by name; the first is this one.
        sandboxer: Whether a sandboxer runs its containers.
        note: Why it is another one than usual; None if it is not.
    """

    name: str
    paths: Mapping[str, str]
    sandboxer: bool = False
    note: str | None = None

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs that a distribution does not have of its own."""
        return tuple(name for name in self.paths if name == CRUN) + (PROGRAM,) * self.sandboxer

    @property
    def words(self) -> str:
        """The name, and what is not as with runc: a sandboxer, or why crun is not used."""
        if self.sandboxer:
            return f"{self.name} with {PROGRAM}"
        return self.name if self.note is None else f"{self.name} ({self.note})"


def runtime_of(spec: NodeSpec, toolchain: Toolchain) -> OciRuntime:
    """Return the OCI runtime of a specification's node; no network, no build.

    Args:
        spec: The specification.
        toolchain: The source of the programs, which :func:`provision` has put in place.

    Raises:
        MissingCapability: The specification asks for crun, and there is none.
    """
    # k3s unpacks a runc of its own, and has its folder first in PATH.
    runc = {RUNC: f"{BIN_DIR}/{RUNC}" if RUNC in FORMS[spec.distribution]().programs else RUNC}
    if spec.runtime == RUNC:
        return OciRuntime(RUNC, runc)
    without = obstacle(spec)
    crun = {CRUN: f"{BIN_DIR}/{CRUN}"} if without is None and toolchain.find(CRUN) is not None else {}
    if not wants_crun(spec):
        return OciRuntime(RUNC, runc | crun)
    if crun:
        by_sandboxer = wants_sandboxer(spec) and toolchain.find(PROGRAM) is not None
        return OciRuntime(CRUN, crun | runc, sandboxer=by_sandboxer)
    why = without or "; ".join(toolchain.why(CRUN))
    if spec.runtime == CRUN:
        raise _without_crun(why, remedy=_ASK_FOR_RUNC if without else _GET_CRUN)
    return OciRuntime(RUNC, runc, note=f"no crun: {why}")


def _without_crun(why: str, *, remedy: str) -> MissingCapability:
    return MissingCapability("the OCI runtime crun", cause=why, remedy=remedy)


def obstacle(spec: NodeSpec) -> str | None:
    """Return why crun cannot start a container on these layers; None if it can.

    In gVisor, crun misreads the answer of statx(2) on the FUSE cgroupfs, which the interceptor's rules for
    containerd mend. k3s runs as one process under the rules for the kubelet.
    """
    if spec.sandbox != "gvisor":
        return None
    if spec.distribution == "k3s":
        return "in gVisor, it needs a containerd that is a process of its own, which k3s has not"
    if spec.has_layer("ptrace_interceptor"):
        return None
    return "it needs the layer ptrace_interceptor"


def wants_crun(spec: NodeSpec) -> bool:
    """Return whether crun is to start the containers if it can: k3s' own way is runc."""
    return spec.runtime == CRUN or (spec.runtime == "default" and spec.distribution == "embedded")


def wants_sandboxer(spec: NodeSpec) -> bool:
    """Return whether a sandboxer is to run the containers of crun; k3s has a containerd of its own."""
    return spec.sandboxer and spec.distribution == "embedded"


def provision(spec: NodeSpec, toolchain: Toolchain) -> tuple[str, ...]:
    """Put the programs of a specification's node in place.

    Args:
        spec: The specification.
        toolchain: The source of the programs, whose progress shows the lines that are returned.

    Returns:
        A line for each program that is not there and that the node can do without, with the reason.

    Raises:
        SandboxError: As for :meth:`.Toolchain.provision`; and for crun if the specification asks for it.
    """
    toolchain.provision((*programs_of(spec.distribution), *stack.programs_of(spec.layers or ())))
    lines = [] if not wants_crun(spec) else _provision_crun(spec, toolchain)
    if spec.wants_dns and isinstance(why := toolchain.get_or_why(dns.PROGRAM), str):
        lines.append(f"the cluster has no DNS: {why}")
    for line in lines:
        toolchain.progress.note(line)
    return tuple(lines)


def _provision_crun(spec: NodeSpec, toolchain: Toolchain) -> list[str]:
    """Put crun and the sandboxer in place, if they can be had; return a line for what is missing."""
    without = obstacle(spec)
    crun = without or toolchain.get_or_why(CRUN)
    if isinstance(crun, str):
        if spec.runtime == CRUN:
            raise _without_crun(crun, remedy=_ASK_FOR_RUNC if without else _GET_CRUN)
        return [f"containers start with runc, at several times the price of crun: {crun}"]
    if wants_sandboxer(spec) and isinstance(why := toolchain.get_or_why(PROGRAM), str):
        return [f"each pod has a shim and a pause container, which cost more: {why}"]
    return []


def has_dns(spec: NodeSpec, toolchain: Toolchain) -> bool:
    """Return whether the cluster gets a DNS; no network, no build.

    Args:
        spec: The specification.
        toolchain: The source of the programs, which :func:`provision` has put in place.
    """
    return spec.wants_dns and toolchain.find(dns.PROGRAM) is not None
