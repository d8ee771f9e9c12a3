"""From when on the time to Ready is counted, and that all of a report says the same."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.report.headline import headline, headline_lines, sentence, summarize
from pytest_k3s_sandbox.report.metrics import IDLE_SECONDS
from pytest_k3s_sandbox.report.page import render
from pytest_k3s_sandbox.report.records import Header, Phase, Record, Run, Sample, read_run
from pytest_k3s_sandbox.report.tables import csv_tables, results
from pytest_k3s_sandbox.report.timeline import bring_up_window

Write = Callable[..., Path]


def phases(*times: tuple[str, float, float | None]) -> list[Record]:
    return [Phase(name=name, start=start, end=end) for name, start, end in times]


def at(t: float, ready: bool = True) -> Sample:
    return Sample(t=t, node_ready=ready, api_reachable=True)


def made(*records: Record) -> Run:
    return Run(name="made", records=(Header(project_version="0.1.0"), *records))


SANDBOX = phases(("sandbox", 0.0, 0.4), ("layer workarounds", 0.4, 1.0))
NODE = phases(("configuration", 78.0, 78.2), ("API server", 78.2, 81.0), ("containerd", 78.4, 79.0))


def used_before() -> Run:
    """A node that was Ready at 84 s, 6 s after its bring-up began in a sandbox that was up for others."""
    return made(*SANDBOX, *NODE, at(80, False), at(84), at(85), at(400))


def test_a_sandbox_of_its_own_counts_from_its_start() -> None:
    run = made(*SANDBOX, *phases(("configuration", 1.1, 1.3), ("API server", 1.3, 4.0)), at(3, False), at(6))
    assert run.metrics.bring_up_start is None
    assert run.metrics.seconds_to_ready == 6


def test_one_that_others_used_counts_from_the_bring_up() -> None:
    run = used_before()
    begun = run.metrics.bring_up_start
    assert begun is not None
    assert begun.name == "configuration"
    assert (run.metrics.began, run.metrics.seconds_to_ready) == (78, 6)


@pytest.mark.parametrize(("late", "began"), [(IDLE_SECONDS + 0.5, IDLE_SECONDS + 0.5), (IDLE_SECONDS, 0)])
def test_a_short_pause_is_part_of_the_bring_up(late: float, began: float) -> None:
    run = made(*phases(("sandbox", 0, 0), ("API server", late, late + 1)), at(late + 5))
    assert run.metrics.began == began
    assert run.metrics.seconds_to_ready == late + 5 - began


def test_a_phase_that_takes_long_is_no_pause() -> None:
    run = made(*phases(("sandbox", 0, 60), ("API server", 60.1, 63)), at(65))
    assert run.metrics.seconds_to_ready == 65


def test_what_is_brought_up_later_does_not_count() -> None:
    run = made(*SANDBOX, at(6), *phases(("sandbox", 100, 101)), at(7), at(120))
    assert run.metrics.seconds_to_ready == 6


def test_a_layer_that_came_late_is_not_the_last_beginning() -> None:
    late = phases(("layer fake_cni", 30, 31))
    assert made(*SANDBOX, *late, *NODE, at(84)).metrics.began == 78
    assert made(*SANDBOX, *late, at(36)).metrics.began == 30


@given(st.lists(st.tuples(st.floats(0, 200), st.floats(0, 50)), max_size=8), st.floats(0, 300))
def test_the_beginning_is_a_phases_and_before_ready(times: list[tuple[float, float]], ready: float) -> None:
    run = made(*phases(*((f"p{i}", t, t + took) for i, (t, took) in enumerate(times))), at(ready))
    known = run.metrics
    assert known.began in {0.0, *(t for t, _ in times)}
    assert known.seconds_to_ready is not None
    assert 0 <= known.seconds_to_ready <= ready


def test_page_sentence_summary_tables_and_terminal_agree(write_run: Write) -> None:
    run = used_before()
    folder = write_run(run.records[1:])
    text = render([folder], folder).read_text()
    assert "from the start of its bring-up to the node Ready" in text
    assert "in a sandbox that was 1 min 18 s old" in text
    assert ">6.0 s<" in text
    said = sentence(run)
    assert "Ready 6.0 s after its bring-up's start (in a sandbox that others had used for 1 min 18 s)" in said
    assert (summarize(run)["seconds_to_ready"], summarize(run)["bring_up_began"]) == (6, 78)
    assert "Ready after 6.0 s" in headline_lines([headline(run)])[0]
    assert ["Start to Ready", "6.0 s"] in results([run])
    # Samples keep the run's own time, in which all records are.
    rows = list(csv.DictReader(io.StringIO(csv_tables(read_run(folder))["samples"])))
    assert [row["t"] for row in rows if row["node_ready"] == "true"][:1] == ["84.0"]


def test_the_drawing_of_the_bring_up_begins_with_it() -> None:
    window = bring_up_window(used_before())
    assert window is not None
    assert window[0] == 78
    assert window[1] > 84
