"""The figures of a run for papers: SVG and PDF of given widths, drawn by matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_k3s_sandbox.errors import ConfigError, missing_extra
from pytest_k3s_sandbox.report import charts
from pytest_k3s_sandbox.report.ablation import STAGE_NAMES, STAGES, matrix
from pytest_k3s_sandbox.report.distributions import grouped
from pytest_k3s_sandbox.report.drawing import time_unit
from pytest_k3s_sandbox.report.timeline import BAD, chosen_lanes, legend, whole
from pytest_k3s_sandbox.support import files
from pytest_k3s_sandbox.support.escaping import plot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pytest_k3s_sandbox.report.records import Run

COLUMN_MM = 84.0
"""The width of one column of most journals."""

PAGE_MM = 174.0
"""The width of two columns of most journals."""

_INCH_MM = 25.4
_NARROW_MM = 120.0
_MAX_DOTS = 400
_CELL = 2.0  # a result's width in those of a layer
_COLOURS = {
    "ready": "#2b7a5d",
    "up": "#2b7a5d",
    "pod-ready": "#2b7a5d",
    "running": "#7fb59f",
    "not-ready": "#b5432e",
    "down": "#b5432e",
    "failed": "#b5432e",
    "pending": "#d9a93f",
    "starting": "#d9a93f",
    "succeeded": "#3d6a96",
    "unknown": "#b8b4ab",
}
_HEAT = ("#f3d5cd", "#f4e0c6", "#efebcb", "#d3e7da", "#aed5c0")
_LINES = (("#3d6a96", "-"), ("#b5662e", "--"), ("#2b7a5d", ":"), ("#80589c", "-."), ("#8a7a2f", (0, (4, 3))))
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.fonttype": "none",  # text stays text, so readers can search it and papers set it in their font
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
    "svg.hashsalt": "pytest-k3s-sandbox",  # the same run gives the same file
}
_METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": "pytest-k3s-sandbox"},
    "pdf": {"CreationDate": None, "Creator": "pytest-k3s-sandbox"},
}


def write_figures(
    run: Run, folder: Path, *, prefix: str = "", widths: Sequence[float] = (COLUMN_MM, PAGE_MM)
) -> list[Path]:
    """Draw the readiness, latencies, costs, ratios and ablation of a run, as far as it recorded them.

    Args:
        run: The run.
        folder: Where the files go; made when it does not exist.
        prefix: A prefix of the files' names.
        widths: The widths of the figures in millimetres; each figure has a file for each width.

    Returns:
        The files: ``<figure>-<width>mm.svg`` and ``.pdf``.

    Raises:
        ConfigError: A file cannot be written.
        MissingCapability: matplotlib is not installed.
    """
    # The import is slow, and matplotlib an extra. A Figure needs no display and keeps no state.
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_extra(
            "figures", "matplotlib", "figures", otherwise="use --no-figures for the page alone"
        ) from error

    made = []
    with mpl.rc_context(_STYLE):
        for name, height, draw in _figures(run):
            for width in widths:
                size = (width / _INCH_MM, height / _INCH_MM)
                figure = Figure(figsize=size, layout="constrained")
                draw(figure)
                for kind in ("svg", "pdf"):
                    path = folder / f"{prefix}{name}-{width:g}mm.{kind}"
                    _save(figure, path, kind)
                    made.append(path)
    return made


def _save(figure: Figure, path: Path, kind: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as file:
            figure.savefig(file, format=kind, metadata=_METADATA[kind])
    except OSError as error:
        raise ConfigError(
            f"figure {path}",
            cause=error.strerror or str(error),
            remedy="name a folder that can be written and has room",
        ) from error


def _figures(run: Run) -> Iterator[tuple[str, float, Callable[[Figure], None]]]:
    """Yield the name of each figure, its height in millimetres, and the function that draws it."""
    if run.samples:
        rows, _ = chosen_lanes(run, whole(run))
        yield "readiness", 30 + 5.0 * len(rows), lambda figure: _readiness(figure, run)
    for (group, unit), members in grouped(run.distributions).items():
        if max(one.n for one in members) > 1:
            name = "".join(c if c.isalnum() else "-" for c in f"{group}".lower()).strip("-")
            yield name, 18 + 7.0 * len(members), _boxes(members, unit)
    for series, unit, name in ((run.processor, "% of a core", "processor"), (run.memory, "MiB", "memory")):
        if any(len(one.points) > 1 for one in series):
            yield f"{name}-over-time", 55.0, _lines(series, unit)
    for found in charts.ratios(run.measurements):
        name = "".join(c if c.isalnum() else "-" for c in f"ratios-{found.name}").strip("-")
        yield name, 20 + 5.0 * len(found.measurements), _ratios(found)
    if run.ablation:
        yield "ablation", 42 + 4.5 * len(matrix(run.ablation).rows), lambda figure: _heat(figure, run)


def _readiness(figure: Figure, run: Run) -> None:
    axes = figure.subplots()
    start, end = whole(run)
    unit, factor = time_unit(end - start)
    rows, _ = chosen_lanes(run, (start, end))
    seen: set[str] = set()
    for y, lane in enumerate(rows):
        # A short outage of a long run has hardly any width. It is drawn wider and over its neighbours.
        for span in sorted(lane.spans, key=lambda span: span.state in BAD):
            width = max(span.end - span.start, (end - start) / 400)
            height = 0.8 if span.state in BAD else 0.6
            colour = _COLOURS[span.state]
            axes.barh(y, width / factor, left=span.start / factor, height=height, color=colour, linewidth=0)
            seen.add(colour)
    for event in run.events:
        if not event.kind.startswith("pod-"):
            axes.axvline(event.t / factor, color="#5d636c", linewidth=0.5, linestyle=(0, (3, 2)))
    errors = [line.t / factor for line in run.errors]
    axes.eventplot(errors, lineoffsets=len(rows), linelengths=0.6, linewidths=0.6, colors="#b5432e")
    axes.set_yticks(range(len(rows) + 1), [*(plot(lane.name) for lane in rows), "Error lines"])
    axes.set_ylim(len(rows) + 0.6, -0.6)
    axes.set_xlim(start / factor, end / factor)
    axes.set_xlabel(f"Time since the sandbox\u2019s start ({unit})")
    named = {_COLOURS[kind]: name for kind, name in legend(run)}
    _legend(figure, {colour: name for colour, name in named.items() if colour in seen})


def _legend(figure: Figure, names: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    columns = 2 if figure.get_figwidth() * _INCH_MM < _NARROW_MM else 4
    patches = [Patch(color=colour, label=plot(name)) for colour, name in names.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=columns, frameon=False)


def _boxes(members: Sequence[Any], unit: str) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for y, one in enumerate(members):
            axes.boxplot(
                [one.values],
                positions=[y],
                orientation="horizontal",
                widths=0.55,
                whis=(0, 100),
                showfliers=False,
                medianprops={"color": "#22252a"},
            )
            if one.n <= _MAX_DOTS:
                heights = [y + ((i * 5) % 11 - 5) * 0.03 for i in range(one.n)]
                axes.plot(one.values, heights, ".", color="#3d6a96", markersize=2, alpha=0.5)
        _names(axes, [f"{one.name} (n {one.n})" for one in members])
        if charts.span([value for one in members for value in one.values]).log:
            axes.set_xscale("log")
        else:
            axes.set_xlim(left=0)
        axes.set_xlabel(plot(unit))

    return draw


def _lines(series: Sequence[Any], unit: str) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        end = max(one.points[-1][0] for one in series)
        name, factor = time_unit(end)
        for one, (colour, dashes) in zip(series, _LINES * len(series), strict=False):
            times, values = zip(*one.points, strict=True)
            axes.plot(
                [t / factor for t in times],
                values,
                color=colour,
                linestyle=dashes,
                linewidth=0.9,
                label=plot(one.name),
            )
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"Time since the sandbox\u2019s start ({name})")
        axes.set_ylabel(plot(unit))
        figure.legend(loc="outside upper center", ncols=2, frameon=False)

    return draw


def _ratios(found: charts.Ratios) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for y, one in enumerate(found.measurements):
            axes.barh(y, one.value - 1, left=1, height=0.6, color="#3d6a96")
            if one.spread is not None:
                middle = one.spread.median  # lies between the quartiles, unlike the value of some ratios
                reach = [[max(0.0, middle - one.spread.p25)], [max(0.0, one.spread.p75 - middle)]]
                axes.errorbar(middle, y, xerr=reach, color="#22252a", linewidth=0.8, capsize=2)
            if one.limit is not None:
                axes.plot([one.limit] * 2, [y - 0.45, y + 0.45], color="#b5432e", linewidth=1, linestyle="--")
        axes.axvline(1, color="#22252a", linewidth=0.6)
        words = [
            ", ".join(part for part in (one.case, one.variant or one.name) if part)
            for one in found.measurements
        ]
        _names(axes, [f"{w} (n {one.n})" for w, one in zip(words, found.measurements, strict=True)])
        if charts.span([one.value for one in found.measurements] + [1.0]).log:
            axes.set_xscale("log")
        axes.set_xlabel(plot(f"Ratio to {found.baseline}"))

    return draw


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [plot(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)


def _heat(figure: Figure, run: Run) -> None:
    axes = figure.subplots()
    table = matrix(run.ablation)
    first = len(table.parts)
    for y, row in enumerate(table.rows):
        there = [x for x, part in enumerate(table.parts) if part in row]
        left_out = [x for x in range(first) if x not in there]
        axes.plot(there, [y] * len(there), "o", color="#22252a", markersize=4)
        axes.plot(left_out, [y] * len(left_out), ".", color="#b8b4ab", markersize=2)
        for x, version in enumerate(table.versions):
            cell = table.cells.get((row, version))
            if cell is not None:
                left, colour = first + x * _CELL - 0.5, _HEAT[STAGES.index(cell.reached)]
                axes.barh(y, _CELL - 0.06, left=left, height=0.94, color=colour)
                words = plot(cell.error.kind) if cell.error is not None else ""
                axes.text(left + _CELL / 2, y, words, ha="center", va="center", fontsize=6)
    places = [*range(first), *(first + x * _CELL - 0.5 + _CELL / 2 for x in range(len(table.versions)))]
    heads = [plot(word) for word in (*table.parts, *table.versions)]
    axes.set_xticks(places, heads, rotation=45, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.set_yticks([])
    axes.set_ylim(len(table.rows) - 0.4, -0.6)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _legend(figure, {colour: STAGE_NAMES[stage] for colour, stage in zip(_HEAT, STAGES, strict=True)})
