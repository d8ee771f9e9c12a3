"""Experiment 07, on a node: does the kubelet's own cAdvisor accept the filesystem, alone and intercepted?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.cluster.churn import Churn
from pytest_k3s_sandbox.keys import SETTINGS
from pytest_k3s_sandbox.report.findings import Stage
from pytest_k3s_sandbox.report.kinds import Kind, classify
from pytest_k3s_sandbox.report.records import Event

if TYPE_CHECKING:
    from pytest_k3s_sandbox.bench.trials import NodeTrials
    from pytest_k3s_sandbox.bringup import Up
    from pytest_k3s_sandbox.cluster.cluster import Cluster, Node
    from pytest_k3s_sandbox.cluster.sampler import Sampler
    from pytest_k3s_sandbox.runs import Claim

pytestmark = [pytest.mark.exp07, pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor")]

FATES = {
    "workarounds,fuse_cgroupfs,fake_cni": (Stage.READY, "/sys/fs/cgroup"),
    "workarounds,fuse_cgroupfs,ptrace_interceptor:exp06,fake_cni": (Stage.READY, "/sys/fs/cgroup"),
    "workarounds,fuse_cgroupfs,ptrace_interceptor,fake_cni": (Stage.POD, None),
}
"""How far a node of Kubernetes 1.34 gets with the filesystem alone, with experiment 06, and with everything.

What stops it without the magic is runc, which is why a pod does not run; cAdvisor accepts the filesystem.
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
    before = set(_kubelet_logs(trials))
    seen = trials.run(layers.split(","))
    said = "nothing stopped it" if seen.error is None else seen.error.text
    name = layers.replace(",", "+")
    claim(
        f"fate-{name}",
        f"With {name} the node gets as far as '{stage}'"
        + (f", and then runc says '{words}'" if words else ""),
        seen.reached is stage and (words is None or words in said),
        f"{seen.reached}: {said}",
    )
    (log,) = set(_kubelet_logs(trials)) - before
    found = [classify(line) for line in log.read_text(errors="replace").splitlines()]
    errors = [error.message for error in found if error is not None and error.kind is Kind.CADVISOR]
    claim(
        f"cadvisor-{name}",
        "The kubelet's cAdvisor logs no error",
        not errors,
        f"{len(errors)}{_first(errors)}",
        0,
    )


def _kubelet_logs(trials: NodeTrials) -> list[Path]:
    return sorted((trials.writer.path.parent / "logs").glob("*/kubelet.log"))


@pytest.mark.nightly
@pytest.mark.timeout(1500)
def test_pods_come_and_go_for_ten_minutes(
    request: pytest.FixtureRequest,
    k3s_up: Up,
    k3s: Cluster,
    k3s_node: Node,
    k3s_readiness: Sampler,
    k3s_namespace: str,
    k3s_claim: Claim,
) -> None:
    """In ten minutes with ten pods coming and going at a time, cAdvisor logs no error."""
    assert k3s_node.ready
    if k3s_up.stack.sandbox.kind != "gvisor":
        pytest.skip("not applicable: on plain Linux the kernel has cgroups of its own")
    writer = k3s_up.writer
    churn = Churn(
        k3s.core,
        k3s_namespace,
        writer.now,
        lambda what, name: writer.append(Event(t=writer.now(), kind=f"pod-{what}", what=name)),
        every=EVERY,
        patience=STARTED * request.config.stash[SETTINGS].patience,
        stay=STAY,
    )
    log = k3s.processes["kubelet"].log
    before = log.stat().st_size
    begun = writer.now()
    alive = []
    while k3s_readiness.failure is None and writer.now() < begun + HOLD:
        churn.step(create=churn.alive < PODS)
        alive.append(churn.alive)
        time.sleep(0.5)
    while not churn.idle and writer.now() < begun + HOLD + END:
        churn.step(create=False)
        time.sleep(0.5)
    failed = [f"{life.name}: {life.failure}" for life in churn.lives if life.failure is not None]
    k3s_claim(
        "hold-many",
        f"{PODS} pods are there at a time",
        statistics.median(alive) == PODS,
        f"median {statistics.median(alive):g}, at most {max(alive)}",
        PODS,
    )
    k3s_claim(
        "hold-pods",
        "Every pod starts",
        not failed,
        f"{len(churn.lives) - len(failed)} of {len(churn.lives)} started, {len(failed)} failed"
        + "".join(f"; {text}" for text in failed[:3]),
        "all",
    )
    k3s_claim("hold-gone", "Every deleted pod goes", churn.idle, f"{churn.alive} left", "0 left")
    ready = [sample.node_ready for sample in k3s_readiness.samples if sample.t >= begun]
    k3s_claim(
        "hold-ready",
        "The node is Ready in every sample",
        bool(ready) and all(ready),
        f"{sum(map(bool, ready))} of {len(ready)}",
        "all",
    )
    said = log.read_bytes()[before:].decode(errors="replace").splitlines()
    found = [one for one in map(classify, said) if one is not None]
    errors = [one.message for one in found if one.kind is Kind.CADVISOR and one.severity != "warning"]
    warnings = [one.message for one in found if one.kind is Kind.CADVISOR and one.severity == "warning"]
    k3s_claim(
        "hold-cadvisor",
        f"cAdvisor errors 0 over {HOLD:g} s",
        not errors,
        f"{len(errors)}{_first(errors)}; of its warnings {len(warnings)} tell of a loss{_first(warnings)}; "
        f"{sum(one.kind is Kind.YOUNG for one in found)} lines about containers too young for statistics",
        0,
    )
    interrupted = [one.message for one in found if one.errno == "EINTR"]
    k3s_claim(
        "hold-eintr",
        "No call of the kubelet's is interrupted",
        not interrupted,
        f"{len(interrupted)}{_first(interrupted)}",
        0,
    )


def _first(messages: Sequence[str]) -> str:
    return f", the first: {messages[0]}" if messages else ""
