"""Distributions, ratios and costs as SVG: pure functions from numbers to drawings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from pytest_k3s_sandbox.report import drawing
from pytest_k3s_sandbox.report.distributions import thinned
from pytest_k3s_sandbox.report.drawing import GUTTER, RIGHT, WIDTH, Scale, add, label, line, tip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_k3s_sandbox.report.distributions import Observations, Series
    from pytest_k3s_sandbox.report.records import Measurement

MAX_DOTS = 400
"""The most observations of one distribution that a chart draws as dots; above that it draws the box only."""

_ROW = 34.0
_BAR_ROW = 24.0
_LINES = 150.0
_SIDE = 108.0  # room for numbers at the right
_NAMES = 150.0  # room for names there
_LEAST = 1e-300  # a smaller value counts as zero, because its logarithm or its share of an axis may overflow
_LOG_FROM = 50.0  # extremes this many times apart need a logarithmic axis
_COLOURS = 5
_THREE_DIGITS = 100
_SHORT = 3  # characters of a unit that an axis repeats at every mark
_MANY = 100  # so many dots hide each other, so they are fainter


@dataclass(frozen=True)
class Ratios:
    """The ratios of one benchmark that are drawn together.

    Attributes:
        name: The benchmark's name.
        baseline: The variant that they are ratios to.
        measurements: Each with a case, a variant and a baseline.
    """

    name: str
    baseline: str
    measurements: tuple[Measurement, ...]


def ratios(measurements: Sequence[Measurement]) -> tuple[Ratios, ...]:
    """Return the ratios among measurements, by benchmark and baseline."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for one in measurements:
        if one.baseline is not None:
            groups.setdefault((one.benchmark or "", one.baseline), []).append(one)
    return tuple(Ratios(name, baseline, tuple(found)) for (name, baseline), found in groups.items())


def number(value: float) -> str:
    """Return a number with three significant digits, or with all digits before the point."""
    return f"{value:.0f}" if abs(value) >= _THREE_DIGITS else f"{value:.3g}"


def span(values: Sequence[float]) -> Scale:
    """Return an axis that holds all values: from zero, or logarithmic where they lie far apart."""
    low, high = min(values), max(values)
    if low > _LEAST and high / low > _LOG_FROM:
        return Scale(low / 1.3, high * 1.3, right=WIDTH - RIGHT - _SIDE, log=True)
    start, end = min(0.0, low * 1.05), max(0.0, high * 1.05)
    return Scale(start, end if end - start > _LEAST else start + 1.0, right=WIDTH - RIGHT - _SIDE)


def marks(scale: Scale) -> list[float]:
    """Return the marks of an axis."""
    if scale.log:
        return drawing.log_ticks(scale.start, scale.end)
    return drawing.ticks(scale.start, scale.end)


def distribution_chart(found: Sequence[Observations], title: str, ident: str) -> ET.Element:
    """Draw distributions of one unit: every observation, quartiles as a box, extremes as whiskers.

    Args:
        found: One or more.
        title: The drawing's name.
        ident: A prefix for ids, unique in a page.
    """
    scale = span([value for one in found for value in one.values])
    bottom = 8 + len(found) * _ROW
    unit = found[0].unit
    words = ". ".join(
        f"{one.name}: n {one.n}, median {number(one.spread.median)} {unit}, "
        f"from {number(one.spread.min)} to {number(one.spread.max)}"
        for one in found
    )
    svg = drawing.sheet(bottom + 30, ident, title, f"{words}.")
    short = f" {unit}" if len(unit) <= _SHORT else ""
    drawing.axis(svg, scale, marks(scale), lambda value: f"{number(value)}{short}", (2, bottom))
    for row, one in enumerate(found):
        _box(svg, one, scale, 8 + row * _ROW)
    return svg


def _box(svg: ET.Element, one: Observations, scale: Scale, top: float) -> None:
    group = ET.SubElement(svg, "g")
    middle, spread = top + _ROW / 2, one.spread
    label(group, middle + 4, one.name)
    quartiles = ", ".join(number(value) for value in (spread.p25, spread.median, spread.p75))
    tip(group, f"{one.name}: n {one.n}, quartiles {quartiles}")
    low, high = scale.x(spread.p25), scale.x(spread.p75)
    if one.n > 1:
        drawing.level(group, middle, "whisker", (scale.x(spread.min), scale.x(spread.max)))
        add(group, "rect", x=low, y=middle - 8, width=max(high - low, 1.0), height=16, class_="box")
    if one.n <= MAX_DOTS:
        for i, value in enumerate(one.values):
            # Spread over the row's height in a fixed pattern, so that equal values can be told apart.
            y = middle + ((i * 5) % 11 - 5) * 1.2 if one.n > 1 else middle
            add(
                group, "circle", cx=scale.x(value), cy=y, r=2.2, class_="dot many" if one.n > _MANY else "dot"
            )
    line(group, scale.x(spread.median), middle - 9, middle + 9, "median")
    said = f"{number(spread.median)}, n {one.n}"
    add(group, "text", said, x=WIDTH, y=middle + 4, text_anchor="end")


def ratio_chart(found: Ratios, ident: str) -> ET.Element:
    """Draw ratios as bars from 1, the baseline, with quartiles as whiskers and targets as dashed lines.

    Args:
        found: The ratios.
        ident: A prefix for ids, unique in a page.
    """
    cases: dict[str, list[Measurement]] = {}
    for one in found.measurements:
        cases.setdefault(one.case or "", []).append(one)
    extremes = [1.0, *(value for one in found.measurements for value in _ends(one))]
    extremes += [one.limit for one in found.measurements if one.limit is not None]
    scale = span(extremes)
    heads = sum(bool(case) for case in cases) * _BAR_ROW
    bottom = 8 + heads + len(found.measurements) * _BAR_ROW
    said = ". ".join(
        f"{_whose(one)}: {number(one.value)} times {found.baseline}" for one in found.measurements
    )
    title = f"{found.name}: ratios to {found.baseline}".lstrip(": ")
    svg = drawing.sheet(bottom + 30, ident, title, f"{said}.")
    drawing.axis(svg, scale, marks(scale), lambda value: f"{number(value)}\u00d7", (2, bottom))
    top = 8.0
    for case, members in cases.items():
        if case:
            add(svg, "text", case, x=0, y=top + 16, class_="muted")
            top += _BAR_ROW
        for one in members:
            _ratio(svg, one, scale, top)
            top += _BAR_ROW
    line(svg, scale.x(1.0), 2, bottom, "unity")
    return svg


def _ends(one: Measurement) -> tuple[float, ...]:
    return (one.value,) if one.spread is None else (one.value, one.spread.p25, one.spread.p75)


def _whose(one: Measurement) -> str:
    return ", ".join(part for part in (one.case, one.variant or one.name) if part)


def _ratio(svg: ET.Element, one: Measurement, scale: Scale, top: float) -> None:
    group = ET.SubElement(svg, "g")
    middle = top + _BAR_ROW / 2
    label(group, middle + 4, one.variant or one.name)
    tip(group, f"{_whose(one)}: {number(one.value)} times {one.baseline}, n {one.n or 'not recorded'}")
    low, high = sorted((scale.x(1.0), scale.x(one.value)))
    add(group, "rect", x=low, y=middle - 7, width=max(high - low, 1.5), height=14, class_="phase")
    if one.spread is not None:
        ends = (scale.x(one.spread.p25), scale.x(one.spread.p75))
        drawing.level(group, middle, "whisker", ends)
        for x in ends:
            line(group, x, middle - 4, middle + 4, "whisker")
    if one.limit is not None:
        line(group, scale.x(one.limit), middle - 11, middle + 11, "limit")
    said = f"{number(one.value)}\u00d7" + (f", n {one.n}" if one.n is not None else "")
    add(group, "text", said, x=WIDTH, y=middle + 4, text_anchor="end")


def line_chart(found: Sequence[Series], title: str, unit: str, ident: str) -> ET.Element:
    """Draw quantities over time, one line each, with its name at its end.

    Args:
        found: One or more, each with one point or more.
        title: The drawing's name.
        unit: The unit of the values.
        ident: A prefix for ids, unique in a page.
    """
    times = [t for one in found for t, _ in one.points]
    scale = Scale(min(0.0, *times), max(1.0, *times), right=WIDTH - RIGHT - _NAMES)
    most = max(value for one in found for _, value in one.points) * 1.05 or 1.0
    bottom = 10 + _LINES
    said = ". ".join(f"{one.name}: at the end {number(one.points[-1][1])} {unit}" for one in found)
    svg = drawing.sheet(bottom + 30, ident, title, f"{said}.")
    times_at = drawing.time_ticks(scale.start, scale.end)
    drawing.axis(svg, scale, times_at, drawing.time_text(scale.end), (4, bottom))
    for value in drawing.ticks(0.0, most, 4):
        y = bottom - _LINES * value / most
        drawing.level(svg, y, "grid", (GUTTER, scale.right))
        add(svg, "text", f"{number(value)} {unit}", x=GUTTER - 8, y=y + 4, class_="muted", text_anchor="end")
    for i, one in enumerate(found):
        corners = [
            f"{scale.x(t)} {bottom - _LINES * value / most:.1f}"
            for t, value in thinned(one, int(scale.right - scale.left)).points
        ]
        path = add(svg, "path", d=f"M{'L'.join(corners)}", class_=f"series s{i % _COLOURS + 1}")
        tip(path, one.name)
    _names(svg, found, scale.right, lambda value: bottom - _LINES * value / most)
    return svg


def _names(svg: ET.Element, found: Sequence[Series], x: float, height: Callable[[float], float]) -> None:
    """Write each line's name beside its end, moved apart where ends lie close together."""
    above = 0.0
    order = sorted(range(len(found)), key=lambda i: -found[i].points[-1][1])
    for i in order:
        y = max(height(found[i].points[-1][1]) + 4, above + 13)
        add(svg, "path", d=f"M{x + 6:g} {y - 4:g}h14", class_=f"series s{i % _COLOURS + 1}")
        add(svg, "text", found[i].name, x=x + 24, y=y, class_="muted")
        above = y
