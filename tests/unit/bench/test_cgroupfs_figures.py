"""What the cgroupfs' benchmark makes of its figures."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_k3s_sandbox.bench.cgroupfs import GROWTH, MEMORY, SHARE, SIZES, judgement, shares, verdicts


def found(cpu: dict[int, float], rss: float) -> dict[str, Any]:
    """Return figures as the reader's JSON has them."""
    passes = {str(size): {"cpu": seconds, **shares({"cpu": seconds})} for size, seconds in cpu.items()}
    return {"housekeeping": passes, "memory": {"rss": rss}}


def test_every_target_is_judged_by_what_was_measured() -> None:
    linear = {size: size * 0.001 for size in SIZES}
    judged = verdicts(found(linear, 40.0))
    assert [one["name"] for one in judged] == ["growth", "share-kubelet", "share-cadvisor", "memory"]
    assert [one["measured"] for one in judged] == pytest.approx([1.0, 1.1, 11.0, 40.0])
    assert [one["limit"] for one in judged] == [GROWTH, SHARE, SHARE, MEMORY]
    assert all(one["held"] for one in judged)


@pytest.mark.parametrize(
    ("cpu", "rss", "missed"),
    [
        ({size: size**2 * 1e-6 for size in SIZES}, 1.0, {"growth"}),
        ({size: size * 0.002 for size in SIZES}, 1.0, {"share-cadvisor"}),
        ({size: size * 0.02 for size in SIZES}, 1.0, {"share-cadvisor", "share-kubelet"}),
        ({size: size * 0.001 for size in SIZES}, 60.1, {"memory"}),
    ],
)
def test_a_missed_target_is_said(cpu: dict[int, float], rss: float, missed: set[str]) -> None:
    judged = verdicts(found(cpu, rss))
    assert {one["name"] for one in judged if not one["held"]} == missed
    lines = judgement({"gvisor": judged}).splitlines()
    assert sum(line.startswith("NOT HELD gvisor: ") for line in lines) == len(missed)
