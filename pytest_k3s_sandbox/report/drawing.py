"""The common parts of all drawings: elements of SVG, axes and their style."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from pytest_k3s_sandbox.support.escaping import xml

WIDTH = 960
"""The width of a drawing in units of its view box."""

GUTTER = 168.0
"""The room for names at the left."""

RIGHT = 18.0
"""The margin at the right."""

CHARACTER = 6.0
"""About the width of a character of a drawing's small text."""

_MAX_NAME = 26
_FINE_DECADES = 3  # a logarithmic axis of more decades has marks at powers of ten only
_MINUTES_FROM = 600.0  # seconds from which an axis of time is marked in minutes

STYLE = """
.drawing { --ink: #22252a; --muted: #5d636c; --rule: #dedad1; --paper: #fdfcfa;
  --good: #2b7a5d; --soft: #7fb59f; --bad: #b5432e; --wait: #d9a93f; --info: #3d6a96; --void: #b8b4ab;
  --s1: #3d6a96; --s2: #b5662e; --s3: #2b7a5d; --s4: #80589c; --s5: #8a7a2f;
  font-family: system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; font-size: 12px; }
.drawing text { fill: var(--ink); font-variant-numeric: tabular-nums; }
.drawing .muted { fill: var(--muted); font-size: 11px;
  paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
.drawing .sheet { fill: var(--paper); }
.drawing .grid { stroke: var(--rule); stroke-width: 1; shape-rendering: crispEdges; }
.drawing .base { stroke: var(--rule); stroke-width: 1; stroke-dasharray: 2 3; }
.drawing .gap { fill: var(--rule); fill-opacity: .45; }
.drawing .ready, .drawing .up, .drawing .pod-ready { fill: var(--good); }
.drawing .running { fill: var(--soft); }
.drawing .not-ready, .drawing .down, .drawing .failed { fill: var(--bad); }
.drawing .pending, .drawing .starting { fill: var(--wait); }
.drawing .succeeded { fill: var(--info); }
.drawing .unknown { fill: var(--void); }
.drawing .phase { fill: var(--info); }
.drawing .phase.open { fill-opacity: .4; }
.drawing .error { stroke: var(--bad); stroke-width: 1.5; }
.drawing .event { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 3 2; }
.drawing .flag { fill: var(--muted); }
.drawing .flag.fault { fill: var(--bad); }
.drawing .flag.restart, .drawing .flag.transition { fill: var(--wait); }
.drawing .flag.recovery { fill: var(--good); }
.drawing .tick { stroke: var(--info); stroke-width: 1.5; }
.drawing .tick.gone { stroke: var(--muted); }
.drawing .dot { fill: var(--info); fill-opacity: .5; }
.drawing .dot.many { fill-opacity: .2; }
.drawing .box { fill: var(--info); fill-opacity: .22; stroke: var(--info); }
.drawing .median { stroke: var(--ink); stroke-width: 2; }
.drawing .whisker { stroke: var(--ink); stroke-width: 1.25; }
.drawing .unity { stroke: var(--ink); stroke-width: 1; }
.drawing .limit { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 4 3; }
.drawing .series { fill: none; stroke-width: 1.75; stroke-linejoin: round; }
.drawing .s1 { stroke: var(--s1); } .drawing .s2 { stroke: var(--s2); stroke-dasharray: 7 2; }
.drawing .s3 { stroke: var(--s3); stroke-dasharray: 2 2; }
.drawing .s4 { stroke: var(--s4); stroke-dasharray: 9 2 2 2; }
.drawing .s5 { stroke: var(--s5); stroke-dasharray: 4 3; }
"""
"""The style of all drawings; the page overrides the colours for dark screens."""


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic axis from left to right.

    Attributes:
        start: The value at its left end.
        end: The value at its right end, greater.
        left: The left end in the drawing's units.
        right: The right end.
        log: Whether it is logarithmic; both ends are positive then.
    """

    start: float
    end: float
    left: float = GUTTER
    right: float = WIDTH - RIGHT
    log: bool = False

    def x(self, value: float) -> float:
        """Return the place of a value; a value outside the axis is at the nearest end."""
        inside = min(max(value, self.start), self.end)
        if self.log:
            share = math.log(inside / self.start) / math.log(self.end / self.start)
        else:
            share = (inside - self.start) / (self.end - self.start)
        return round(self.left + share * (self.right - self.left), 2)

    def holds(self, value: float) -> bool:
        """Tell whether a value is on the axis."""
        return self.start <= value <= self.end


def sheet(height: float, ident: str, title: str, description: str) -> ET.Element:
    """Return an empty drawing with a name and a description for screen readers."""
    svg = ET.Element(
        "svg",
        {
            "class": "drawing",
            "viewBox": f"0 0 {WIDTH} {height:g}",
            "role": "img",
            "aria-labelledby": f"{ident}-title {ident}-desc",
        },
    )
    add(svg, "title", title, id=f"{ident}-title")
    add(svg, "desc", description, id=f"{ident}-desc")
    return svg


def add(parent: ET.Element, tag: str, words: str | None = None, **attributes: float | str) -> ET.Element:
    """Append an element; ``class_`` and ``text_anchor`` become ``class`` and ``text-anchor``."""
    plain = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    texts = {name: xml(value) if isinstance(value, str) else f"{value:g}" for name, value in plain.items()}
    element = ET.SubElement(parent, tag, texts)
    if words is not None:
        element.text = xml(words)
    return element


def line(parent: ET.Element, x: float, top: float, bottom: float, kind: str) -> ET.Element:
    """Append an upright line."""
    return add(parent, "line", x1=x, x2=x, y1=top, y2=bottom, class_=kind)


def level(
    parent: ET.Element, y: float, kind: str, ends: tuple[float, float] = (GUTTER, WIDTH - RIGHT)
) -> None:
    """Append a level line."""
    add(parent, "line", x1=ends[0], x2=ends[1], y1=y, y2=y, class_=kind)


def tip(parent: ET.Element, text: str) -> None:
    """Give an element a text that browsers show as a tooltip."""
    add(parent, "title", text)


def label(group: ET.Element, y: float, name: str) -> None:
    """Write the name of a lane at the left, with an ellipsis in the middle of a long name."""
    short = (
        name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME // 2]}\u2026{name[-(_MAX_NAME // 2 - 1) :]}"
    )
    add(group, "text", short, x=0, y=y)


def axis(
    svg: ET.Element, scale: Scale, marks: list[float], text: Callable[[float], str], ends: tuple[float, float]
) -> None:
    """Draw an axis: lines from top to bottom, and their values below."""
    top, bottom = ends
    for value in marks:
        line(svg, scale.x(value), top, bottom + 4, "grid")
        add(svg, "text", text(value), x=scale.x(value), y=bottom + 18, class_="muted", text_anchor="middle")


def time_unit(seconds: float) -> tuple[str, float]:
    """Return the unit of an axis that shows so many seconds: its name and its length in seconds."""
    return ("min", 60.0) if seconds >= _MINUTES_FROM else ("s", 1.0)


def time_text(seconds: float) -> Callable[[float], str]:
    """Return the function that writes a mark of an axis that shows so many seconds."""
    unit, length = time_unit(seconds)
    return lambda t: f"{t / length:g} {unit}"


def time_ticks(start: float, end: float, most: int = 10) -> list[float]:
    """Return round times for an axis, ascending, within the two given.

    Args:
        start: Seconds.
        end: Seconds, later.
        most: How many at most.
    """
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200)
    step = next((s for s in steps if (end - start) / s <= most - 1), 86400.0 * (1 + (end - start) // 864000))
    return _multiples(start, end, step)


def ticks(start: float, end: float, most: int = 8) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) for a linear axis, ascending."""
    rough = (end - start) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 5) if m * power >= rough), 10 * power)
    return _multiples(start, end, step)


def log_ticks(start: float, end: float) -> list[float]:
    """Return round numbers for a logarithmic axis: powers of ten, and twice and five times those."""
    low, high = math.floor(math.log10(start)), math.ceil(math.log10(end))
    factors = (1,) if high - low > _FINE_DECADES else (1, 2, 5)
    found = [factor * 10.0**power for power in range(low, high + 1) for factor in factors]
    return [value for value in found if start <= value <= end]


def _multiples(start: float, end: float, step: float) -> list[float]:
    first = math.ceil(start / step - 1e-9)
    last = math.floor(end / step + 1e-9)
    found = [float(f"{i * step:.12g}") for i in range(first, last + 1)]
    return [value for value in found if start <= value <= end]


def standalone(svg: ET.Element, width: float) -> str:
    """Return a drawing with its style as the text of a file.

    Args:
        svg: The drawing; it is changed.
        width: The width in millimetres.
    """
    # HTML implies the namespace. A file has to name it.
    svg.set("xmlns", "http://www.w3.org/2000/svg")
    height = float(svg.get("viewBox", "").split()[3])
    svg.set("width", f"{width:g}mm")
    svg.set("height", f"{width * height / WIDTH:.2f}mm")
    style = ET.Element("style")
    # Many viewers of SVG do not support CSS variables.
    values = dict(re.findall(r"(--\w+): (#\w+);", STYLE))
    values["--paper"] = "#ffffff"
    style.text = re.sub(r"var\((--\w+)\)", lambda name: values[name[1]], STYLE)
    svg.insert(2, style)
    svg.insert(3, ET.Element("rect", {"width": "100%", "height": "100%", "class": "sheet"}))
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(svg, encoding="unicode") + "\n"


def markup(drawing: ET.Element) -> object:
    """Return a drawing as markup that the template does not escape."""
    import markupsafe

    text = ET.tostring(drawing, encoding="unicode", short_empty_elements=False)
    return markupsafe.Markup(text)  # noqa: S704 - ElementTree has escaped every text and attribute
