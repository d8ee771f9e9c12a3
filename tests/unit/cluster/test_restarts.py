"""When something is started again: at once, then with pauses that grow, then never."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.cluster.restarts import Policy

POLICY = Policy(pause=0.5, longest=4.0, window=60.0, limit=5)
ENDS = st.lists(st.floats(0, 1000, allow_nan=False), min_size=1, max_size=20).map(sorted)


def test_the_pause_grows_up_to_the_longest_and_then_it_is_given_up() -> None:
    ends = [float(number) for number in range(8)]
    waits = [POLICY.wait(ends[: count + 1]) for count in range(8)]
    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0, None, None, None]


def test_what_lived_longer_than_the_window_begins_anew() -> None:
    assert POLICY.wait([0.0, 1.0, 2.0, 3.0, 4.0, 64.0]) == 0.0
    assert POLICY.wait([0.0, 1.0, 2.0, 3.0, 4.0, 63.9]) == 0.5


@given(ENDS)
def test_there_are_never_more_restarts_within_a_window_than_the_limit(ends: list[float]) -> None:
    answered = [end for count, end in enumerate(ends, start=1) if POLICY.wait(ends[:count]) is not None]
    for first in answered:
        assert sum(first <= end < first + POLICY.window for end in answered) <= POLICY.limit


@given(ENDS)
def test_a_pause_is_between_nothing_and_the_longest(ends: list[float]) -> None:
    wait = POLICY.wait(ends)
    assert wait is None or 0.0 <= wait <= POLICY.longest


@given(ENDS, st.floats(0, 1000))
def test_what_is_forgotten_does_not_matter(ends: list[float], shift: float) -> None:
    old = [end - ends[-1] - POLICY.window - shift for end in ends]  # all before the window
    recent = [end - ends[-1] for end in ends if ends[-1] - end < POLICY.window]
    assert POLICY.wait(old + recent) == POLICY.wait(recent)


@given(ENDS)
def test_one_more_end_never_makes_the_pause_shorter(ends: list[float]) -> None:
    more = [*ends, ends[-1]]
    waits = [float("inf") if wait is None else wait for wait in (POLICY.wait(ends), POLICY.wait(more))]
    assert all(before <= after for before, after in itertools.pairwise(waits))
