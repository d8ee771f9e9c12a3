"""Experiment 07, on a node: does the kubelet's own cAdvisor accept the filesystem, alone and intercepted?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.bench.nodes import follow
from pytest_k3s_sandbox.cluster.churn import Churn
from pytest_k3s_sandbox.keys import SETTINGS
from pytest_k3s_sandbox.report.findings import Stage
from pytest_k3s_sandbox.report.records import Event

if TYPE_CHECKING:
    from pytest_k3s_sandbox.bringup import Up
    from pytest_k3s_sandbox.cluster.cluster import Cluster, Node
    from pytest_k3s_sandbox.cluster.sampler import Sampler
    from pytest_k3s_sandbox.fixtures import Claim

pytestmark = [pytest.mark.exp07, pytest.mark.requires("root", "fuse", "ptrace", "gvisor")]

FUSE = "workarounds:kmsg+oci+private+sysctl,fuse_cgroupfs,fake_cni"
FATES = {
    FUSE: Stage.READY,
    "workarounds:kmsg+oci+private+tree,fuse_cgroupfs,ptrace_interceptor:exp06,fake_cni": Stage.READY,
    "workarounds,fuse_cgroupfs,ptrace_interceptor,fake_cni": Stage.POD,
}
"""How far the node gets with the filesystem alone, with experiment 06, and with everything."""

HOLD = 600.0
PODS = 10
EVERY = 6.0


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "layers",
    [pytest.param(words, marks=pytest.mark.nightly) for words in FATES],
    indirect=True,
)
def test_the_kubelets_cadvisor(request: pytest.FixtureRequest, k3s_up: Up, k3s_claim: Claim) -> None:
    """CAdvisor in the kubelet reads it: the node is Ready, statistics are served, no error is logged."""
    if k3s_up.stack.sandbox.kind != "gvisor":
        pytest.skip("not applicable: on plain Linux the kernel has cgroups of its own")
    settings = request.config.stash[SETTINGS]
    fate = follow(k3s_up, min(settings.duration, 30.0), settings.patience)
    stage = FATES[request.node.callspec.params["layers"]]
    k3s_claim("fate", f"The node gets as far as '{stage}'", fate.seen.reached is stage, fate.sentence())
    summary = k3s_up.cluster.kubectl(
        "get", "--raw", f"/api/v1/nodes/{k3s_up.cluster.settings.node}/proxy/stats/summary", check=False
    )
    k3s_claim(
        "summary",
        "/stats/summary is served, with the node's processor time",
        '"usageCoreNanoSeconds"' in summary.stdout,
        summary.stderr.strip()[-200:] or f"{len(summary.stdout)} bytes",
    )
    errors = k3s_up.readiness.errors("cadvisor")
    first = f", the first: {errors[0].text}" if errors else ""
    k3s_claim("no-cadvisor-errors", "cAdvisor logs no error", not errors, f"{len(errors)}{first}", 0)


@pytest.mark.nightly
@pytest.mark.timeout(1500)
def test_pods_come_and_go_for_ten_minutes(
    k3s_up: Up, k3s: Cluster, k3s_node: Node, readiness: Sampler, k3s_namespace: str, k3s_claim: Claim
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
    )
    begun = writer.now()
    while readiness.failure is None and writer.now() < begun + HOLD:
        churn.step(create=sum(life.gone is None for life in churn.lives) < PODS)
        time.sleep(0.5)
    while not churn.idle and writer.now() < begun + HOLD + 120:
        churn.step(create=False)
        time.sleep(0.5)
    failed = [life for life in churn.lives if life.failure is not None]
    k3s_claim(
        "hold-pods", "Every pod starts", not failed, f"{len(churn.lives) - len(failed)} of {len(churn.lives)}"
    )
    ready = [sample.node_ready for sample in readiness.samples if sample.t >= begun]
    k3s_claim(
        "hold-ready",
        "The node is Ready in every sample",
        all(ready),
        f"{sum(map(bool, ready))} of {len(ready)}",
    )
    errors = readiness.errors("cadvisor")
    first = f", the first: {errors[0].text}" if errors else ""
    k3s_claim("hold-cadvisor", "cAdvisor logs no error", not errors, f"{len(errors)}{first}", 0)
