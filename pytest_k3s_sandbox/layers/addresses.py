"""The address ranges of a cluster, for the layers that make its network and for the programs that use it."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Final

from pytest_k3s_sandbox.errors import ConfigError

POD_RANGE: Final = "10.42.0.0/24"
"""The addresses of the node's pods: those of k3s' first node. The first one is the node's, their gateway."""

SERVICE_RANGE: Final = "10.43.0.0/16"
"""The addresses of services, the same as in k3s."""

_LONGEST_PREFIX: Final = 30  # the network's address, the gateway's, one pod's and the broadcast address


def pods_of(pod_range: str) -> IPv4Network:
    """Return the range of pods that a text names.

    Args:
        pod_range: The IPv4 range, like ``10.42.0.0/24``.

    Raises:
        ConfigError: It is not an IPv4 range, or smaller than a /30.
    """
    remedy = f"e.g. {POD_RANGE}"
    try:
        pods = IPv4Network(pod_range)
    except ValueError as error:
        raise ConfigError(f"pod range {pod_range!r}", cause=str(error), remedy=remedy) from error
    if pods.prefixlen > _LONGEST_PREFIX:
        raise ConfigError(f"pod range {pod_range!r}", cause="it has no room", remedy=remedy)
    return pods
