"""Choosing networks; creating them is tested with the sandboxes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.errors import ConfigError, MissingCapability, StartError
from pytest_k3s_sandbox.sandbox import gateway, network
from pytest_k3s_sandbox.sandbox.network import POOL_VARIABLE, POOLS, Network, free_subnet

POOL = POOLS[0]

SUBNETS = list(POOL.subnets(new_prefix=30))


@given(
    st.sets(st.sampled_from(SUBNETS[:40])), st.sets(st.sampled_from(list(POOL.subnets(new_prefix=26))[:2]))
)
def test_a_free_subnet_overlaps_nothing_and_is_the_first_such(
    small: set[IPv4Network], large: set[IPv4Network]
) -> None:
    used = small | large
    found = free_subnet(used)
    assert found.prefixlen == 30
    assert not any(found.overlaps(other) for other in used)
    for earlier in SUBNETS[: SUBNETS.index(found)]:
        assert any(earlier.overlaps(other) for other in used)


def test_networks_outside_the_pool_do_not_matter() -> None:
    assert free_subnet({IPv4Network("192.168.0.0/16"), IPv4Network("10.42.0.0/24")}) == SUBNETS[0]


def test_full_pools_are_an_error_with_a_remedy() -> None:
    used = {subnet for pool in POOLS for subnet in pool.subnets(new_prefix=18)}
    with pytest.raises(
        StartError, match=r"no free network in 10\.213\.0\.0/16.*\nRemedy: end other sandboxes"
    ):
        free_subnet(used)


def test_a_vpn_over_a_pool_leads_to_the_next_one() -> None:
    assert free_subnet({IPv4Network("10.0.0.0/8")}).subnet_of(POOLS[1])
    private = {IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12")}
    assert free_subnet(private).subnet_of(POOLS[2])


def test_routes_over_all_pools_are_an_error_that_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = {IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12"), IPv4Network("198.18.0.0/15")}
    with pytest.raises(
        StartError, match=r"routes over them \(10.0.0.0/8.*VPN(.|\n)*K3S_SANDBOX_POOL="
    ) as caught:
        free_subnet(routes)
    assert "198.18.0.0/15" in str(caught.value)
    monkeypatch.setenv(POOL_VARIABLE, "192.168.77.0/24")
    assert free_subnet(routes) == IPv4Network("192.168.77.0/30")


@pytest.mark.parametrize("text", ["10.99", "10.99.0.1/16", "fd00::/64", "10.99.0.0/31", "x"])
def test_a_pool_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(POOL_VARIABLE, text)
    with pytest.raises(ConfigError, match=f"{POOL_VARIABLE}={text}"):
        free_subnet(set())


def test_a_name_fits_an_interface() -> None:
    net = network.named("0123abcd")
    assert len(net.veth) <= 15  # IFNAMSIZ less the final zero (linux/if.h)
    assert (net.netns, net.veth) == ("k3ssb-0123abcd", "k3s0123abcd")


def test_used_networks_are_those_of_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    links = [
        {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}]},
        {
            "ifname": "veth",
            "addr_info": [{"local": "10.213.0.1", "prefixlen": 30}, {"local": "10.213.0.9", "prefixlen": 32}],
        },
        {"ifname": "down"},
        {},
    ]
    routes = [
        {"dst": "default", "gateway": "192.0.2.1"},
        {"dst": "0.0.0.0/1"},  # a VPN's default route, in halves
        {"dst": "10.213.0.4/30"},
        {"dst": "192.0.2.7"},
        {"type": "unreachable"},
    ]
    shown = {"address": links, "route": routes}
    monkeypatch.setattr(
        network, "_ip", lambda *_words, batch: "\n".join(json.dumps(shown[line.split()[0]]) for line in batch)
    )
    assert network.used_networks() == {
        IPv4Network("10.213.0.4/30"),
        IPv4Network("192.0.2.7/32"),
        IPv4Network("127.0.0.0/8"),
        IPv4Network("10.213.0.0/30"),
        IPv4Network("10.213.0.9/32"),
    }
    chosen = network.choose("0123abcd")
    assert (chosen.gateway, chosen.address) == ("10.213.0.13", "10.213.0.14")


def test_without_ip_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingCapability, match=r"the program `ip` is not installed\nRemedy: .*iproute2"):
        network.used_networks()


def test_what_ip_refuses_is_quoted() -> None:
    with pytest.raises(StartError, match=r"`ip no-such-object` failed: .*no-such-object(.|\n)*\nRemedy: run"):
        network._ip("no-such-object")


def test_what_a_program_in_a_namespace_says_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "guard", tuple)
    (tmp_path / "nsenter").write_text("#!/bin/sh\necho no >&2; exit 5\n")
    (tmp_path / "nsenter").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(gateway.Failed, match=r"`true` failed in /run/netns/x: no\nRemedy: run") as caught:
        gateway.run(Path("/run/netns/x"), ["true"])
    assert caught.value.code == 5
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(StartError, match=r"`nsenter` failed: .*\nRemedy: install util-linux"):
        gateway.run(Path("/run/netns/x"), ["true"])


def test_a_network_that_fails_halfway_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "NETNS", tmp_path)
    monkeypatch.setattr(network, "_index", lambda _name: 17)
    (tmp_path / "k3ssb-x").touch()
    said: list[tuple[str, ...]] = []

    def refuse_routes(*words: str, batch: Sequence[str] = ()) -> str:
        said.append((*words, *batch))
        if any(line.startswith("route") for line in batch):
            raise StartError("no")
        return ""

    def refuse(*_words: object) -> str:
        raise StartError("this kernel cannot")

    monkeypatch.setattr(gateway, "make", refuse)

    monkeypatch.setattr(network, "_ip", refuse_routes)
    with pytest.raises(StartError):
        network.create(Network("k3ssb-x", "k3sx", "10.213.0.1", "10.213.0.2"))
    assert said[-2:] == [("link", "delete", "k3sx"), ("netns", "delete", "k3ssb-x")]


def test_a_network_verifies_only_by_its_inode_and_is_never_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "NETNS", tmp_path)
    links: dict[str, int] = {}
    monkeypatch.setattr(network, "_index", lambda name: links.get(name, 0))
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(network, "_ip", lambda *words: asked.append(words))
    net = network.named("0123abcd")
    assert network.verified(net) is None  # it does not exist
    file = tmp_path / net.netns
    file.touch()
    links[net.veth] = 17
    right = network.identified(net)
    assert (right.inode, right.index) == (file.stat().st_ino, 17)
    assert network.verified(right) is not None
    assert network.verified(replace(right, inode=right.inode + 1)) is None

    network.remove(replace(right, inode=right.inode + 1, index=18))
    assert asked == []
    network.remove(replace(right, index=18))  # another interface of that name
    assert asked == [("netns", "delete", net.netns)]
    asked.clear()
    network.remove(net)  # a start that was killed before it knew the numbers
    assert asked == [("link", "delete", net.veth), ("netns", "delete", net.netns)]
    file.unlink()
    file.symlink_to("/proc/self/ns/net")
    assert network.verified(replace(right, inode=Path("/proc/self/ns/net").stat().st_ino)) is None


def test_a_name_that_the_machine_has_already_is_not_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "NETNS", tmp_path)
    monkeypatch.setattr(network, "used_networks", set)
    assert network.choose("0123abcd").netns == "k3ssb-0123abcd"
    (tmp_path / "k3ssb-0123abcd").touch()
    with pytest.raises(StartError, match=r"has one of that name already\nRemedy: .*ip netns delete"):
        network.choose("0123abcd")


def test_the_filter_lets_pass_what_the_machine_begins_and_opened_ports() -> None:
    text = gateway.rules("10.213.0.1", "10.213.0.2", (5000, 8080))
    accepted = [line for line in text.splitlines() if line.endswith("ACCEPT")]
    states = "-m conntrack --ctstate NEW,ESTABLISHED,RELATED -j ACCEPT"
    assert ":FORWARD DROP [0:0]" in text
    assert ":INPUT DROP [0:0]" in text
    assert [line for line in accepted if "NEW" in line] == [
        f"-A FORWARD -i m0 -o s0 -s 10.213.0.1/32 -d 10.213.0.2/32 {states}"
    ]
    assert [line for line in accepted if "--dport" in line] == [
        f"-A FORWARD -i s0 -o m0 -s 10.213.0.2/32 -d 10.213.0.1/32 -p tcp --dport {port} -j ACCEPT"
        for port in (5000, 8080)
    ]
    assert len(accepted) == 4


def test_a_slow_machine_is_no_reason_for_a_sandbox_that_reaches_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "NETNS", tmp_path)
    said: list[str] = []

    def slow(*_words: object) -> str:
        raise gateway.TooSlow("`iptables-restore` failed")

    def note(*_words: str, batch: Sequence[str] = ()) -> str:
        said.extend(batch)
        return ""

    monkeypatch.setattr(network, "_ip", note)
    monkeypatch.setattr(gateway, "make", slow)
    with pytest.raises(StartError, match="iptables-restore"):
        network.create(Network("k3ssb-x", "k3sx", "10.213.0.1", "10.213.0.2"))
    assert not any("peer name eth0" in line for line in said)  # the way that leads to the sandbox directly
