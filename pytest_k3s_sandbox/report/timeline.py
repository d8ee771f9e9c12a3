"""The readiness timeline as SVG: a pure function from a run to a drawing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from pytest_k3s_sandbox.report import drawing
from pytest_k3s_sandbox.report.drawing import CHARACTER, GUTTER, RIGHT, WIDTH, Scale, add, label, line, tip
from pytest_k3s_sandbox.report.records import Event, EventKind, Phase, Run, Sample
from pytest_k3s_sandbox.report.series import Lane, missing
from pytest_k3s_sandbox.report.wording import seconds_text

if TYPE_CHECKING:
    from collections.abc import Sequence


MAX_PODS = 16
"""The most pods that each have a lane in one drawing; above that, most pods are only counted."""

MAX_EVENTS = 12
"""The most events with a line and words; above that, the events of pods become ticks of a lane."""

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
"""The names of states; the keys are the classes in the drawing."""

_LEGEND = (
    ("ready", "Ready, or answering", {"ready", "up", "pod-ready"}),
    ("starting", "Not yet", {"starting", "pending"}),
    ("running", "Running, not Ready", {"running"}),
    ("succeeded", "Succeeded", {"succeeded"}),
    ("not-ready", "Not Ready, not answering, failed", {"not-ready", "down", "failed"}),
    ("unknown", "Unknown", {"unknown"}),
)
_FLAGS = {
    EventKind.FAULT: ("M-5 0h10l-5 9z", "Fault"),
    EventKind.RESTART: ("M0 0l5 4.5l-5 4.5l-5 -4.5z", "Restart"),
    EventKind.RECOVERY: ("M-5 9h10l-5 -9z", "Recovery"),
    EventKind.TRANSITION: ("M-4 0h8v8h-8z", "Transition"),
}
_OTHER_FLAG = "M-4 1h8l-4 8z"
_OF_PODS = {EventKind.POD_CREATED, EventKind.POD_DELETED}
_LOW = {"starting", "pending", "unknown"}
BAD = {"not-ready", "down", "failed"}
_LANE = 26.0
_BAR = 14.0
_PHASE = 20.0
_COUNT = 54.0
_LONG_LIFE = 0.25  # of the drawing: such pods have lanes even where most are only counted


@dataclass(frozen=True)
class _Row:
    """One row of the drawing: a lane, or the count of pods.

    Attributes:
        lane: The lane; None for the count.
        height: The row's height.
    """

    lane: Lane | None
    height: float = _LANE


def bring_up_window(run: Run) -> tuple[float, float] | None:
    """Return the times of the bring-up, which has a drawing of its own.

    Returns:
        The time of the first phase, and a time shortly after the node and the first pod were Ready or the
        last phase ended. None if that is most of the run.
    """
    metrics = run.metrics
    marks = [phase.end for phase in run.phases if phase.end is not None]
    if metrics.first_ready is not None:
        marks.append(metrics.first_ready.t)
    marks += [pod.ready for pod in metrics.pods[:1] if pod.ready is not None]
    if not marks:
        return None
    start = (
        metrics.began if metrics.bring_up_start is not None else min([0.0, *(p.start for p in run.phases)])
    )
    end = start + max((max(marks) - start) * 1.15, 1.0)
    return (start, end) if metrics.last - start > 2 * (end - start) else None


def whole(run: Run) -> tuple[float, float]:
    """Return the times of a whole run."""
    start = min([0.0, *(phase.start for phase in run.phases), *(sample.t for sample in run.samples[:1])])
    return start, max(run.metrics.last, start + 1.0)


def timeline(
    run: Run, *, window: tuple[float, float] | None = None, phases: bool = True, ident: str = "timeline"
) -> ET.Element:
    """Draw a run over time.

    Args:
        run: The run.
        window: The times to draw, in seconds since the run's zero; the whole run if None.
        phases: Whether the bring-up's phases are drawn above the lanes.
        ident: A prefix for ids, unique in a page.

    Returns:
        The ``svg`` element, without a style of its own (see :data:`.drawing.STYLE`).
    """
    scale = Scale(*(window or whole(run)))
    bars = [
        p for p in run.phases if phases and p.start <= scale.end and (p.end is None or p.end >= scale.start)
    ]
    chosen, counted = chosen_lanes(run, (scale.start, scale.end))
    rows = [_Row(lane) for lane in chosen] + ([_Row(None, _COUNT)] if counted else [])
    events = [event for event in run.events if scale.holds(event.t)]
    flagged = events if len(events) <= MAX_EVENTS else [e for e in events if e.kind not in _OF_PODS]
    ticked = [] if len(flagged) == len(events) else [e for e in events if e.kind in _OF_PODS]
    top = 24.0 if flagged else 10.0
    lanes_top = top + len(bars) * _PHASE + (10.0 if bars else 0.0)
    ticks_top = lanes_top + sum(row.height for row in rows)
    errors_top = ticks_top + (_LANE if ticked else 0.0)
    bottom = errors_top + _LANE

    svg = drawing.sheet(
        bottom + 30, ident, f"Readiness over time, {run.name}", _description(run, rows, scale, events)
    )
    _axis(svg, scale, top - 6, bottom)
    _gaps(svg, run, scale, lanes_top, bottom)
    _flags(svg, flagged, scale, top, bottom)
    for i, phase in enumerate(bars):
        _phase(svg, phase, scale, top + i * _PHASE)
    y = lanes_top
    for row in rows:
        if row.lane is None:
            _count(svg, run.samples, scale, y)
        else:
            _lane(svg, row.lane, scale, y)
        y += row.height
    if ticked:
        _ticks(svg, ticked, scale, ticks_top)
    _errors(svg, run, scale, errors_top)
    return svg


def legend(run: Run) -> list[tuple[str, str]]:
    """Return the legend of the colours in a run's drawing, as pairs of class and words."""
    seen = {span.state for lane in run.lanes for span in lane.spans}
    return [(kind, name) for kind, name, states in _LEGEND if states & seen]


def flags(run: Run) -> list[tuple[str, str, str]]:
    """Return the legend of the marks in a run's drawing, as triples of class, path and words."""
    seen = {event.kind for event in run.events}
    return [(str(kind), path, words) for kind, (path, words) in _FLAGS.items() if kind in seen]


def chosen_lanes(run: Run, window: tuple[float, float]) -> tuple[list[Lane], bool]:
    """Return the lanes that a drawing has room for, and whether it counts the other pods.

    Args:
        run: The run.
        window: The times that are drawn.
    """
    start, end = window
    found = run.lanes
    pods = [lane for lane in found[2:] if any(s.start <= end and s.end >= start for s in lane.spans)]
    if len(pods) <= MAX_PODS:
        return [*found[:2], *pods], False
    least = (end - start) * _LONG_LIFE
    long = [lane for lane in pods if lane.spans[-1].end - lane.spans[0].start >= least]
    return [*found[:2], *long[:MAX_PODS]], True


def _description(run: Run, rows: Sequence[_Row], scale: Scale, events: Sequence[Event]) -> str:
    parts = [f"From {scale.start:.1f} to {scale.end:.1f} seconds after the sandbox's start."]
    for row in rows:
        if row.lane is None:
            parts.append("All pods: counted.")
            continue
        seen = list(dict.fromkeys(STATES.get(span.state, span.state) for span in row.lane.spans))
        parts.append(f"{row.lane.name}: {', then '.join(seen[:6]) if seen else 'not seen'}.")
    kinds = Counter(event.kind for event in events)
    parts += [f"Event {kind}: {count}." for kind, count in kinds.items()]
    count = sum(error.count for error in run.errors)
    parts.append(f"{count} error lines. The tables of this page hold the same data.")
    return " ".join(parts)


def _axis(svg: ET.Element, scale: Scale, top: float, bottom: float) -> None:
    marks = drawing.time_ticks(scale.start, scale.end)
    drawing.axis(svg, scale, marks, drawing.time_text(scale.end - scale.start), (top, bottom))


def _bar(parent: ET.Element, ends: tuple[float, float], top: float, height: float, kind: str) -> ET.Element:
    # A single sample has no width, and a short outage of a long run has hardly any. Both have to be visible.
    width = max(ends[1] - ends[0], 3.0 if kind in BAD else 1.5)
    return add(parent, "rect", x=ends[0], y=top, width=width, height=height, class_=kind)


def _gaps(svg: ET.Element, run: Run, scale: Scale, top: float, bottom: float) -> None:
    for start, end in missing(run.samples):
        if end >= scale.start and start <= scale.end:
            box = _bar(svg, (scale.x(start), scale.x(end)), top, bottom - top, "gap")
            tip(box, f"no sample from {start:.1f} s to {end:.1f} s")


def _flags(svg: ET.Element, events: Sequence[Event], scale: Scale, top: float, bottom: float) -> None:
    for event, after in zip_longest(events, events[1:]):
        x = scale.x(event.t)
        words = f"{event.kind}: {event.what}"
        group = ET.SubElement(svg, "g")
        tip(group, f"{event.t:.1f} s  {words}")
        line(group, x, top - 8, bottom, "event")
        path = _FLAGS[EventKind(event.kind)][0] if event.kind in _FLAGS else _OTHER_FLAG
        kind = f"flag {event.kind}" if event.kind in _FLAGS else "flag"
        add(group, "path", d=path, transform=f"translate({x:g} {top - 17:g})", class_=kind)
        room = (WIDTH if after is None else scale.x(after.t)) - x - 12
        if len(words) * CHARACTER <= room:
            add(group, "text", words, x=x + 7, y=top - 9, class_="muted")


def _ticks(svg: ET.Element, events: Sequence[Event], scale: Scale, top: float) -> None:
    """Draw pods' events as ticks, creation above the middle and deletion below it."""
    group = ET.SubElement(svg, "g")
    label(group, top + _BAR / 2 + 10, "Pods created, deleted")
    middle = top + _LANE / 2
    for kind, ends, name in (
        (EventKind.POD_CREATED, (middle - 9, middle - 1), "tick"),
        (EventKind.POD_DELETED, (middle + 1, middle + 9), "tick gone"),
    ):
        places = Counter(round(scale.x(event.t)) for event in events if event.kind == kind)
        for x, count in places.items():
            tip(line(group, x, *ends, name), f"{count} {kind}")


def _count(svg: ET.Element, samples: Sequence[Sample], scale: Scale, top: float) -> None:
    """Draw the number of pods and of Ready pods: for each unit of width the greatest and the least."""
    group = ET.SubElement(svg, "g")
    counts: dict[int, tuple[int, int]] = {}
    for sample in samples:
        if scale.holds(sample.t) and sample.api_reachable:
            there = len(sample.pods)
            ready = sum(pod.ready for pod in sample.pods.values())
            before = counts.get(round(scale.x(sample.t)), (there, ready))
            counts[round(scale.x(sample.t))] = (max(there, before[0]), min(ready, before[1]))
    most = max((there for there, _ in counts.values()), default=0)
    label(group, top + _COUNT / 2 + 2, "Pods, and those Ready")
    if not most:
        return
    base, height = top + _COUNT - 8, _COUNT - 18
    for which, kind in ((0, "starting"), (1, "ready")):
        corners = [(x, base - height * pair[which] / most) for x, pair in sorted(counts.items())]
        steps = " ".join(f"L{x} {y:.1f}" for x, y in corners)
        first, last = corners[0][0], corners[-1][0]
        area = add(group, "path", d=f"M{first} {base:g} {steps} L{last} {base:g}Z", class_=kind)
        tip(area, "pods that are Ready, the least" if which else "pods that exist, the most")
    add(group, "text", f"{most}", x=GUTTER - 8, y=base - height + 4, class_="muted", text_anchor="end")
    add(group, "text", "0", x=GUTTER - 8, y=base + 4, class_="muted", text_anchor="end")
    drawing.level(group, base, "base")


def _phase(svg: ET.Element, phase: Phase, scale: Scale, top: float) -> None:
    group = ET.SubElement(svg, "g")
    end = scale.end if phase.end is None else phase.end
    length = "never ended" if phase.end is None else seconds_text(end - phase.start)
    tip(group, f"{phase.name}: from {phase.start:.2f} s, {length}")
    label(group, top + 12, phase.name)
    x, last = scale.x(phase.start), scale.x(end)
    _bar(group, (x, last), top + 3, _PHASE - 9, "phase open" if phase.end is None else "phase")
    after = last + 60 < WIDTH
    add(
        group,
        "text",
        length,
        x=last + 6 if after else x - 6,
        y=top + 12,
        class_="muted",
        text_anchor="start" if after else "end",
    )


def _lane(svg: ET.Element, lane: Lane, scale: Scale, top: float) -> None:
    group = ET.SubElement(svg, "g")
    label(group, top + _BAR / 2 + 10, lane.name)
    middle = top + _LANE / 2
    drawing.level(group, middle, "base", (GUTTER, WIDTH - RIGHT))
    # Bad states come last, over their neighbours.
    for span in sorted(lane.spans, key=lambda span: span.state in BAD):
        if span.end < scale.start or span.start > scale.end:
            continue
        # Heights repeat the colours: bad states are taller, states before the first good one are lower.
        inset = -3.0 if span.state in BAD else 3.0 if span.state in _LOW else 0.0
        ends = (scale.x(span.start), scale.x(span.end))
        bar = _bar(group, ends, middle - _BAR / 2 + inset, _BAR - 2 * inset, span.state)
        name = STATES.get(span.state, span.state)
        tip(bar, f"{lane.name}: {name}, {span.start:.1f} s to {span.end:.1f} s, {span.samples} samples")


def _errors(svg: ET.Element, run: Run, scale: Scale, top: float) -> None:
    """Draw error lines as ticks, at most one for each unit of width."""
    group = ET.SubElement(svg, "g")
    inside = [error for error in run.errors if scale.holds(error.t)]
    label(group, top + _BAR / 2 + 10, "Error lines")
    if not inside:
        add(group, "text", "none", x=GUTTER + 6, y=top + _BAR / 2 + 10, class_="muted")
    places: dict[int, Counter[str]] = {}
    for error in inside:
        places.setdefault(round(scale.x(error.t)), Counter())[error.kind] += error.count
    for x, kinds in places.items():
        mark = line(group, x, top + 5, top + _LANE - 5, "error")
        tip(mark, ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))


def side_by_side(runs: Sequence[tuple[str, Run]], *, ident: str = "together") -> ET.Element:
    """Draw the node's lane of several runs on one time scale.

    Args:
        runs: Each run's name in the drawing, and the run.
        ident: A prefix for ids, unique in a page.
    """
    ends = [whole(run) for _, run in runs]
    scale = Scale(min(start for start, _ in ends), max(end for _, end in ends))
    bottom = 10 + len(runs) * _LANE
    names = "; ".join(f"{name}: {seconds_text(end)}" for (name, _), (_, end) in zip(runs, ends, strict=True))
    svg = drawing.sheet(bottom + 30, ident, "The node's readiness in each run", f"Lengths: {names}.")
    _axis(svg, scale, 4, bottom)
    for number, (name, run) in enumerate(runs):
        node = run.lanes[1]
        _lane(svg, Lane(name, node.spans), scale, 8 + number * _LANE)
    return svg
