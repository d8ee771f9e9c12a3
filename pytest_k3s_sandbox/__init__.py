"""Kubernetes nodes in gVisor sandboxes with a 9p root: pytest fixtures, layers and repeatable experiments.

The public names are imported when they are first used, because pytest imports this package in every project
where it is installed (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_k3s_sandbox.cluster.cluster import Cluster
    from pytest_k3s_sandbox.cluster.namespace import Namespace
    from pytest_k3s_sandbox.errors import (
        ClusterError,
        ConfigError,
        LayerError,
        MissingCapability,
        ProvisionError,
        SandboxError,
        StartError,
        WaitError,
    )
    from pytest_k3s_sandbox.node.session import NodeSession, open_session
    from pytest_k3s_sandbox.node.spec import NodeSpec
    from pytest_k3s_sandbox.support.version import __version__ as __version__

_MODULES = {
    "Cluster": "cluster.cluster",
    "ClusterError": "errors",
    "ConfigError": "errors",
    "LayerError": "errors",
    "MissingCapability": "errors",
    "Namespace": "cluster.namespace",
    "NodeSession": "node.session",
    "NodeSpec": "node.spec",
    "ProvisionError": "errors",
    "SandboxError": "errors",
    "StartError": "errors",
    "WaitError": "errors",
    "__version__": "support.version",
    "open_session": "node.session",
}

__all__ = [
    "Cluster",
    "ClusterError",
    "ConfigError",
    "LayerError",
    "MissingCapability",
    "Namespace",
    "NodeSession",
    "NodeSpec",
    "ProvisionError",
    "SandboxError",
    "StartError",
    "WaitError",
    "open_session",
]


def __getattr__(name: str) -> object:
    """Import a public name.

    Raises:
        AttributeError: The package has no such name.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
