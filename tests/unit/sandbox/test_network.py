"""Choosing networks; creating them is tested with the sandboxes."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.errors import MissingCapability, StartError
from pytest_k3s_sandbox.sandbox import network
from pytest_k3s_sandbox.sandbox.network import POOL, Network, free_subnet

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


def test_a_full_pool_is_an_error_with_a_remedy() -> None:
    with pytest.raises(
        StartError, match=r"no free network in 10\.213\.0\.0/16.*\nRemedy: end other sandboxes"
    ):
        free_subnet({POOL})


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
    monkeypatch.setattr(network, "_ip", lambda *_words: json.dumps(links))
    assert network.used_networks() == {
        IPv4Network("127.0.0.0/8"),
        IPv4Network("10.213.0.0/30"),
        IPv4Network("10.213.0.9/32"),
    }
    chosen = network.choose("0123abcd")
    assert (chosen.gateway, chosen.address) == ("10.213.0.5", "10.213.0.6")


def test_without_ip_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingCapability, match=r"no `ip` program\nRemedy: .*iproute2"):
        network.used_networks()


def test_what_ip_refuses_is_quoted() -> None:
    with pytest.raises(StartError, match=r"`ip no-such-object` failed: .*no-such-object"):
        network._ip("no-such-object")


def test_a_network_that_fails_halfway_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "NETNS", tmp_path)
    monkeypatch.setattr(network, "_index", lambda _name: 17)
    (tmp_path / "k3ssb-x").touch()
    said: list[tuple[str, ...]] = []

    def refuse_routes(*words: str) -> str:
        said.append(words)
        if "route" in words:
            raise StartError("no")
        return ""

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
    assert network.verified(net) is None  # there is none
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
    with pytest.raises(StartError, match="has one of that name already"):
        network.choose("0123abcd")
