"""The outcomes of a run in its page: claims, tests, walls, ablation, distributions, benchmarks, costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_k3s_sandbox.report import charts
from pytest_k3s_sandbox.report.ablation import STAGE_NAMES, STAGES, Sets, combination, matrix, sets
from pytest_k3s_sandbox.report.charts import number
from pytest_k3s_sandbox.report.distributions import (
    Observations,
    Series,
    grouped,
)
from pytest_k3s_sandbox.report.drawing import markup
from pytest_k3s_sandbox.report.errors import shorten
from pytest_k3s_sandbox.report.wording import seconds_text, short_id, value_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_k3s_sandbox.report.cite import Citations
    from pytest_k3s_sandbox.report.records import Ablation, LayerState, Measurement, Run


MAX_CELL = 32
"""The most characters of a narrow column; a longer measured value stands below its claim."""

MAX_REASON = 400
"""The most characters of an error that the page shows; the records have the whole error."""


def claims(run: Run, cites: Citations) -> list[dict[str, Any]]:
    """Return a row for each verdict, then one for each claim that was announced and not reached."""
    rows = []
    for one in run.verdicts:
        measured = value_text(one.measured, one.unit)
        rows.append(
            {
                "result": one.word,
                "text": one.text,
                "name": one.name,
                "measured": measured,
                "long": len(measured) > MAX_CELL,
                "limit": value_text(one.limit, one.unit),
                "ended": None if one.ended is None else shorten(one.ended, MAX_REASON),
                "cite": cites.record(one),
            }
        )
    rows += [
        {
            "result": "not reached",
            "text": one.text,
            "name": one.name,
            "measured": "",
            "long": False,
            "limit": value_text(one.limit, one.unit),
            "ended": None,
            "cite": cites.record(one),
        }
        for one in run.unreached
    ]
    return rows


def tests(run: Run, cites: Citations) -> dict[str, Any] | None:
    """Return the number of passed tests and a row for each other test; None where no test was recorded."""
    if not run.tests:
        return None
    others = [test for test in run.tests if test.outcome != "passed"]
    return {
        "passed": len(run.tests) - len(others),
        "total": len(run.tests),
        "rows": [
            {
                "result": test.word,
                "name": short_id(test),
                "text": test.text,
                "phase": test.phase or "",
                "message": None if not test.message else shorten(test.message, MAX_REASON),
                "cite": cites.record(test),
            }
            for test in others
        ],
    }


def walls(run: Run, cites: Citations) -> list[dict[str, Any]]:
    """Return the rows of first-error walls."""
    return [
        {
            "number": i,
            "error": wall.error,
            "text": shorten(wall.error.text),
            "layers": ", ".join(wall.layers) or "none",
            "settings": ", ".join(f"{name}={value}" for name, value in wall.settings.items()),
            "version": wall.version if wall.variant is None else f"{wall.version} ({wall.variant})",
            "removed_by": wall.removed_by or "not found",
            "cite": cites.record(wall),
        }
        for i, wall in enumerate(run.walls, start=1)
    ]


def ablation(run: Run, cites: Citations) -> dict[str, Any] | None:
    """Return the matrix of the ablation as a table of cells; None for a run without an ablation."""
    if not run.ablation:
        return None
    table = matrix(run.ablation)
    rows = [
        {
            "parts": [part in row for part in table.parts],
            "name": named(row),
            "cells": [_cell(table.cells.get((row, version)), cites) for version in table.versions],
        }
        for row in table.rows
    ]
    scale = [{"level": STAGES.index(stage), "name": STAGE_NAMES[stage]} for stage in STAGES]
    return {
        "parts": table.parts,
        "versions": table.versions,
        "rows": rows,
        "scale": scale,
        "conclusions": [{"version": one.version, "text": conclusion(one)} for one in sets(table)],
        "cells": len(table.cells),
    }


def named(row: frozenset[str]) -> str:
    """Return the names of a combination's parts."""
    return " + ".join(sorted(row)) or "nothing"


def conclusion(found: Sets) -> str:
    """Return the necessary and sufficient parts of a version in sentences."""
    tried = f"The node was Ready with {found.ready} of {found.tried} combinations tried."
    if found.necessary is None:
        return tried
    needed = ", ".join(sorted(found.necessary))
    words = f"Necessary: {needed}." if needed else "Nothing that was left out proved necessary."
    return f"{tried} {words} Sufficient: {' or '.join(named(row) for row in found.sufficient)}."


def _cell(cell: Ablation | None, cites: Citations) -> dict[str, Any] | None:
    if cell is None:
        return None
    seconds = "" if cell.seconds_to_ready is None else seconds_text(cell.seconds_to_ready)
    return {
        "level": STAGES.index(cell.reached),
        "text": STAGE_NAMES[cell.reached],
        "seconds": seconds,
        "error": None if cell.error is None else cell.error.kind,
        "stats": "no /stats/summary" if cell.stats_summary is False else None,
        "detail": None if cell.error is None else f"{cell.error.component}: {shorten(cell.error.text)}",
        "name": named(combination(cell)),
        "cite": cites.record(cell),
    }


def distribution_groups(run: Run, cites: Citations, ident: str) -> list[dict[str, Any]]:
    """Return the distributions, a drawing and a table for each unit with more than one observation."""
    made = []
    found = grouped(run.distributions)
    several = {key: members for key, members in found.items() if any(one.n > 1 for one in members)}
    for i, ((group, unit), members) in enumerate(several.items(), start=1):
        title = f"{group}, {unit}" if unit not in group else group
        rows = [_distribution_row(one, cites) for one in members]
        drawing = charts.distribution_chart(members, title, f"{ident}-dist{i}")
        made.append({"title": title, "unit": unit, "svg": markup(drawing), "rows": rows})
    return made


def _distribution_row(one: Observations, cites: Citations) -> dict[str, Any]:
    if len(one.lines) == 1:
        cite = cites.line(one.lines[0])
    else:
        rule = "Extremes and quartiles (the extremes included) of the observations in these records."
        cite = cites.derive(f"{one.name}, {one.unit}", rule, one.lines)
    spread = one.spread
    values = (spread.min, spread.p25, spread.median, spread.p75, spread.max)
    return {"name": one.name, "n": one.n, "values": [number(value) for value in values], "cite": cite}


def benchmarks(run: Run, cites: Citations, ident: str) -> list[dict[str, Any]]:
    """Return the benchmarks' ratios, a drawing and a table each."""
    return [
        {
            "name": found.name or "Ratios",
            "baseline": found.baseline,
            "svg": markup(charts.ratio_chart(found, f"{ident}-bench{i}")),
            "rows": [_ratio_row(one, cites) for one in found.measurements],
        }
        for i, found in enumerate(charts.ratios(run.measurements), start=1)
    ]


def _ratio_row(one: Measurement, cites: Citations) -> dict[str, Any]:
    spread = one.spread
    met = None if one.limit is None else one.value <= one.limit
    return {
        "case": one.case or "",
        "variant": one.variant or one.name,
        "value": number(one.value),
        "spread": "" if spread is None else f"{number(spread.p25)} to {number(spread.p75)}",
        "n": "" if one.n is None else str(one.n),
        "limit": "" if one.limit is None else f"\u2264 {number(one.limit)}",
        "met": met,
        "cite": cites.record(one),
    }


def measurements(run: Run, cites: Citations) -> list[dict[str, Any]]:
    """Return the rows of measurements without a baseline."""
    return [
        {
            "name": one.name,
            "value": value_text(one.value) if one.spread is None else number(one.value),
            "unit": one.unit,
            "n": "" if one.n is None else str(one.n),
            "spread": "" if one.spread is None else f"{number(one.spread.p25)} to {number(one.spread.p75)}",
            "cite": cites.record(one),
        }
        for one in run.measurements
        if one.baseline is None
    ]


def costs(run: Run, ident: str) -> list[dict[str, Any]]:
    """Return the drawings of the layers' processor time and memory over time."""
    made = []
    for name, title, unit, found in (
        ("cpu", "Processor time of layers and programs", "%", run.processor),
        ("rss", "Memory of layers and programs", "MiB", run.memory),
    ):
        shown: Sequence[Series] = [series for series in found if len(series.points) > 1]
        if shown:
            drawing = charts.line_chart(shown, title, unit, f"{ident}-{name}")
            made.append({"title": title, "svg": markup(drawing)})
    return made


def _health(state: LayerState | None) -> str:
    return "not recorded" if state is None else "healthy" if state.ok else "broken"


def layers(run: Run, cites: Citations) -> list[dict[str, Any]]:
    """Return a row for each layer and each program of the node, with its resources and its last check."""
    put_up = list(run.environment.layers) if run.environment is not None else []
    names = list(put_up)
    costed = [(sample, name) for sample in run.samples for name in sample.cost]
    names += [name for name in dict.fromkeys(name for _, name in costed) if name not in names]
    rows = []
    for name in names:
        seen = [sample for sample, layer in costed if layer == name]
        states = [state for state in run.layers if state.name == name]
        most_cpu = max(seen, key=lambda sample: sample.cost[name].cpu_seconds, default=None)
        most_rss = max(seen, key=lambda sample: sample.cost[name].rss_bytes, default=None)
        last = states[-1] if states else None
        rows.append(
            {
                "name": name,
                "cpu": None if most_cpu is None else f"{most_cpu.cost[name].cpu_seconds:.1f} s",
                "cpu_cite": None if most_cpu is None else cites.record(most_cpu),
                "rss": None if most_rss is None else f"{most_rss.cost[name].rss_bytes / 2**20:.1f} MiB",
                "rss_cite": None if most_rss is None else cites.record(most_rss),
                "health": _health(last) if name in put_up or last is not None else "",
                "details": "" if last is None else ", ".join(f"{k}: {v}" for k, v in last.details.items()),
                "health_cite": None if last is None else cites.record(last),
            }
        )
    return rows
