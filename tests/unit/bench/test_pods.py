"""What is made of the crowds that were measured."""

from __future__ import annotations

import json

import pytest

from pytest_k3s_sandbox.bench.pods_figures import PODS, Crowd, records, summary, table
from pytest_k3s_sandbox.bench.spending import UNATTRIBUTED, Spent
from pytest_k3s_sandbox.report.records import Measurement, Verdict


def spent(seconds: float, inside: float | None = None) -> Spent:
    total = seconds if inside is None else inside
    return Spent(seconds, inside, {"kubelet": total / 2, "ended children of containerd-shim": total / 4})


CROWDS = [
    Crowd("gvisor", "crun", 40.0, 70.0, left=("process containerd-shim",), singles=(1.0, 1.2, 1.4)),
    Crowd("gvisor", "runc", 80.0, 50.0, spent=spent(60.0, 90.0), singles=(3.0,)),
    Crowd("host", "runc", 10.0, 5.0, spent=spent(6.0), whole=spent(9.0), singles=(0.8, 1.2)),
    Crowd("gvisor", "crun", failure="it did not start"),
    Crowd("gvisor", "runc", 80.0, 50.0, spent=spent(60.0, 120.0), singles=(3.0,)),
    Crowd("host", "runc", 30.0, 15.0, spent=spent(6.0), whole=spent(9.0), singles=(1.0,)),
]
NOTHING = [Crowd("gvisor", "crun", failure="no"), Crowd("host", "runc", 1.0, 1.0)]


def test_medians_failures_and_ratios() -> None:
    result = summary(CROWDS)
    ours, native = result["gvisor-crun"], result["host-runc"]
    assert (ours["n"], ours["failures"], ours["left"]) == (2, 1, 1)
    assert (ours["ready"], ours["gone"], ours["single"], ours["price"]) == (40.0, 70.0, 1.2, None)
    assert (native["ready"], native["gone"], native["single"]) == (20.0, 10.0, 1.0)
    assert native["price"] == pytest.approx(6.0 / PODS)
    assert native["whole_price"] == pytest.approx(9.0 / PODS)
    assert result["ratios"]["gvisor-crun"] == {"ready": 2.0, "gone": 7.0, "single": 1.2, "price": None}
    assert result["ratios"]["gvisor-runc"] == {
        "ready": 4.0,
        "gone": 5.0,
        "single": 3.0,
        "price": pytest.approx(10.0),
    }
    assert json.loads(json.dumps(result))["host-runc"] == native


def test_the_price_of_a_pod_by_layer_and_program() -> None:
    mine = summary(CROWDS)["gvisor-runc"]
    shown = {name: seconds * PODS for name, seconds in mine["layers"].items() if seconds}
    assert shown == pytest.approx({"kubelet": 30.0, "OCI runtime": 15.0, UNATTRIBUTED: 15.0})
    assert list(mine["programs"]) == ["kubelet", "ended children of containerd-shim"]
    assert mine["programs"]["kubelet"] * PODS == pytest.approx(30.0)


def test_targets_are_verdicts() -> None:
    held = {one.name: one.held for one in records(CROWDS, summary(CROWDS)) if isinstance(one, Verdict)}
    assert held == {
        "pods-ready": True,
        "pods-gone": False,
        "pods-ratio": True,
        "pods-gone-ratio": False,
        "pods-single-ratio": False,
        "pods-price": False,
    }


def test_crun_is_compared_with_runc() -> None:
    crowds = [
        Crowd("gvisor", "crun", 2.0, 2.0, spent=spent(20.0, 30.0)),
        Crowd("gvisor", "runc", 2.0, 2.0, spent=spent(50.0, 80.0)),
    ]
    result = summary(crowds)
    assert result["price_to_runc"] == pytest.approx(0.4)
    assert {one.name for one in records(crowds, result) if isinstance(one, Verdict) and one.held} == {
        "pods-ready",
        "pods-gone",
        "pods-price",
    }
    assert "core-s with crun to runc, in gVisor: 0.40" in table(result)


def test_measurements_have_every_session() -> None:
    found = {one.name: one for one in records(CROWDS, summary(CROWDS)) if isinstance(one, Measurement)}
    assert found["pods-ready-host-runc"].values == (10.0, 30.0)
    assert found["pods-single-gvisor-runc"].values == (3.0, 3.0)
    assert "pods-price-gvisor-crun" not in found


def test_what_was_never_measured_does_not_hold() -> None:
    result = summary(NOTHING)
    assert result["ratios"]["gvisor-crun"]["ready"] is None
    assert "never" in table(result)
    verdicts = [one for one in records(NOTHING, result) if isinstance(one, Verdict)]
    assert not any(one.held for one in verdicts)


def test_table() -> None:
    lines = table(summary(CROWDS)).splitlines()
    assert lines[1].split() == ["gvisor-crun", "2", "40.0", "70.0", "1", "1.20", "never"]
    assert lines[3].split() == ["host-runc", "2", "20.0", "10.0", "0", "1.00", "0.200"]
    assert lines[5].split() == ["gvisor-runc", "to", "4.00", "5.00", "host", "3.00", "10.00"]
    rows = {line[:24].strip(): line[24:].split() for line in lines[8:]}
    assert rows["OCI runtime"] == ["0.500", "0.050"]
    assert rows[UNATTRIBUTED] == ["0.500", "0.050"]
    assert rows["total"] == ["2.000", "0.200"]
    assert rows["total, until gone"] == ["0.300"]


def test_words() -> None:
    assert CROWDS[2].words == "Ready 10.00 s, gone 5.00 s, one pod 1.00 s, a pod costs 0.20 core-s"
    assert CROWDS[3].words == "it did not start"
