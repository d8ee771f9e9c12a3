"""Spans, gaps and transitions, from runs whose numbers are known."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.report.records import Header, PodState, Run, Sample
from pytest_k3s_sandbox.report.series import Span, gaps, missing, pod_state, spans, transitions

if TYPE_CHECKING:
    from collections.abc import Callable


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


def test_not_yet_is_told_from_no_longer(make_run: Callable[..., Run], sample: Callable[..., Sample]) -> None:
    states = [False, True, False, True]
    _, node = make_run(*(sample(i, ready) for i, ready in enumerate(states))).lanes
    assert [span.state for span in node.spans] == ["starting", "ready", "not-ready", "ready"]


def test_what_never_got_ready_is_not_called_not_yet(
    make_run: Callable[..., Run], sample: Callable[..., Sample]
) -> None:
    _, node = make_run(sample(1, False), sample(2, False)).lanes
    assert [span.state for span in node.spans] == ["not-ready"]


def test_gaps_are_listed(make_run: Callable[..., Run], sample: Callable[..., Sample]) -> None:
    run = make_run(*(sample(t) for t in (0, 1, 2, 20, 21, 22)))
    assert missing(run.samples) == ((2, 20),)


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_samples_are_enough(
    make_run: Callable[..., Run], count: int, sample: Callable[..., Sample]
) -> None:
    run = make_run(*(sample(t) for t in range(count)))
    assert [len(lane.spans) for lane in run.lanes] == [1, 1]


@given(st.lists(st.lists(st.sampled_from("abc"), unique=True), min_size=1, max_size=40))
def test_a_pods_lane_is_what_its_samples_say(pods: list[list[str]]) -> None:
    samples = [
        Sample(
            t=float(t),
            node_ready=True,
            api_reachable=True,
            pods={name: PodState(phase="Running", ready=t % 2 == 0) for name in names},
        )
        for t, names in enumerate(pods)
    ]
    run = Run(name="any", records=(Header(project_version="0"), *samples))
    assert {lane.name for lane in run.lanes[2:]} == {name for names in pods for name in names}
    for lane in run.lanes[2:]:
        states = [pod_state(sample, lane.name) for sample in samples]
        assert lane.spans == spans([sample.t for sample in samples], states)
