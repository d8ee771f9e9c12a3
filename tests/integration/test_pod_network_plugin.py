"""The CNI plugin with a routed network, in sandboxes of both kinds."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_k3s_sandbox.sandbox.base import BIN_DIR
from pytest_k3s_sandbox.toolchain.resolve import Program
from support.installed import installed, maker
from support.pod_network import FORWARD, PORT, PROGRAM, Net, Node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes need root")

SUBNETS = itertools.count()

# The codes of errors: CNI specification 1.1.0, section 5 and section 2, "STATUS"; those from 100 on are ours.
INCOMPATIBLE, VARIABLES, NOT_DECODED, INVALID, NAMESPACE, UNAVAILABLE = 1, 4, 6, 7, 8, 50
EXHAUSTED, ATTACHED, NOT_AS_ADDED = 100, 101, 102


@pytest.fixture(scope="module")
def program() -> Program:
    return installed(PROGRAM)


@pytest.fixture(scope="module", params=["gvisor", "host"])
def node(
    request: pytest.FixtureRequest, program: Program, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("K3S_SANDBOX_HOME", str(tmp_path_factory.mktemp("home")))
        with maker(request.param)(programs=[Path(program.path)]) as sandbox:
            made = Node(sandbox)
            made.forward(True)
            yield made


@pytest.fixture
def net(node: Node) -> Iterator[Net]:
    number = next(SUBNETS)
    made = Net(node, f"net{number}", f"10.42.{number}.0/24", f"10.42.{number}.1")
    yield made
    made.clear()


# What pods have.


def test_pods_the_node_and_the_gateway_reach_each_other(net: Net) -> None:
    node, first, second = net.node, net.pod(), net.pod()
    one, two = (net.add(pod)["ips"][0]["address"].removesuffix("/32") for pod in (first, second))
    assert (one, two) == (net.address(2), net.address(3))
    servers = [node.serve(where) for where in ("", first, second)]
    try:
        assert node.ask(two, first) == one
        assert node.ask(one, second) == two
        assert node.ask(one) == net.gateway
        assert node.ask(net.gateway, first) == one
        node.forward(False)
        assert node.ask(two, first) == ""
    finally:
        node.forward(True)
        for server in servers:
            server.stop()


def test_pods_reach_other_addresses_of_the_node_if_it_is_told_of_them(net: Net) -> None:
    """In gVisor answers from the address of another interface go where that interface's routes lead."""
    node, plain, told, address = net.node, net.pod(), net.pod(), net.node.sandbox.address
    net.add(plain)
    server = node.serve()
    try:
        assert node.ask(address, plain) == ("" if node.sandbox.kind == "gvisor" else net.address(2))
        result = net.add(told, nodeAddresses=[address])
        assert node.ask(address, told) == net.address(3)
        assert node.ask(address) == address
        with socket.create_connection((address, PORT), timeout=10) as machine:
            assert machine.recv(100).decode() == node.sandbox.network.gateway
        assert net.call("CHECK", told, prevResult=result, nodeAddresses=[address]) == (0, None)
    finally:
        server.stop()


def test_the_result_is_what_the_pod_has(net: Net) -> None:
    pod = net.pod()
    result = net.add(pod, dns={"nameservers": ["10.43.0.10"], "search": ["cluster.local"]})
    link = net.node.sh(f"ip -n {pod} -o link show eth0")
    mac = re.findall(r"link/ether (\S+)", link)[0]
    (host_end,) = {end["name"] for end in result["interfaces"]} & net.node.host_ends()
    assert result == {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": host_end},
            {"name": "eth0", "mac": mac, "sandbox": f"/run/netns/{pod}"},
        ],
        "ips": [{"address": f"{net.address(2)}/32", "gateway": net.gateway, "interface": 1}],
        "routes": [{"dst": "0.0.0.0/0", "gw": net.gateway}],
        "dns": {"nameservers": ["10.43.0.10"], "search": ["cluster.local"]},
    }
    assert f"inet {net.address(2)}/32" in net.node.sh(f"ip -n {pod} -4 address show dev eth0")
    assert re.search("<.*UP.*>", net.node.sh(f"ip -n {pod} -o link show lo"))
    assert net.call("CHECK", pod, prevResult=result) == (0, None)


def test_interfaces_have_the_size_that_is_asked_for(net: Net) -> None:
    pod = net.pod()
    ends = net.add(pod, mtu=1400)["interfaces"]
    links = net.node.sh(f"ip -o link show {ends[0]['name']}; ip -n {pod} -o link show eth0")
    header = 14 if net.node.sandbox.kind == "gvisor" else 0  # gVisor counts that of Ethernet
    assert re.findall(r"mtu (\d+)", links) == [str(1400 - header)] * 2


def test_a_chained_plugin_keeps_what_others_made(net: Net) -> None:
    previous: dict[str, Any] = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "other0", "sandbox": "/run/netns/other"}],
        "ips": [{"address": "192.0.2.7/24", "interface": 0}],
        "dns": {"nameservers": ["192.0.2.1"]},
    }
    pod = net.pod()
    result = net.add(pod, prevResult=previous)
    assert result["interfaces"][0] == previous["interfaces"][0]
    assert [end["name"] for end in result["interfaces"][2:]] == ["eth0"]
    assert [(ip["address"], ip["interface"]) for ip in result["ips"]] == [
        ("192.0.2.7/24", 0),
        (f"{net.address(2)}/32", 2),
    ]
    assert result["dns"] == previous["dns"]
    assert net.call("CHECK", pod, prevResult=result) == (0, None)


def test_the_configuration_may_state_routes(net: Net) -> None:
    pod = net.pod()
    routes = [{"dst": "10.42.0.0/16"}, {"dst": "192.0.2.0/24", "gw": net.gateway}]
    result = net.add(pod, ipam=net.config["ipam"] | {"routes": routes})
    assert result["routes"] == [{"gw": net.gateway} | route for route in routes]
    assert "default" not in net.node.sh(f"ip -n {pod} route")
    assert net.call("CHECK", pod, prevResult=result, ipam=net.config["ipam"] | {"routes": routes})[0] == 0


def test_the_runtime_may_ask_for_an_address(net: Net) -> None:
    asked = {"runtimeConfig": {"ips": [net.address(77)]}}
    assert net.add(**asked)["ips"][0]["address"] == f"{net.address(77)}/32"
    code, words = net.refused("ADD", net.pod(), **asked)
    assert (code, net.address(77) in words) == (EXHAUSTED, True)
    code, words = net.refused("ADD", net.pod(), runtimeConfig={"ips": ["192.0.2.7"]})
    assert (code, "192.0.2.7" in words) == (EXHAUSTED, True)
    assert {name for name in net.records() if "." in name and "veth" not in name} == {net.address(77)}


def test_older_versions_of_the_specification_have_their_results(net: Net) -> None:
    result = net.add(cniVersion="0.4.0")
    assert (result["cniVersion"], result["ips"][0]["version"]) == ("0.4.0", "4")


def test_pods_that_come_at_once_have_addresses_of_their_own(net: Net) -> None:
    pods = [net.pod() for _ in range(6)]
    one = f'CNI_CONTAINERID=$pod CNI_NETNS=/run/netns/$pod {BIN_DIR}/{PROGRAM} <<< "$CONFIG" > /run/$pod.json'
    script = (
        f"for pod in {' '.join(pods)}; do {one} & done; wait; cat {' '.join(f'/run/{p}.json' for p in pods)}"
    )
    said = net.node.sh(
        script, CONFIG=json.dumps(net.config), CNI_COMMAND="ADD", CNI_PATH=BIN_DIR, CNI_IFNAME="eth0"
    )
    found = re.findall(r'"address": "(.*)/32"', said)
    assert sorted(found) == [net.address(number) for number in range(2, 8)]


# What is refused.


def test_a_second_attachment_is_refused_and_the_first_stays(net: Net) -> None:
    pod = net.pod()
    result = net.add(pod)
    assert net.refused("ADD", pod)[0] == ATTACHED
    assert net.call("CHECK", pod, prevResult=result) == (0, None)


def test_a_full_range_is_named_and_leaves_nothing(net: Net) -> None:
    ipam = net.config["ipam"] | {"subnet": f"{net.address(0)}/30"}
    first, before = net.pod(), net.node.host_ends()
    net.add(first, ipam=ipam)
    ends, records = net.node.host_ends(), net.records()
    code, words = net.refused("ADD", net.pod(), ipam=ipam)
    assert code == EXHAUSTED
    assert f"{net.address(1)}-{net.address(2)}" in words
    assert (net.node.host_ends(), net.records()) == (ends, records)
    assert net.refused("STATUS", ipam=ipam)[0] == UNAVAILABLE
    assert net.call("DEL", first, ipam=ipam) == (0, None)
    assert net.call("STATUS", ipam=ipam) == (0, None)
    assert net.node.host_ends() == before


def test_an_attachment_that_fails_leaves_nothing(net: Net) -> None:
    pod = net.pod()
    net.node.sh(f"ip -n {pod} link add eth0 type veth peer name other0")
    before = net.node.host_ends()
    assert "eth0" in net.refused("ADD", pod)[1]
    assert (net.node.host_ends(), net.records()) == (before, set())
    net.node.sh(f"ip -n {pod} link delete eth0")
    routes = [{"dst": "192.0.2.0/24", "gw": "198.51.100.1"}, {"dst": "192.0.2.0/24", "gw": "198.51.100.1"}]
    assert "192.0.2.0/24" in net.refused("ADD", pod, ipam=net.config["ipam"] | {"routes": routes})[1]
    assert (net.node.host_ends(), net.records()) == (before, set())
    net.add(pod)


def test_what_cannot_be_is_refused_with_its_code(net: Net) -> None:
    pod, before = net.pod(), net.node.host_ends()
    cases: list[tuple[dict[str, Any], int]] = [
        ({"text": "{"}, NOT_DECODED),
        ({"text": "[]"}, NOT_DECODED),
        ({"cniVersion": "9.9.9"}, INCOMPATIBLE),
        ({"name": ""}, INVALID),
        ({"gateway": None}, INVALID),
        ({"gateway": "10.42.0"}, NOT_DECODED),
        ({"gateway": "2001:db8::1"}, INVALID),
        ({"nodeAddresses": ["2001:db8::1"]}, INVALID),
        ({"mtu": -1}, INVALID),
        ({"mtu": "large"}, NOT_DECODED),
        ({"ipam": {}}, INVALID),
        ({"ipam": {"subnet": "10.42.0.0/31"}}, INVALID),
        ({"ipam": {"subnet": "2001:db8::/64"}}, INVALID),
        ({"prevResult": {"cniVersion": "1.1.0", "ips": "none"}}, INVALID),
        ({"CNI_NETNS": "/run/netns/missing"}, NAMESPACE),
        ({"CNI_NETNS": "/proc/self/ns/net"}, NAMESPACE),
        ({"CNI_NETNS": "/proc/version"}, NAMESPACE),
        ({"CNI_IFNAME": "a/b"}, VARIABLES),
        ({"CNI_CONTAINERID": "../x"}, VARIABLES),
        ({"CNI_COMMAND": "SOMETHING"}, VARIABLES),
    ]
    assert [(fields, net.refused("ADD", pod, **fields)[0]) for fields, _ in cases] == cases
    assert (net.node.host_ends(), net.records()) == (before, set())


# Its end.


def test_what_is_deleted_is_gone_and_may_be_deleted_again(net: Net) -> None:
    pod, before = net.pod(), net.node.host_ends()
    result = net.add(pod)
    assert net.call("DEL", pod, prevResult=result) == (0, None)
    assert (net.node.host_ends(), net.records()) == (before, set())
    assert "eth0" not in net.node.sh(f"ip -n {pod} -o link")
    assert net.address(2) not in net.node.sh("ip route")
    assert net.call("DEL", pod) == (0, None)
    assert net.call("DEL", "never-there") == (0, None)
    assert net.add(pod)["ips"][0]["address"] == f"{net.address(3)}/32"


@pytest.mark.parametrize("stated", [True, False])
def test_a_pod_without_its_namespace_is_deleted(net: Net, stated: bool) -> None:
    pod, before = net.pod(), net.node.host_ends()
    net.add(pod)
    net.node.sh(f"ip netns delete {pod}")
    assert net.call("DEL", pod, **({} if stated else {"CNI_NETNS": ""})) == (0, None)
    assert (net.node.host_ends(), net.records()) == (before, set())


def test_what_a_killed_process_left_is_in_nobodys_way(net: Net) -> None:
    first, second = net.pod(), net.pod()
    end = net.add(first)["interfaces"][0]["name"]
    assert net.call("DEL", first) == (0, None)
    taken = net.add(second)["ips"][0]["address"].removesuffix("/32")
    net.node.sh(f"ln -s {taken} /run/addresses/{net.name}/{end}.0")  # killed before it found that it is taken
    result = net.add(first)
    assert result["ips"][0]["address"] != f"{taken}/32"
    assert net.call("CHECK", first, prevResult=result) == (0, None)
    assert net.call("DEL", first) == (0, None)
    assert {taken} == {name for name in net.records() if "veth" not in name}


def test_garbage_is_collected_and_the_rest_stays(net: Net) -> None:
    before = net.node.host_ends()
    kept, stale, recordless, gone = (net.pod() for _ in range(4))
    results = {pod: net.add(pod) for pod in (kept, stale, recordless, gone)}
    held = {name for name in net.records() if "veth" in name}
    end = results[recordless]["interfaces"][0]["name"]
    net.node.sh(f"rm /run/addresses/{net.name}/{net.address(4)} /run/addresses/{net.name}/{end}.0")
    net.node.sh(f"ip netns delete {gone}")
    net.node.sh("ip link add veth0badcafe type veth peer name other1; ip link set veth0badcafe up")
    assert net.collect(kept) == (0, None)
    ends = net.node.host_ends() - before
    net.node.sh("ip link delete veth0badcafe")
    mine = results[kept]["interfaces"][0]["name"]
    assert ends == {"veth0badcafe", mine}
    assert net.records() == {net.address(2), f"{mine}.0"}
    assert f"{mine}.0" in held
    assert net.call("CHECK", kept, prevResult=results[kept]) == (0, None)
    assert net.collect() == (0, None)
    assert (net.node.host_ends(), net.records()) == (before, set())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("ip -n {pod} address delete {address}/32 dev eth0", "eth0 does not have {address}/32"),
        ("ip -n {pod} route delete default via {gateway}", "eth0 has no route to 0.0.0.0/0"),
        ("ip route delete {address}/32 dev {end}", "{end} has no route to {address}/32"),
        ("ip address delete {gateway}/32 dev {end}", "{end} does not have {gateway}/32"),
        ("ip -n {pod} link delete eth0", "{end}"),
        ("rm /run/addresses/{net}/{end}.0", "no address is reserved"),
    ],
)
def test_a_check_finds_what_was_changed(net: Net, change: str, words: str) -> None:
    pod = net.pod()
    result = net.add(pod)
    end = result["interfaces"][0]["name"]
    known = {"pod": pod, "end": end, "address": net.address(2), "gateway": net.gateway, "net": net.name}
    assert net.call("CHECK", pod, prevResult=result) == (0, None)
    net.node.sh(change.format(**known))
    code, said = net.refused("CHECK", pod, prevResult=result)
    assert code == NOT_AS_ADDED
    assert words.format(**known) in said


def test_a_check_needs_the_result(net: Net) -> None:
    pod = net.pod()
    net.add(pod)
    assert net.refused("CHECK", pod)[0] == INVALID


def test_the_status_tells_of_a_node_that_does_not_forward(net: Net) -> None:
    assert net.call("STATUS") == (0, None)
    net.node.forward(False)
    try:
        code, words = net.refused("STATUS")
    finally:
        net.node.forward(True)
    assert code == UNAVAILABLE
    assert FORWARD in words


def test_it_says_which_versions_it_has(net: Net) -> None:
    code, answer = net.call("VERSION")
    assert code == 0
    assert answer["cniVersion"] == "1.1.0"
    assert {"0.4.0", "1.0.0", "1.1.0"} <= set(answer["supportedVersions"])
