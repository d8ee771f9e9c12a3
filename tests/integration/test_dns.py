"""CoreDNS beside a control plane answers for the cluster's names, in gVisor and natively.

No layer and no kubelet runs: it needs the API server alone.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_k3s_sandbox.cluster import dns
from pytest_k3s_sandbox.cluster.components import ClusterSettings
from pytest_k3s_sandbox.cluster.embedded import Embedded
from pytest_k3s_sandbox.cluster.runner import ClusterRunner
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.node.seed import seed
from pytest_k3s_sandbox.node.spec import FORMS, NodeSpec
from pytest_k3s_sandbox.node.start import start_sandbox
from pytest_k3s_sandbox.sandbox.network import machine_of
from pytest_k3s_sandbox.toolchain import Toolchain
from support import dns_client

pytestmark = [pytest.mark.k3s_requires("root"), pytest.mark.timeout(240)]

SECONDS = 90.0
CLIENT = Path(dns_client.__file__).read_text()
AT_ONCE = 1.0
"""Seconds within which an answer comes that waits for nobody. A client's own time limit is 5 s."""

HEADLESS = [
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "peers"},
        "spec": {"clusterIP": "None", "ports": [{"name": "raft", "port": 7000}]},
    },
    {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "peers", "labels": {"kubernetes.io/service-name": "peers"}},
        "addressType": "IPv4",
        "endpoints": [
            {"addresses": [f"10.42.0.{number}"], "hostname": f"peer-{number}"} for number in (7, 8)
        ],
        "ports": [{"name": "raft", "port": 7000, "protocol": "TCP"}],
    },
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "elsewhere"},
        "spec": {"type": "ExternalName", "externalName": "kubernetes.default.svc.cluster.local"},
    },
]


class WithDns(Embedded):
    """The usual programs, and CoreDNS."""

    programs = (*Embedded.programs, dns.PROGRAM)


@dataclass(frozen=True)
class Served:
    """A control plane whose names CoreDNS serves."""

    runner: ClusterRunner

    def ask(self, *words: str, times: int = 1) -> list[dict[str, Any]]:
        """Ask from inside; the words are names and types in turn."""
        argv = [sys.executable, "-S", "-c", CLIENT, dns.ADDRESS, str(times), *words]
        done = self.runner.sandbox.run(argv, timeout=60)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def until_it_serves(self) -> None:
        """Wait until CoreDNS has said that it serves."""
        log = self.runner.processes[dns.PROGRAM].log
        self.runner.cluster.wait(
            lambda: dns.SERVES in log.read_bytes(), "CoreDNS to serve", Deadline.after(SECONDS)
        )


@pytest.fixture(
    scope="module",
    params=["host", "empty", pytest.param("gvisor", marks=pytest.mark.k3s_requires("gvisor"))],
)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """A control plane and CoreDNS; ``empty`` is a ``host`` sandbox that begins with an empty datastore."""
    empty = request.param == "empty"
    toolchain, deadline = Toolchain(), Deadline.after(SECONDS)
    if isinstance(why := toolchain.get_or_why(dns.PROGRAM), str):
        pytest.skip(f"not applicable: no CoreDNS: {why}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMS, "embedded", WithDns)
        sandbox = start_sandbox(NodeSpec("host" if empty else request.param), toolchain)
    with sandbox:
        sandbox.run(["ip", "address", "add", f"{dns.ADDRESS}/32", "dev", "lo"])
        settings = ClusterSettings(
            node="n", address=sandbox.address, kubernetes=toolchain.pins.kubernetes, dns=True
        )
        distribution = WithDns(None if empty else seed(toolchain))
        kubectl = toolchain.get("kubectl").path
        with ClusterRunner(sandbox, distribution, settings, kubectl=kubectl) as runner:
            cluster = runner.cluster
            distribution.wait_control_plane(sandbox, settings, deadline)
            cluster.wait_usable("default", deadline)
            listed = {"apiVersion": "v1", "kind": "List", "items": HEADLESS}
            cluster.kubectl("apply", "-f", "-", stdin=json.dumps(listed))
            made = Served(runner)
            made.until_it_serves()
            yield made


def test_names_of_services_lead_to_their_addresses(served: Served) -> None:
    found = served.ask(
        *("kubernetes.default.svc.cluster.local", "A"),
        *("kube-dns.kube-system.svc.cluster.local", "A"),
        *("_dns._udp.kube-dns.kube-system.svc.cluster.local", "SRV"),
        *("10.0.43.10.in-addr.arpa", "PTR"),
        *("elsewhere.default.svc.cluster.local", "A"),
    )
    assert [answer["code"] for answer in found] == ["NOERROR"] * len(found)
    kubernetes, own, service, reverse, elsewhere = (answer["answers"] for answer in found)
    api = "kubernetes.default.svc.cluster.local"
    name = "kube-dns.kube-system.svc.cluster.local"
    assert kubernetes == [[api, "A", "10.43.0.1"]]
    assert own == [[name, "A", dns.SERVICE_ADDRESS]]
    assert service == [[f"_dns._udp.{name}", "SRV", f"53 {name}"]]
    assert reverse == [["10.0.43.10.in-addr.arpa", "PTR", name]]
    assert elsewhere == [["elsewhere.default.svc.cluster.local", "CNAME", api], [api, "A", "10.43.0.1"]]


def test_a_headless_service_has_the_addresses_of_its_endpoints(served: Served) -> None:
    name = "peers.default.svc.cluster.local"
    every, one = served.ask(name, "A", f"peer-8.{name}", "A")
    assert sorted(every["answers"]) == [[name, "A", "10.42.0.7"], [name, "A", "10.42.0.8"]]
    assert one["answers"] == [[f"peer-8.{name}", "A", "10.42.0.8"]]


def test_the_machine_and_the_node_have_names(served: Served) -> None:
    address = served.runner.sandbox.address
    machine, node = served.ask(dns.MACHINE, "A", "n", "A")
    assert machine["answers"] == [[dns.MACHINE, "A", machine_of(address)]]
    assert node["answers"] == [["n", "A", address]]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nothing.default.svc.cluster.local", "A"),
        ("kubernetes.default.svc.cluster.local.default.svc.cluster.local", "A"),
        ("example.com", "A"),
        ("example.com", "AAAA"),
        ("nothing", "A"),
        ("1.113.0.203.in-addr.arpa", "PTR"),
    ],
)
def test_a_name_that_nobody_knows_is_denied_at_once(served: Served, name: str, kind: str) -> None:
    (answer,) = served.ask(name, kind)
    assert (answer["code"], answer["answers"]) == ("NXDOMAIN", [])
    assert answer["longest"] < AT_ONCE


def test_a_service_has_its_name_as_soon_as_it_is_made_though_it_was_denied_before(served: Served) -> None:
    name = "late.default.svc.cluster.local"
    assert served.ask(name, "A")[0]["code"] == "NXDOMAIN"
    cluster = served.runner.cluster
    made = cluster.kubectl("create", "service", "clusterip", "late", "--tcp=80", "--output=json").stdout
    address = json.loads(made)["spec"]["clusterIP"]
    assert served.ask(name, "A")[0]["answers"] == [[name, "A", address]]


def test_coredns_may_list_nothing_but_what_it_serves(served: Served) -> None:
    def allowed(*words: str) -> bool:
        argv = ("auth", "can-i", *words, f"--as={dns.USER}", "--all-namespaces")
        return served.runner.cluster.kubectl(*argv, check=False).stdout.strip() == "yes"

    assert allowed("watch", "endpointslices.discovery.k8s.io")
    assert not allowed("list", "secrets")
    assert not allowed("delete", "services")


def test_an_answer_takes_a_fraction_of_what_clients_wait(served: Served) -> None:
    (answer,) = served.ask("kubernetes.default.svc.cluster.local", "A", times=200)
    assert answer["median"] < AT_ONCE / 10


def test_it_is_started_again_as_it_was(served: Served) -> None:
    runner = served.runner
    process = runner.processes[dns.PROGRAM]
    process.signal(signal.SIGKILL)
    process.wait(Deadline.after(10))
    runner.distribution.restart(runner.sandbox, runner.settings, dns.PROGRAM, Deadline.after(20))
    (answer,) = served.ask("kubernetes.default.svc.cluster.local", "A")
    assert answer["code"] == "NOERROR"
