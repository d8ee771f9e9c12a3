# ruff: noqa: T201 - it prints what docs/services.md states
"""The services layer beside a real API server; pods are network namespaces with routes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from kubernetes.client import DiscoveryV1Api

from pytest_k3s_sandbox.cluster.cluster import Cluster
from pytest_k3s_sandbox.cluster.components import PKI_DIR, ClusterSettings
from pytest_k3s_sandbox.cluster.embedded import Embedded
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.layers.services import rules
from pytest_k3s_sandbox.layers.services.layer import STATUS, Services
from pytest_k3s_sandbox.node.session import open_control_plane
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.node.start import start_sandbox
from pytest_k3s_sandbox.report.records import RunWriter
from pytest_k3s_sandbox.toolchain import Toolchain
from support.routed import VIP, Pods
from support.stub_api import endpoint_slice, service
from support.waiting import until

pytestmark = [pytest.mark.k3s_requires("root"), pytest.mark.timeout(200)]
TLS = """
import socket, ssl, sys
context = ssl.create_default_context(cafile="/var/lib/k3s-sandbox/pki/ca.crt")
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as plain:
    with context.wrap_socket(plain, server_hostname=sys.argv[1]) as peer:
        print("CN", dict(each[0] for each in peer.getpeercert()["subject"])["commonName"])
"""
"""Connects with TLS, checks the server's certificate, and prints its name."""


class Up(NamedTuple):
    """What is up."""

    pods: Pods
    layer: Services
    cluster: Cluster

    @property
    def slices(self) -> DiscoveryV1Api:
        """The API of slices."""
        return DiscoveryV1Api(self.cluster.client)

    def lead_to(self, *addresses: str) -> None:
        """Give the service these endpoints."""
        self.slices.replace_namespaced_endpoint_slice("web-abcde", "default", endpoint_slice(*addresses))

    def status(self) -> dict[str, Any]:
        """Return what the process says of itself."""
        found: dict[str, Any] = json.loads(self.pods.sandbox.files.text(STATUS))
        return found

    def seen(self, count: int = 40, client: str = "a") -> set[str]:
        """Return who answers at the service's address, or which errors there are."""
        return {answer.split()[0] for answer in self.pods.ask(client, VIP, 80, "tcp", count)}


@contextlib.contextmanager
def timed(layer: Services) -> Iterator[Services]:
    """Bring a layer up, and print how long it took."""
    began = time.monotonic()
    with layer:
        print(f"\n{layer._sandbox.kind}: the layer is up after {time.monotonic() - began:.2f} s")
        yield layer


def used(up: Up) -> float:
    """Return the processor time of the process and of the programs that it has run."""
    (found,) = [each for each in up.pods.sandbox.usage() if each.name == "services"]
    return found.cpu_seconds + found.waited_seconds


@pytest.fixture(scope="module", params=["gvisor", "host"])
def up(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    if os.geteuid() != 0:
        pytest.skip("sandboxes need root")
    toolchain, spec = Toolchain(), NodeSpec(request.param)
    with (
        RunWriter(tmp_path_factory.mktemp("run") / "run") as writer,
        start_sandbox(spec, toolchain) as sandbox,
        # The layer comes up first, and waits for the API server.
        timed(Services(sandbox, kubeconfig=f"{PKI_DIR}/admin.kubeconfig", node="here")) as layer,
    ):
        assert not layer.check().ok
        with (
            open_control_plane(sandbox, spec, toolchain, writer) as runner,
            Pods(sandbox, "10.42.0.1") as pods,
        ):
            assert isinstance(runner.distribution, Embedded)
            settings = ClusterSettings(node=spec.node, address=sandbox.address)
            runner.distribution.wait_control_plane(sandbox, settings, Deadline.after(90))
            for name, address in (("a", "10.42.0.5"), ("b", "10.42.0.6"), ("c", "10.42.0.7")):
                pods.add(name, address)
                pods.serve(name)
            made = Up(pods, layer, runner.cluster)
            made.cluster.core.create_namespaced_service("default", service())
            made.slices.create_namespaced_endpoint_slice("default", endpoint_slice())
            yield made


def test_the_api_servers_own_service_is_reached_from_pods_and_from_the_node(up: Up) -> None:
    until(lambda: up.layer.check().ok, 30)
    until(lambda: up.status()["ports"] >= 1, 30)  # its endpoints come last
    for client in ("a", "node"):
        argv = up.pods.argv(client, TLS, "10.43.0.1", 443)
        assert up.pods.sandbox.run(argv).stdout == "CN kube-apiserver\n"


def test_a_service_follows_its_endpoints(up: Up) -> None:
    until(lambda: up.layer.check().ok, 30)
    up.lead_to()
    until(lambda: up.seen(3) == {"ConnectionRefusedError"})
    up.lead_to("10.42.0.6")
    until(lambda: up.seen(3) == {"b"})
    up.lead_to("10.42.0.6", "10.42.0.7")
    until(lambda: up.seen() == {"b", "c"})
    up.lead_to("10.42.0.7")
    until(lambda: up.seen(3) == {"c"})


def test_a_change_arrives_soon(up: Up) -> None:
    until(lambda: up.layer.check().ok, 30)
    up.lead_to("10.42.0.7")
    until(lambda: up.seen(3) == {"c"})
    waited = []
    before, spent = up.status()["writes"], used(up)
    for number in range(10):
        address, name = (("10.42.0.6", "b"), ("10.42.0.7", "c"))[number % 2]
        began = time.monotonic()
        up.lead_to(address)
        until(lambda number=number: up.status()["writes"] > before + number)  # type: ignore[misc]  # it is bound
        waited.append(time.monotonic() - began)
        assert up.seen(3) == {name}
        time.sleep(0.3)
    print(
        f"{up.pods.sandbox.kind}: from a change to its table {min(waited):.2f} to {max(waited):.2f} s, "
        f"with {(used(up) - spent) / 10:.3f} s of processor time each"
    )
    assert min(waited) < 1


def test_a_process_that_was_killed_is_restored_and_takes_over(up: Up) -> None:
    until(lambda: up.layer.check().ok, 30)
    up.lead_to("10.42.0.7")
    until(lambda: up.seen(3) == {"c"})
    process = up.layer._process
    assert process is not None
    process.signal(signal.SIGKILL)
    until(up.layer.fault)
    assert "SIGKILL" in (up.layer.fault() or "")
    assert up.seen(3) == {"c"}  # the rules stay
    up.layer.restore()
    until(lambda: up.layer.check().ok, 30)
    print(f"{up.pods.sandbox.kind}: {used(up):.2f} s of processor time for the start and the first table")
    up.lead_to("10.42.0.6")
    until(lambda: up.seen(3) == {"b"})


def test_it_costs_nothing_while_nothing_changes(up: Up) -> None:
    until(lambda: up.layer.check().ok, 30)
    time.sleep(1)
    before, began = used(up), time.monotonic()
    time.sleep(5)
    spent = used(up) - before
    print(
        f"{up.pods.sandbox.kind}: {spent:.2f} s of processor time in "
        f"{time.monotonic() - began:.1f} s without changes"
    )
    assert spent < 0.1


def test_it_leaves_nothing(up: Up) -> None:
    up.layer.__exit__(None, None, None)
    try:
        assert rules.PREFIX not in up.pods.saved()
        assert "10.43.0.1" not in up.pods.script("ip -4 address show dev lo")
        assert not up.layer.check().ok
        assert up.layer.fault() is None
    finally:
        up.layer.__enter__()
