"""Where processor time goes, from tables of processes that are made up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.bench.spending import (
    LAYERS,
    REST,
    UNATTRIBUTED,
    Snapshot,
    Spent,
    between,
    in_stat,
    layer_of,
    layers,
    programs,
    with_cni,
)
from pytest_k3s_sandbox.sandbox.base import Usage

TABLE = [
    Usage(1, 0, "python", 0.5, 1, 0.25),
    Usage(5, 1, "containerd", 2.0, 1),  # its tracer, spawned in its place
    Usage(6, 5, "containerd", 3.0, 1, 4.0),
    Usage(7, 1, "kubelet", 5.0, 1, 0.125),
    Usage(20, 1, "containerd-shim", 1.0, 1, 6.0),
    Usage(21, 20, "sh", 0.25, 1, 0.5),
    Usage(22, 21, "sleep", 0.25, 1),
    Usage(23, 20, "k3s-sandbox-run", 0.5, 1, 0.25),
    Usage(24, 20, "runc:[2:INIT]", 0.125, 1),
    Usage(30, 1, "cgroupfs", 0.75, 1),
    Usage(40, 1, "kube-apiserver", 8.0, 1),
]
USAGES = st.lists(
    st.builds(
        Usage,
        st.integers(1, 9),
        st.integers(0, 9),
        st.sampled_from(["sh", "crun", "containerd-shim", "containerd"]),
        st.floats(0, 1e6),
        st.just(0),
        st.floats(0, 1e6),
    ),
    unique_by=lambda row: row.pid,
)


def test_programs_are_told_apart_by_what_is_above_them() -> None:
    found = {name: seconds for name, seconds in programs(TABLE, {5}).items() if seconds}
    assert found == {
        "python": 0.5,
        "ended children of python": 0.25,
        "tracer of containerd": 2.0,
        "containerd": 3.0,
        "ended children of containerd": 4.0,
        "kubelet": 5.0,
        "ended children of kubelet": 0.125,
        "containerd-shim": 1.0,
        "ended children of containerd-shim": 6.0,
        "pod: sh": 0.75,
        "pod: sleep": 0.25,
        "OCI runtime": 0.625,
        "ended children of OCI runtime": 0.25,
        "cgroupfs": 0.75,
        "kube-apiserver": 8.0,
    }


def test_layers_have_everything() -> None:
    found = layers(programs(TABLE, {5}))
    assert list(found) == [*LAYERS, REST]
    assert {name: seconds for name, seconds in found.items() if seconds} == {
        "kubelet": 5.125,
        "API server": 8.0,
        "containerd": 3.0,
        "shim starts": 4.0,
        "shims": 1.0,
        "OCI runtime": 6.875,
        "tracers": 2.0,
        "cgroupfs server": 0.75,
        "pods": 1.0,
        "rest": 0.75,
    }
    assert layer_of("something else") == REST


@given(USAGES, st.sets(st.integers(1, 9)))
def test_nothing_is_lost_and_nothing_counts_twice(rows: list[Usage], tracers: set[int]) -> None:
    """Also in tables whose processes are each other's parents."""
    total = sum(row.cpu_seconds + row.waited_seconds for row in rows)
    assert sum(layers(programs(rows, tracers)).values()) == pytest.approx(total)


def test_what_was_used_between_two_moments() -> None:
    before = Snapshot(10.0, None, {"a": 1.0, "ended": 1.0, "same": 3.0})
    spent = between(before, Snapshot(14.0, None, {"a": 2.5, "new": 1.0, "ended": 0.5, "same": 3.001}))
    assert spent == Spent(4.0, None, {"a": 1.5, "new": 1.0, "ended": -0.5})
    assert spent.unattributed == 2.0
    assert spent.scale == 1.0
    assert (spent.layers[REST], spent.layers[UNATTRIBUTED]) == (2.0, 2.0)


def test_in_gvisor_the_layers_share_the_machines_count() -> None:
    spent = Spent(machine=5.0, inside=20.0, programs={"kubelet": 8.0, "kine": 10.0})
    assert spent.unattributed == 2.0
    assert spent.scale == 0.25
    shown = {name: seconds for name, seconds in spent.layers.items() if seconds}
    assert shown == {"kubelet": 2.0, "kine": 2.5, UNATTRIBUTED: 0.5}
    assert sum(spent.layers.values()) == spent.machine


def test_a_machine_that_does_not_count() -> None:
    spent = between(Snapshot(None, None, {"kine": 1.0}), Snapshot(None, None, {"kine": 2.0}))
    assert (spent.machine, spent.unattributed, spent.scale) == (None, None, 1.0)
    assert UNATTRIBUTED not in spent.layers
    assert Spent(1.0, 0.0).scale == 1.0


@pytest.mark.parametrize(("asked", "part"), [(1.5, 1.5), (9.0, 4.0), (-1.0, 0.0)])
def test_the_cni_plugin_is_a_part_of_what_containerd_waited_for(asked: float, part: float) -> None:
    spent = with_cni(Spent(9.0, None, {"ended children of containerd": 4.0, "kine": 1.0}), asked)
    assert (spent.layers["CNI plugin"], spent.layers["shim starts"]) == (part, 4.0 - part)
    assert spent.unattributed == 4.0


def test_the_sum_of_all_processors() -> None:
    assert in_stat("cpu  100 20 30 99999 7777 4 1 55 6 6\n") == 1.55
    assert in_stat("cpu  229 0 24 555 0 0 0 0 0 0") == 2.53
    with pytest.raises(ValueError, match="cpu0"):
        in_stat("cpu0 1 2 3 4 5 6 7 8 9 10")
