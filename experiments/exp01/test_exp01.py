"""Experiment 01: the control plane alone, and a node without any help.

The research began with the first, found that it works, and asked why a worker node beside it does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.report.records import Stage

if TYPE_CHECKING:
    from pytest_k3s_sandbox.lab.nodes import NodeTrials
    from pytest_k3s_sandbox.pytestplugin.recording import Claim

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
    from kubernetes.client import AppsV1Api

    cluster = trials.cluster
    apps = AppsV1Api(cluster.client)
    reasons: list[str] = []

    def undecided() -> bool:
        conditions: list[Any] = [one for pod in pods() for one in pod.status.conditions or []]
        reasons[:] = [one.message for one in conditions if one.reason == "Unschedulable"]
        return len(reasons) == REPLICAS

    def pods() -> list[Any]:
        found: list[Any] = cluster.core.list_namespaced_pod(NAMESPACE).items
        return found

    with (
        claim.together() as each,
        each.of(
            "controllers",
            "A deployment's pods are made, and the scheduler says that there is no node for them",
        ) as controllers,
        each.of("no-cni", "There is no CNI configuration", limit=0) as no_cni,
        each.of("no-node", "There is no node", limit=0) as no_node,
        each.of("namespaces", "The API server has its namespaces") as namespaces,
    ):
        found = {each.metadata.name for each in cluster.core.list_namespace().items}
        namespaces.judge(found >= NAMESPACES, ", ".join(sorted(found)))
        nodes = len(cluster.core.list_node().items)
        no_node.judge(nodes == 0, nodes)
        plugins = cluster.sandbox.files.names("/var/lib/k3s-sandbox/cni/net.d")
        no_cni.judge(not plugins, len(plugins))
        controllers.so_far = lambda: "; ".join(reasons) or "no word of the scheduler's"
        apps.create_namespaced_deployment(NAMESPACE, DEPLOYMENT)
        try:
            cluster.wait(undecided, "the scheduler's word about two pods", Deadline.after(30))
            controllers.judge(all("no nodes available" in reason for reason in reasons), reasons[0])
        finally:  # they would run on the next trial's node
            apps.delete_namespaced_deployment("waiting", NAMESPACE, propagation_policy="Foreground")
            cluster.wait(lambda: not pods(), "the deployment's pods to be gone", Deadline.after(30))


def test_node_without_layers(trials: NodeTrials, claim: Claim) -> None:
    """The kubelet ends at once: there are no cgroups."""
    with claim.of("first-wall", "Without layers the kubelet ends: it finds no cgroup mounts") as wall:
        seen = trials.run(())
        wall.judge(
            (seen.reached, seen.exit_code) == (Stage.STARTED, 1) and seen.speaks_of("cgroup mounts"),
            f"{seen.reached}, exit code {seen.exit_code}: {seen.said}",
        )
