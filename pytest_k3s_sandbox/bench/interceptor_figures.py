"""The figures of the interceptor's benchmark: pure functions from readings to ratios, targets and a table."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pytest_k3s_sandbox.report.records import Measurement, Verdict

NATIVE = "native"
FILTER = "an empty filter"
"""A program without a tracer, behind a filter that lets everything pass: the kernel's price of filters."""
OURS = "ours"
OTHERS = "ours, rules for others"
"""The same rules, for programs that do not run. They show the cost for all other programs."""
RIVALS = ("strace --seccomp-bpf", "proot")
"""The tracers that ours has to beat wherever it traps."""

CASES = {
    "untrapped": "a call that no tracer traps (getppid)",
    "read": "a read of 4 KiB, which no tracer traps",
    "statfs": "statfs, its answer changed by ours",
    "open": "open and close of a file that no rule is about",
    "open-match": "open and close of a file that ours and proot lead elsewhere",
    "spawn": "fork, exec and wait of a small program",
    "once": "go build of a hello world, its packages built before",
    "whole": "go build -a of a hello world, with all its packages",
}
TRAPPED = ("statfs", "open", "open-match")
PLACES = {"host": "natively", "gvisor": "in gVisor"}

LIMITS = {"untrapped": 1.05, "read": 1.05, "once": 1.3, "whole": 1.3}
"""The most that ours may cost, as ratios to native."""
RSS_LIMIT_MIB = 40.0
NODE_LIMIT_PERCENT = 2.0
POD_LIMIT_SECONDS = 0.5


@dataclass(frozen=True)
class Reading:
    """One run of the timing program under one tracer.

    Attributes:
        place: The sandbox's kind.
        tracer: The tracer's name.
        repetition: Which repetition; ratios are taken within one.
        cases: Seconds a call, by case.
        rss_kib: The tracer's resident memory at the end.
        failure: The reason if there are no cases.
    """

    place: str
    tracer: str
    repetition: int
    cases: Mapping[str, float] = field(default_factory=dict)
    rss_kib: int = 0
    failure: str | None = None


@dataclass(frozen=True)
class Target:
    """A figure that was aimed at.

    Attributes:
        text: The question.
        measured: The measured value; None if the measurement failed.
        limit: The most that it may be.
        unit: Of both.
    """

    text: str
    measured: float | None
    limit: float
    unit: str = ""

    @property
    def held(self) -> bool:
        """Whether it was measured and is within the limit."""
        return self.measured is not None and self.measured <= self.limit


def ratios(readings: Sequence[Reading], place: str, case: str, tracer: str, to: str = NATIVE) -> list[float]:
    """Return a tracer's times in units of another's, one for each repetition that has both."""
    times = {
        name: {
            r.repetition: r.cases[case]
            for r in readings
            if (r.place, r.tracer) == (place, name) and case in r.cases
        }
        for name in (tracer, to)
    }
    return [times[tracer][n] / times[to][n] for n in sorted(times[tracer].keys() & times[to].keys())]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return n, the median and the extremes of values."""
    return {"n": len(values), "median": statistics.median(values), "min": min(values), "max": max(values)}


def _names(readings: Sequence[Reading]) -> list[str]:
    return list(dict.fromkeys(reading.tracer for reading in sorted(readings, key=lambda r: r.repetition)))


def summary(readings: Sequence[Reading], node: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return everything as JSON values: figures by place, case and tracer, and the targets.

    Args:
        readings: All readings.
        node: The figures of :mod:`~.interceptor_node`; None if they were not measured.
    """
    places: dict[str, Any] = {}
    for place in dict.fromkeys(reading.place for reading in readings):
        here = [reading for reading in readings if reading.place == place]
        cases: dict[str, Any] = {}
        for case in CASES:
            for tracer in _names(here):
                found = ratios(here, place, case, tracer)
                if not found:
                    continue
                times = [r.cases[case] * 1e6 for r in here if r.tracer == tracer and case in r.cases]
                cases.setdefault(case, {})[tracer] = {
                    "microseconds": statistics.median(times),
                    "ratio": spread(found),
                }
        places[place] = {
            "cases": cases,
            "rss_mib": {
                name: max(r.rss_kib for r in here if r.tracer == name) / 1024
                for name in _names(here)
                if name not in {NATIVE, FILTER, OTHERS} and any(r.tracer == name and r.cases for r in here)
            },
            "failures": {reading.tracer: reading.failure for reading in here if reading.failure is not None},
        }
    return {
        "places": places,
        "node": node,
        "targets": [{**asdict(target), "held": target.held} for target in targets(readings, node)],
        "readings": [asdict(reading) for reading in readings],
    }


def targets(readings: Sequence[Reading], node: Mapping[str, Any] | None) -> Iterator[Target]:
    """Yield the targets. Where another tracer failed, ours is not compared with it."""

    def middle(place: str, case: str, to: str = NATIVE, tracer: str = OURS) -> float | None:
        found = ratios(readings, place, case, tracer, to)
        return statistics.median(found) if found else None

    for place in dict.fromkeys(reading.place for reading in readings):
        where = PLACES[place]
        for case, text in (("untrapped", "untrapped call"), ("read", "untrapped read of 4 KiB")):
            yield Target(f"{text} {where}, to native", middle(place, case), LIMITS[case])
            by_others = f"{text} of a program that no rule is for, {where}, to native"
            yield Target(by_others, middle(place, case, tracer=OTHERS), LIMITS[case])
        for rival in RIVALS:
            for case in TRAPPED:
                if ratios(readings, place, case, rival):
                    yield Target(f"{case} {where}, to {rival}", middle(place, case, rival), 1.0)
        for case, text in (("once", "go build"), ("whole", "go build -a")):
            yield Target(f"{text} {where}, to native", middle(place, case), LIMITS[case])
        used = [r.rss_kib / 1024 for r in readings if (r.place, r.tracer) == (place, OURS) and r.cases]
        yield Target(f"the tracer's memory {where}", max(used, default=None), RSS_LIMIT_MIB, "MiB")
    if node is not None:
        percent = node["percent_of_a_core"]
        yield Target(
            "the tracers' CPU for a Ready node with 1 pod", percent, NODE_LIMIT_PERCENT, "% of a core"
        )
        yield Target("the tracers' CPU for each pod", node["seconds_a_pod"], POD_LIMIT_SECONDS, "s")
        yield Target(f"failed of {node['pods']} pod starts", node["failed"], 0)


def records(readings: Sequence[Reading], node: Mapping[str, Any] | None) -> tuple[Measurement | Verdict, ...]:
    """Return the ratios and the targets as a report shows them; see :func:`summary` for the arguments."""
    found: list[Measurement | Verdict] = []
    for place in dict.fromkeys(reading.place for reading in readings):
        for case in CASES:
            for tracer in _names([reading for reading in readings if reading.place == place]):
                values = ratios(readings, place, case, tracer)
                if tracer == NATIVE or not values:
                    continue
                found.append(
                    Measurement.of(
                        f"{case} {PLACES[place]}, {tracer}",
                        values,
                        "ratio",
                        benchmark=f"interceptor {PLACES[place]}",
                        case=case,
                        variant=tracer,
                        baseline=NATIVE,
                        limit=LIMITS.get(case) if tracer in {OURS, OTHERS} else None,
                    )
                )
    for number, target in enumerate(targets(readings, node)):
        found.append(
            Verdict(
                name=f"target-{number}",
                text=f"{target.text}: at most {target.limit:g} {target.unit}".rstrip(),
                held=target.held,
                measured=target.measured,
                limit=target.limit,
                unit=target.unit,
            )
        )
    return tuple(found)


def table(result: Mapping[str, Any]) -> str:
    """Return a summary as a text table, which is a Markdown one, too."""
    lines = []
    for place, found in result["places"].items():
        names = [name for name in _columns(found["cases"]) if name != NATIVE]
        lines += [f"Ratios to native {PLACES[place]}: median (least to most, n)", ""]
        lines.append("| | native, µs | " + " | ".join(names) + " |")
        lines.append("|---|---|" + "---|" * len(names))
        for case, by_tracer in found["cases"].items():
            cells = [_ratio(by_tracer.get(name)) for name in names]
            lines.append(f"| {CASES[case]} | {by_tracer[NATIVE]['microseconds']:.3g} | {' | '.join(cells)} |")
        memory = [f"{found['rss_mib'][name]:.1f}" if name in found["rss_mib"] else "" for name in names]
        lines.append(f"| the tracer's memory, MiB | | {' | '.join(memory)} |")
        lines += ["", *(f"- {name} failed: {_short(why)}" for name, why in found["failures"].items()), ""]
    node = result["node"]
    if node is not None:
        lines += [_node_sentence(node), ""]
    lines += ["| target | measured | limit | |", "|---|---|---|---|"]
    for target in result["targets"]:
        measured = "nothing" if target["measured"] is None else f"{target['measured']:.3g}"
        verdict = "held" if target["held"] else "not held"
        lines.append(f"| {target['text']} | {measured} | {target['limit']:g} {target['unit']} | {verdict} |")
    return "\n".join(lines)


def _node_sentence(node: Mapping[str, Any]) -> str:
    return (
        f"A Ready node in gVisor with 1 pod cost the tracers {node['percent_of_a_core']:.2f} % of a core "
        f"over {node['seconds']:.0f} s ({_roles(node['idle'])}). {node['pods']} pods, started and stopped "
        f"{node['at_once']} at a time, cost {node['seconds_a_pod']:.3f} s each, {_roles(node['busy'])} in "
        f"{node['busy_seconds']:.0f} s; {node['failed']} of them failed."
    )


def _columns(cases: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for by_tracer in cases.values() for name in by_tracer))


def _ratio(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "-"
    ratio = cell["ratio"]
    return f"{ratio['median']:.3g} ({ratio['min']:.3g} to {ratio['max']:.3g}, {ratio['n']})"


def _roles(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{role} {value:.2f} s" for role, value in seconds.items())


def _short(text: str) -> str:
    return " ".join(text.split())[-200:]
