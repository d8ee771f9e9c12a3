"""The contract of a layer: a context manager around an unmodified node, with a health check.

Entering a layer brings it up in its sandbox and checks it; leaving it takes it down. Layers know
nothing of Kubernetes, and the cluster knows only the :class:`NodeOverrides` of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self, runtime_checkable


@dataclass(frozen=True)
class NodeOverrides:
    """What a layer changes in how the programs of a node are started.

    Attributes:
        wrap: The argv put before a program's own, by role: ``kubelet`` or ``containerd``.
        environment: Variables for both programs.
        cni_bin_dir: The folder inside with CNI plugins.
        cni_conf_dir: The folder inside with the CNI configuration list.
        runtimes: What containerd's shim calls instead of an OCI runtime: paths inside by the runtime's name.
    """

    wrap: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    cni_bin_dir: str | None = None
    cni_conf_dir: str | None = None
    runtimes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Health:
    """The result of a layer's check.

    Attributes:
        ok: Whether the layer works.
        details: The findings by name, which reports record.
    """

    ok: bool
    details: Mapping[str, str] = field(default_factory=dict)


class Layer(Protocol):
    """One layer, bound to the sandbox it was made for."""

    @property
    def name(self) -> str:
        """The layer's name as in ``--layers`` and in reports."""

    @property
    def overrides(self) -> NodeOverrides:
        """How the node's programs are started; valid while the layer is up."""

    def __enter__(self) -> Self:
        """Bring the layer up and check it.

        Raises:
            LayerError: The layer did not come up, and has left nothing behind.
        """

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the layer down; does nothing for a layer that is down already."""

    def check(self) -> Health:
        """Probe the layer inside the sandbox, at any time while it is up."""


@runtime_checkable
class Restorable(Protocol):
    """A layer with a process of its own that can end while the layer is up."""

    def fault(self) -> str | None:
        """Return why the layer has stopped working, or None; quickly, and without a program inside."""

    def restore(self) -> None:
        """Bring a layer with a fault up again.

        Raises:
            SandboxError: The layer did not come up, and still has a fault.
        """
