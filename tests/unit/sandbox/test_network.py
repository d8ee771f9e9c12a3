"""Choosing networks; creating them is tested with the sandboxes."""

from __future__ import annotations

import json
from ipaddress import IPv4Network

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


def test_a_network_that_fails_halfway_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("answer", ["gone", "", "ours"])
def test_ending_processes_of_a_network_ends_when_there_is_nothing_to_kill(
    answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os  # noqa: PLC0415 - what the test watches

    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _signal: killed.append(pid))

    def pids(*_words: str) -> str:
        if answer == "gone":
            raise StartError("Cannot open network namespace")
        return f"{os.getpid()}\n1\n" if answer == "ours" else ""

    monkeypatch.setattr(network, "_ip", pids)
    network.end_processes(network.named("0123abcd"))
    assert killed == []  # least of all when the answer names ourselves
