"""Distributions and costs, from runs whose numbers are known, and their drawings."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.report.charts import (
    distribution_chart,
    line_chart,
    number,
    ratio_chart,
    ratios,
    span,
)
from pytest_k3s_sandbox.report.distributions import (
    Observations,
    Series,
    memory,
    thinned,
)
from pytest_k3s_sandbox.report.drawing import WIDTH, log_ticks, standalone, ticks
from pytest_k3s_sandbox.report.records import Cost, Event, Measurement, Record, Run, Sample
from support.own_xml import parsed
from support.synthetic_runs import LAYERS, everything

if TYPE_CHECKING:
    from collections.abc import Callable


POSITIVE = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=30)


def costed(t: float, cpu: float, rss: int = 2**20) -> Sample:
    cost = {"layer": Cost(cpu_seconds=cpu, rss_bytes=rss)}
    return Sample(t=t, node_ready=True, api_reachable=True, cost=cost)


def test_latencies_of_pods(make_run: Callable[..., Run], good_records: tuple[Record, ...]) -> None:
    found = {one.name: one for one in make_run(*good_records).distributions}
    running = found["Pod created to Running"]
    assert (running.values, running.unit, running.lines) == ((2.0,), "s", (9, 11))
    assert found["Pod deleted to gone"].values == (1.5,)


def test_processor_time_is_averaged_over_nine_seconds_at_least(make_run: Callable[..., Run]) -> None:
    run = make_run(*(costed(t, t * 0.02) for t in range(31)))
    (series,) = run.processor
    assert [t for t, _ in series.points] == [9, 18, 27]
    assert [value for _, value in series.points] == pytest.approx([2, 2, 2])
    assert series.lines == (11, 20, 29)


def test_a_layer_that_was_restarted_has_no_negative_use(make_run: Callable[..., Run]) -> None:
    run = make_run(costed(0, 5), costed(10, 6), costed(20, 0.5), costed(30, 1.5))
    (series,) = run.processor
    assert series.points == ((10, 10), (30, 10))


def test_memory_is_in_mebibytes(make_run: Callable[..., Run]) -> None:
    (series,) = memory(make_run(costed(0, 0), costed(1, 0, 3 * 2**20)))
    assert series.points == ((0, 1), (1, 3))


def test_what_takes_time_is_a_distribution_a_component(make_run: Callable[..., Run]) -> None:
    events = [
        Event(t=i, kind="recovery", what="Ready", component=component, seconds=seconds)
        for i, (component, seconds) in enumerate((("kubelet", 3.0), ("kine", 1.0), ("kubelet", 5.0)))
    ]
    found = {one.name: one.values for one in make_run(*events).distributions}
    assert found == {"Recovery of kubelet": (3.0, 5.0), "Recovery of kine": (1.0,)}


def test_ratios_are_no_distributions(make_run: Callable[..., Run]) -> None:
    plain = Measurement.of("wait", [1.0, 2.0], "s")
    ratio = Measurement.of("ratio", [1.0, 2.0], "ratio", variant="ours", baseline="native", benchmark="b")
    run = make_run(plain, ratio)
    assert [one.name for one in run.distributions] == ["wait"]
    (group,) = ratios(run.measurements)
    assert (group.name, group.baseline, group.measurements) == ("b", "native", (ratio,))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=500), st.integers(2, 60))
def test_thinning_keeps_the_extremes(values: list[float], most: int) -> None:
    series = Series("x", tuple(enumerate(values)), tuple(range(len(values))))
    thin = thinned(series, most)
    assert len(thin.points) <= most + 2
    assert max(v for _, v in thin.points) == max(values)
    assert min(v for _, v in thin.points) == min(values)
    assert [t for t, _ in thin.points] == sorted(t for t, _ in thin.points)
    assert len(thin.lines) == len(thin.points)


@given(POSITIVE)
def test_an_axis_holds_every_value_and_has_marks(values: list[float]) -> None:
    scale = span(values)
    assert all(scale.holds(value) for value in values)
    found = log_ticks(scale.start, scale.end) if scale.log else ticks(scale.start, scale.end)
    assert 1 <= len(found) <= 14
    assert found == sorted(set(found))


@given(POSITIVE, POSITIVE)
def test_distributions_are_drawn_within_their_frame(first: list[float], second: list[float]) -> None:
    found = [
        Observations(name, "s", tuple(values), (1,), "g") for name, values in (("a", first), ("b", second))
    ]
    drawing = distribution_chart(found, "title", "id")
    circles = list(drawing.iter("circle"))
    assert circles
    for circle in circles:
        assert 0 <= float(circle.get("cx", "-1")) <= WIDTH
    texts = [text.text for text in drawing.iter("text")]
    assert f"{number(found[0].spread.median)}, n {len(first)}" in texts
    parsed(standalone(drawing, 84))


@given(st.lists(st.floats(0.01, 500), min_size=1, max_size=6))
def test_ratios_are_drawn_from_their_baseline(values: list[float]) -> None:
    found = ratios(
        [
            Measurement(
                name=f"m{i}", value=value, unit="ratio", n=3, variant=f"v{i}", baseline="native", limit=1.05
            )
            for i, value in enumerate(values)
        ]
    )
    drawing = ratio_chart(found[0], "id")
    bars = list(drawing.iter("rect"))
    (unity,) = [mark for mark in drawing.iter("line") if mark.get("class") == "unity"]
    one = float(unity.get("x1", "0"))
    for bar, value in zip(bars, values, strict=True):
        left = float(bar.get("x", "0"))
        right = left + float(bar.get("width", "0"))
        assert (left if value >= 1 else right) == pytest.approx(one, abs=1.6)
    assert len([mark for mark in drawing.iter("line") if mark.get("class") == "limit"]) == len(values)


def test_lines_have_their_names_beside_their_ends(make_run: Callable[..., Run]) -> None:
    run = make_run(*everything(120))
    drawing = line_chart(run.processor, "title", "%", "id")
    texts = {text.text for text in drawing.iter("text")}
    assert set(LAYERS) <= texts
    heights = sorted(float(t.get("y", "0")) for t in drawing.iter("text") if t.text in LAYERS)
    assert all(below - above >= 13 for above, below in pairwise(heights))
