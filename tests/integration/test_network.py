"""Pods with a network: probes over HTTP, and ways from pod to pod, to the node, to services and back."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.cluster.namespace import Namespace
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.node.session import NodeSession, open_session
from pytest_k3s_sandbox.node.spec import NodeSpec

if TYPE_CHECKING:
    from pytest_k3s_sandbox.toolchain import Toolchain

pytestmark = [pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor"), pytest.mark.timeout(200)]

LAYERS = {
    "gvisor": ("workarounds", "fuse_cgroupfs", "ptrace_interceptor", "pod_network", "services"),
    "host": ("workarounds", "pod_network", "services"),
}
SECONDS = 90
"""For pods to come up, on a machine that does much else."""

WEB = """\
# Two servers with probes over HTTP, and a pod that asks them.
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: web
          image: busybox:1.36
          command: [sh, -c, "mkdir /www; hostname > /www/index.html; exec httpd -f -p 8080 -h /www"]
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
          livenessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1, initialDelaySeconds: 5}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: asker}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: it, image: "busybox:1.36", command: [sleep, "1000"]}]
"""
GET = ("timeout", "10", "busybox", "wget", "-q", "-O", "-")


@pytest.fixture(scope="module", params=LAYERS)
def node(request: pytest.FixtureRequest, k3s_toolchain: Toolchain) -> Iterator[NodeSession]:
    """A node whose pods have a network."""
    kind = request.param
    with open_session(
        NodeSpec(kind, layers=LAYERS[kind], supervised=True), toolchain=k3s_toolchain, experiment="network"
    ) as session:
        yield session


@pytest.fixture(scope="module")
def pods(node: NodeSession) -> Iterator[Namespace]:
    """The servers and the asker, Ready."""
    with node.namespace() as namespace:
        namespace.apply(WEB, timeout=SECONDS)
        namespace.wait("deployment/web", "Available", timeout=SECONDS)
        namespace.wait("pod/asker", "Ready", timeout=SECONDS)
        yield namespace


def addresses(node: NodeSession, namespace: str, selector: str = "app=web") -> dict[str, str]:
    """Return the addresses of pods by their names."""
    found = node.cluster.core.list_namespaced_pod(namespace, label_selector=selector).items
    return {pod.metadata.name: pod.status.pod_ip for pod in found}


def test_a_deployment_with_probes_over_http_stays_available(node: NodeSession, pods: Namespace) -> None:
    before = unhealthy(pods)  # a first probe may come before the server
    deadline = Deadline.after(8)
    while not deadline.expired:
        for pod in node.cluster.core.list_namespaced_pod(pods, label_selector="app=web").items:
            assert [(one.restart_count, one.ready) for one in pod.status.container_statuses] == [(0, True)]
        time.sleep(0.2)
    assert unhealthy(pods) == before


def unhealthy(namespace: Namespace) -> int:
    """Return how many probes have failed so far."""
    return sum(event.count for event in namespace.events() if event.reason == "Unhealthy")


def test_each_pod_has_an_address_of_its_own(node: NodeSession, pods: Namespace) -> None:
    found = {**addresses(node, pods), **addresses(node, pods, "app!=web")}
    assert len(found) == len(set(found.values())) == 3
    assert all(address.startswith("10.42.0.") for address in found.values())


def test_a_pod_reaches_another_one_itself_and_the_node(node: NodeSession, pods: Namespace) -> None:
    for name, address in addresses(node, pods).items():
        assert pods.exec("pod/asker", *GET, f"http://{address}:8080/").stdout == f"{name}\n"
        assert pods.exec(f"pod/{name}", *GET, f"http://{address}:8080/").stdout == f"{name}\n"
    for address in ("10.42.0.1", node.stack.sandbox.address):
        pods.exec("pod/asker", "timeout", "10", "busybox", "nc", "-w", "5", address, "10250", stdin="")


def test_the_node_reaches_a_pod(node: NodeSession, pods: Namespace) -> None:
    for name, address in addresses(node, pods).items():
        assert node.stack.sandbox.run([*GET, f"http://{address}:8080/"]).stdout == f"{name}\n"


def test_a_pods_address_is_given_back_with_its_interface(node: NodeSession, pods: Namespace) -> None:
    links = ["sh", "-c", "ip -o link | cut -d: -f2"]
    before = set(node.stack.sandbox.run(links).stdout.split())
    pods.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "short"}, "spec": SHORT})
    pods.wait("pod/short", "Ready", timeout=SECONDS)
    assert len(set(node.stack.sandbox.run(links).stdout.split()) - before) == 1
    pods.delete("pod/short")
    deadline = Deadline.after(20)  # the object goes before the pod's network
    while (after := set(node.stack.sandbox.run(links).stdout.split())) != before and not deadline.expired:
        time.sleep(0.2)
    assert after == before


SHORT = {
    "terminationGracePeriodSeconds": 0,
    "containers": [{"name": "it", "image": "busybox:1.36", "command": ["sleep", "1000"]}],
}


def test_the_layers_say_that_they_work(node: NodeSession, pods: Namespace) -> None:
    del pods
    found = node.stack.check()
    assert all(health.ok for health in found.values()), found
    assert found["pod_network"].details["address"].startswith("10.42.0.")


def test_a_service_is_reached_by_its_name_from_a_pod(node: NodeSession, pods: Namespace) -> None:
    names = set(addresses(node, pods))
    seen = {
        pods.exec("pod/asker", *GET, f"http://{name}/").stdout.strip()
        for name in ("web", f"web.{pods}", f"web.{pods}.svc.cluster.local") * 6
    }
    assert seen == names


def test_a_service_is_reached_by_its_address_from_the_node(node: NodeSession, pods: Namespace) -> None:
    service = node.cluster.core.read_namespaced_service("web", pods)
    seen = node.stack.sandbox.run([*GET, f"http://{service.spec.cluster_ip}/"]).stdout.strip()
    assert seen in addresses(node, pods)


def test_a_node_port_is_reached_from_the_machine(node: NodeSession, pods: Namespace) -> None:
    service = node.cluster.core.read_namespaced_service("web", pods)
    url = f"http://{node.stack.sandbox.address}:{service.spec.ports[0].node_port}/"
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.read().decode().strip() in addresses(node, pods)


def test_the_api_server_is_reached_by_its_name_from_a_pod(pods: Namespace) -> None:
    argv = ("timeout", "10", "busybox", "nc", "-w", "5", "kubernetes.default.svc", "443")
    pods.exec("pod/asker", *argv, stdin="")


def test_a_service_without_a_pod_refuses_at_once(node: NodeSession, pods: Namespace) -> None:
    pods.apply(EMPTY)
    address = node.cluster.core.read_namespaced_service("empty", pods).spec.cluster_ip
    began = time.monotonic()
    refused = pods.exec("pod/asker", *GET, f"http://{address}/", check=False)
    assert "refused" in refused.stderr
    assert time.monotonic() - began < 5


def test_an_unknown_name_is_refused_at_once(pods: Namespace) -> None:
    began = time.monotonic()
    unknown = pods.exec("pod/asker", "timeout", "20", "busybox", "nslookup", "nothing.invalid", check=False)
    assert "NXDOMAIN" in unknown.stdout + unknown.stderr
    assert time.monotonic() - began < 5


EMPTY = """\
apiVersion: v1
kind: Service
metadata: {name: empty}
spec: {selector: {app: nothing}, ports: [{port: 80}]}
"""
