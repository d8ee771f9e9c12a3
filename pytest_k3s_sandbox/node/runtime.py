"""The OCI runtime of a node: crun where there is one, else runc."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_k3s_sandbox.cluster.sandboxer import PROGRAM
from pytest_k3s_sandbox.errors import MissingCapability
from pytest_k3s_sandbox.node.spec import FORMS, NodeSpec, programs_of
from pytest_k3s_sandbox.sandbox.base import BIN_DIR

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_k3s_sandbox.toolchain import Toolchain

CRUN = "crun"
RUNC = "runc"


@dataclass(frozen=True)
class OciRuntime:
    """The OCI runtime that starts a node's containers.

    Attributes:
        name: ``crun`` or ``runc``.
        paths: The runtimes of the node, paths inside by name; the first is this one.
        note: Why it is another one than usual; None if it is not.
        sandboxer: Whether a sandboxer runs its containers.
    """

    name: str
    paths: Mapping[str, str]
    note: str | None = None
    sandboxer: bool = False

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs that a distribution does not have of its own."""
        return tuple(name for name in self.paths if name == CRUN) + (PROGRAM,) * self.sandboxer

    @property
    def words(self) -> str:
        """The name, with the sandboxer, and why it is another one than usual."""
        name = f"{self.name} with {PROGRAM}" if self.sandboxer else self.name
        return name if self.note is None else f"{name} ({self.note})"


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
    if without is None and toolchain.find(CRUN) is not None:
        by_sandboxer = wants_sandboxer(spec) and toolchain.find(PROGRAM) is not None
        return OciRuntime(CRUN, {CRUN: f"{BIN_DIR}/{CRUN}"} | runc, sandboxer=by_sandboxer)
    why = without or f"crun is not available: {'; '.join(toolchain.why(CRUN))}"
    if spec.runtime == CRUN:
        raise _without_crun(why, "add the layer ptrace_interceptor" if without else None)
    return OciRuntime(RUNC, runc, why)


def _without_crun(why: str, remedy: str | None = None) -> MissingCapability:
    remedy = remedy or "install crun, name one by K3S_SANDBOX_CRUN, or ask for runc"
    return MissingCapability("the OCI runtime crun", cause=why, remedy=remedy)


def obstacle(spec: NodeSpec) -> str | None:
    """Return why crun cannot start a container on these layers; None if it can.

    In gVisor, crun misreads the answer of statx(2) on the FUSE cgroupfs, which the interceptor mends.
    """
    if spec.sandbox != "gvisor" or spec.has_layer("ptrace_interceptor"):
        return None
    return "crun needs the layer ptrace_interceptor"


def wants_sandboxer(spec: NodeSpec) -> bool:
    """Return whether a sandboxer is to run the containers of crun; k3s has a containerd of its own."""
    return spec.sandboxer and spec.distribution == "embedded"


def provision(spec: NodeSpec, toolchain: Toolchain) -> None:
    """Put the programs of a specification's node in place; a crun that cannot be obtained is noted.

    Args:
        spec: The specification.
        toolchain: The source of the programs.

    Raises:
        SandboxError: As for :meth:`.Toolchain.provision`; and for crun if the specification asks for it.
    """
    toolchain.provision(programs_of(spec.distribution))
    if spec.runtime == RUNC:
        return
    tried = [] if toolchain.try_get(CRUN) is not None else toolchain.why(CRUN)
    if spec.runtime == CRUN and tried:
        raise _without_crun("; ".join(tried))
    if note := obstacle(spec) or "; ".join(tried):
        toolchain.progress.note(f"containers start with runc, at about twice the price: {note}")
    elif wants_sandboxer(spec) and toolchain.try_get(PROGRAM) is None:
        why = "; ".join(toolchain.why(PROGRAM))
        toolchain.progress.note(f"each pod has a shim and a pause container, which cost more: {why}")
