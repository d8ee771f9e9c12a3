"""The rules, held against a small interpreter of iptables."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.services import rules
from pytest_k3s_sandbox.layers.services.entries import MOST_ENDPOINTS, Facts
from pytest_k3s_sandbox.layers.services.objects import Endpoint, Service, ServicePort, Slice
from support.nat import Nat, Packet

NODE, GATEWAY, VIP = "10.213.0.2", "10.42.0.1", "10.43.7.7"
FACTS = Facts("here", NODE, GATEWAY)
GVISOR = FACTS._replace(capacity=rules.GVISOR_BYTES, pod_range="10.42.0.0/24")
REFUSED = f"{GATEWAY}:{rules.REFUSING}"
EPHEMERAL = {"linux": (32768, 60999), "gvisor": (16000, 65535)}


def pods(count: int, first: int = 5) -> list[str]:
    return [f"10.42.0.{first + number}" for number in range(count)]


def service(name: str = "web", *, address: str = VIP, protocol: str = "TCP", **other: object) -> Service:
    made = Service(("default", name), address, (ServicePort("http", protocol, 80, 0),))
    return made._replace(**other)  # type: ignore[arg-type]  # each test names fields of Service


def slice_of(
    endpoints: Iterable[Endpoint | str], name: str = "web", *, protocol: str = "TCP", port: int = 8080
) -> Slice:
    each = tuple(Endpoint(one, "here") if isinstance(one, str) else one for one in endpoints)
    return Slice(("default", name), {("http", protocol): port}, each)


def applied(table: rules.Table, nat: Nat | None = None) -> Nat:
    nat = Nat() if nat is None else nat
    nat.restore(rules.restore_text(table, rules.present_in(nat.save())))
    return nat


def nat_of(services: Iterable[Service], slices: Iterable[Slice], facts: Facts = FACTS) -> Nat:
    return applied(rules.table(services, slices, facts))


def to_vip(sport: int = 40000, src: str = "10.42.0.99", proto: str = "tcp") -> Packet:
    return Packet(src, sport, VIP, 80, proto)


@pytest.mark.parametrize("hook", ["PREROUTING", "OUTPUT"])
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@settings(max_examples=40)
@given(
    count=st.integers(1, 70),
    sport=st.integers(1, 65535),
    src=st.integers(0, 255),
    affinity=st.booleans(),
    entries=st.integers(0, 3),
)
def test_a_packet_to_a_service_reaches_one_of_its_endpoints_and_no_other_packet_is_moved(
    hook: str, protocol: str, count: int, sport: int, src: int, *, affinity: bool, entries: int
) -> None:
    one = service(
        protocol=protocol, affinity=affinity, external=tuple(f"192.0.2.{n + 1}" for n in range(entries))
    )
    nat = nat_of([one], [slice_of(pods(count), protocol=protocol)])
    wanted = {f"{pod}:8080" for pod in pods(count)}
    proto, source = protocol.lower(), f"10.42.0.{src}"
    reached = {nat.led_to(Packet(source, sport, at, 80, proto), hook) for at in (VIP, *one.external)}
    assert len(reached) == 1
    assert reached <= wanted
    other = "udp" if proto == "tcp" else "tcp"
    assert nat.led_to(Packet(source, sport, VIP, 80, other), hook) is None
    assert nat.led_to(Packet(source, sport, VIP, 81, proto), hook) is None
    assert nat.led_to(Packet(source, sport, "10.43.7.8", 80, proto), hook) is None
    assert nat.led_to(Packet(source, sport, pods(count)[0], 80, proto), hook) is None


@pytest.mark.parametrize("kernel", EPHEMERAL)
@pytest.mark.parametrize("count", range(1, 11))
def test_clients_ports_are_shared_evenly(kernel: str, count: int) -> None:
    nat = nat_of([service()], [slice_of(pods(count))])
    seen: Counter[str | None] = Counter()
    for sport, following in pairwise(nat.borders(*EPHEMERAL[kernel])):
        seen[nat.led_to(to_vip(sport))] += following - sport
    assert len(seen) == count
    assert max(seen.values()) - min(seen.values()) <= 7  # a port for each band at most


@pytest.mark.parametrize("count", range(1, 11))
def test_chance_is_fair_where_the_kernel_has_it(count: int) -> None:
    nat = nat_of([service()], [slice_of(pods(count))], FACTS._replace(random=True))
    rest = 1.0
    for number, rule in enumerate(nat.chains[rules.SERVICES]):
        last = number == count - 1
        probability = 1.0 if last else float(rule[rule.index("--probability") + 1])
        assert abs(rest * probability - 1 / count) < 1e-6
        rest *= 1 - probability
        throws = iter([1.0] * number + [0.0])
        nat.chance = lambda throws=throws: next(throws)  # type: ignore[misc]  # a default binds it
        assert nat.led_to(to_vip()) == f"{sorted(pods(count))[number]}:8080"
    assert rest == 0.0


@pytest.mark.parametrize("count", [2, 5, 10])
def test_a_run_of_ports_reaches_several_endpoints(count: int) -> None:
    nat = nat_of([service()], [slice_of(pods(count))])
    run = (60999 - 32768) // 4 + 2
    for start in range(32768, 60999 - run, 2500):
        assert len({nat.led_to(to_vip(sport)) for sport in range(start, start + run, 50)}) == count


@settings(max_examples=40)
@given(count=st.integers(2, 12), gone=st.integers(0, 11), data=st.data())
def test_a_client_stays_with_its_endpoint_while_others_come_and_go(
    count: int, gone: int, data: st.DataObject
) -> None:
    all_pods = pods(count)
    removed = all_pods[gone % count]
    left = [pod for pod in all_pods if pod != removed]
    before = nat_of([service(affinity=True)], [slice_of(all_pods)])
    after = nat_of([service(affinity=True)], [slice_of(left)])
    for client in (f"10.42.0.{number}" for number in range(1, 40)):
        sports = data.draw(st.tuples(st.integers(1, 65535), st.integers(1, 65535)))
        first, second = (before.led_to(to_vip(sport, client)) for sport in sports)
        assert first == second
        now = after.led_to(to_vip(sports[0], client))
        assert first in {now, f"{removed}:8080"}
        assert now != f"{removed}:8080"


def test_clients_are_shared_among_endpoints_with_affinity() -> None:
    nat = nat_of([service(affinity=True)], [slice_of(pods(3))])
    seen = Counter(nat.led_to(to_vip(src=f"10.42.0.{number}")) for number in range(1, 255))
    assert len(seen) == 3
    assert min(seen.values()) > 254 / 3 / 4


conditions = st.builds(
    Endpoint,
    st.sampled_from(pods(4)),
    st.sampled_from(["here", "there", ""]),
    ready=st.booleans(),
    serving=st.booleans(),
    terminating=st.booleans(),
)


@given(endpoints=st.lists(conditions, max_size=6), sport=st.integers(1, 65535), local=st.booleans())
def test_ready_endpoints_are_used_else_ending_ones_that_serve_else_none(
    endpoints: list[Endpoint], sport: int, *, local: bool
) -> None:
    one = service(internal_local=local, external=("192.0.2.1",))
    nat = nat_of([one], [slice_of(endpoints)])
    for address, only_here in ((VIP, local), ("192.0.2.1", False)):
        usable = [each for each in endpoints if each.node == "here" or not only_here]
        ready = {f"{each.address}:8080" for each in usable if each.ready}
        ending = {f"{each.address}:8080" for each in usable if each.serving and each.terminating}
        assert nat.led_to(Packet("10.42.0.9", sport, address, 80)) in (ready or ending or {REFUSED})


def test_several_slices_are_one_by_the_ports_name() -> None:
    ports = (ServicePort("a", "TCP", 80, 0), ServicePort("b", "TCP", 81, 0))
    slices = [
        Slice(("default", "web"), {("a", "TCP"): 1000, ("b", "TCP"): 2000}, (Endpoint("10.42.0.5"),)),
        Slice(("default", "web"), {("b", "TCP"): 2001, ("c", "TCP"): 3}, (Endpoint("10.42.0.6"),)),
        Slice(("other", "web"), {("a", "TCP"): 4}, (Endpoint("10.42.0.7"),)),
    ]
    nat = nat_of([service(ports=ports)], slices)
    assert {nat.led_to(to_vip(sport)) for sport in range(16000, 65535, 999)} == {"10.42.0.5:1000"}
    seen = {nat.led_to(to_vip(sport)._replace(dport=81)) for sport in range(16000, 65535, 999)}
    assert seen == {"10.42.0.5:2000", "10.42.0.6:2001"}


def test_a_node_port_is_at_the_nodes_addresses_alone() -> None:
    one = service(ports=(ServicePort("http", "TCP", 80, 30080),))
    nat = nat_of([one], [slice_of(pods(1))])
    for address in (NODE, GATEWAY):
        assert nat.led_to(Packet("10.42.0.9", 40000, address, 30080)) == "10.42.0.5:8080"
        assert nat.led_to(Packet("10.42.0.9", 40000, address, 80)) is None
    assert nat.led_to(Packet("10.42.0.9", 40000, VIP, 30080)) is None
    assert nat.led_to(Packet("10.42.0.9", 40000, "10.42.0.5", 30080)) is None


def test_local_traffic_policies_hold_for_their_addresses() -> None:
    away, here = Endpoint("10.42.0.5", "there"), Endpoint("10.42.0.6", "here")
    ports = (ServicePort("http", "TCP", 80, 30080),)
    one = service(ports=ports, external=("192.0.2.1",), external_local=True)
    nat = nat_of([one], [slice_of([away, here])])
    for address, port in ((NODE, 30080), ("192.0.2.1", 80)):
        seen = {nat.led_to(Packet("10.42.0.9", sport, address, port)) for sport in range(16000, 65535, 999)}
        assert seen == {"10.42.0.6:8080"}
    seen = {nat.led_to(to_vip(sport)) for sport in range(16000, 65535, 999)}
    assert seen == {"10.42.0.5:8080", "10.42.0.6:8080"}
    nat = nat_of([one], [slice_of([away])])
    assert nat.led_to(Packet("10.42.0.9", 40000, NODE, 30080)) == REFUSED
    assert nat.led_to(Packet("10.42.0.9", 40000, "192.0.2.1", 80)) == REFUSED


def test_an_endpoint_at_the_node_is_led_to_the_gateway() -> None:
    nat = nat_of([service()], [slice_of([Endpoint(NODE)], port=6443)])
    assert nat.led_to(to_vip()) == f"{GATEWAY}:6443"
    assert nat.seen_as(Packet(GATEWAY, 40000, GATEWAY, 6443)) is None


@given(first=st.sampled_from(pods(3)), second=st.sampled_from(pods(3)))
def test_an_endpoint_that_reaches_itself_sees_the_gateway(first: str, second: str) -> None:
    nat = nat_of([service()], [slice_of(pods(3))])
    assert nat.seen_as(Packet(first, 40000, second, 8080)) == (GATEWAY if first == second else None)
    assert nat.seen_as(Packet(first, 40000, second, 8080, "udp")) is None


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize("count", [1, 16, 17, 60])
def test_no_other_connection_sees_the_gateway_however_many_endpoints_there_are(
    count: int, protocol: str
) -> None:
    nat = nat_of([service(protocol=protocol)], [slice_of(pods(count), protocol=protocol)], GVISOR)
    proto = protocol.lower()
    for first in (*pods(count), "10.42.0.250", "10.213.0.1", "10.1.0.5"):
        for second in (*pods(count), "10.42.1.5", "10.1.0.5"):
            seen = nat.seen_as(Packet(first, 40000, second, 8080, proto))
            assert seen == (GATEWAY if first == second and first in pods(count) else None)
    assert nat.seen_as(Packet(GATEWAY, 40000, GATEWAY, 8080, proto)) is None
    assert (
        nat.seen_as(Packet(pods(1)[0], 40000, pods(1)[0], 8080, "udp" if proto == "tcp" else "tcp")) is None
    )
    assert len(nat.chains[rules.HAIRPIN]) <= 18


def test_an_endpoint_beyond_the_pods_range_reaches_itself_too() -> None:
    addresses = [*pods(40), "10.42.1.9"]
    nat = nat_of([service()], [slice_of(addresses)], GVISOR)
    assert {nat.seen_as(Packet(each, 40000, each, 8080)) for each in addresses} == {GATEWAY}


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_pods_are_led_from_the_nodes_address_to_the_gateway_in_gvisor(proto: str) -> None:
    one = service(ports=(ServicePort("http", "TCP", 80, 30080),))
    nat = nat_of([one], [slice_of(pods(1))], GVISOR)
    assert nat.led_to(Packet("10.42.0.9", 40000, NODE, 10250, proto)) == GATEWAY
    assert nat.led_to(Packet("10.42.0.9", 40000, NODE, 30080)) == "10.42.0.5:8080"
    assert nat.led_to(Packet("10.213.0.1", 40000, NODE, 10250, proto)) is None
    assert nat_of([one], []).led_to(Packet("10.42.0.9", 40000, NODE, 10250, proto)) is None


def test_an_address_of_two_services_is_the_first_ones() -> None:
    both = [service("a", address="10.43.0.9", external=(VIP,)), service("b")]
    slices = [slice_of(pods(1), "a"), slice_of(pods(1, 77), "b")]
    assert nat_of(both, slices).led_to(to_vip()) == "10.42.0.5:8080"


def many(count: int, each: int, *, affinity: bool = False) -> tuple[list[Service], list[Slice]]:
    services = [
        service(
            f"s{number:03}",
            address=f"10.43.{number // 200 + 1}.{number % 200 + 1}",
            affinity=affinity,
            ports=(ServicePort("http", "TCP", 80, 30000 + number if number % 3 == 0 else 0),),
        )
        for number in range(count)
    ]
    return services, [slice_of(pods(each), one.key[1]) for one in services]


@given(count=st.integers(0, 30), each=st.integers(0, 12), affinity=st.booleans(), seed=st.integers())
@settings(max_examples=30)
def test_the_same_objects_give_the_same_text(count: int, each: int, seed: int, *, affinity: bool) -> None:
    services, slices = many(count, each, affinity=affinity)
    table = rules.table(services, slices, GVISOR)
    shuffled = random.Random(seed)  # noqa: S311  # an order of a test, and no secret
    shuffled.shuffle(services)
    shuffled.shuffle(slices)
    assert rules.table(services, slices, GVISOR) == table


@given(count=st.integers(0, 200), each=st.integers(0, 70), affinity=st.booleans())
@settings(max_examples=15)
def test_the_table_has_room_in_gvisor(count: int, each: int, *, affinity: bool) -> None:
    services, slices = many(count, each, affinity=affinity)
    table = rules.table(services, slices, GVISOR)
    assert table.size <= rules.GVISOR_BYTES - 2048
    assert len(table.left_out) + table.ports >= (count if each else 0)
    nat = applied(table)
    for one in services:
        led = nat.led_to(Packet("10.42.0.250", 40000, one.address, 80))
        if f"default/{one.key[1]}:http/TCP" in table.left_out:
            assert led is None
        elif each:
            assert led in {f"{pod}:8080" for pod in pods(each)}
        else:
            assert led in {REFUSED, None}


def test_few_services_keep_all_their_endpoints_in_gvisor() -> None:
    services, slices = many(20, 3)
    table = rules.table(services, slices, GVISOR)
    assert (table.limit, table.left_out, table.ports) == (MOST_ENDPOINTS, (), 20)
    table = rules.table(*many(80, 3), GVISOR)
    assert (table.limit, table.left_out, table.ports) == (1, (), 80)


@pytest.mark.parametrize("count", [1, 8, 64, 70])
@pytest.mark.parametrize("affinity", [False, True])
def test_a_port_has_few_rules(count: int, *, affinity: bool) -> None:
    table = rules.table([service(affinity=affinity)], [slice_of(pods(count))], FACTS)
    assert sum("DNAT" in line for line in table.lines) <= (rules.SLOTS if affinity else MOST_ENDPOINTS)


@given(counts=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=4))
@settings(max_examples=20)
def test_tables_replace_each_other_and_leave_others_rules(counts: list[tuple[int, int]]) -> None:
    nat = Nat()
    nat.restore("*nat\n:OTHER - [0:0]\n-A POSTROUTING -s 10.42.0.0/24 -j OTHER\nCOMMIT")
    before = nat.save()
    for count, each in counts:
        table = rules.table(*many(count, each), FACTS)
        for _ in range(2):  # a second time changes nothing
            applied(table, nat)
            fresh = applied(table)
            ours = {chain: lines for chain, lines in nat.chains.items() if chain.startswith(rules.PREFIX)}
            assert ours == {chain: fresh.chains[chain] for chain in ours}
            assert set(rules.present_in(nat.save()).jumps) == set(rules.JUMPS)
        assert rules.present_in(nat.save()) == rules.written(table)
    nat.restore(rules.removal_text(rules.present_in(nat.save())))
    assert nat.save() == before
    nat.restore(rules.removal_text(rules.present_in(nat.save())))
    assert nat.save() == before


def test_what_iptables_saves_is_understood() -> None:
    saved = """\
# Generated by iptables-save v1.8.9 on Sat Nov 28 09:30:31 2026
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:K3SSB-SERVICES - [0:0]
:K3SSB-0011223344556677 - [12:720]
:OTHER - [0:0]
-A PREROUTING -j K3SSB-SERVICES
-A PREROUTING -s 10.0.0.0/8 -j K3SSB-SERVICES
-A POSTROUTING -j OTHER
-A K3SSB-SERVICES -d 10.43.7.8/32 -p tcp -m tcp --dport 80 -m multiport [unsupported revision] -j DNAT
COMMIT
"""
    assert rules.present_in(saved) == rules.Present(
        frozenset({"K3SSB-SERVICES", "K3SSB-0011223344556677"}),
        frozenset({("PREROUTING", "K3SSB-SERVICES")}),
    )
