"""Experiment 02: the older workarounds, each alone and then one after the other.

Each is held against the *first error that stops the node*. A workaround that changes nothing about it may
be needed later; one that changes it has taken a wall away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.lab.nodes import ISOLATION, settings
from pytest_k3s_sandbox.report.records import Stage, Wall

if TYPE_CHECKING:
    from pytest_k3s_sandbox.lab.nodes import NodeTrials
    from pytest_k3s_sandbox.pytestplugin.recording import Claim

pytestmark = [pytest.mark.exp02, pytest.mark.k3s_requires("root", "gvisor"), pytest.mark.timeout(180)]

CGROUPS = "failed to find cgroup mounts"
KMSG = "open /dev/kmsg: no such file or directory"
CACHE = "failed to get rootfs info: unable to find data in memory cache"
TUNABLES = "open /proc/sys/kernel/keys/root_maxbytes: no such file or directory"

ALONE = {
    "kmsg": CGROUPS,
    "shared": CGROUPS,
    "private": CGROUPS,
    "sysctl": CGROUPS,
    "oci": CGROUPS,
    "cgroups": KMSG,
}
"""The error that stops a node with one workaround: only the sandbox's own cgroups change it."""

TOGETHER = (
    ("cgroups+kmsg", True, CACHE, "fuse_cgroupfs"),
    ("cgroups+kmsg", False, TUNABLES, "workarounds:sysctl"),
    ("cgroups+kmsg+sysctl+oci+shared", True, CACHE, "fuse_cgroupfs"),
)
"""The error that stops a node with several, with and without ``localStorageCapacityIsolation``.

The last one is all that the research had, and the error is the one that it could not get past.
"""


@pytest.mark.parametrize("part", ALONE)
def test_one_workaround(trials: NodeTrials, claim: Claim, part: str) -> None:
    """One workaround alone does not get a node any further than to the next wall."""
    text = f"With the workaround {part} alone, the kubelet ends with '{ALONE[part]}'"
    with claim.of(f"alone-{part}", text) as wall:
        seen = trials.run((f"workarounds:{part}",))
        ended = (seen.reached, seen.exit_code) == (Stage.STARTED, 1)
        wall.judge(ended and seen.speaks_of(ALONE[part]), seen.said)


@pytest.mark.parametrize(("parts", "isolation", "error", "removed_by"), TOGETHER)
def test_workarounds_together(
    trials: NodeTrials, claim: Claim, parts: str, isolation: bool, error: str, removed_by: str
) -> None:
    """All of them together end at the research's last error, which is about statistics, not mounts."""
    words = (f"workarounds:{parts}", "fake_cni")
    text = (
        f"With the workarounds {parts} {'and' if isolation else 'but without'} {ISOLATION}, "
        f"the kubelet ends with '{error}'"
    )
    with claim.of(f"together-{parts}-{'with' if isolation else 'without'}-isolation", text) as wall:
        seen = trials.run(words, isolation=isolation)
        if seen.error is not None:
            trials.writer.append(
                Wall(
                    error=seen.error,
                    layers=words,
                    version=trials.version,
                    settings=dict(settings(isolation=isolation)),
                    removed_by=removed_by,
                )
            )
        ended = (seen.reached, seen.exit_code) == (Stage.STARTED, 1)
        wall.judge(ended and seen.speaks_of(error), seen.said)
