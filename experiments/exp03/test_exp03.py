"""Experiment 03: another file system below the kubelet, and the sandbox's own cgroups.

The research put k3s into Docker to get it off the 9p file system, and met the same error. Here the
kubelet's folder is on a tmpfs, which cAdvisor knows: if 9p were the cause, the error would go.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

import pytest

from pytest_k3s_sandbox.layers.base import Health, NodeOverrides
from pytest_k3s_sandbox.report.records import Stage

if TYPE_CHECKING:
    from pytest_k3s_sandbox.lab.nodes import NodeTrials
    from pytest_k3s_sandbox.pytestplugin.recording import Claim
    from pytest_k3s_sandbox.sandbox.base import Sandbox

pytestmark = [pytest.mark.exp03, pytest.mark.k3s_requires("root", "gvisor"), pytest.mark.timeout(180)]

CACHE = "failed to get rootfs info: unable to find data in memory cache"
FOLDER = "/var/lib/kubelet"
ALL = "kmsg+sysctl+oci+private"


class TmpfsBelow:
    """A tmpfs below the kubelet; implements :class:`~pytest_k3s_sandbox.layers.base.Layer`.

    Args:
        sandbox: Where.
    """

    name = "tmpfs_below_kubelet"
    overrides = NodeOverrides()

    def __init__(self, sandbox: Sandbox) -> None:
        """Mount nothing yet."""
        self._sandbox = sandbox

    def __enter__(self) -> Self:
        """Mount it."""
        self._sandbox.run(["sh", "-c", f"mkdir -p {FOLDER} && mount -t tmpfs tmpfs {FOLDER}"])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take it off."""
        self._sandbox.run(["umount", "--lazy", FOLDER], check=False)

    def check(self) -> Health:
        """Look at the mount's type."""
        kind = self._sandbox.run(["stat", "-f", "-c", "%T", FOLDER], check=False).stdout.strip()
        return Health(kind == "tmpfs", {"type": kind})


def test_another_file_system_does_not_help(trials: NodeTrials, claim: Claim) -> None:
    """With the kubelet's folder on a tmpfs, the error is the same."""
    below = TmpfsBelow(trials.runner.sandbox)
    text = f"With {FOLDER} on a tmpfs and the sandbox's own cgroups, the kubelet ends with '{CACHE}'"
    with claim.of("tmpfs", text) as wall:
        seen = trials.run((f"workarounds:cgroups+{ALL}", "fake_cni"), also=[below])
        wall.judge((seen.reached, seen.exit_code) == (Stage.STARTED, 1) and seen.speaks_of(CACHE), seen.said)


# Without the interceptor a signal can interrupt cAdvisor's first look, and the kubelet ends of it.
@pytest.mark.nightly
@pytest.mark.k3s_requires("fuse")
def test_other_cgroups_do(trials: NodeTrials, claim: Claim) -> None:
    """With other cgroups on top of the sandbox's own, and no interceptor, the node is Ready."""
    below = TmpfsBelow(trials.runner.sandbox)
    text = f"With {FOLDER} on a tmpfs and the FUSE cgroupfs, without the interceptor, the node is Ready"
    with claim.of("fuse", text) as ready:
        seen = trials.run((f"workarounds:{ALL}", "fuse_cgroupfs", "fake_cni"), also=[below])
        ready.judge(seen.ready, f"{seen.reached}: {seen.said}")
