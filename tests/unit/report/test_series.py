"""Spans, gaps, transitions and key figures, from runs whose numbers are known."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.report.records import ErrorLine, Sample
from pytest_k3s_sandbox.report.series import Span, facts, gaps, lanes, missing, spans, transitions

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_k3s_sandbox.report.records import Record, Run


def test_neighbours_of_one_state_are_one_span() -> None:
    assert spans([0, 1, 2, 3], ["a", "a", "b", "b"]) == (Span(0, 2, "a", 2), Span(2, 3, "b", 2))


def test_nothing_is_claimed_in_a_gap() -> None:
    assert spans([0, 1, 2, 30, 31], ["a"] * 5) == (Span(0, 2, "a", 3), Span(30, 31, "a", 2))


def test_nothing_to_see_is_no_span() -> None:
    assert spans([0, 1, 2], [None, "a", None]) == (Span(1, 2, "a", 1),)
    assert spans([], []) == ()


def test_a_change_of_pace_is_no_gap() -> None:
    times = [i * 0.5 for i in range(20)] + [10 + i * 5 for i in range(1, 20)]
    assert not any(gaps(times))


def test_a_pause_of_a_second_is_no_gap() -> None:
    assert not any(gaps([0, 0.1, 0.2, 1.5, 1.6, 1.7]))


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=60, unique=True).map(sorted), st.data())
def test_every_sample_is_in_exactly_one_span(times: list[float], data: st.DataObject) -> None:
    states = data.draw(st.lists(st.sampled_from("abc"), min_size=len(times), max_size=len(times)))
    found = spans(times, states)
    assert sum(span.samples for span in found) == len(times)
    assert all(a.end <= b.start for a, b in pairwise(found))
    for t, state in zip(times, states, strict=True):
        assert any(span.start <= t <= span.end and span.state == state for span in found)


def test_transitions_leave_out_what_could_not_be_read(sample: Callable[..., Sample]) -> None:
    states = [None, False, True, None, True, False, None, True]
    found = transitions([sample(i, ready) for i, ready in enumerate(states)])
    assert [(change.t, change.ready) for change in found] == [(2, True), (5, False), (7, True)]


def test_the_key_figures_of_a_good_run(
    make_run: Callable[..., Run], good_records: tuple[Record, ...]
) -> None:
    known = facts(make_run(*good_records))
    assert known.seconds_to_ready == 4
    assert known.hold_seconds == 6
    assert (known.samples, known.samples_since_ready, known.ready_samples) == (9, 6, 6)
    assert known.longest_gap == 1.5
    assert (len(known.transitions), known.losses) == (1, 0)
    (pod,) = known.pods
    assert (pod.created, pod.running, pod.ready, pod.deleted, pod.gone) == (4.5, 6.5, 6.5, 8.5, 10)


def test_the_longest_hold_ends_where_ready_is_not_known(
    make_run: Callable[..., Run], sample: Callable[..., Sample]
) -> None:
    states = [True, True, None, True, True, True, False, True]
    known = facts(make_run(*(sample(i, ready) for i, ready in enumerate(states))))
    assert known.hold_seconds == 2
    assert known.losses == 1
    assert (known.ready_samples, known.samples_since_ready) == (6, 8)


def test_errors_count_lines_or_totals_whichever_is_more(make_run: Callable[..., Run]) -> None:
    lines = [ErrorLine(t=i, component="kubelet", kind="eintr", text="x") for i in range(3)]
    counted = Sample(t=1, node_ready=None, api_reachable=False, errors={"eintr": 2, "cgroup": 7})
    assert facts(make_run(*lines, counted)).errors == {"cgroup": 7, "eintr": 3}


def test_a_run_without_samples_has_no_figures(make_run: Callable[..., Run]) -> None:
    known = facts(make_run())
    assert known.seconds_to_ready is None
    assert (known.samples, known.hold_seconds, known.longest_gap, known.pods) == (0, 0, 0, ())


def test_not_yet_is_told_from_no_longer(make_run: Callable[..., Run], sample: Callable[..., Sample]) -> None:
    states = [False, True, False, True]
    _, node = lanes(make_run(*(sample(i, ready) for i, ready in enumerate(states))))
    assert [span.state for span in node.spans] == ["starting", "ready", "not-ready", "ready"]


def test_what_never_got_ready_is_not_called_not_yet(
    make_run: Callable[..., Run], sample: Callable[..., Sample]
) -> None:
    _, node = lanes(make_run(sample(1, False), sample(2, False)))
    assert [span.state for span in node.spans] == ["not-ready"]


def test_gaps_are_listed(make_run: Callable[..., Run], sample: Callable[..., Sample]) -> None:
    run = make_run(*(sample(t) for t in (0, 1, 2, 20, 21, 22)))
    assert missing(run) == ((2, 20),)


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_samples_are_enough(
    make_run: Callable[..., Run], count: int, sample: Callable[..., Sample]
) -> None:
    run = make_run(*(sample(t) for t in range(count)))
    assert all(len(lane.spans) == 1 for lane in lanes(run))
