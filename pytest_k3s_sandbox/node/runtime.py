"""The OCI runtime of a node: runc, or crun where it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
        paths: The runtimes of the node, paths inside by name.
    """

    name: str
    paths: Mapping[str, str]

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs that a distribution does not have of its own."""
        return tuple(name for name in self.paths if name == CRUN)


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
    if spec.runtime != CRUN:
        return OciRuntime(RUNC, runc | crun)
    if crun:
        return OciRuntime(CRUN, crun | runc)
    raise _without_crun(
        without or "; ".join(toolchain.why(CRUN)), "add the layer ptrace_interceptor" if without else None
    )


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


def provision(spec: NodeSpec, toolchain: Toolchain) -> None:
    """Put the programs of a specification's node in place.

    Args:
        spec: The specification.
        toolchain: The source of the programs.

    Raises:
        SandboxError: As for :meth:`.Toolchain.provision`; and for crun if the specification asks for it.
    """
    toolchain.provision(programs_of(spec.distribution))
    if spec.runtime == CRUN and toolchain.try_get(CRUN) is None:
        raise _without_crun("; ".join(toolchain.why(CRUN)))
