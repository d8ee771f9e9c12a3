"""What a layer is: something put around an unmodified node, with a health check.

A layer is a context manager. Entering it brings it up in its sandbox and checks it;
leaving it takes it down. While it is up, its :class:`Effect` says what the node's
programs get from it: layers know nothing of Kubernetes, and the cluster knows
nothing of a layer but its effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self, runtime_checkable


@dataclass(frozen=True)
class Effect:
    """What the programs of a node get from a layer.

    Attributes:
        wrap: Words put before a program's own command line, by role: ``kubelet``
            or ``containerd``.
        environment: Variables for both programs.
        cni_bin_dir: The folder inside with CNI plugins.
        cni_conf_dir: The folder inside with the CNI configuration list.
        runtime: The OCI runtime that containerd's shim calls, a path inside.
    """

    wrap: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    cni_bin_dir: str | None = None
    cni_conf_dir: str | None = None
    runtime: str | None = None


@dataclass(frozen=True)
class Health:
    """What a layer's check found.

    Attributes:
        ok: Whether the layer does what it is for.
        details: What was seen, each as ``name: value``; recorded in reports.
    """

    ok: bool
    details: Mapping[str, str] = field(default_factory=dict)


class Layer(Protocol):
    """One layer, bound to the sandbox it was made for."""

    @property
    def name(self) -> str:
        """The layer's name as in ``--layers`` and in reports."""

    @property
    def effect(self) -> Effect:
        """What the node gets; valid while the layer is up."""

    def __enter__(self) -> Self:
        """Bring the layer up and check it.

        Raises:
            LayerError: It did not come up; nothing of it is left.
        """

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the layer down; never raises for a layer that is down already."""

    def check(self) -> Health:
        """Probe the layer inside the sandbox, at any time while it is up."""


@runtime_checkable
class Restorable(Protocol):
    """A layer with a process of its own that can end while the layer is up."""

    def fault(self) -> str | None:
        """Return why the layer does not work any more, or None; starts nothing inside, and is quick."""

    def restore(self) -> None:
        """Bring a layer with a fault up again, in its place.

        Raises:
            SandboxError: It did not come up; it has a fault still.
        """
