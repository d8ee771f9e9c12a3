"""The part of a page that shows several runs side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_k3s_sandbox.report import charts
from pytest_k3s_sandbox.report.charts import number
from pytest_k3s_sandbox.report.distributions import Observations
from pytest_k3s_sandbox.report.drawing import markup
from pytest_k3s_sandbox.report.errors import shorten
from pytest_k3s_sandbox.report.headline import decisive_verdict
from pytest_k3s_sandbox.report.timeline import side_by_side
from pytest_k3s_sandbox.report.wording import value_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_k3s_sandbox.report.records import Announced, Run, Verdict

MAX_CELL = 80
"""The most characters of a measured value here; the part of each run has the whole value."""


def comparison(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the values for the template that shows several runs together.

    Args:
        runs: Two or more; their views have the idents ``run1``, ``run2`` and so on.
    """
    return {
        "timeline": markup(side_by_side([(f"{i}  {run.name}", run) for i, run in enumerate(runs, start=1)])),
        "claims": claims(runs),
        "distributions": _distributions(runs),
        "ratios": _ratios(runs),
    }


def claims(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row for each claim of any run, with the result of each run.

    Runs may make one claim with different texts or limits. The name of the claim identifies it.
    """
    claimed: list[list[Verdict | Announced]] = [[*run.unreached, *run.verdicts] for run in runs]
    names = dict.fromkeys(one.name for run in claimed for one in run)
    rows = []
    for name in names:
        cells = [_claim(run, name) for run in runs]
        said = [one for run in reversed(claimed) for one in run if one.name == name]
        seen = {cell["outcome"] for cell in cells if cell is not None}
        rows.append({"name": name, "text": said[-1].text, "cells": cells, "differs": len(seen) > 1})
    return rows


def _claim(run: Run, name: str) -> dict[str, str] | None:
    """Return the worst verdict of a run on a claim; None where the run did not make that claim."""
    verdict = decisive_verdict(run, name)
    if verdict is not None:
        measured = shorten(value_text(verdict.measured, verdict.unit), MAX_CELL)
        return {"outcome": verdict.word, "measured": measured}
    if any(one.name == name for one in run.unreached):
        return {"outcome": "not reached", "measured": ""}
    return None


def _distributions(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a drawing for each distribution that two runs or more have."""
    by_name: dict[tuple[str, str, str], list[tuple[int, Observations]]] = {}
    for i, run in enumerate(runs, start=1):
        for one in run.distributions:
            by_name.setdefault((one.group, one.name, one.unit), []).append((i, one))
    made: list[dict[str, Any]] = []
    for (group, name, unit), members in by_name.items():
        if len(members) == 1:
            continue
        named = [replace(one, name=f"{i}  {runs[i - 1].name}") for i, one in members]
        title = f"{name}, {unit}" if group == "Latency" else f"{group} of {name}, {unit}"
        drawing = charts.distribution_chart(named, title, f"together-d{len(made) + 1}")
        made.append({"title": title, "svg": markup(drawing)})
    return made


def _ratios(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row for each ratio of any run, with each run's value."""
    found: dict[tuple[str, str, str, str], dict[int, str]] = {}
    for i, run in enumerate(runs):
        for one in run.measurements:
            if one.baseline is not None:
                key = (one.benchmark or "", one.case or "", one.variant or one.name, one.baseline)
                found.setdefault(key, {})[i] = f"{number(one.value)}\u00d7"
    return [
        {
            "benchmark": benchmark,
            "case": case,
            "variant": variant,
            "baseline": baseline,
            "values": [values.get(i, "") for i in range(len(runs))],
        }
        for (benchmark, case, variant, baseline), values in found.items()
    ]
