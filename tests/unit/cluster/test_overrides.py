"""Merging the overrides of layers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.cluster.overrides import merge
from pytest_k3s_sandbox.layers.base import NodeOverrides

ARGV = st.lists(st.text("ab", min_size=1, max_size=2), max_size=2).map(tuple)
TEXT = st.none() | st.text("xyz", min_size=1, max_size=2)
OVERRIDES = st.builds(
    NodeOverrides,
    wrap=st.dictionaries(st.sampled_from(["kubelet", "containerd"]), ARGV),
    environment=st.dictionaries(st.sampled_from("PQ"), st.text("12", max_size=2)),
    cni_bin_dir=TEXT,
    cni_conf_dir=TEXT,
    runtimes=st.dictionaries(st.sampled_from(["crun", "runc"]), st.text("xyz", min_size=1, max_size=2)),
)


def test_no_layer_does_nothing() -> None:
    assert merge([]) == NodeOverrides()


def test_a_later_layer_wraps_around_an_earlier_one_and_replaces_the_rest() -> None:
    first = NodeOverrides(
        {"kubelet": ("inner", "--")}, {"A": "1", "B": "1"}, "/bin/1", None, {"runc": "/runtime/1"}
    )
    second = NodeOverrides(
        {"kubelet": ("outer", "--"), "containerd": ("x",)},
        {"B": "2"},
        None,
        "/conf/2",
        {"runc": "/runtime/2"},
    )
    assert merge([first, second]) == NodeOverrides(
        {"kubelet": ("outer", "--", "inner", "--"), "containerd": ("x",)},
        {"A": "1", "B": "2"},
        "/bin/1",
        "/conf/2",
        {"runc": "/runtime/2"},
    )


@given(OVERRIDES, OVERRIDES, OVERRIDES)
def test_merging_is_associative_and_nothing_is_its_unit(
    a: NodeOverrides, b: NodeOverrides, c: NodeOverrides
) -> None:
    assert merge([merge([a, b]), c]) == merge([a, merge([b, c])]) == merge([a, b, c])
    assert merge([a]) == merge([NodeOverrides(), a]) == merge([a, NodeOverrides()]) == a
