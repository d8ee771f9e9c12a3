"""Experiment 01: the control plane alone, and a node without any help.

The research began with the first, found that it works, and asked why a worker node beside it does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.report.findings import Stage

if TYPE_CHECKING:
    from pytest_k3s_sandbox.bench.trials import NodeTrials
    from pytest_k3s_sandbox.runs import Claim

pytestmark = [pytest.mark.exp01, pytest.mark.k3s_requires("root", "gvisor"), pytest.mark.timeout(180)]

NAMESPACE = "default"
NAMESPACES = {"default", "kube-node-lease", "kube-public", "kube-system"}
REPLICAS = 2
LABELS = {"app": "waiting"}
DEPLOYMENT = {
    "metadata": {"name": "waiting"},
    "spec": {
        "replicas": REPLICAS,
        "selector": {"matchLabels": LABELS},
        "template": {
            "metadata": {"labels": LABELS},
            "spec": {"containers": [{"name": "waiting", "image": "busybox:1.36"}]},
        },
    },
}


def test_control_plane_alone(trials: NodeTrials, claim: Claim) -> None:
    """API server, controllers and scheduler work on a 9p root without a node, a layer or a CNI plugin."""
    from kubernetes.client import AppsV1Api  # noqa: PLC0415 - collecting tests imports little

    cluster = trials.cluster
    found = {each.metadata.name for each in cluster.core.list_namespace().items}
    claim("namespaces", "The API server has its namespaces", found >= NAMESPACES, ", ".join(sorted(found)))
    nodes = len(cluster.core.list_node().items)
    claim("no-node", "There is no node", nodes == 0, nodes, 0)
    plugins = list(cluster.sandbox.host_path("/var/lib/k3s-sandbox/cni/net.d").iterdir())
    claim("no-cni", "There is no CNI configuration", not plugins, len(plugins), 0)
    apps = AppsV1Api(cluster.client)
    reasons: list[str] = []
    apps.create_namespaced_deployment(NAMESPACE, DEPLOYMENT)

    def undecided() -> bool:
        conditions: list[Any] = [one for pod in pods() for one in pod.status.conditions or []]
        reasons[:] = [one.message for one in conditions if one.reason == "Unschedulable"]
        return len(reasons) == REPLICAS

    def pods() -> list[Any]:
        found: list[Any] = cluster.core.list_namespaced_pod(NAMESPACE).items
        return found

    try:
        cluster.wait(undecided, "the scheduler's word about two pods", Deadline.after(30))
    finally:  # they would run on the next trial's node
        apps.delete_namespaced_deployment("waiting", NAMESPACE, propagation_policy="Foreground")
        cluster.wait(lambda: not pods(), "the deployment's pods to be gone", Deadline.after(30))
    claim(
        "controllers",
        "A deployment's pods are made, and the scheduler says that there is no node for them",
        all("no nodes available" in reason for reason in reasons),
        reasons[0],
    )


def test_node_without_layers(trials: NodeTrials, claim: Claim) -> None:
    """The kubelet ends at once: there are no cgroups."""
    seen = trials.run(())
    assert seen.error is not None
    claim(
        "first-wall",
        "Without layers the kubelet ends: it finds no cgroup mounts",
        (seen.reached, seen.exit_code) == (Stage.STARTED, 1) and "cgroup mounts" in seen.error.text,
        f"{seen.reached}, exit code {seen.exit_code}: {seen.error.text}",
    )
