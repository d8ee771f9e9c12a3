"""A run as tables: its records as CSV, its results as LaTeX and Markdown, its citation as BibTeX."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pytest_k3s_sandbox.report.headline import decisive_verdict, outcome
from pytest_k3s_sandbox.report.records import (
    Ablation,
    Announced,
    Environment,
    ErrorLine,
    Event,
    FrozenModel,
    LayerState,
    Measurement,
    Phase,
    Run,
    Sample,
    Tested,
    Verdict,
    Wall,
)
from pytest_k3s_sandbox.report.wording import root_name, seconds_text, value_text
from pytest_k3s_sandbox.support import escaping

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


_KINDS: dict[str, type[FrozenModel]] = {
    "environment": Environment,
    "phases": Phase,
    "layers": LayerState,
    "samples": Sample,
    "events": Event,
    "errors": ErrorLine,
    "measurements": Measurement,
    "walls": Wall,
    "ablation": Ablation,
    "announced": Announced,
    "verdicts": Verdict,
    "tests": Tested,
}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def csv_tables(run: Run) -> dict[str, str]:
    """Return a run's records as CSV (RFC 4180), a table for each kind that occurs, by its name.

    The column ``line`` has the number of the line in the file. Nested values become columns with dots in
    their names (``cost.fake_cni.cpu_seconds``), and lists become one text, separated by semicolons. The pods
    of samples have a table with a row for each pod in each sample.
    """
    made = {}
    for name, kind in _KINDS.items():
        rows = [{"line": run.line(record), **_flat(record)} for record in run.of(kind)]
        if rows:
            made[name] = csv_text(rows)
    pods = [
        {"line": run.line(sample), "t": sample.t, "pod": name, **_flat(pod)}
        for sample in run.samples
        for name, pod in sample.pods.items()
    ]
    if pods:
        made["pods"] = csv_text(pods)
    return made


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as CSV without formulas, with a column for every key in the order of first use."""
    found = dict.fromkeys(key for row in rows for key in row)
    # A nested value that is None in some rows has columns from the other rows.
    nested = {key.rpartition(".")[0] for key in found}
    columns = [key for key in found if key not in nested]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([escaping.csv_cell(column) for column in columns])
    writer.writerows([escaping.csv_cell(row.get(column, "")) for column in columns] for row in rows)
    return out.getvalue()


def _flat(record: FrozenModel) -> dict[str, Any]:
    return dict(_walk("", record.model_dump(mode="json", exclude={"type", "pods"})))


def _walk(prefix: str, value: object) -> list[tuple[str, object]]:
    if isinstance(value, dict):
        found: list[tuple[str, object]] = []
        for key, below in value.items():
            found += _walk(f"{prefix}.{key}" if prefix else str(key), below)
        return found
    if isinstance(value, list):
        parts = [part if isinstance(part, str) else json.dumps(part) for part in value]
        return [(prefix, ";".join(parts))]
    if isinstance(value, bool):
        return [(prefix, "true" if value else "false")]
    return [(prefix, "" if value is None else value)]


def results(runs: Sequence[Run]) -> list[list[str]]:
    """Return the results of runs as a table: a head, then a row for each key figure and each claim.

    Args:
        runs: The runs, a column each.
    """
    metrics = [run.metrics for run in runs]
    pods = [one.first_pod for one in metrics]
    rows = [
        ["", *(run.name for run in runs)],
        ["Result", *(outcome(run) for run in runs)],
        ["Sandbox", *("" if run.environment is None else run.environment.sandbox for run in runs)],
        ["Root", *("" if r.environment is None else root_name(r.environment.root_magic) for r in runs)],
        ["Layers", *("" if r.environment is None else ", ".join(r.environment.layers) for r in runs)],
        ["Start to Ready", *(_or_never(one.seconds_to_ready) for one in metrics)],
        ["Pod created to Running", *(_or_never(None if p is None else p.to_running) for p in pods)],
        ["Longest unbroken Ready", *(seconds_text(one.hold_seconds) for one in metrics)],
        ["Samples Ready", *(f"{one.ready_samples} of {one.samples_since_ready}" for one in metrics)],
        ["Times Ready was lost", *(str(one.losses) for one in metrics)],
        ["Error lines", *(str(one.error_lines) for one in metrics)],
    ]
    if any(run.tests for run in runs):
        rows.append(["Tests", *(_tests(run) for run in runs)])
    claims = dict.fromkeys(one for run in runs for one in (*_names(run.verdicts), *_names(run.unreached)))
    for name, text in claims:
        rows.append([text, *(_claim(run, name, text) for run in runs)])
    return rows


def _names(claims: Sequence[Verdict] | Sequence[Announced]) -> list[tuple[str, str]]:
    return [(one.name, one.text) for one in claims]


def _tests(run: Run) -> str:
    counts = Counter(test.word for test in run.tests)
    return ", ".join(f"{number} {word}" for word, number in sorted(counts.items())) or "not recorded"


def _or_never(value: float | None) -> str:
    return "never" if value is None else seconds_text(value)


def _claim(run: Run, name: str, text: str) -> str:
    verdict = decisive_verdict(run, name, text)
    if verdict is not None:
        measured = value_text(verdict.measured, verdict.unit)
        return verdict.word + (f" ({measured})" if measured else "")
    return "not reached" if (name, text) in _names(run.unreached) else "not judged"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown (GitHub's tables); the first row is its head."""
    cells = [[escaping.markdown(cell) for cell in row] for row in rows]
    head, *body = cells
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(rows: Sequence[Sequence[str]]) -> str:
    """Return a table in LaTeX, for the package ``booktabs``; the first row is its head."""
    head, *body = ([escaping.latex(cell) for cell in row] for row in rows)
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'l' * (len(head) - 1)}}}",
        "  \\toprule",
        f"  {' & '.join(head)} \\\\",
        "  \\midrule",
        *(f"  {' & '.join(row)} \\\\" for row in body),
        "  \\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def bibtex(run: Run, records: Path) -> str | None:
    """Return a citation of a run: its version, pins, date, and the hash of its records.

    Args:
        run: The run.
        records: Its file of records.

    Returns:
        A ``@misc`` entry; None when the run ended before its environment was recorded.
    """
    environment = run.environment
    if environment is None:
        return None
    started = _date(environment.started)
    pins = ", ".join(f"{name} {version}" for name, version in sorted(environment.pins.items()))
    digest = hashlib.sha256(records.read_bytes()).hexdigest() if records.is_file() else None
    fields = {
        "title": f"{environment.experiment} in the sandbox {environment.sandbox}: {outcome(run)}",
        "author": "{pytest-k3s-sandbox}",
        "year": None if started is None else f"{started.year}",
        "month": None if started is None else _MONTHS[started.month - 1],
        "version": environment.project_version,
        "howpublished": f"Records of the run {run.name}" + (f", SHA-256 {digest}" if digest else ""),
        "note": f"Started {environment.started}" + (f"; {pins}" if pins else ""),
    }
    key = re.sub(r"[^A-Za-z0-9-]+", "-", run.name).strip("-") or "run"
    lines = [f"@misc{{{key},"]
    for name, value in fields.items():
        if value is None:
            continue
        # The month is a macro of BibTeX's; braces keep the author's name whole.
        plain = name in {"month", "year"}
        text = value if plain or name == "author" else escaping.latex(value)
        lines.append(f"  {name} = {text}," if plain else f"  {name} = {{{text}}},")
    return "\n".join([*lines, "}"]) + "\n"


def _date(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):  # not a date, or out of range in UTC
        return None
