"""The one table of what versions of Kubernetes want differently."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.cluster import components, versions
from pytest_k3s_sandbox.cluster.components import ClusterSettings
from pytest_k3s_sandbox.cluster.versions import OLDEST, TABLE, kubelet_fields, release
from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.toolchain import pins


@pytest.mark.parametrize(
    ("version", "fields"),
    [
        ("1.34.4", {"singleProcessOOMKill": True}),
        ("v1.34.1+k3s1", {"singleProcessOOMKill": True}),
        ("1.35", {"singleProcessOOMKill": True, "failCgroupV1": False}),
        ("1.36.3", {"singleProcessOOMKill": True, "failCgroupV1": False}),
        (
            "1.37.2",
            {"singleProcessOOMKill": True, "failCgroupV1": False, "featureGates": {"MemoryQoS": False}},
        ),
    ],
)
def test_a_version_gets_what_it_needs_and_no_more(version: str, fields: dict[str, object]) -> None:
    assert kubelet_fields(version) == fields


@given(st.integers(34, 500), st.integers(0, 99))
def test_a_later_version_is_told_all_that_an_earlier_one_is(minor: int, patch: int) -> None:
    earlier, later = kubelet_fields(f"1.{minor}.{patch}"), kubelet_fields(f"1.{minor + 1}")
    assert earlier.items() <= later.items()


@pytest.mark.parametrize("text", ["", "1", "latest", "v", "1.x", "a.b", "1.\N{ARABIC-INDIC DIGIT SIX}"])
def test_what_is_no_version_is_refused_and_named(text: str) -> None:
    with pytest.raises(ConfigError, match="two numbers") as caught:
        release(text)
    assert repr(text) in caught.value.what


def test_versions_before_the_table_are_refused() -> None:
    with pytest.raises(ConfigError, match=f"known from {OLDEST} on"):
        kubelet_fields("1.33.9")


def test_the_table_is_in_order_and_each_field_is_in_it_once() -> None:
    assert [release(each.since) for each in TABLE] == sorted(release(each.since) for each in TABLE)
    assert len({each.field for each in TABLE}) == len(TABLE)
    assert all(each.why for each in TABLE)


@pytest.mark.parametrize("version", pins.kubernetes_versions())
def test_every_pinned_version_has_a_configuration_with_its_fields(version: str) -> None:
    config = components.kubelet_config(ClusterSettings(node="n", address="1.2.3.4", kubernetes=version))
    assert versions.kubelet_fields(version).items() <= config.items()
