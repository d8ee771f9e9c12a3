"""The readiness timeline as SVG: a pure function from a run to a drawing."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from pytest_k3s_sandbox.report.series import Lane, facts, lanes, missing
from pytest_k3s_sandbox.report.summary import seconds_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_k3s_sandbox.report.schema import Event, Phase, Run

WIDTH = 960
"""The drawing's width in its own units; it scales."""

MAX_PODS = 24
"""Lanes for pods in one drawing; the page's table has all of them."""

STATES = {
    "starting": "Not yet",
    "ready": "Node Ready",
    "not-ready": "Node not Ready",
    "unknown": "Unknown",
    "up": "API answers",
    "down": "API does not answer",
    "pod-ready": "Pod Ready",
    "running": "Pod Running, not Ready",
    "pending": "Pod Pending",
    "succeeded": "Pod Succeeded",
    "failed": "Pod Failed",
}
"""What a span's state is called; the keys are the classes in the drawing."""

STYLE = """
.timeline { --ink: #22252a; --muted: #5d636c; --rule: #dedad1; --paper: #fdfcfa;
  --good: #2b7a5d; --soft: #7fb59f; --bad: #b5432e; --wait: #d9a93f; --info: #3d6a96; --void: #b8b4ab;
  font-family: system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; font-size: 12px; }
.timeline text { fill: var(--ink); font-variant-numeric: tabular-nums; }
.timeline .muted { fill: var(--muted); font-size: 11px;
  paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
.timeline .sheet { fill: var(--paper); }
.timeline .grid { stroke: var(--rule); stroke-width: 1; shape-rendering: crispEdges; }
.timeline .base { stroke: var(--rule); stroke-width: 1; stroke-dasharray: 2 3; }
.timeline .gap { fill: var(--rule); fill-opacity: .45; }
.timeline .ready, .timeline .up, .timeline .pod-ready { fill: var(--good); }
.timeline .running { fill: var(--soft); }
.timeline .not-ready, .timeline .down, .timeline .failed { fill: var(--bad); }
.timeline .pending, .timeline .starting { fill: var(--wait); }
.timeline .succeeded { fill: var(--info); }
.timeline .unknown { fill: var(--void); }
.timeline .phase { fill: var(--info); }
.timeline .phase.open { fill-opacity: .4; }
.timeline .error { stroke: var(--bad); stroke-width: 1.5; }
.timeline .event { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 3 2; }
.timeline .flag { fill: var(--muted); }
"""
"""The drawing's own style; the page overrides the colours for dark screens."""

_LEGEND = (
    ("ready", "Ready, or answering", {"ready", "up", "pod-ready"}),
    ("starting", "Not yet", {"starting", "pending"}),
    ("running", "Running, not Ready", {"running"}),
    ("succeeded", "Succeeded", {"succeeded"}),
    ("not-ready", "Not Ready, not answering, failed", {"not-ready", "down", "failed"}),
    ("unknown", "Unknown", {"unknown"}),
)
_LOW = {"starting", "pending", "unknown"}
_BAD = {"not-ready", "down", "failed"}
_CHARACTER = 6.0
_GUTTER = 168.0
_RIGHT = 18.0
_LANE = 26.0
_BAR = 14.0
_PHASE = 20.0
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def clean(text: str) -> str:
    """Return a text with every character that XML 1.0 forbids (section 2.2) replaced by U+FFFD."""
    return _ILLEGAL.sub("\ufffd", text)


@dataclass(frozen=True)
class _Scale:
    start: float
    end: float

    def x(self, t: float) -> float:
        inside = min(max(t, self.start), self.end)
        share = (inside - self.start) / (self.end - self.start)
        return round(_GUTTER + share * (WIDTH - _GUTTER - _RIGHT), 2)

    def holds(self, t: float) -> bool:
        return self.start <= t <= self.end


def bring_up_window(run: Run) -> tuple[float, float] | None:
    """Return the times of the bring-up, for a drawing of its own.

    Returns:
        From the first phase to a little after the node and the first pod were Ready (or the last
        phase ended); None when that is most of the run anyway.
    """
    known = facts(run)
    marks = [phase.end for phase in run.phases if phase.end is not None]
    if known.seconds_to_ready is not None:
        marks.append(known.seconds_to_ready)
    marks += [pod.ready for pod in known.pods[:1] if pod.ready is not None]
    if not marks:
        return None
    start = min([0.0, *(phase.start for phase in run.phases)])
    end = start + max((max(marks) - start) * 1.15, 1.0)
    return (start, end) if known.last - start > 2 * (end - start) else None


def timeline(
    run: Run, *, window: tuple[float, float] | None = None, phases: bool = True, ident: str = "timeline"
) -> ET.Element:
    """Draw a run over time.

    Args:
        run: The run.
        window: The times to draw, in seconds since the run's zero; the whole run when not given.
        phases: Whether the bring-up's phases are drawn above the lanes.
        ident: A prefix for ids, unique in a page.

    Returns:
        The ``svg`` element, without a style of its own (see :data:`STYLE`).
    """
    scale = _scale(run, window)
    shown = [p for p in run.phases if p.start <= scale.end and (p.end is None or p.end >= scale.start)]
    bars = shown if phases else []
    rows = lanes(run)
    pods = [lane for lane in rows[2:] if _touches(lane, scale)]
    rows = (*rows[:2], *pods[:MAX_PODS])
    events = [event for event in run.events if scale.holds(event.t)]
    top = 24.0 if events else 10.0
    lanes_top = top + len(bars) * _PHASE + (10.0 if bars else 0.0)
    errors_top = lanes_top + len(rows) * _LANE
    bottom = errors_top + _LANE
    height = bottom + 30 + (16 if len(pods) > MAX_PODS else 0)

    svg = ET.Element(
        "svg",
        {
            "class": "timeline",
            "viewBox": f"0 0 {WIDTH} {height:g}",
            "role": "img",
            "aria-labelledby": f"{ident}-title {ident}-desc",
        },
    )
    _add(svg, "title", f"Readiness over time, {run.name}", id=f"{ident}-title")
    _add(svg, "desc", _description(run, rows, scale), id=f"{ident}-desc")
    _axis(svg, scale, top - 6, bottom)
    _gaps(svg, run, scale, lanes_top, bottom)
    _events(svg, events, scale, top, bottom)
    for i, phase in enumerate(bars):
        _phase(svg, phase, scale, top + i * _PHASE)
    for i, lane in enumerate(rows):
        _lane(svg, lane, scale, lanes_top + i * _LANE)
    _errors(svg, run, scale, errors_top)
    if len(pods) > MAX_PODS:
        words = f"{len(pods) - MAX_PODS} more pods are in the table of pods."
        _add(svg, "text", words, x=0, y=height - 4, class_="muted")
    return svg


def standalone(svg: ET.Element, width: float) -> str:
    """Return a drawing as a file of its own, with its style and a width for papers.

    Args:
        svg: What :func:`timeline` drew; it is changed.
        width: The width in millimetres.
    """
    # Inside HTML the namespace goes without saying; a file has to name it.
    svg.set("xmlns", "http://www.w3.org/2000/svg")
    height = float(svg.get("viewBox", "").split()[3])
    svg.set("width", f"{width:g}mm")
    svg.set("height", f"{width * height / WIDTH:.2f}mm")
    style = ET.Element("style")
    # Programs that turn SVG into PDF know no CSS variables.
    values = dict(re.findall(r"(--\w+): (#\w+);", STYLE))
    values["--paper"] = "#ffffff"
    style.text = re.sub(r"var\((--\w+)\)", lambda name: values[name[1]], STYLE)
    svg.insert(2, style)
    svg.insert(3, ET.Element("rect", {"width": "100%", "height": "100%", "class": "sheet"}))
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(svg, encoding="unicode") + "\n"


def legend(run: Run) -> list[tuple[str, str]]:
    """Return what the colours of a run's drawing mean, as pairs of class and words."""
    seen = {span.state for lane in lanes(run) for span in lane.spans}
    return [(kind, name) for kind, name, states in _LEGEND if states & seen]


def ticks(start: float, end: float, most: int = 10) -> list[float]:
    """Return round times for an axis, ascending, within the two given.

    Args:
        start: Seconds.
        end: Seconds, later.
        most: How many at most.
    """
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200)
    step = next((s for s in steps if (end - start) / s <= most - 1), 86400.0 * (1 + (end - start) // 864000))
    first = -int(-start // step) if start > 0 else -int(-start / step)
    last = int(end / step)
    return [round(i * step, 3) for i in range(first, last + 1) if start <= i * step <= end]


def _scale(run: Run, window: tuple[float, float] | None) -> _Scale:
    if window is not None:
        return _Scale(*window)
    start = min([0.0, *(phase.start for phase in run.phases), *(sample.t for sample in run.samples[:1])])
    return _Scale(start, max(facts(run).last, start + 1.0))


def _touches(lane: Lane, scale: _Scale) -> bool:
    return any(span.start <= scale.end and span.end >= scale.start for span in lane.spans)


def _description(run: Run, rows: Sequence[Lane], scale: _Scale) -> str:
    parts = [f"From {scale.start:.1f} to {scale.end:.1f} seconds after the sandbox's start."]
    for lane in rows:
        seen = list(dict.fromkeys(STATES.get(span.state, span.state) for span in lane.spans))
        parts.append(f"{lane.name}: {', then '.join(seen[:6]) if seen else 'not seen'}.")
    parts.append(f"{len(run.errors)} error lines. The tables of this page hold the same data.")
    return " ".join(parts)


def _add(parent: ET.Element, tag: str, words: str | None = None, **attributes: float | str) -> ET.Element:
    """Append an element; ``class_`` and ``text_anchor`` stand for the names that Python cannot write."""
    plain = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    texts = {name: clean(value) if isinstance(value, str) else f"{value:g}" for name, value in plain.items()}
    element = ET.SubElement(parent, tag, texts)
    if words is not None:
        element.text = clean(words)
    return element


def _bar(parent: ET.Element, ends: tuple[float, float], top: float, height: float, kind: str) -> ET.Element:
    # A single sample has no width, and a short outage of a long run has hardly any: both must be seen.
    width = max(ends[1] - ends[0], 3.0 if kind in _BAD else 1.5)
    return _add(parent, "rect", x=ends[0], y=top, width=width, height=height, class_=kind)


def _line(parent: ET.Element, x: float, top: float, bottom: float, kind: str) -> ET.Element:
    return _add(parent, "line", x1=x, x2=x, y1=top, y2=bottom, class_=kind)


def _tip(parent: ET.Element, text: str) -> None:
    _add(parent, "title", text)


def _axis(svg: ET.Element, scale: _Scale, top: float, bottom: float) -> None:
    marks = ticks(scale.start, scale.end)
    in_minutes = scale.end - scale.start >= 600  # noqa: PLR2004 - ten minutes: seconds become hard to read
    for t in marks:
        _line(svg, scale.x(t), top, bottom + 4, "grid")
        label = f"{t / 60:g} min" if in_minutes else f"{t:g} s"
        _add(svg, "text", label, x=scale.x(t), y=bottom + 18, class_="muted", text_anchor="middle")


def _gaps(svg: ET.Element, run: Run, scale: _Scale, top: float, bottom: float) -> None:
    for start, end in missing(run):
        if end >= scale.start and start <= scale.end:
            box = _bar(svg, (scale.x(start), scale.x(end)), top, bottom - top, "gap")
            _tip(box, f"no sample from {start:.1f} s to {end:.1f} s")


def _events(svg: ET.Element, events: Sequence[Event], scale: _Scale, top: float, bottom: float) -> None:
    for event, after in zip_longest(events, events[1:]):
        x = scale.x(event.t)
        words = f"{event.kind}: {event.what}"
        group = ET.SubElement(svg, "g")
        _tip(group, f"{event.t:.1f} s  {words}")
        _line(group, x, top - 8, bottom, "event")
        _add(group, "path", d=f"M{x - 4:g} {top - 16:g}h8l-4 8z", class_="flag")
        room = (WIDTH if after is None else scale.x(after.t)) - x - 12
        if len(words) * _CHARACTER <= room:
            _add(group, "text", words, x=x + 7, y=top - 9, class_="muted")


def _label(group: ET.Element, y: float, name: str) -> None:
    most = 26
    short = name if len(name) <= most else f"{name[: most // 2]}\u2026{name[-(most // 2 - 1) :]}"
    _add(group, "text", short, x=0, y=y)


def _phase(svg: ET.Element, phase: Phase, scale: _Scale, top: float) -> None:
    group = ET.SubElement(svg, "g")
    end = scale.end if phase.end is None else phase.end
    length = "never ended" if phase.end is None else seconds_text(end - phase.start)
    _tip(group, f"{phase.name}: from {phase.start:.2f} s, {length}")
    _label(group, top + 12, phase.name)
    x, last = scale.x(phase.start), scale.x(end)
    _bar(group, (x, last), top + 3, _PHASE - 9, "phase open" if phase.end is None else "phase")
    after = last + 60 < WIDTH
    _add(
        group,
        "text",
        length,
        x=last + 6 if after else x - 6,
        y=top + 12,
        class_="muted",
        text_anchor="start" if after else "end",
    )


def _lane(svg: ET.Element, lane: Lane, scale: _Scale, top: float) -> None:
    group = ET.SubElement(svg, "g")
    _label(group, top + _BAR / 2 + 10, lane.name)
    middle = top + _LANE / 2
    _add(group, "line", x1=_GUTTER, x2=WIDTH - _RIGHT, y1=middle, y2=middle, class_="base")
    # Bad states come last, over their neighbours.
    for span in sorted(lane.spans, key=lambda span: span.state in _BAD):
        if span.end < scale.start or span.start > scale.end:
            continue
        # Colour is not their only mark: bad states are taller, those not yet known good are lower.
        inset = -3.0 if span.state in _BAD else 3.0 if span.state in _LOW else 0.0
        ends = (scale.x(span.start), scale.x(span.end))
        bar = _bar(group, ends, middle - _BAR / 2 + inset, _BAR - 2 * inset, span.state)
        name = STATES.get(span.state, span.state)
        _tip(bar, f"{lane.name}: {name}, {span.start:.1f} s to {span.end:.1f} s, {span.samples} samples")


def _errors(svg: ET.Element, run: Run, scale: _Scale, top: float) -> None:
    """Draw error lines as ticks, one a unit of width at most, however many there are."""
    group = ET.SubElement(svg, "g")
    inside = [line for line in run.errors if scale.holds(line.t)]
    _label(group, top + _BAR / 2 + 10, "Error lines")
    if not inside:
        _add(group, "text", "none", x=_GUTTER + 6, y=top + _BAR / 2 + 10, class_="muted")
    places: dict[int, Counter[str]] = {}
    for line in inside:
        places.setdefault(round(scale.x(line.t)), Counter())[line.kind] += 1
    for x, kinds in places.items():
        mark = _line(group, x, top + 5, top + _LANE - 5, "error")
        _tip(mark, ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
