"""The trend of a series: a straight line through its points."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_POINTS = 3
"""Two points always lie on a line, so they show no trend."""


@dataclass(frozen=True)
class Trend:
    """A straight line through the points of a series.

    Attributes:
        n: The number of points.
        mean: The values' mean.
        growth: The rise of the line from the time of the first point to the last, in the unit of the values.
    """

    n: int
    mean: float
    growth: float

    def flat(self, share: float, least: float) -> bool:
        """Tell whether the growth is at most a share of the mean, or at most a least value.

        Args:
            share: The allowed part of the mean, like 0.05.
            least: The growth that counts as none, in the unit of the values.
        """
        return self.growth <= max(share * self.mean, least)


def trend(points: Sequence[tuple[float, float]]) -> Trend | None:
    """Return the line through points by least squares; None for fewer than three points or for one time.

    Args:
        points: Pairs of time and value, in the order of time.
    """
    times = [time for time, _ in points]
    values = [value for _, value in points]
    if len(points) < LEAST_POINTS or times[0] == times[-1]:
        return None
    slope = statistics.linear_regression(times, values).slope
    return Trend(len(points), statistics.fmean(values), slope * (times[-1] - times[0]))
