"""The figures of cold starts, from starts that are made up."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.client import ApiException
from urllib3.exceptions import ProtocolError

from pytest_k3s_sandbox.bench import coldstart
from pytest_k3s_sandbox.bench.coldstart import Start, distribution, summary, table
from pytest_k3s_sandbox.errors import ClusterError
from pytest_k3s_sandbox.report.records import ErrorLine, RunWriter
from pytest_k3s_sandbox.toolchain import Toolchain

SECONDS = st.floats(min_value=0.001, max_value=1e6)


def starts(kind: str, *ready: float | None, pod: float = 2.0) -> list[Start]:
    return [
        Start(
            kind,
            seconds,
            None if seconds is None else pod,
            {},
            ["E1"],
            None if seconds else "never Ready",
            later=[] if seconds is None else [pod, pod / 2, pod / 4],
        )
        for seconds in ready
    ]


def test_distribution() -> None:
    assert distribution([4.0, 1.0, 3.0, 2.0, 5.0]) == {
        "min": 1.0,
        "p25": 2.0,
        "median": 3.0,
        "p75": 4.0,
        "max": 5.0,
    }


@given(st.lists(SECONDS, min_size=2))
def test_distribution_is_in_order_and_within(values: list[float]) -> None:
    found = distribution(values)
    assert list(found) == ["min", "p25", "median", "p75", "max"]
    numbers = list(found.values())
    assert all(a <= b or a == pytest.approx(b) for a, b in itertools.pairwise(numbers))
    assert (found["min"], found["max"]) == (min(values), max(values))
    assert found["median"] == pytest.approx(statistics.median(values))


def test_summary_counts_and_compares_side_by_side() -> None:
    result = summary([*starts("gvisor", 12.0, 14.0, 16.0, pod=4.0), *starts("host", 7.0, 7.0, 8.0)])
    assert result["gvisor"]["n"] == result["gvisor"]["ready"] == 3
    assert result["gvisor"]["failures"] == 0
    assert result["gvisor"]["cadvisor_errors"] == 3
    assert result["gvisor"]["seconds_to_ready"]["median"] == 14.0
    assert result["ratio_of_seconds_to_ready"] == 2.0
    assert result["ratio_of_seconds_to_pod_running"] == 2.0
    assert result["gvisor"]["seconds_to_later_pod_running"]["median"] == 2.0
    assert result["ratio_of_seconds_to_later_pod_running"] == 2.0
    assert len(result["starts"]) == 6
    assert json.loads(json.dumps(result)) == result


def test_start_that_never_was_ready_is_counted_and_no_figure() -> None:
    result = summary([*starts("gvisor", 12.0, None, 14.0), *starts("host", 7.0, 7.0, 7.0)])
    assert (result["gvisor"]["n"], result["gvisor"]["ready"], result["gvisor"]["failures"]) == (3, 2, 1)
    assert result["gvisor"]["seconds_to_ready"]["median"] == 13.0
    assert result["starts"][1]["failure"] == "never Ready"


@pytest.mark.parametrize("ready", [(), (None, None), (9.0, None)])
def test_too_few_for_a_distribution_is_none_and_no_ratio(ready: tuple[float | None, ...]) -> None:
    result = summary([*starts("gvisor", *ready), *starts("host", 7.0, 8.0)])
    assert result["gvisor"]["seconds_to_ready"] is None
    assert "ratio_of_seconds_to_ready" not in result
    assert "gvisor to here: unknown, unknown and unknown" in table(result)


def test_table() -> None:
    text = table(summary([*starts("gvisor", 12.0, 14.0, None, pod=4.0), *starts("host", 6.0, 7.0, 7.0)]))
    lines = text.splitlines()
    assert lines[1].split() == ["min", "p25", "median", "p75", "max"] * 2
    assert lines[2].split() == ["gvisor", "3", "2", "12.0", "12.5", "13.0", "13.5", "14.0", *["4.0"] * 5]
    assert lines[3].split() == ["host", "3", "3", "6.0", "6.5", "7.0", "7.0", "7.0", *["2.0"] * 5]
    assert lines[4].split() == [
        "gvisor",
        *["pods", "2", "to", "10,", "one", "after", "another", "(medians):"],
        *["2.00"] * 5,
    ]
    assert lines[5].split()[-6:] == ["(medians):", *["1.00"] * 5]
    assert lines[6] == "ratio of the medians, gvisor to here: 1.86, 2.00 and 2.00"
    assert len({len(line) for line in lines[1:6]}) == 1  # columns are below each other


def test_a_start_with_one_pod_has_no_figure_of_later_ones() -> None:
    result = summary([Start("host", 7.0, 2.0, {}, []), Start("host", 7.0, 2.0, {}, [])])
    assert result["host"]["seconds_to_pod_running"]["median"] == 2.0
    assert result["host"]["seconds_to_later_pod_running"] is None
    assert len({len(line) for line in table(result).splitlines()[1:6]}) == 1


@pytest.mark.parametrize(
    "error", [ApiException(status=409, reason="Conflict"), ProtocolError("reset"), ClusterError("broke")]
)
def test_a_start_that_goes_wrong_is_a_result(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(coldstart, "open_session", breaks)
    start = coldstart.cold_start("host", Toolchain())
    assert (start.sandbox, start.ready, start.failure) == ("host", None, str(error))
    assert start.said == []  # nothing was recorded


def test_a_start_that_failed_says_what_the_kubelet_said(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        for number in range(coldstart.LINES + 5):
            text = f"E1125 20:00:00.000000 1 kubelet.go:1] failure {number}"
            writer.append(ErrorLine(t=float(number), component="kubelet", kind="other", text=text))
        writer.append(ErrorLine(t=99.0, component="containerd", kind="other", text="not this"))
    found = coldstart.said(tmp_path / "run")
    assert len(found) == coldstart.LINES
    assert found[-1].endswith(f"failure {coldstart.LINES + 4}")
