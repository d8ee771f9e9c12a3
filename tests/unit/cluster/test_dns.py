"""The configuration of CoreDNS, the objects of the cluster's DNS, and how a node gets both."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, cast

import pytest

from pytest_k3s_sandbox.cluster import components, datastore, dns
from pytest_k3s_sandbox.cluster.components import PKI_DIR, ClusterSettings
from pytest_k3s_sandbox.cluster.embedded import Embedded
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.layers.addresses import POD_RANGE, SERVICE_RANGE
from pytest_k3s_sandbox.layers.cni.protocol import DEFAULT_SUBNET
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR, Completed, Sandbox
from pytest_k3s_sandbox.sandbox.beneath import Beneath
from pytest_k3s_sandbox.sandbox.network import machine_of
from pytest_k3s_sandbox.toolchain.pins import load

HOSTS = {dns.MACHINE: "10.213.0.1", "node-1": "10.213.0.2"}
SETTINGS = ClusterSettings(node="node-1", address="10.213.0.2")
WITH_DNS = ClusterSettings(node="node-1", address="10.213.0.2", dns=True)


def plugins(corefile: str) -> dict[str, list[str]]:
    """Return the lines of each plugin, by its name; its own line comes first."""
    found: dict[str, list[str]] = {}
    for line in corefile.splitlines()[1:-1]:
        indent = len(line) - len(line.lstrip())
        words = line.strip()
        if indent == 4 and words != "}":
            current = found.setdefault(words.split()[0], [])
        if words != "}":
            current.append(words.removesuffix(" {"))
    return found


@pytest.mark.parametrize("upstreams", [(), ("192.0.2.53", "192.0.2.54")])
def test_the_program_has_every_plugin_that_is_configured(upstreams: Sequence[str]) -> None:
    build = load().programs[dns.PROGRAM].build
    assert build is not None
    source = (build.module / "main.go").read_text()
    known = set(re.findall(r'"github\.com/coredns/coredns/plugin/(\w+)"', source))
    assert "reload" not in known
    used = set(plugins(dns.corefile("/k", HOSTS, upstreams=upstreams)))
    assert {name.replace("prometheus", "metrics") for name in used} <= known


def test_names_of_the_cluster_come_from_the_api_server_and_are_not_cached() -> None:
    for upstreams in ((), ("192.0.2.53",)):
        found = plugins(dns.corefile("/k", HOSTS, upstreams=upstreams))
        assert found["kubernetes"] == [
            "kubernetes cluster.local in-addr.arpa ip6.arpa",
            *("kubeconfig /k", "pods insecure", "ttl 5", "fallthrough in-addr.arpa ip6.arpa"),
        ]
        kept = ["cache 30", "disable success cluster.local", "disable denial cluster.local"]
        assert found.get("cache", kept) == kept


def test_hosts_have_names_and_those_of_the_sandboxs_own_file_have_none() -> None:
    own, *lines = plugins(dns.corefile("/k", HOSTS))["hosts"]
    assert own == "hosts /dev/null"
    assert lines[:2] == ["10.213.0.1 host.k3s.internal", "10.213.0.2 node-1"]
    assert "fallthrough" in lines


def test_it_listens_at_one_address_only() -> None:
    text = dns.corefile("/k", HOSTS, address="10.42.9.1")
    assert plugins(text)["bind"] == ["bind 10.42.9.1"]
    assert plugins(text)["prometheus"] == ["prometheus 10.42.9.1:9153"]
    assert text.startswith(".:53 {\n")


def test_names_from_outside_are_asked_of_servers_if_there_are_some_and_denied_otherwise() -> None:
    found = plugins(dns.corefile("/k", HOSTS, upstreams=["192.0.2.53", "192.0.2.54:5353"]))
    assert found["forward"] == ["forward . 192.0.2.53 192.0.2.54:5353"]
    assert "file" not in found
    alone = plugins(dns.corefile("/k", HOSTS))
    assert alone["file"][0] == f"file {dns.NOWHERE} ."
    assert not {"forward", "cache", "loop"} & set(alone)


def test_the_command_is_the_program_with_its_configuration() -> None:
    assert dns.command() == [f"{BIN_DIR}/coredns", f"-conf={STATE_DIR}/Corefile"]


def test_the_addresses_are_in_the_ranges_of_the_cluster() -> None:
    assert (dns.SERVICE_ADDRESS, dns.ADDRESS) == ("10.43.0.10", "10.42.0.1")
    assert ip_address(dns.SERVICE_ADDRESS) == ip_network(SERVICE_RANGE)[10]
    assert ip_address(dns.ADDRESS) == ip_network(POD_RANGE)[1] == ip_network(DEFAULT_SUBNET)[1]


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = (each for each in dns.objects("10.42.9.1") if each["kind"] == kind)
    return found


def test_the_service_leads_to_where_coredns_listens() -> None:
    service, slice_ = of_kind("Service"), of_kind("EndpointSlice")
    assert service["spec"]["clusterIP"] == dns.SERVICE_ADDRESS
    assert "selector" not in service["spec"]
    assert [(p["name"], p["port"], p["protocol"]) for p in service["spec"]["ports"]] == [
        ("dns", 53, "UDP"),
        ("dns-tcp", 53, "TCP"),
        ("metrics", 9153, "TCP"),
    ]
    assert slice_["ports"] == service["spec"]["ports"]
    assert [each["addresses"] for each in slice_["endpoints"]] == [["10.42.9.1"]]
    assert slice_["metadata"]["labels"]["kubernetes.io/service-name"] == service["metadata"]["name"]
    assert slice_["metadata"]["namespace"] == service["metadata"]["namespace"] == "kube-system"
    labels = service["metadata"]["labels"]
    assert (labels["k8s-app"], labels["kubernetes.io/name"]) == ("kube-dns", "CoreDNS")


def test_coredns_may_read_what_it_serves_and_nothing_else() -> None:
    role, binding = of_kind("ClusterRole"), of_kind("ClusterRoleBinding")
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"list", "watch"}
    resources = {resource for rule in role["rules"] for resource in rule["resources"]}
    assert resources == {"endpoints", "services", "pods", "namespaces", "endpointslices"}
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [(each["kind"], each["name"]) for each in binding["subjects"]] == [("User", dns.USER)]


def test_a_prepared_datastore_is_another_one_with_other_objects() -> None:
    assert datastore.identity([], dns.objects()) == datastore.identity([], dns.objects())
    assert datastore.identity([], dns.objects()) != datastore.identity([], dns.objects("10.42.9.1"))
    assert json.loads(dns.manifest())["items"] == dns.objects()


def test_pods_ask_it_if_there_is_one() -> None:
    assert components.kubelet_config(WITH_DNS)["clusterDNS"] == [dns.SERVICE_ADDRESS]
    assert "clusterDNS" not in components.kubelet_config(SETTINGS)
    assert components.kubelet_config(SETTINGS)["clusterDomain"] == dns.DOMAIN


@pytest.mark.parametrize(
    ("address", "machine"), [("10.213.0.2", "10.213.0.1"), ("198.18.7.254", "198.18.7.253")]
)
def test_the_machine_is_the_other_end_of_a_sandboxs_network(address: str, machine: str) -> None:
    assert machine_of(address) == machine


class Inside:
    """A sandbox whose files are in a folder, and whose programs are only noted."""

    name = "k3ssb-test"

    def __init__(self, folder: Path) -> None:
        """Make the folder of the state."""
        state = folder / "var" / STATE_DIR.removeprefix("/var/")
        state.mkdir(parents=True)
        self.control = folder / "control"
        self.control.mkdir()
        self.files = Beneath(folder / "var")
        self.spawned: dict[str, list[str]] = {}

    def run(self, argv: Sequence[str], **_options: object) -> Completed:
        """Answer nothing."""
        return Completed(tuple(argv), 0, "", "")

    def spawn(self, argv: Sequence[str], *, name: str, env: object) -> object:
        """Note a program."""
        assert not env
        self.spawned[name] = list(argv)
        return Running()


class Running:
    """A program that runs."""

    def poll(self) -> int | None:
        """It has not ended."""
        return None


class Answers:
    """An API server that answers."""

    def answers(self, _path: str) -> bool:
        """Answer."""
        return True


@pytest.mark.parametrize("settings", [SETTINGS, WITH_DNS], ids=["without", "with"])
def test_a_node_starts_coredns_if_its_settings_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: ClusterSettings
) -> None:
    inside, distribution = Inside(tmp_path), Embedded()
    sandbox = cast("Sandbox", inside)
    monkeypatch.setattr(distribution, "_api", lambda *_: Answers())
    distribution.start_control_plane(sandbox, settings, lambda _: contextlib.nullcontext())
    distribution.wait_control_plane(sandbox, settings, Deadline.after(10))
    distribution.wait_control_plane(sandbox, settings, Deadline.after(10))
    assert (dns.PROGRAM in inside.spawned) is settings.dns
    for path in (dns.COREFILE, dns.NOWHERE, dns.MANIFEST):
        assert inside.files.exists(path) is settings.dns
    assert list(distribution.processes)[:4] == [
        *("kine", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
    ]
    for name in ("coredns", "kube-proxy"):
        content = json.loads(inside.files.text(f"{PKI_DIR}/{name}.kubeconfig"))
        assert content["clusters"][0]["cluster"]["server"] == settings.api_url
    if settings.dns:
        text = inside.files.text(dns.COREFILE)
        assert "10.213.0.1 host.k3s.internal\n" in text
        assert "10.213.0.2 node-1\n" in text
        assert f"kubeconfig {PKI_DIR}/coredns.kubeconfig\n" in text
        assert inside.spawned[dns.PROGRAM] == dns.command()
