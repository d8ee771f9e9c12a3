"""The HTML page of one or more runs: one self-contained file that needs no network."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.etree import ElementTree as ET

from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.report.figures import write, write_timelines
from pytest_k3s_sandbox.report.records import RECORDS_FILE, read_run
from pytest_k3s_sandbox.report.series import facts
from pytest_k3s_sandbox.report.summary import (
    incomplete_reason,
    outcome,
    root_name,
    seconds_text,
    sentence,
    value_text,
)
from pytest_k3s_sandbox.report.timeline import STYLE, bring_up_window, clean, legend, timeline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_k3s_sandbox.report.schema import ErrorLine, Event, Run

MAX_ROWS = 200
"""Rows that a table of error lines or events shows; all are in the records."""

_KLOG_HEADER = re.compile(r"^[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ")
_VARYING = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8}-[0-9a-f-]{27}|\b[0-9a-f]{12,}\b|\d+")
_MAX_TEXT = 600


@dataclass(frozen=True)
class ErrorGroup:
    """Error lines that differ in nothing but numbers.

    Attributes:
        component: The log's name.
        kind: See :mod:`~pytest_k3s_sandbox.report.kinds`.
        errno: The error's name when the lines have one.
        text: The first of them, without its header.
        count: How many there are.
        first: The first one's time in seconds since the run's zero.
        last: The last one's.
    """

    component: str
    kind: str
    errno: str | None
    text: str
    count: int
    first: float
    last: float


def group_errors(lines: Sequence[ErrorLine]) -> tuple[ErrorGroup, ...]:
    """Group error lines, the most frequent first.

    Args:
        lines: The lines by their time.
    """
    groups: dict[tuple[str, str, str], list[ErrorLine]] = {}
    for line in lines:
        text = _KLOG_HEADER.sub("", line.text.strip())
        groups.setdefault((line.component, line.kind, _VARYING.sub("#", text)), []).append(line)
    found = [
        ErrorGroup(
            component=component,
            kind=kind,
            errno=members[0].errno,
            text=_shorten(_KLOG_HEADER.sub("", members[0].text.strip())),
            count=len(members),
            first=members[0].t,
            last=members[-1].t,
        )
        for (component, kind, _), members in groups.items()
    ]
    return tuple(sorted(found, key=lambda group: (-group.count, group.first)))


def render(run_dirs: Sequence[Path], target: Path) -> Path:
    """Write the page of one or more runs, and each run's timeline as SVG beside it.

    Args:
        run_dirs: The runs' folders, in the order in which they are shown.
        target: The folder that gets ``index.html``, or the page's own name when it ends with ``.html``.

    Returns:
        The page.

    Raises:
        ConfigError: There is no run to show, one cannot be read, or the page cannot be written.
    """
    if not run_dirs:
        raise ConfigError("report", cause="no run was named", remedy="name one run's folder or more")
    page = target if target.suffix == ".html" else target / "index.html"
    views = []
    for i, folder in enumerate(run_dirs, start=1):
        run = read_run(folder)
        figures = write_timelines(
            run, page.parent, stem="timeline" if len(run_dirs) == 1 else f"timeline-{i}"
        )
        place = folder if folder.is_dir() else folder.parent
        views.append(view(run, place, page.parent, [figure.name for figure in figures], f"run{i}"))
    return write(page, to_html(views))


def to_html(views: Sequence[dict[str, Any]]) -> str:
    """Fill the template with what :func:`view` made of each run."""
    import jinja2  # noqa: PLC0415 - heavy, and only the page needs it

    source = resources.files(__package__).joinpath("template.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    held = sum(one["outcome"] == "held" for one in views)
    return environment.from_string(source).render(runs=views, held=held, timeline_style=STYLE)


def view(run: Run, folder: Path, base: Path, figures: Sequence[str], ident: str) -> dict[str, Any]:
    """Return what the template shows of a run, every value as it will be read.

    Args:
        run: The run.
        folder: Its folder.
        base: The page's folder, from which links lead.
        figures: The timelines' file names in that folder: the whole run's, the bring-up's if it has one.
        ident: A prefix for ids, unique in the page.
    """
    known = facts(run)
    first = next((pod for pod in known.pods if pod.running is not None), None)
    logs = {path.stem: path for path in _logs(folder)}
    groups = group_errors(run.errors)
    window = bring_up_window(run)
    events = run.events
    return {
        "ident": ident,
        "name": run.name,
        "outcome": outcome(run),
        "sentence": sentence(run),
        "incomplete": incomplete_reason(run),
        "environment": run.environment,
        "root": root_name(run.environment.root_magic) if run.environment is not None else "not recorded",
        "command": shlex.join(run.environment.argv) if run.environment is not None else None,
        "facts": known,
        "to_ready": _seconds(known.seconds_to_ready),
        "to_running": _seconds(first.running - first.created if first and first.running else None),
        "held_for": seconds_text(known.hold_seconds) if known.seconds_to_ready is not None else "never",
        "errors_total": sum(known.errors.values()),
        "verdicts": [
            {"verdict": v, "measured": value_text(v.measured, v.unit), "limit": value_text(v.limit, v.unit)}
            for v in run.verdicts
        ],
        "pods": [
            {
                "name": pod.name,
                "created": seconds_text(pod.created),
                "running": _after(pod.created, pod.running),
                "ready": _after(pod.created, pod.ready),
                "gone": _after(pod.deleted, pod.gone) if pod.deleted is not None else "",
            }
            for pod in known.pods
        ],
        "transitions": [
            {"t": f"{c.t:.1f}", "ready": c.ready, "reason": c.reason or ""} for c in known.transitions
        ],
        "layers": _layers(run),
        "measurements": [{"m": m, "value": value_text(m.value)} for m in run.measurements],
        "errors": [
            {"group": group, "log": _link(logs[group.component], base) if group.component in logs else None}
            for group in groups[:MAX_ROWS]
        ],
        "errors_hidden": max(0, len(groups) - MAX_ROWS),
        "events": _event_rows(events[:MAX_ROWS]),
        "events_hidden": max(0, len(events) - MAX_ROWS),
        "legend": legend(run),
        "bring_up": _svg(run, window, f"{ident}-up") if window is not None else None,
        "whole": _svg(run, None, f"{ident}-all", phases=window is None),
        "figures": [quote(figure) for figure in figures],
        "records": _link(folder / RECORDS_FILE, base),
        "logs": [{"name": path.relative_to(folder), "href": _link(path, base)} for path in logs.values()],
    }


def _svg(run: Run, window: tuple[float, float] | None, ident: str, *, phases: bool = True) -> object:
    import markupsafe  # noqa: PLC0415 - comes with jinja2, which is loaded only here

    drawing = timeline(run, window=window, phases=phases, ident=ident)
    # ElementTree has escaped every text and attribute.
    return markupsafe.Markup(ET.tostring(drawing, encoding="unicode", short_empty_elements=False))  # noqa: S704 - see above


def _finalize(value: object) -> object:
    return clean(value) if type(value) is str else value


def _seconds(value: float | None) -> str:
    return "never" if value is None else seconds_text(value)


def _after(start: float | None, end: float | None) -> str:
    return "never" if start is None or end is None else f"+{seconds_text(end - start)}"


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}\u2026"


def _event_rows(events: Sequence[Event]) -> list[dict[str, str]]:
    return [{"t": f"{event.t:.1f}", "kind": event.kind, "what": _shorten(event.what)} for event in events]


def _layers(run: Run) -> list[dict[str, str]]:
    names = list(run.environment.layers) if run.environment is not None else []
    costs = [sample.cost for sample in run.samples if sample.cost]
    names += [name for name in (costs[-1] if costs else {}) if name not in names]
    rows = []
    for name in names:
        seen = [cost[name] for cost in costs if name in cost]
        rows.append(
            {
                "name": name,
                "cpu": f"{max(c.cpu_seconds for c in seen):.1f} s" if seen else "not measured",
                "rss": f"{max(c.rss_bytes for c in seen) / 2**20:.1f} MiB" if seen else "not measured",
            }
        )
    return rows


def _logs(folder: Path) -> list[Path]:
    root = folder / "logs"
    return sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []


def _link(path: Path, base: Path) -> str:
    return quote(Path(os.path.relpath(path.resolve(), base.resolve())).as_posix())
