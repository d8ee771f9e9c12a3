"""What is made of the crowds that were measured."""

from __future__ import annotations

from pytest_k3s_sandbox.bench.pods import Crowd, records, summary, table
from pytest_k3s_sandbox.report.records import Verdict

CROWDS = [
    Crowd("gvisor", ready=40.0, gone=70.0, left=("process containerd-shim",)),
    Crowd("host", ready=10.0, gone=5.0),
    Crowd("gvisor", failure="it did not start"),
    Crowd("host", ready=30.0, gone=15.0),
]


def test_medians_failures_and_ratios() -> None:
    result = summary(CROWDS)
    assert result["gvisor"] == {"n": 2, "failures": 1, "left": 1, "ready": 40.0, "gone": 70.0}
    assert result["host"] == {"n": 2, "failures": 0, "left": 0, "ready": 20.0, "gone": 10.0}
    assert (result["ratio_ready"], result["ratio_gone"]) == (2.0, 7.0)


def test_targets_are_verdicts() -> None:
    held = {one.name: one.held for one in records(CROWDS, summary(CROWDS)) if isinstance(one, Verdict)}
    assert held == {"pods-ready": True, "pods-gone": False, "pods-ratio": True}


def test_what_was_never_measured_does_not_hold() -> None:
    crowds = [Crowd("gvisor", failure="no"), Crowd("host", ready=1.0, gone=1.0)]
    result = summary(crowds)
    assert result["ratio_ready"] is None
    assert "never" in table(result)
    verdicts = [one for one in records(crowds, result) if isinstance(one, Verdict)]
    assert not any(one.held for one in verdicts)
