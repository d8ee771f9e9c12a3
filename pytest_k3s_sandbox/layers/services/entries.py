"""What the ports of services lead to: pure functions from Services and slices to endpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from pytest_k3s_sandbox.layers.services.objects import Endpoint, Service, ServicePort, Slice

MOST_ENDPOINTS: Final = 64
"""The endpoints of a port that connections are shared among."""


class Facts(NamedTuple):
    """What the rules need to know of the node.

    Attributes:
        node: Its name.
        address: Its IPv4 address.
        gateway: The pods' gateway, an address of the node, too.
        capacity: The bytes that the table may have; None for any number.
        pod_range: The pods' addresses, where the kernel does not answer them at the node's address, as gVisor
            does not: what they send there is led to the gateway. Empty elsewhere.
        random: Whether the kernel has the match ``statistic``, which gVisor has not.
    """

    node: str
    address: str
    gateway: str
    capacity: int | None = None
    pod_range: str = ""
    random: bool = False


class Entry(NamedTuple):
    """Addresses that lead to the same endpoints.

    Attributes:
        name: The port's name, for people.
        protocol: ``tcp`` or ``udp``.
        at: The addresses and ports; without an address, those of the node.
        backends: The endpoints' addresses and ports.
        affinity: Whether a client stays with an endpoint.
    """

    name: str
    protocol: str
    at: tuple[tuple[str, int], ...]
    backends: tuple[str, ...]
    affinity: bool


def entries_of(services: Iterable[Service], slices: Iterable[Slice], facts: Facts) -> Iterator[Entry]:
    """Yield what each port of each service leads to, what a cluster needs first.

    Args:
        services: The services.
        slices: The slices of their endpoints; those of other services are ignored.
        facts: The node.
    """
    of: dict[tuple[str, str], list[Slice]] = {}
    for each in slices:
        of.setdefault(each.service, []).append(each)
    claimed: set[tuple[str, str, int]] = set()
    for service in sorted(services, key=lambda service: (_rank(service.key), service.key)):
        for port in sorted(service.ports):
            for entry in _of_port(service, port, _endpoints(of.get(service.key, ()), port), facts):
                at = tuple(place for place in entry.at if (entry.protocol, *place) not in claimed)
                claimed |= {(entry.protocol, *place) for place in at}
                if at:
                    yield entry._replace(at=at)


def _rank(key: tuple[str, str]) -> int:
    return 0 if key == ("default", "kubernetes") else 1 if key[0] == "kube-system" else 2


def _endpoints(slices: Iterable[Slice], port: ServicePort) -> Mapping[str, list[Endpoint]]:
    """Return the endpoints of a port from all slices, by what connections are led to."""
    found: dict[str, list[Endpoint]] = {}
    for each in slices:
        number = each.ports.get((port.name, port.protocol))
        if number is not None:
            for endpoint in each.endpoints:
                found.setdefault(f"{endpoint.address}:{number}", []).append(endpoint)
    return found


def _of_port(
    service: Service, port: ServicePort, endpoints: Mapping[str, list[Endpoint]], facts: Facts
) -> Iterator[Entry]:
    name = f"{service.key[0]}/{service.key[1]}:{port.name or port.port}/{port.protocol}"
    inside = _backends(endpoints, facts, local=service.internal_local)
    outside = _backends(endpoints, facts, local=service.external_local)
    at = [(service.address, port.port)]
    other = [(address, port.port) for address in service.external if address != service.address]
    other += [("", port.node_port)] if port.node_port else []
    protocol = port.protocol.lower()
    if inside == outside:
        yield Entry(name, protocol, (*at, *other), inside, service.affinity)
        return
    yield Entry(name, protocol, tuple(at), inside, service.affinity)
    if other:
        yield Entry(name, protocol, tuple(other), outside, service.affinity)


def _backends(endpoints: Mapping[str, list[Endpoint]], facts: Facts, *, local: bool) -> tuple[str, ...]:
    """Return the endpoints to use: the ready ones, else those that still serve (KEP-1669)."""
    here = {
        target: [each for each in found if not local or each.node == facts.node]
        for target, found in endpoints.items()
    }
    ready = {target for target, found in here.items() if any(each.ready for each in found)}
    ending = {
        target for target, found in here.items() if any(each.serving and each.terminating for each in found)
    }
    # In gVisor a pod's connection that is led to the node's own address gets no answer.
    moved = {
        f"{facts.gateway}:{target.rpartition(':')[2]}" if target.startswith(f"{facts.address}:") else target
        for target in ready or ending
    }
    return tuple(sorted(moved)[:MOST_ENDPOINTS])
