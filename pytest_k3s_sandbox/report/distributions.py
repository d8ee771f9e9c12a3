"""The latencies and costs of a run as distributions, with the records that they come from; all pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pytest_k3s_sandbox.report.metrics import PodMetrics
from pytest_k3s_sandbox.report.outcomes import Spread
from pytest_k3s_sandbox.report.run_records import RunRecords
from pytest_k3s_sandbox.report.schema import Cost, EventKind

WINDOW = 9.0
"""The least number of seconds over which use of the processor is averaged; the sampler asks every ten."""

_POD_LATENCIES = (
    ("Pod created to Running", "to_running", ("created", "running")),
    ("Pod created to Ready", "to_ready", ("created", "ready")),
    ("Pod deleted to gone", "to_gone", ("deleted", "gone")),
)
_TAKES_TIME = {EventKind.RESTART: "Restart", EventKind.RECOVERY: "Recovery"}


@dataclass(frozen=True)
class Observations:
    """Several observations of one quantity.

    Attributes:
        name: The name of the quantity.
        unit: Its unit.
        values: The observations in the order in which they were made; one or more.
        lines: The lines of the records that they come from.
        group: The name of the axis that it is drawn on, like ``Latency``.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    lines: tuple[int, ...] = field(repr=False)
    group: str

    @property
    def n(self) -> int:
        """Return the number of observations."""
        return len(self.values)

    @property
    def spread(self) -> Spread:
        """Return extremes and quartiles."""
        return Spread.of(self.values)


@dataclass(frozen=True)
class Series:
    """One quantity over time.

    Attributes:
        name: The name of the layer or program.
        points: Pairs of time and value.
        lines: The lines of the records behind the points.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    lines: tuple[int, ...] = field(repr=False)


def distributions(
    run: RunRecords, pods: Sequence[PodMetrics], processor: Sequence[Series], memory: Sequence[Series]
) -> tuple[Observations, ...]:
    """Return what a run observed more than once, and the latencies of pods even if there is only one pod.

    Args:
        run: The run.
        pods: The times of its pods.
        processor: What :func:`processor` returns for the run.
        memory: What :func:`memory` returns for it.
    """
    costs = (*_costs("Processor", "% of a core", processor), *_costs("Memory", "MiB", memory))
    return (*_latencies(run, pods), *costs, *_measured(run))


def processor(run: RunRecords) -> tuple[Series, ...]:
    """Return each layer's use of the processor over time, in percent of one core.

    Each point is the mean over :data:`WINDOW` seconds or more, between two samples. A counter that fell, as
    after a restart of the layer, has no point there.
    """
    found = []
    for name, costs in _by_layer(run).items():
        points, lines = [], []
        (begin, before, _), *rest = costs
        for t, cost, number in rest:
            if t - begin < WINDOW:
                continue
            used = cost.cpu_seconds - before.cpu_seconds
            if used >= 0:
                points.append((t, 100 * used / (t - begin)))
                lines.append(number)
            begin, before = t, cost
        if points:
            found.append(Series(name, tuple(points), tuple(lines)))
    return tuple(found)


def memory(run: RunRecords) -> tuple[Series, ...]:
    """Return each layer's resident memory over time, in MiB."""
    return tuple(
        Series(
            name,
            tuple((t, cost.rss_bytes / 2**20) for t, cost, _ in costs),
            tuple(number for _, _, number in costs),
        )
        for name, costs in _by_layer(run).items()
    )


def thinned(series: Series, most: int) -> Series:
    """Return a series with at most about ``most`` points: of each bucket its least and greatest value.

    Args:
        series: The series.
        most: The number of points; a drawing shows at most two in a unit of width.
    """
    if len(series.points) <= most:
        return series
    size = -(-len(series.points) * 2 // most)
    kept: list[int] = []
    for begin in range(0, len(series.points), size):
        bucket = range(begin, min(begin + size, len(series.points)))
        ends = {
            min(bucket, key=lambda i: series.points[i][1]),
            max(bucket, key=lambda i: series.points[i][1]),
        }
        kept += sorted(ends)
    return Series(series.name, tuple(series.points[i] for i in kept), tuple(series.lines[i] for i in kept))


def _latencies(run: RunRecords, pods: Sequence[PodMetrics]) -> Iterable[Observations]:
    for name, figure, records in _POD_LATENCIES:
        known = [(pod, getattr(pod, figure)) for pod in pods]
        seen = [(pod, value) for pod, value in known if value is not None]
        if seen:
            lines = {run.line(pod.seen[key]) for pod, _ in seen for key in records}
            yield Observations(name, "s", tuple(v for _, v in seen), tuple(sorted(lines)), "Latency")
    for kind, name in _TAKES_TIME.items():
        took = [event for event in run.events if event.kind == kind and event.seconds is not None]
        for component in dict.fromkeys(event.component for event in took):
            of = [event for event in took if event.component == component]
            whose = f"{name} of {component}" if component else name
            values = tuple(event.seconds for event in of if event.seconds is not None)
            yield Observations(whose, "s", values, tuple(run.line(event) for event in of), "Latency")


def _costs(group: str, unit: str, found: Sequence[Series]) -> Iterable[Observations]:
    for series in found:
        values = tuple(value for _, value in series.points)
        yield Observations(series.name, unit, values, series.lines, group)


def _measured(run: RunRecords) -> Iterable[Observations]:
    for measurement in run.measurements:
        if len(measurement.values) > 1 and measurement.baseline is None:
            lines = (run.line(measurement),)
            group = f"Measured in {measurement.unit}"
            yield Observations(measurement.name, measurement.unit, measurement.values, lines, group)


def _by_layer(run: RunRecords) -> dict[str, list[tuple[float, Cost, int]]]:
    found: dict[str, list[tuple[float, Cost, int]]] = {}
    for sample in run.samples:
        for name, cost in sample.cost.items():
            found.setdefault(name, []).append((sample.t, cost, run.line(sample)))
    return found


def grouped(found: Sequence[Observations]) -> dict[tuple[str, str], list[Observations]]:
    """Return distributions by group and unit, so that each entry fits on one axis."""
    groups: dict[tuple[str, str], list[Observations]] = {}
    for one in found:
        groups.setdefault((one.group, one.unit), []).append(one)
    return groups
