"""Where each number of a page comes from: lines of the run's records."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from pytest_k3s_sandbox.report.records import ErrorLine, FrozenModel, Run, Sample

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_k3s_sandbox.report.metrics import Metrics

_MAX_RANGES = 3
_MAX_TEXT = 400


@dataclass(frozen=True)
class Cite:
    """A reference to records, as a page shows it.

    Attributes:
        href: The place in the page that shows them.
        label: The line of a record, like ``55``, or the name of a computation, like ``N3``.
        title: The reference in words.
    """

    href: str
    label: str
    title: str


@dataclass(frozen=True)
class Derivation:
    """A number that was computed from several records.

    Attributes:
        ident: Its id in the page.
        name: Its name in the page, like ``N3``.
        title: The name of the quantity.
        rule: The rule of the computation.
        lines: The lines as words, like ``40-170``.
        first: A reference to the first line; None where the number has no line.
        last: A reference to the last line.
    """

    ident: str
    name: str
    title: str
    rule: str
    lines: str
    first: Cite | None
    last: Cite | None


def label(lines: Iterable[int]) -> str:
    """Return line numbers as text, with ranges for neighbouring numbers."""
    ordered = sorted(set(lines))
    if not ordered:
        return "none"
    starts = [ordered[0], *(after for before, after in pairwise(ordered) if after - before > 1)]
    ends = [*(before for before, after in pairwise(ordered) if after - before > 1), ordered[-1]]
    if len(starts) > _MAX_RANGES:
        return f"{len(ordered)} lines from {ordered[0]} to {ordered[-1]}"
    return ", ".join(f"{a}" if a == b else f"{a}\u2013{b}" for a, b in zip(starts, ends, strict=True))


class Citations:
    """Collects the records that one run's part of a page cites.

    Args:
        run: The run.
        prefix: A prefix for ids, unique in the page.
    """

    def __init__(self, run: Run, prefix: str) -> None:
        """Nothing is cited yet."""
        self._run = run
        self._prefix = prefix
        self._lines: set[int] = set()
        self.derivations: list[Derivation] = []

    def record(self, record: FrozenModel) -> Cite:
        """Cite one record of the run."""
        return self.line(self._run.line(record))

    def line(self, number: int) -> Cite:
        """Cite a line of the run's file."""
        self._lines.add(number)
        return Cite(f"#{self._prefix}-L{number}", str(number), f"Record {number}")

    def derive(self, title: str, rule: str, lines: Iterable[int]) -> Cite:
        """Cite several lines and the figure that was computed from them.

        Args:
            title: The name of the figure.
            rule: The rule of the computation.
            lines: The numbers of the lines.
        """
        ordered = sorted(set(lines))
        name = f"N{len(self.derivations) + 1}"
        ident = f"{self._prefix}-{name}"
        said = label(ordered)
        ends = (self.line(ordered[0]), self.line(ordered[-1])) if ordered else (None, None)
        self.derivations.append(Derivation(ident, name, title, rule, said, *ends))
        return Cite(f"#{ident}", name, f"{name}: computed from records {said}")

    @property
    def records(self) -> list[tuple[int, str]]:
        """Return the cited lines: their numbers and their JSON, shortened where it is long."""
        return [(number, self._text(number)) for number in sorted(self._lines)]

    def _text(self, number: int) -> str:
        text = self._run.records[number - 1].model_dump_json(exclude_unset=True)  # as it is in the file
        return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}\u2026"


def key_figures(cites: Citations, run: Run, metrics: Metrics) -> dict[str, Cite | None]:
    """Cite the key figures of a run; None for a figure that has no records."""
    found: dict[str, Cite | None] = dict.fromkeys(
        ("to_ready", "to_running", "hold", "samples", "losses", "errors")
    )
    if metrics.first_ready is not None:
        found["to_ready"] = cites.record(metrics.first_ready)
        if metrics.bring_up_start is not None:
            ends = [run.line(metrics.bring_up_start), run.line(metrics.first_ready)]
            rule = "The time of the first sample Ready, minus the start of the bring-up\u2019s first phase."
            found["to_ready"] = cites.derive("Bring-up to Ready", rule, ends)
    pod = metrics.first_pod
    if pod is not None:
        ends = [run.line(pod.seen["created"]), run.line(pod.seen["running"])]
        rule = f"The time of {pod.name}\u2019s first sample Running, minus the time of its creation."
        found["to_running"] = cites.derive("Pod created to Running", rule, ends)
    samples = [(sample.t, run.line(sample)) for sample in run.samples]
    if metrics.hold is not None:
        begin, end = metrics.hold[0].t, metrics.hold[1].t
        rule = "The longest row of samples that all saw the node Ready: from its first to its last."
        lines = [number for t, number in samples if begin <= t <= end]
        found["hold"] = cites.derive("Longest unbroken time Ready", rule, lines)
    if metrics.first_ready is not None:
        since = [number for t, number in samples if t >= metrics.first_ready.t]
        rule = "Samples with node_ready true, of all samples from the first such one on."
        found["samples"] = cites.derive("Samples Ready", rule, since)
    changes = [run.line(change.sample) for change in metrics.transitions]
    rule = "Samples whose node_ready differs from the last one that could be read; losses are those to false."
    found["losses"] = cites.derive("Times Ready was lost", rule, changes)
    errors = [number for number, r in enumerate(run.records, start=1) if isinstance(r, ErrorLine)]
    totals = [run.line(s) for s in run.samples[-1:] if isinstance(s, Sample) and s.errors]
    rule = "Lines of kind error by their kind, or the last sample\u2019s own count where that is higher."
    found["errors"] = cites.derive("Error lines", rule, [*errors, *totals])
    return found
