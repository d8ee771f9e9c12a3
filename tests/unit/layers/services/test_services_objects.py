"""Objects of the API: what is taken from them, and that none of any form does harm."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.services import objects, rules
from pytest_k3s_sandbox.layers.services.entries import Facts
from pytest_k3s_sandbox.layers.services.objects import Endpoint, Service, ServicePort, Unusable
from support.stub_api import endpoint_slice, service

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars | st.sampled_from(["TCP", "UDP", "10.43.0.9", "None", "Local", "ClientIP", 80, 65536]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)


def test_a_service_has_what_its_fields_say() -> None:
    thing = service(
        "web",
        externalIPs=["192.0.2.9"],
        sessionAffinity="ClientIP",
        internalTrafficPolicy="Local",
        externalTrafficPolicy="Local",
        ports=[
            {"name": "a", "port": 80, "nodePort": 30080, "targetPort": "http"},
            {"name": "b", "protocol": "UDP", "port": 53},
            {"name": "c", "protocol": "SCTP", "port": 54},
        ],
    )
    thing["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "a.example"}]}}
    assert objects.service_of(thing) == Service(
        ("default", "web"),
        "10.43.7.7",
        (ServicePort("a", "TCP", 80, 30080), ServicePort("b", "UDP", 53, 0)),
        ("192.0.2.1", "192.0.2.9"),
        affinity=True,
        internal_local=True,
        external_local=True,
    )


@pytest.mark.parametrize(
    "spec",
    [
        {"clusterIP": "None", "clusterIPs": ["None"]},
        {"type": "ExternalName", "externalName": "a.example"},
        {"clusterIP": "", "clusterIPs": []},
        {"clusterIP": "fd00::7", "clusterIPs": ["fd00::7"]},
    ],
)
def test_a_service_without_an_address_of_ours_has_no_rules(spec: dict[str, Any]) -> None:
    assert objects.service_of(service(**spec)) is None


def test_a_service_of_both_families_has_its_ipv4_address() -> None:
    found = objects.service_of(service(clusterIP="fd00::7", clusterIPs=["fd00::7", "10.43.0.9"]))
    assert found is not None
    assert found.address == "10.43.0.9"


def test_a_slice_has_what_its_fields_say() -> None:
    thing = endpoint_slice("10.42.0.5")
    thing["endpoints"] = [
        {"addresses": ["10.42.0.5", "10.42.0.99"], "nodeName": "here", "conditions": {}},
        {"addresses": ["10.42.0.6"], "conditions": {"ready": False, "serving": True, "terminating": True}},
        {"addresses": ["10.42.0.7"], "conditions": {"ready": False, "serving": None}},
        {"addresses": ["10.42.0.8"]},
    ]
    thing["ports"] += [
        {"name": None, "port": 9},
        {"name": "any", "port": None},
        {"protocol": "SCTP", "port": 1},
    ]
    found = objects.slice_of(thing)
    assert found is not None
    assert found.service == ("default", "web")
    assert found.ports == {("http", "TCP"): 8080, ("", "TCP"): 9}
    assert found.endpoints == (
        Endpoint("10.42.0.5", "here"),
        Endpoint("10.42.0.6", ready=False, terminating=True),
        Endpoint("10.42.0.7", ready=False),
        Endpoint("10.42.0.8"),
    )


def test_a_slice_of_another_family_or_of_no_service_has_no_rules() -> None:
    assert objects.slice_of(endpoint_slice(addressType="IPv6")) is None
    assert objects.slice_of(endpoint_slice(addressType="FQDN")) is None
    thing = endpoint_slice("10.42.0.5")
    thing["metadata"]["labels"] = {}
    assert objects.slice_of(thing) is None


@pytest.mark.parametrize(
    ("thing", "reason"),
    [
        (service(ports=[{"port": 0}]), "port"),
        (service(ports=[{"port": 65536}]), "port"),
        (service(ports=[{"port": "80"}]), "port"),
        (service(ports=[{"port": True}]), "port"),
        (service(ports=[{"port": 80, "nodePort": -1}]), "port"),
        (service(ports=[{"port": 80}] * 101), "too many"),
        (service(ports={"port": 80}), "not a list"),
        (service(ports=[80]), "not an object"),
        (service(address="10.43.0.9 -j ACCEPT"), "address"),
        (service(address="10.43.9"), "address"),
        (service(address="127.0.0.1"), "special address"),
        (service(externalIPs=["0.0.0.0"]), "special address"),  # noqa: S104  # nothing is bound to it
        (service(externalIPs=["224.0.0.1"]), "special address"),
        (service(externalIPs=["169.254.169.254"]), "special address"),
        (service(externalIPs=["192.0.2.1"] * 65), "too many"),
        (service("x" * 254), "text"),
        ({"metadata": {"namespace": "default"}}, "name"),
        ({"metadata": {"namespace": 7, "name": "web"}}, "text"),
        ([], "not an object"),
    ],
)
def test_a_service_of_another_form_has_a_reason(thing: object, reason: str) -> None:
    with pytest.raises(Unusable, match=f"^{reason}$"):
        objects.service_of(thing)


@pytest.mark.parametrize(
    ("thing", "reason"),
    [
        (endpoint_slice("10.42.0.5\n-A"), "address"),
        (endpoint_slice("127.0.0.1"), "special address"),
        (endpoint_slice(endpoints=[{"addresses": []}]), "endpoint without address"),
        (endpoint_slice(endpoints=[{"addresses": ["10.42.0.5"]}] * 1001), "too many"),
        (endpoint_slice(endpoints=[{"addresses": ["10.42.0.5"], "conditions": []}]), "not an object"),
        (endpoint_slice(ports=[{"port": 1e9}]), "port"),
    ],
)
def test_a_slice_of_another_form_has_a_reason(thing: object, reason: str) -> None:
    with pytest.raises(Unusable, match=f"^{reason}$"):
        objects.slice_of(thing)


@given(
    field=st.sampled_from(["metadata", "spec", "status", "ports", "endpoints", "addressType"]), value=values
)
def test_nothing_else_is_ever_raised(field: str, value: object) -> None:
    for parse, thing in ((objects.service_of, service()), (objects.slice_of, endpoint_slice("10.42.0.5"))):
        for changed in ({**thing, field: value}, value):
            with contextlib.suppress(Unusable):
                parse(changed)


@given(spec=st.dictionaries(st.sampled_from([*service()["spec"], "externalIPs"]), values), ports=values)
def test_whatever_is_taken_makes_rules_of_a_known_form(spec: dict[str, Any], ports: object) -> None:
    try:
        one = objects.service_of(service(**spec))
        each = objects.slice_of(endpoint_slice("10.42.0.5", ports=ports))
    except Unusable:
        return
    table = rules.table(
        [one] if one else [], [each] if each else [], Facts("here", "10.213.0.2", "10.42.0.1")
    )
    for line in table.lines:
        assert set(line) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-./:, ")
