"""The part of a page that shows one run: each value as text, with the record that it comes from."""

from __future__ import annotations

import os
import shlex
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pytest_k3s_sandbox.report import sections
from pytest_k3s_sandbox.report.cite import Citations, key_figures
from pytest_k3s_sandbox.report.drawing import markup
from pytest_k3s_sandbox.report.errors import fragment, group_errors, shorten
from pytest_k3s_sandbox.report.headline import incomplete_reason, outcome, restarts_text, sentence
from pytest_k3s_sandbox.report.metrics import Metrics, PodMetrics
from pytest_k3s_sandbox.report.records import RECORDS_FILE, Run
from pytest_k3s_sandbox.report.tables import bibtex
from pytest_k3s_sandbox.report.timeline import bring_up_window, flags, legend, timeline
from pytest_k3s_sandbox.report.wording import root_name, seconds_text

if TYPE_CHECKING:
    from collections.abc import Sequence


MAX_ROWS = 200
"""The most rows of a table of error lines or events; the records have all."""

KNOWS_TESTS = 3
"""The first version of the schema that has the outcomes of tests."""

MAX_PODS = 40
"""The most pods of the table, which are those that took longest to run; the records have all."""


def view(run: Run, folder: Path, base: Path, ident: str) -> dict[str, Any]:
    """Return the values for the template that shows a run.

    Args:
        run: The run.
        folder: Its folder.
        base: The page's folder, from which links lead.
        ident: A prefix for ids, unique in the page.
    """
    metrics = run.metrics
    cites = Citations(run, ident)
    window = bring_up_window(run)
    logs = {path.stem: path for path in files_below(folder, "logs")}
    first = metrics.first_pod
    environment = run.environment
    gaps = [(after.t - before.t, before, after) for before, after in pairwise(run.samples)]
    widest = max(gaps, key=lambda gap: gap[0], default=None)
    made: dict[str, Any] = {
        "ident": ident,
        "name": run.name,
        "outcome": outcome(run),
        "sentence": sentence(run),
        "incomplete": incomplete_reason(run),
        "environment": environment,
        "environment_cite": None if environment is None else cites.record(environment),
        "kubernetes": _kubernetes(run),
        "root": root_name(environment.root_magic) if environment is not None else "not recorded",
        "command": command(run),
        "bibtex": bibtex(run, folder / RECORDS_FILE),
        "metrics": metrics,
        "all_samples": cites.derive(
            "Samples", "All records of kind sample.", [run.line(s) for s in run.samples]
        ),
        "longest_gap": None
        if widest is None
        else cites.derive(
            "Longest time between samples",
            "The later time minus the earlier one.",
            [run.line(widest[1]), run.line(widest[2])],
        ),
        "figures": key_figures(cites, run, metrics),
        "to_ready": _seconds(metrics.seconds_to_ready),
        "to_ready_from": None if metrics.bring_up_start is None else seconds_text(metrics.began),
        "again": restarts_text(run),
        "to_running": _seconds(None if first is None else first.to_running),
        "held_for": seconds_text(metrics.hold_seconds) if metrics.first_ready is not None else "never",
        "errors_total": metrics.error_lines,
        "claims": sections.claims(run, cites),
        "claims_held": sum(verdict.held for verdict in run.verdicts),
        "tests": sections.tests(run, cites),
        "knows_tests": run.header.schema_version >= KNOWS_TESTS,
        "bring_up": markup(timeline(run, window=window, ident=f"{ident}-up")) if window else None,
        "whole": markup(timeline(run, phases=window is None, ident=f"{ident}-all"))
        if metrics.samples
        else None,
        "legend": legend(run),
        "flags": flags(run),
        "walls": sections.walls(run, cites),
        "ablation": sections.ablation(run, cites),
        "distributions": sections.distribution_groups(run, cites, ident),
        "benchmarks": sections.benchmarks(run, cites, ident),
        "measurements": sections.measurements(run, cites),
        "costs": sections.costs(run, ident),
        "layers": sections.layers(run, cites),
        **_pods(metrics, cites),
        "transitions": [
            {"t": f"{c.t:.1f}", "ready": c.ready, "reason": c.reason or "", "cite": cites.record(c.sample)}
            for c in metrics.transitions
        ],
        **_errors(run, cites, logs, base),
        **_events(run, cites),
        "records": link(folder / RECORDS_FILE, base),
        "logs": bool(logs),
        "files": [
            {"name": path.relative_to(folder), "href": link(path, base)}
            for kind in ("logs", "diagnostics")
            for path in files_below(folder, kind)
        ],
    }
    made["derivations"] = cites.derivations
    made["cited"] = cites.records
    return made


def _kubernetes(run: Run) -> str:
    environment = run.environment
    if environment is None:
        return "not recorded"
    version = environment.kubernetes or environment.pins.get("kubernetes", "not recorded")
    runtime = "" if environment.runtime is None else f", {environment.runtime}"
    return version if environment.distribution is None else f"{version} ({environment.distribution}{runtime})"


def command(run: Run) -> str | None:
    """Return the command that repeats a run, with its environment variables."""
    environment = run.environment
    if environment is None:
        return None
    program, *arguments = environment.argv or ("pytest",)
    if program.endswith(("pytest/__main__.py", "/bin/pytest", "/bin/py.test")):
        words = ["pytest"]
    elif "/bin/" in program:
        words = [Path(program).name]
    else:
        words = [program]
    variables = [f"{name}={shlex.quote(value)}" for name, value in sorted(environment.variables.items())]
    return " ".join([*variables, shlex.join([*words, *arguments])])


def link(path: Path, base: Path) -> str:
    """Return a link to a file from a page in the folder ``base``."""
    return quote(Path(os.path.relpath(path.resolve(), base.resolve())).as_posix())


def files_below(folder: Path, name: str) -> list[Path]:
    """Return the files in one of a run's folders, by their names."""
    root = folder / name
    return sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []


def _seconds(value: float | None) -> str:
    return "never" if value is None else seconds_text(value)


def _after(seconds: float | None, at: float | None) -> str:
    """Return how long something took; when it was seen without its beginning, that is not metrics."""
    if seconds is None:
        return "never" if at is None else "seen"
    return f"+{seconds_text(seconds)}"


def _pods(metrics: Metrics, cites: Citations) -> dict[str, Any]:
    """Return the rows of pods: of many pods the slowest ones."""
    slowest = sorted(metrics.pods, key=lambda pod: pod.running is not None and -(pod.to_running or 0.0))
    chosen = {pod.name for pod in slowest[:MAX_PODS]}
    shown = [pod for pod in metrics.pods if pod.name in chosen]

    def cell(pod: PodMetrics, text: str, key: str) -> dict[str, Any]:
        record = pod.seen.get(key)
        return {"text": text, "cite": None if record is None else cites.record(record)}

    rows = [
        {
            "name": pod.name,
            "created": cell(pod, seconds_text(pod.created), "created"),
            "running": cell(pod, _after(pod.to_running, pod.running), "running"),
            "ready": cell(pod, _after(pod.to_ready, pod.ready), "ready"),
            "gone": cell(pod, _after(pod.to_gone, pod.gone) if pod.deleted is not None else "", "gone"),
        }
        for pod in shown
    ]
    return {"pods": rows, "pods_hidden": len(metrics.pods) - len(shown)}


def _errors(run: Run, cites: Citations, logs: dict[str, Path], base: Path) -> dict[str, Any]:
    groups = group_errors(run.errors)
    rows = []
    for group in groups[:MAX_ROWS]:
        log = logs.get(group.component)
        href = None if log is None else link(log, base) + fragment(group.members[0].text)
        rows.append({"group": group, "log": href, "cite": cites.record(group.members[0])})
    return {"errors": rows, "errors_hidden": max(0, len(groups) - MAX_ROWS)}


def _events(run: Run, cites: Citations) -> dict[str, Any]:
    """Return the rows of events. Of too many events, those of pods are left out first."""
    chosen: Sequence[Any] = run.events
    if len(chosen) > MAX_ROWS:
        chosen = [event for event in chosen if not event.kind.startswith("pod-")][:MAX_ROWS] or chosen[
            :MAX_ROWS
        ]
    rows = [
        {
            "t": f"{event.t:.1f}",
            "kind": event.kind,
            "what": shorten(event.what),
            "component": event.component or "",
            "took": "" if event.seconds is None else seconds_text(event.seconds),
            "cite": cites.record(event),
        }
        for event in chosen
    ]
    return {"events": rows, "events_hidden": len(run.events) - len(rows)}
