"""Whether a series grows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.report.trend import Trend, trend


@given(st.floats(-1e3, 1e3), st.floats(0, 1e6), st.lists(st.integers(0, 10**5), min_size=3, unique=True))
def test_a_straight_line_is_found(slope: float, start: float, times: list[int]) -> None:
    times.sort()
    found = trend([(time, start + slope * time) for time in times])
    assert found is not None
    assert found.n == len(times)
    assert found.growth == pytest.approx(slope * (times[-1] - times[0]), rel=1e-6, abs=1e-3)


def test_too_few_points_are_no_trend() -> None:
    assert trend([]) is None
    assert trend([(0, 1), (1, 2)]) is None
    assert trend([(1, 1), (1, 2), (1, 3)]) is None


def test_flat_is_a_small_share_or_too_little_to_speak_of() -> None:
    assert Trend(3, 100, 5).flat(0.05, 0)
    assert not Trend(3, 100, 5.1).flat(0.05, 0)
    assert Trend(3, 100, 5.1).flat(0.05, 6)
    assert Trend(3, 100, -50).flat(0.05, 0)
