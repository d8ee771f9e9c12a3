"""The settings that each version of Kubernetes needs: the one table of differences.

Its sources are each version's own ``pkg/kubelet/apis/config/v1beta1/defaults.go``,
``pkg/kubelet/apis/config/validation`` and ``pkg/features/kube_features.go``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pytest_k3s_sandbox.errors import ConfigError

OLDEST = "1.34"
_NUMBERS = re.compile(r"v?([0-9]+)\.([0-9]+)(\..*)?", re.DOTALL)
"""The first minor release that a node in a sandbox was seen with."""

Release = tuple[int, int]


@dataclass(frozen=True)
class Difference:
    """A field of the KubeletConfiguration that some versions have to be given.

    Attributes:
        since: The first minor release that needs it.
        field: The field.
        value: Its value.
        why: The effect of its absence.
    """

    since: str
    field: str
    value: Any
    why: str


TABLE = (
    Difference(
        OLDEST,
        "singleProcessOOMKill",
        value=True,
        why="false by default on cgroups of version 2, where the kubelet then asks for memory.oom.group, "
        "which gVisor lacks; on version 1 it must not be false",
    ),
    Difference(
        "1.35",
        "failCgroupV1",
        value=False,
        why="true by default, and the kubelet then refuses to start on cgroups of version 1, "
        "which the FUSE filesystem provides",
    ),
    Difference(
        "1.37",
        "featureGates",
        value={"MemoryQoS": False},
        why="on by default; on cgroups of version 2 it writes memory.high, which gVisor lacks",
    ),
)


def release(version: str) -> Release:
    """Return the minor release of a version as numbers that can be compared.

    Args:
        version: Such as ``1.36``, ``1.36.3`` or ``v1.34.1+k3s1``.

    Raises:
        ConfigError: It is not a version, or older than :data:`OLDEST`.
    """
    numbers = _NUMBERS.fullmatch(version)
    if numbers is None:
        raise ConfigError(
            f"Kubernetes version {version!r}",
            cause="it does not begin with two numbers",
            remedy=f"name a version such as {OLDEST}",
        )
    found = (int(numbers[1]), int(numbers[2]))
    if version != OLDEST and found < release(OLDEST):
        raise ConfigError(
            f"Kubernetes version {version!r}",
            cause=f"nodes in sandboxes are known from {OLDEST} on",
            remedy="use a later version",
        )
    return found


def kubelet_fields(version: str) -> dict[str, Any]:
    """Return the fields of the KubeletConfiguration that a version needs.

    Args:
        version: The version of Kubernetes; one after the table's last gets the settings of the last.

    Raises:
        ConfigError: It is not a version that can be served; see :func:`release`.
    """
    wanted = release(version)
    return {each.field: each.value for each in TABLE if release(each.since) <= wanted}
