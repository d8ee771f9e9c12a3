"""Experiment 07, on a node: does the kubelet's own cAdvisor accept the filesystem, alone and intercepted?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.lab.churn import Churn
from pytest_k3s_sandbox.lab.places import need_9p
from pytest_k3s_sandbox.pytestplugin.stash import SETTINGS
from pytest_k3s_sandbox.report.log_classifier import LineKind, classify
from pytest_k3s_sandbox.report.records import Event, Stage

if TYPE_CHECKING:
    from pytest_k3s_sandbox.cluster.cluster import Cluster, Node
    from pytest_k3s_sandbox.cluster.sampler import Sampler
    from pytest_k3s_sandbox.lab.nodes import NodeTrials
    from pytest_k3s_sandbox.node.session import NodeSession
    from pytest_k3s_sandbox.pytestplugin.recording import Claim

pytestmark = [pytest.mark.exp07, pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor")]

FATES = {
    "workarounds,fuse_cgroupfs,fake_cni": (Stage.READY, "/sys/fs/cgroup"),
    "workarounds,fuse_cgroupfs,ptrace_interceptor:exp06,fake_cni": (Stage.READY, "/sys/fs/cgroup"),
    "workarounds,fuse_cgroupfs,ptrace_interceptor,fake_cni": (Stage.POD, None),
}
"""How far a node of Kubernetes 1.34 gets with the filesystem alone, with experiment 06, and with everything.

Without the magic runc refuses it, so that a pod does not run; cAdvisor accepts the filesystem.
"""

ALONE = next(iter(FATES))

HOLD = 600.0
PODS = 10
EVERY, STAY = 8.0, 80.0
"""A pod is made every 8 s while there are less than ten; each stays for 80 s once it is Ready."""

STARTED = 60.0
"""Seconds after which a pod that is not Ready has failed, on a machine that is not noisy."""

END = 120.0
"""Seconds that pods have to go at the end."""


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "layers", [pytest.param(words, marks=() if words == ALONE else pytest.mark.nightly) for words in FATES]
)
def test_the_kubelets_cadvisor(trials: NodeTrials, claim: Claim, layers: str) -> None:
    """CAdvisor in the kubelet reads it: the node is Ready and no error of cAdvisor's is logged."""
    stage, words = FATES[layers]
    name = layers.replace(",", "+")
    then = f", and then runc says '{words}'" if words else ""
    text = f"With {name} the node gets as far as '{stage}'{then}"
    with (
        claim.together() as each,
        each.of(f"cadvisor-{name}", "The kubelet's cAdvisor logs no error", limit=0) as cadvisor,
        each.of(f"fate-{name}", text) as fate,
    ):
        before = set(_kubelet_logs(trials))
        seen = trials.run(layers.split(","))
        fate.judge(
            seen.reached is stage and (words is None or seen.speaks_of(words)), f"{seen.reached}: {seen.said}"
        )
        (log,) = set(_kubelet_logs(trials)) - before
        found = [classify(line) for line in log.read_text(errors="replace").splitlines()]
        errors = [error.message for error in found if error is not None and error.kind is LineKind.CADVISOR]
        cadvisor.judge(not errors, f"{len(errors)}{_first(errors)}")


def _kubelet_logs(trials: NodeTrials) -> list[Path]:
    return sorted((trials.writer.path.parent / "logs").glob("*/kubelet.log"))


@pytest.mark.nightly
@pytest.mark.timeout(1500)
def test_pods_come_and_go_for_ten_minutes(
    request: pytest.FixtureRequest,
    k3s_session: NodeSession,
    k3s: Cluster,
    k3s_node: Node,
    k3s_readiness: Sampler,
    k3s_namespace: str,
    k3s_claim: Claim,
) -> None:
    """In ten minutes with ten pods coming and going at a time, cAdvisor logs no error."""
    assert k3s_node.ready
    need_9p(k3s_session.stack.sandbox)  # on plain Linux the kernel has cgroups of its own
    writer = k3s_session.writer
    churn = Churn(
        k3s.core,
        k3s_namespace,
        writer.now,
        lambda what, name: writer.append(Event(t=writer.now(), kind=f"pod-{what}", what=name)),
        every=EVERY,
        timeout=STARTED * request.config.stash[SETTINGS].timeout_scale,
        stay=STAY,
    )
    log = k3s.processes["kubelet"].log
    before = log.stat().st_size
    begun = writer.now()
    alive: list[int] = []
    with (
        k3s_claim.together() as each,
        each.of("hold-eintr", "No call of the kubelet's is interrupted", limit=0) as eintr,
        each.of("hold-cadvisor", f"cAdvisor errors 0 over {HOLD:g} s", limit=0) as cadvisor,
        each.of("hold-ready", "The node is Ready in every sample", limit="all") as always,
        each.of("hold-gone", "Every deleted pod goes", limit="0 left") as gone,
        each.of("hold-pods", "Every pod starts", limit="all") as pods,
        each.of("hold-many", f"{PODS} pods are there at a time", limit=PODS) as many,
    ):
        many.so_far = lambda: f"{writer.now() - begun:.0f} of {HOLD:g} s, {len(churn.lives)} pods"
        pods.so_far = gone.so_far = always.so_far = cadvisor.so_far = eintr.so_far = many.so_far
        while k3s_readiness.failure is None and writer.now() < begun + HOLD:
            churn.step(create=churn.alive < PODS)
            alive.append(churn.alive)
            time.sleep(0.5)
        while not churn.idle and writer.now() < begun + HOLD + END:
            churn.step(create=False)
            time.sleep(0.5)
        assert k3s_readiness.failure is None
        failed = [f"{life.name}: {life.failure}" for life in churn.lives if life.failure is not None]
        many.judge(
            statistics.median(alive) == PODS, f"median {statistics.median(alive):g}, at most {max(alive)}"
        )
        pods.judge(
            not failed,
            f"{len(churn.lives) - len(failed)} of {len(churn.lives)} started, {len(failed)} failed"
            + "".join(f"; {text}" for text in failed[:3]),
        )
        gone.judge(churn.idle, f"{churn.alive} left")
        ready = [sample.node_ready for sample in k3s_readiness.samples if sample.t >= begun]
        always.judge(bool(ready) and all(ready), f"{sum(map(bool, ready))} of {len(ready)}")
        said = log.read_bytes()[before:].decode(errors="replace").splitlines()
        found = [one for one in map(classify, said) if one is not None]
        of_cadvisor = [one for one in found if one.kind is LineKind.CADVISOR]
        errors = [one.message for one in of_cadvisor if one.severity != "warning"]
        warnings = [one.message for one in of_cadvisor if one.severity == "warning"]
        young = sum(one.kind is LineKind.YOUNG for one in found)
        cadvisor.judge(
            not errors,
            f"{len(errors)}{_first(errors)}; "
            f"of its warnings {len(warnings)} tell of a loss{_first(warnings)}; "
            f"{young} lines about containers too young for statistics",
        )
        interrupted = [one.message for one in found if one.errno == "EINTR"]
        eintr.judge(not interrupted, f"{len(interrupted)}{_first(interrupted)}")


def _first(messages: Sequence[str]) -> str:
    return f", the first: {messages[0]}" if messages else ""
