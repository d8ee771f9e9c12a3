"""The parts of Services and EndpointSlices that rules are made of.

Fields: the API reference of ``core/v1`` Service and ``discovery.k8s.io/v1`` EndpointSlice.
Everything here comes from users of the API, so that each value has a bound and a form.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

MOST_PORTS: Final = 100
"""Ports of a Service or slice; the API allows a slice as many (EndpointSlice's field ``ports``)."""

MOST_ENDPOINTS: Final = 1000
"""Endpoints of a slice; the API allows as many (EndpointSlice's field ``endpoints``)."""

MOST_ADDRESSES: Final = 64
"""External addresses of a Service that are looked at; more are refused."""

PROTOCOLS: Final = ("TCP", "UDP")
_LAST_PORT: Final = 65535
_NAME: Final = 253  # the longest name (RFC 1123 subdomain)
_SERVICE_LABEL: Final = "kubernetes.io/service-name"
_T = TypeVar("_T")


class Unusable(Exception):
    """An object that no rules are made of; its text is the reason, from a fixed set."""


class ServicePort(NamedTuple):
    """A port of a Service.

    Attributes:
        name: The name by which slices know it; empty for an only port.
        protocol: ``TCP`` or ``UDP``.
        port: The port at the Service's addresses.
        node_port: The port at the node's addresses, or 0.
    """

    name: str
    protocol: str
    port: int
    node_port: int


class Service(NamedTuple):
    """A Service with an address.

    Attributes:
        key: Namespace and name.
        address: Its cluster address.
        ports: Its ports with a protocol of ours.
        external: Its external addresses, and those of its load balancer.
        affinity: Whether a client stays with an endpoint (``sessionAffinity: ClientIP``).
        internal_local: Whether only endpoints of the client's node serve the cluster address.
        external_local: Whether only endpoints of the node serve the other addresses.
    """

    key: tuple[str, str]
    address: str
    ports: tuple[ServicePort, ...]
    external: tuple[str, ...] = ()
    affinity: bool = False
    internal_local: bool = False
    external_local: bool = False


class Endpoint(NamedTuple):
    """An endpoint of a slice.

    Attributes:
        address: Its IPv4 address.
        node: The name of its node; empty if it has none.
        ready: Whether it takes new connections.
        serving: Whether it answers, even while it ends.
        terminating: Whether it ends.
    """

    address: str
    node: str = ""
    ready: bool = True
    serving: bool = True
    terminating: bool = False


class Slice(NamedTuple):
    """A slice of a Service's endpoints.

    Attributes:
        service: Namespace and name of the Service.
        ports: The ports of every endpoint, by name and protocol.
        endpoints: The endpoints.
    """

    service: tuple[str, str]
    ports: dict[tuple[str, str], int]
    endpoints: tuple[Endpoint, ...]


def key_of(thing: Any) -> tuple[str, str]:  # noqa: ANN401  # it is parsed JSON
    """Return the namespace and the name of an object.

    Args:
        thing: The parsed JSON.

    Raises:
        Unusable: It has none.
    """
    metadata = _table(_table(thing).get("metadata"))
    return _name(metadata.get("namespace")), _name(metadata.get("name"))


def service_of(thing: Any) -> Service | None:  # noqa: ANN401  # it is parsed JSON
    """Return a Service, or None for one without rules: headless, of type ExternalName, or of IPv6 alone.

    Args:
        thing: The parsed JSON.

    Raises:
        Unusable: It has not the form that the API gives it.
    """
    key = key_of(thing)
    spec = _table(thing.get("spec"))
    if spec.get("type") == "ExternalName":
        return None
    addresses = _listed(spec.get("clusterIPs"), _text, MOST_ADDRESSES) or (_text(spec.get("clusterIP", "")),)
    usable = [address for address in addresses if _is_ipv4(address)]
    if not usable:
        if any(address not in {"", "None"} and ":" not in address for address in addresses):
            raise Unusable("address")
        return None
    status = _table(_table(thing.get("status")).get("loadBalancer"))
    ingress = [_text(_table(each).get("ip", "")) for each in _list(status.get("ingress"), MOST_ADDRESSES)]
    external = [*_listed(spec.get("externalIPs"), _text, MOST_ADDRESSES), *ingress]
    return Service(
        key,
        _address(usable[0]),
        tuple(filter(None, _listed(spec.get("ports"), _service_port, MOST_PORTS))),
        tuple(sorted({_address(each) for each in external if _is_ipv4(each)})),
        affinity=spec.get("sessionAffinity") == "ClientIP",
        internal_local=spec.get("internalTrafficPolicy") == "Local",
        external_local=spec.get("externalTrafficPolicy") == "Local",
    )


def slice_of(thing: Any) -> Slice | None:  # noqa: ANN401  # it is parsed JSON
    """Return a slice, or None for one without rules: of another family, or of no Service.

    Args:
        thing: The parsed JSON.

    Raises:
        Unusable: It has not the form that the API gives it.
    """
    namespace, _ = key_of(thing)
    service = _table(_table(thing["metadata"]).get("labels")).get(_SERVICE_LABEL)
    if service is None or thing.get("addressType") != "IPv4":
        return None
    ports = filter(None, _listed(thing.get("ports"), _slice_port, MOST_PORTS))
    return Slice(
        (namespace, _name(service)),
        {(name, protocol): port for name, protocol, port in ports},
        _listed(thing.get("endpoints"), _endpoint, MOST_ENDPOINTS),
    )


def _service_port(thing: Any) -> ServicePort | None:  # noqa: ANN401  # it is parsed JSON
    port = _table(thing)
    protocol = port.get("protocol", "TCP")
    if protocol not in PROTOCOLS:
        return None
    number = port.get("nodePort")
    return ServicePort(
        _label(port.get("name")),
        protocol,
        _port(port.get("port")),
        0 if number in {None, 0} else _port(number),
    )


def _slice_port(thing: Any) -> tuple[str, str, int] | None:  # noqa: ANN401  # it is parsed JSON
    port = _table(thing)
    protocol = port.get("protocol", "TCP")
    if protocol not in PROTOCOLS or port.get("port") is None:
        return None
    return _label(port.get("name")), protocol, _port(port["port"])


def _endpoint(thing: Any) -> Endpoint:  # noqa: ANN401  # it is parsed JSON
    endpoint = _table(thing)
    # "consumers should always use the first element" (EndpointSlice's field ``endpoints.addresses``).
    addresses = _listed(endpoint.get("addresses"), _address, MOST_ADDRESSES)
    if not addresses:
        raise Unusable("endpoint without address")
    conditions = _table(endpoint.get("conditions"))
    # An unset condition counts as true, terminating as false (EndpointConditions).
    return Endpoint(
        addresses[0],
        _label(endpoint.get("nodeName")),
        ready=conditions.get("ready") is not False,
        serving=conditions.get("serving") is not False,
        terminating=conditions.get("terminating") is True,
    )


def _table(thing: Any) -> dict[str, Any]:  # noqa: ANN401  # it is parsed JSON
    if thing is None:
        return {}
    if not isinstance(thing, dict):
        raise Unusable("not an object")
    return thing


def _list(thing: Any, most: int) -> list[Any]:  # noqa: ANN401  # it is parsed JSON
    if thing is None:
        return []
    if not isinstance(thing, list):
        raise Unusable("not a list")
    if len(thing) > most:
        raise Unusable("too many")
    return thing


def _listed(thing: Any, parse: Callable[[Any], _T], most: int) -> tuple[_T, ...]:  # noqa: ANN401  # see above
    return tuple(parse(each) for each in _list(thing, most))


def _text(thing: Any) -> str:  # noqa: ANN401  # it is parsed JSON
    if thing is None:
        return ""
    if not isinstance(thing, str) or len(thing) > _NAME:
        raise Unusable("text")
    return thing


def _label(thing: Any) -> str:  # noqa: ANN401  # it is parsed JSON
    return _text(thing)


def _name(thing: Any) -> str:  # noqa: ANN401  # it is parsed JSON
    text = _text(thing)
    if not text:
        raise Unusable("name")
    return text


def _port(thing: Any) -> int:  # noqa: ANN401  # it is parsed JSON
    if type(thing) is not int or not 0 < thing <= _LAST_PORT:
        raise Unusable("port")
    return thing


def _is_ipv4(text: str) -> bool:
    try:
        return len(socket.inet_pton(socket.AF_INET, text)) > 0
    except (OSError, ValueError):
        return False


def _address(thing: Any) -> str:  # noqa: ANN401  # it is parsed JSON
    """Return an IPv4 address in its usual form; none of this host, of several hosts, or of a link."""
    text = _text(thing)
    if not _is_ipv4(text):
        raise Unusable("address")
    packed = socket.inet_pton(socket.AF_INET, text)
    first = packed[0]
    # What ValidateNonSpecialIP refuses (kubernetes/pkg/apis/core/validation).
    if first in {0, 127} or first >= 224 or packed[:2] == b"\xa9\xfe":  # noqa: PLR2004  # classes of RFC 1112
        raise Unusable("special address")
    return socket.inet_ntop(socket.AF_INET, packed)
