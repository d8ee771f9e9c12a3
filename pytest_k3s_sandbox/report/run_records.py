"""The records of a run by kind, each with its line in the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from pytest_k3s_sandbox.report.base import FrozenModel
from pytest_k3s_sandbox.report.outcomes import (
    TEST_OUTCOMES,
    Ablation,
    Announced,
    Measurement,
    Tested,
    Verdict,
    Wall,
)
from pytest_k3s_sandbox.report.schema import (
    End,
    Environment,
    ErrorLine,
    Event,
    Header,
    LayerState,
    Phase,
    Record,
    Sample,
)

R = TypeVar("R", bound=FrozenModel)


@dataclass(frozen=True)
class RunRecords:
    """The records of a run; :class:`~.run.Run` adds the figures that are computed from them.

    Attributes:
        name: The name of the run's folder.
        records: All records in the order of the file: record ``i`` is line ``i + 1``.
        truncated: Whether the last line is half-written.
    """

    name: str
    records: tuple[Record, ...] = field(repr=False)
    truncated: bool = False

    @property
    def complete(self) -> bool:
        """Tell whether the run finished and the file has all of its records."""
        return not self.truncated and self.end is not None and self.end.outcome == "finished"

    @property
    def header(self) -> Header:
        """Return the first line."""
        return self.of(Header)[0]

    @property
    def end(self) -> End | None:
        """Return the last line of a run that was closed."""
        last = self.records[-1]
        return last if isinstance(last, End) else None

    @cached_property
    def environment(self) -> Environment | None:
        """Return the last recorded environment; None where the run ended before it recorded one."""
        found = self.of(Environment)
        return found[-1] if found else None

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """Return the phases by their start. A phase that did not end has no end."""
        latest = {(phase.name, phase.start): phase for phase in self.of(Phase)}
        return tuple(sorted(latest.values(), key=lambda phase: phase.start))

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """Return the samples by their time."""
        return tuple(sorted(self.of(Sample), key=lambda sample: sample.t))

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """Return the events by their time."""
        return tuple(sorted(self.of(Event), key=lambda event: event.t))

    @cached_property
    def errors(self) -> tuple[ErrorLine, ...]:
        """Return the error lines by their time."""
        return tuple(sorted(self.of(ErrorLine), key=lambda line: line.t))

    @cached_property
    def layers(self) -> tuple[LayerState, ...]:
        """Return the results of the layers' checks by their time."""
        return tuple(sorted(self.of(LayerState), key=lambda state: state.t))

    @cached_property
    def measurements(self) -> tuple[Measurement, ...]:
        """Return the measurements as they were recorded."""
        return self.of(Measurement)

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Return the verdicts as they were recorded."""
        return self.of(Verdict)

    @cached_property
    def unreached(self) -> tuple[Announced, ...]:
        """Return each announced claim that has no verdict."""
        judged = {verdict.name for verdict in self.verdicts}
        found = {one.name: one for one in self.of(Announced) if one.name not in judged}
        return tuple(found.values())

    @cached_property
    def tests(self) -> tuple[Tested, ...]:
        """Return the worst outcome of each test in the order of announcement, without tests of other runs.

        A test may have several records: it is announced, its call passes, its teardown fails.
        """
        worst: dict[str, Tested] = {}
        for one in self.of(Tested):
            before = worst.get(one.nodeid)
            if before is None or TEST_OUTCOMES.index(one.outcome) > TEST_OUTCOMES.index(before.outcome):
                worst[one.nodeid] = one
        return tuple(one for one in worst.values() if one.outcome != "elsewhere")

    @cached_property
    def walls(self) -> tuple[Wall, ...]:
        """Return the first-error walls as they were recorded, which is the order in which they fell."""
        return self.of(Wall)

    @cached_property
    def ablation(self) -> tuple[Ablation, ...]:
        """Return the cells of the ablation as they were recorded."""
        return self.of(Ablation)

    def of(self, kind: type[R]) -> tuple[R, ...]:
        """Return the records of one kind in the order of the file."""
        return tuple(record for record in self.records if isinstance(record, kind))

    def line(self, record: FrozenModel) -> int:
        """Return the number of the line that a record of this run was read from.

        Several lines may hold equal records, so the identity of the object counts.
        """
        return self._lines[id(record)]

    @cached_property
    def _lines(self) -> dict[int, int]:
        return {id(record): number for number, record in enumerate(self.records, start=1)}
