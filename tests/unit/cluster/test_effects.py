"""Merging what layers do to a node."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.cluster.effects import merge
from pytest_k3s_sandbox.layers.base import Effect

WORDS = st.lists(st.text("ab", min_size=1, max_size=2), max_size=2).map(tuple)
TEXT = st.none() | st.text("xyz", min_size=1, max_size=2)
EFFECTS = st.builds(
    Effect,
    wrap=st.dictionaries(st.sampled_from(["kubelet", "containerd"]), WORDS),
    environment=st.dictionaries(st.sampled_from("PQ"), st.text("12", max_size=2)),
    cni_bin_dir=TEXT,
    cni_conf_dir=TEXT,
    runtime=TEXT,
)


def test_no_layer_does_nothing() -> None:
    assert merge([]) == Effect()


def test_a_later_layer_wraps_around_an_earlier_one_and_replaces_the_rest() -> None:
    first = Effect({"kubelet": ("inner", "--")}, {"A": "1", "B": "1"}, "/bin/1", None, "/runtime/1")
    second = Effect(
        {"kubelet": ("outer", "--"), "containerd": ("x",)}, {"B": "2"}, None, "/conf/2", "/runtime/2"
    )
    assert merge([first, second]) == Effect(
        {"kubelet": ("outer", "--", "inner", "--"), "containerd": ("x",)},
        {"A": "1", "B": "2"},
        "/bin/1",
        "/conf/2",
        "/runtime/2",
    )


@given(EFFECTS, EFFECTS, EFFECTS)
def test_merging_is_associative_and_nothing_is_its_unit(a: Effect, b: Effect, c: Effect) -> None:
    assert merge([merge([a, b]), c]) == merge([a, merge([b, c])]) == merge([a, b, c])
    assert merge([a]) == merge([Effect(), a]) == merge([a, Effect()]) == a
