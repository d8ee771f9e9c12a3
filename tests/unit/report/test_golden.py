"""Whole pages and exports of runs that were made by rule, compared with files that were looked at.

A report is cited, so that no number, word or line of a drawing in it may change unnoticed. After a change
that is meant, ``K3S_SANDBOX_GOLDEN=write pytest tests/unit/report/test_golden.py`` writes the files anew;
``git diff`` then shows what has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from pytest_k3s_sandbox.report import ablation_text, figures, page
from pytest_k3s_sandbox.report.compare import comparison
from pytest_k3s_sandbox.report.export import figure_data
from pytest_k3s_sandbox.report.headline import headline, headline_lines, summarize
from pytest_k3s_sandbox.report.records import ErrorLine, Record, Run, Sample, read_run
from pytest_k3s_sandbox.report.tables import bibtex, csv_tables, latex, markdown, results
from support import synthetic_runs

GOLDEN = Path(__file__).parent / "data" / "golden"
SECONDS = 620
"""One fault and the errors after it (tests/support/synthetic_runs.py)."""

LONG = 120
DIGITS = 5
"""Significant digits of a figure's coordinates: the rest differs between machines."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with everything, one that broke off, and one with next to nothing."""
    base = tmp_path_factory.mktemp("golden")
    everything = synthetic_runs.everything(SECONDS)
    broken: list[Record] = [*synthetic_runs.bring_up(), *synthetic_runs.churn(40)]
    broken.append(ErrorLine(t=39.0, component="kubelet", kind="runtime", text="<b>E1</b> & more"))
    changed = {"sandbox": "host", "root_magic": 0xEF53, "layers": (), "kernel": "6.1"}
    small: list[Record] = [synthetic_runs.ENVIRONMENT.model_copy(update=changed)]
    small += [Sample(t=float(t), api_reachable=True, node_ready=t > 2) for t in range(9)]
    return {
        name: synthetic_runs.write(base / name, records, close=closed)
        for name, records, closed in (
            ("everything", everything, True),
            ("broken", broken, False),
            ("small", small, True),
        )
    }


@pytest.fixture(params=["everything", "broken", "small"])
def run(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Run:
    """Each of the runs."""
    return read_run(folders[request.param])


def same(name: str, text: str) -> None:
    """Compare a text with a file of these tests, or write that file if that was asked for."""
    file = GOLDEN / name
    if os.environ.get("K3S_SANDBOX_GOLDEN") == "write":
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    there = file.read_text(encoding="utf-8").splitlines()
    lines = text.splitlines()
    changed = [(old, new) for old, new in zip(there, lines, strict=False) if old != new][:5]
    assert changed == []
    assert len(lines) == len(there)


@pytest.mark.parametrize("names", [["everything"], ["broken", "small"]])
def test_a_page(folders: dict[str, Path], tmp_path: Path, names: list[str]) -> None:
    target = tmp_path / "page"
    text = page.render([folders[name] for name in names], target).read_text(encoding="utf-8")
    text = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'"[^"]*?/golden\d*/', '"/golden/', text).replace("><", ">\n<")
    text = re.sub(r"SHA-256 [0-9a-f]{64}", "SHA-256 of the records", text)  # they have the time of writing
    text = "\n".join(_short(line) for line in text.splitlines())
    same(f"page-{'-'.join(names)}.html", text)


def test_a_comparison(folders: dict[str, Path]) -> None:
    runs = [read_run(folders[name]) for name in ("everything", "small", "everything", "broken")]
    text = json.dumps(comparison(runs), indent=0, default=str)
    same("comparison.json", "\n".join(_short(line) for line in text.splitlines()))


def _short(line: str) -> str:
    """Return a line whose end is replaced by its digest if it is long, as the outline of a curve is."""
    digest_of = hashlib.sha256(line.encode()).hexdigest()
    return line if len(line) <= LONG else f"{line[:LONG]} ... {digest_of[:12]}"


def test_tables(run: Run, request: pytest.FixtureRequest) -> None:
    texts = {**csv_tables(run), **{f"figure-{name}": text for name, text in figure_data(run).items()}}
    rows = results([run])
    texts |= {"markdown": markdown(rows), "latex": latex(rows), "bibtex": str(bibtex(run, Path("x.jsonl")))}
    texts["ablation"] = ablation_text.text(run.ablation) if run.ablation else ""
    # A table has a row for each sample; the first rows show the form.
    parts = [f"== {name}\n" + "".join(text.splitlines(keepends=True)[:40]) for name, text in texts.items()]
    same(f"tables-{request.node.callspec.id}.txt", "\n".join(parts))


def test_summaries(run: Run, request: pytest.FixtureRequest) -> None:
    said = [json.dumps(summarize(run), indent=1, default=str), *headline_lines([headline(run)])]
    same(f"summary-{request.node.callspec.id}.txt", "\n".join(said))


def test_figures(run: Run, request: pytest.FixtureRequest) -> None:
    drawn = [
        {"figure": name, "height": round(height, 3), "shows": list(_shown(draw))}
        for name, height, draw in figures._figures(run)
    ]
    same(f"figures-{request.node.callspec.id}.json", json.dumps(drawn, indent=0))


def _shown(draw: Callable[[Figure], None]) -> Iterator[dict[str, Any]]:
    """Describe a figure by its lines, areas and texts, in the coordinates of its axes."""
    figure = Figure(figsize=(7, 4))
    draw(figure)
    for axes in figure.axes:
        yield {
            "axes": [*_rounded(axes.get_xlim()), *_rounded(axes.get_ylim())],
            "labels": [axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale(), axes.get_yscale()],
            "ticks": [tick.get_text() for tick in (*axes.get_xticklabels(), *axes.get_yticklabels())],
            "legend": [text.get_text() for text in legend.get_texts()]
            if (legend := axes.get_legend())
            else None,
        }
        yield from _artists(axes)


def _artists(axes: Axes) -> Iterator[dict[str, Any]]:
    for child in axes.get_children():
        one: Any = child  # matplotlib types what it gives back as loosely as what it takes
        if isinstance(child, Line2D):
            xy = np.asarray(one.get_xydata(), dtype=float)
            yield {"line": _rounded(xy[:200].ravel()), "points": len(xy), "color": str(one.get_color())}
        elif isinstance(child, AxesImage):
            yield {"image": _rounded(np.ma.filled(one.get_array(), np.nan).ravel())}
        elif isinstance(child, Collection):
            areas = [_rounded(path.vertices.ravel()[:8]) for path in one.get_paths()[:60]]
            yield {"areas": areas, "colors": _colors(one.get_facecolor())}
        elif isinstance(child, Patch) and one is not axes.patch:
            corners = _rounded(one.get_path().vertices.ravel()[:8])
            yield {"patch": corners, "colors": _colors(one.get_facecolor())}
        elif isinstance(child, Text) and one.get_text():
            yield {"text": one.get_text(), "at": _rounded(one.get_position()), "size": one.get_fontsize()}


def _rounded(values: npt.ArrayLike) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in np.asarray(values, dtype=float)]


def _colors(values: npt.ArrayLike) -> list[list[float]]:
    return [_rounded(color) for color in np.atleast_2d(np.asarray(values, dtype=float))[:60]]
