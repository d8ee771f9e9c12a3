# ruff: noqa: T201 - it prints what docs/services.md states
"""Service rules in a sandbox's kernel: pods are network namespaces with routes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from pytest_k3s_sandbox.layers.services import rules
from pytest_k3s_sandbox.layers.services.entries import Facts
from pytest_k3s_sandbox.layers.services.objects import Endpoint, Service, ServicePort, Slice
from support.installed import maker
from support.routed import CLIENT, VIP, Pods

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes need root"),
    pytest.mark.timeout(120),
]
GATEWAY = "10.42.0.1"
SERVERS = {"b": "10.42.0.6", "c": "10.42.0.7", "d": "10.42.0.8"}


@pytest.fixture(scope="module", params=["gvisor", "host"])
def pods(request: pytest.FixtureRequest) -> Iterator[Pods]:
    with maker(request.param)() as sandbox, Pods(sandbox, GATEWAY) as made:
        made.add("a", "10.42.0.5")
        for name, address in SERVERS.items():
            made.add(name, address)
            made.serve(name)
        made.serve("node")
        yield made


def facts(pods: Pods) -> Facts:
    capacity = rules.GVISOR_BYTES if pods.sandbox.kind == "gvisor" else None
    pod_range = "10.42.0.0/24" if pods.sandbox.kind == "gvisor" else ""
    return Facts("here", pods.sandbox.address, GATEWAY, capacity, pod_range, random=not pod_range)


def service(**other: object) -> list[Service]:
    ports = (ServicePort("t", "TCP", 80, 30080), ServicePort("u", "UDP", 80, 30080))
    made = Service(("default", "web"), VIP, ports)
    return [made._replace(**other)]  # type: ignore[arg-type]  # each test names fields of Service


def endpoints(*addresses: str) -> list[Slice]:
    ports = {("t", "TCP"): 8080, ("u", "UDP"): 8080}
    return [Slice(("default", "web"), ports, tuple(Endpoint(each, "here") for each in addresses))]


def apply(pods: Pods, services: list[Service], slices: list[Slice]) -> rules.Table:
    table = rules.table(services, slices, facts(pods))
    pods.restore(rules.restore_text(table, rules.present_in(pods.saved())))
    return table


@pytest.mark.parametrize("kind", ["tcp", "udp"])
@pytest.mark.parametrize("client", ["a", "node"])
def test_connections_are_shared_and_endpoints_see_the_client(pods: Pods, client: str, kind: str) -> None:
    # Both kernels remember datagrams for a while, so that no other test may use this address.
    apply(pods, service(address="10.43.7.9"), endpoints(*SERVERS.values()))
    seen = pods.ask(client, "10.43.7.9", 80, kind, 300)
    assert sum(seen.values()) == 300
    names = Counter[str]()
    for answer, count in seen.items():
        name, address = answer.split()
        names[name] += count
        if client == "a":
            assert address == "10.42.0.5"
    assert set(names) == set(SERVERS)
    assert min(names.values()) > 60  # of 100 that are expected; the standard deviation is 8


@pytest.mark.parametrize("others", [0, 30])
def test_a_pod_reaches_itself_and_sees_the_gateway(pods: Pods, others: int) -> None:
    more = [f"10.42.0.{number + 100}" for number in range(others)]
    (other,) = service(key=("default", "other"), address="10.43.7.8")
    table = apply(
        pods,
        [*service(), other],
        [*endpoints(SERVERS["b"]), endpoints(*more)[0]._replace(service=other.key)],
    )
    # gVisor's table has more room when many pods share the rules.
    assert any("RETURN" in line for line in table.lines) == (pods.sandbox.kind == "gvisor" and others > 0)
    for kind in ("tcp", "udp"):
        assert set(pods.ask("b", VIP, 80, kind, 5)) == {f"b {GATEWAY}"}
        assert set(pods.ask("a", VIP, 80, kind, 5)) == {"b 10.42.0.5"}
        assert set(pods.ask("a", SERVERS["c"], 8080, kind, 5)) == {"c 10.42.0.5"}


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_node_port_is_open_to_pods_and_to_the_machine(pods: Pods, kind: str) -> None:
    apply(pods, service(), endpoints(SERVERS["c"]))
    node = pods.sandbox.address
    assert set(pods.ask("a", node, 30080, kind, 5)) == {"c 10.42.0.5"}
    assert set(pods.ask("a", GATEWAY, 30080, kind, 5)) == {"c 10.42.0.5"}
    argv = [sys.executable, "-c", CLIENT, node, "30080", kind, "5"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30)
    assert {answer.split()[0] for answer in json.loads(done.stdout.splitlines()[0])} == {"c"}


def test_a_client_keeps_its_endpoint_with_affinity(pods: Pods) -> None:
    apply(pods, service(affinity=True), endpoints(*SERVERS.values()))
    for client in ("a", *SERVERS, "node"):
        first = pods.ask(client, VIP, 80, "tcp", 20)
        assert len({answer.split()[0] for answer in first}) == 1
        assert pods.ask(client, VIP, 80, "tcp", 20) == first


def test_an_external_address_leads_to_the_endpoints(pods: Pods) -> None:
    apply(pods, service(external=("192.0.2.7",)), endpoints(SERVERS["c"]))
    assert set(pods.ask("a", "192.0.2.7", 80, "tcp", 5)) == {"c 10.42.0.5"}


@pytest.mark.parametrize("client", ["a", "node"])
def test_a_service_without_endpoints_refuses_at_once(pods: Pods, client: str) -> None:
    apply(pods, service(external=("192.0.2.7",)), endpoints())
    places = [(VIP, 80), ("192.0.2.7", 80)]
    # In gVisor the node does not reach its own address and a port of a service there.
    if client != "node" or pods.sandbox.kind == "host":
        places.append((pods.sandbox.address, 30080))
    for kind, count in (("tcp", 3), ("udp", 1)):  # Linux limits how often it refuses a datagram
        for address, port in places:
            refused = pods.ask(client, address, port, kind, count, timeout=2)
            assert refused == {"ConnectionRefusedError": count}


def test_an_address_without_rules_refuses_at_once(pods: Pods) -> None:
    apply(pods, [], [])
    for client in ("a", "node"):
        assert pods.ask(client, VIP, 81, "tcp", 3, timeout=2) == {"ConnectionRefusedError": 3}


@pytest.mark.parametrize("client", ["a", "node"])
def test_an_endpoint_at_the_nodes_address_is_reached(pods: Pods, client: str) -> None:
    apply(pods, service(), endpoints(pods.sandbox.address))
    assert {answer.split()[0] for answer in pods.ask(client, VIP, 80, "tcp", 5)} == {"node"}


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_pod_reaches_the_nodes_address(pods: Pods, kind: str) -> None:
    apply(pods, [], [])
    # On Linux the server answers a datagram from the address of the pods' side.
    both = kind == "tcp" or pods.sandbox.kind == "gvisor"
    for address in (pods.sandbox.address, GATEWAY) if both else (GATEWAY,):
        assert {answer.split()[0] for answer in pods.ask("a", address, 8080, kind, 3)} == {"node"}


def test_a_service_is_reached_about_as_quickly_as_a_pod(pods: Pods) -> None:
    apply(pods, [], [])
    direct = [pods.milliseconds("a", SERVERS["b"], 8080)]
    apply(pods, service(), endpoints(*SERVERS.values()))
    led = [pods.milliseconds("a", VIP, 80)]
    table = apply(pods, *full())
    led.append(pods.milliseconds("a", "10.43.9.90", 80))
    direct.append(pods.milliseconds("a", SERVERS["b"], 8080))
    print(
        f"{pods.sandbox.kind}: a connection takes {led[0]:.2f} ms to a service, {direct[0]:.2f} ms to a pod; "
        f"among {len(table.lines)} rules {led[1]:.2f} ms and {direct[1]:.2f} ms"
    )
    assert max(led) < 5 * max(direct)


def full() -> tuple[list[Service], list[Slice]]:
    """Return as many services with an endpoint as gVisor's table has room for."""
    ports = (ServicePort("t", "TCP", 80, 0),)
    many = [Service(("default", f"s{number:03}"), f"10.43.9.{number + 1}", ports) for number in range(115)]
    return many, [endpoints(SERVERS["b"])[0]._replace(service=one.key) for one in many]


def test_streams_survive_fifty_tables(pods: Pods) -> None:
    apply(pods, service(), endpoints(*SERVERS.values()))
    with pods.streams("a", VIP, 80, 30) as streams:
        for number in range(25):
            apply(pods, service(), endpoints(SERVERS["b"]) if number % 2 else [])
            apply(pods, service(), endpoints(*SERVERS.values()))
        ended = streams()
    assert ended == {"ok": 30}


def test_a_table_of_the_largest_size_is_taken(pods: Pods) -> None:
    for each in (1, 3):
        many = [
            Service(
                ("default", f"s{number}"),
                f"10.43.9.{number + 1}",
                (ServicePort("t", "TCP", 80, 0),),
                affinity=number % 2 == 0,
            )
            for number in range(250)
        ]
        slices = [
            each_slice._replace(service=one.key)
            for one in many
            for each_slice in endpoints(*list(SERVERS.values())[:each])
        ]
        table = rules.table(many, slices, facts(pods))
        pods.restore(rules.restore_text(table, rules.present_in(pods.saved())))
        assert bool(table.left_out) == (pods.sandbox.kind == "gvisor")
        if pods.sandbox.kind == "gvisor":
            # The sizes are right: the kernel refuses a table that has somewhat more.
            full = rules.table(many, slices, facts(pods)._replace(capacity=rules.GVISOR_BYTES + 2048))
            pods.restore(rules.restore_text(full, rules.present_in(pods.saved())))
            beyond = rules.table(many, slices, facts(pods)._replace(capacity=rules.GVISOR_BYTES + 2048 + 400))
            assert pods.refuses(rules.restore_text(beyond, rules.present_in(pods.saved())))
    pods.restore(rules.removal_text(rules.present_in(pods.saved())))
    assert rules.PREFIX not in pods.saved()
