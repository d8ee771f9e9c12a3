"""The files of a run for a paper: figures, data, tables and a citation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_k3s_sandbox.report.figures import COLUMN_MM, PAGE_MM, write_figures
from pytest_k3s_sandbox.report.page import write
from pytest_k3s_sandbox.report.records import RECORDS_FILE, Run, read_run
from pytest_k3s_sandbox.report.tables import bibtex, csv_tables, csv_text, latex, markdown, results

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


FOLDER = "export"
"""The folder beside the page."""


def export(
    run_dirs: Sequence[Path], base: Path, widths: Sequence[float] = (COLUMN_MM, PAGE_MM)
) -> list[Path]:
    """Write figures, CSV, tables and citations of runs.

    Args:
        run_dirs: The runs' folders.
        base: The page's folder; the files go to ``export`` in it.
        widths: The figures' widths in millimetres.

    Returns:
        The files.

    Raises:
        ConfigError: A run cannot be read, or a file cannot be written.
        MissingCapability: matplotlib is not installed.
    """
    folder = base / FOLDER
    runs = [read_run(path) for path in run_dirs]
    made: list[Path] = []
    cited = []
    for i, (run, path) in enumerate(zip(runs, run_dirs, strict=True), start=1):
        prefix = "" if len(runs) == 1 else f"run{i}-"
        made += write_figures(run, folder, prefix=prefix, widths=widths)
        tables = {**csv_tables(run), **{f"figure-{name}": text for name, text in figure_data(run).items()}}
        made += [write(folder / f"{prefix}{name}.csv", text) for name, text in tables.items()]
        cited.append(bibtex(run, path / RECORDS_FILE if path.is_dir() else path))
    rows = results(runs)
    made.append(write(folder / "results.md", markdown(rows)))
    made.append(write(folder / "results.tex", latex(rows)))
    entries = [entry for entry in cited if entry is not None]
    if entries:
        made.append(write(folder / "citation.bib", "\n".join(entries)))
    return made


def figure_data(run: Run) -> dict[str, str]:
    """Return the data of the figures as CSV, where the records do not have it in this form."""
    spans = [
        {
            "lane": lane.name,
            "start": span.start,
            "end": span.end,
            "state": span.state,
            "samples": span.samples,
        }
        for lane in run.lanes
        for span in lane.spans
    ]
    observed = [
        {"group": one.group, "name": one.name, "unit": one.unit, "observation": i, "value": value}
        for one in run.distributions
        for i, value in enumerate(one.values, start=1)
    ]
    over_time = [
        {"name": one.name, "quantity": quantity, "t": t, "value": value, "line": line}
        for quantity, found in (("processor, % of a core", run.processor), ("memory, MiB", run.memory))
        for one in found
        for (t, value), line in zip(one.points, one.lines, strict=True)
    ]
    tables = {"readiness": spans, "distributions": observed, "over-time": over_time}
    return {name: csv_text(rows) for name, rows in tables.items() if rows}
