"""Experiment 05: the fake CNI plugin.

The research found that k3s came up only with one. What the parts that k3s is made of need it for is the
node's condition Ready, and nothing else: see experiment 01 for a control plane without any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.lab.observe import Milestone
from pytest_k3s_sandbox.layers.stack import FULL
from pytest_k3s_sandbox.report.records import Stage

if TYPE_CHECKING:
    from pytest_k3s_sandbox.lab.nodes import NodeTrials
    from pytest_k3s_sandbox.pytestplugin.recording import Claim

pytestmark = [
    pytest.mark.exp05,
    pytest.mark.k3s_requires("root", "gvisor", "fuse", "ptrace"),
    pytest.mark.timeout(180),
]

REASON = "cni plugin not initialized"


def test_without_cni(trials: NodeTrials, claim: Claim) -> None:
    """The node registers, and says why it is not Ready for as long as it is watched; the kubelet lives."""
    with (
        claim.together() as each,
        each.of("reason", "The reason is of kind cni", limit="cni") as reason,
        each.of(
            "not-ready", f"Without a CNI plugin the node registers and stays NotReady: '{REASON}'"
        ) as not_ready,
    ):
        seen = trials.run([name for name in FULL if name != "fake_cni"])
        stays = (seen.reached, seen.exit_code) == (Stage.REGISTERED, None)
        not_ready.judge(stays and seen.speaks_of(REASON), f"{seen.reached}: {seen.said}")
        kind = "none" if seen.error is None else seen.error.kind
        reason.judge(kind == "cni", kind)


def test_with_fake_cni(trials: NodeTrials, claim: Claim) -> None:
    """With the fake plugin and nothing else changed, the node is Ready and runs a pod."""
    text = "With the fake CNI plugin the node is Ready, a pod runs, and /stats/summary is served"
    with claim.of("ready", text) as ready:
        seen = trials.run(FULL)
        ready.judge(
            Milestone.SUMMARY in seen.milestones and seen.error is None, f"{seen.reached}: {seen.said}"
        )
