"""What a run records: one versioned schema of immutable records.

A run is a folder; its records are in ``records.jsonl``, one JSON object a line, told apart by
``type``. The first line is the :class:`Header`, the last one, when the run came to its end, the
:class:`End`. All times are seconds since the run's zero: the moment the sandbox was started
(whatever happened before it, getting the programs for instance, has a negative time).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

SCHEMA_VERSION = 1
"""The version of the schema that this module writes; it reads this one and earlier ones."""

RECORDS_FILE = "records.jsonl"
"""The name of the records' file in a run's folder."""


class _Record(BaseModel):
    """What all records share: they never change, and nothing unknown is in them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Header(_Record):
    """The first line of every run, written by the writer itself.

    Attributes:
        schema_version: The version of this schema.
        project_version: The version of pytest-k3s-sandbox that wrote it.
    """

    type: Literal["header"] = "header"
    schema_version: int = SCHEMA_VERSION
    project_version: str


class Program(_Record):
    """One program under test.

    Attributes:
        version: As the program itself says it.
        origin: Where it came from: ``environment``, ``path``, ``cache``, ``release``, ``build``.
        sha256: Of the file, in hexadecimal.
    """

    version: str
    origin: str
    sha256: str | None = None


class Machine(_Record):
    """The machine below the sandbox.

    Attributes:
        cores: Logical processors that the run could use.
        memory_bytes: Physical memory.
    """

    cores: int
    memory_bytes: int


class Environment(_Record):
    """Where a run took place, enough to tell it from another and to repeat it.

    Attributes:
        experiment: The experiment's name, like ``exp08``.
        sandbox: The sandbox's kind, ``gvisor`` or ``here``.
        root_magic: ``statfs("/").f_type`` as seen from inside; None when it was not read.
        kernel: The kernel's release as seen from inside.
        programs: The programs under test, by name.
        pins: The pinned versions that the project asked for, by module or program.
        layers: The layers' names, in the order in which they were put up.
        python: The version of Python that ran the experiment.
        project_version: The version of pytest-k3s-sandbox.
        started: The run's zero in UTC, ISO 8601.
        argv: The command that was typed.
        machine: The machine below.
    """

    type: Literal["environment"] = "environment"
    experiment: str
    sandbox: str
    root_magic: int | None
    kernel: str | None
    programs: dict[str, Program] = Field(default_factory=dict)
    pins: dict[str, str] = Field(default_factory=dict)
    layers: tuple[str, ...] = ()
    python: str
    project_version: str
    started: str
    argv: tuple[str, ...]
    machine: Machine


class Phase(_Record):
    """One step of the bring-up.

    Attributes:
        name: The step, like ``kubelet``.
        start: Seconds since the run's zero.
        end: Likewise; None for a step that has begun and not ended yet.
    """

    type: Literal["phase"] = "phase"
    name: str
    start: float
    end: float | None


class PodState(_Record):
    """A pod at one moment.

    Attributes:
        phase: ``Pending``, ``Running``, ``Succeeded``, ``Failed`` or ``Unknown``.
        ready: The pod's condition ``Ready``.
    """

    phase: str
    ready: bool


class Cost(_Record):
    """What a layer has used up so far.

    Attributes:
        cpu_seconds: User and system time of its processes since they started.
        rss_bytes: Their resident memory at this moment.
    """

    cpu_seconds: float
    rss_bytes: int


class Sample(_Record):
    """The cluster at one moment.

    Attributes:
        t: Seconds since the run's zero.
        node_ready: The node's condition ``Ready``; None when it could not be read or is ``Unknown``.
        reason: The condition's reason, like ``KubeletNotReady``.
        conditions: The status of every condition of the node, by its type.
        pods: The pods that exist, by ``namespace/name``.
        api_reachable: Whether the API server answered.
        errors: Error lines in the logs so far, by kind (see :mod:`~.kinds`).
        cost: What each layer has used, by the layer's name.
    """

    type: Literal["sample"] = "sample"
    t: float
    node_ready: bool | None
    reason: str | None = None
    conditions: dict[str, str] = Field(default_factory=dict)
    pods: dict[str, PodState] = Field(default_factory=dict)
    api_reachable: bool
    errors: dict[str, int] = Field(default_factory=dict)
    cost: dict[str, Cost] = Field(default_factory=dict)


class Event(_Record):
    """Something that was done or that happened.

    Attributes:
        t: Seconds since the run's zero.
        kind: What sort: ``pod-created``, ``pod-deleted``, ``fault``, ``restart``, ``phase`` ...
        what: The object or the words, like ``default/hello``.
    """

    type: Literal["event"] = "event"
    t: float
    kind: str
    what: str


class ErrorLine(_Record):
    """An error line of a component's log.

    Attributes:
        t: Seconds since the run's zero.
        component: The log's name, like ``kubelet``; its file is ``logs/<component>.log``.
        kind: See :mod:`~.kinds`.
        text: The line as it was.
        errno: The error's name when the line has one, like ``EINTR``.
    """

    type: Literal["error"] = "error"
    t: float
    component: str
    kind: str
    text: str
    errno: str | None = None


class Measurement(_Record):
    """A number that was measured.

    Attributes:
        name: What it is.
        value: The number.
        unit: Its unit, like ``s`` or ``bytes``.
        n: How many observations it stands for.
    """

    type: Literal["measurement"] = "measurement"
    name: str
    value: float
    unit: str
    n: int | None = None


class Verdict(_Record):
    """Whether one claim held in this run.

    Attributes:
        name: A short name, like ``node-ready``.
        held: Whether it held.
        measured: What was seen; None when there was nothing to see.
        limit: What it was held against.
        unit: The unit of both, like ``s``.
        text: The claim as a sentence.
    """

    type: Literal["verdict"] = "verdict"
    name: str
    held: bool
    measured: float | str | None = None
    limit: float | str | None = None
    unit: str = ""
    text: str


class End(_Record):
    """The last line of a run that was closed.

    Attributes:
        t: Seconds since the run's zero.
        outcome: ``finished``, or ``interrupted`` by an error or a signal.
        reason: Why it was interrupted.
    """

    type: Literal["end"] = "end"
    t: float
    outcome: Literal["finished", "interrupted"] = "finished"
    reason: str | None = None


Record = Annotated[
    Header | Environment | Phase | Sample | Event | ErrorLine | Measurement | Verdict | End,
    Field(discriminator="type"),
]
"""Any record; ``type`` says which."""

RECORD: TypeAdapter[Record] = TypeAdapter(Record)
"""Validates a line, and gives the JSON Schema of all records."""


@dataclass(frozen=True)
class Run:
    """A run as it was read.

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
        """Tell whether the run came to its own end and all of it is here."""
        return not self.truncated and self.end is not None and self.end.outcome == "finished"

    @property
    def header(self) -> Header:
        """Return the first line."""
        head = self.records[0]
        assert isinstance(head, Header)  # noqa: S101 - the reader has refused everything else
        return head

    @property
    def end(self) -> End | None:
        """Return the last line of a run that was closed."""
        last = self.records[-1]
        return last if isinstance(last, End) else None

    @property
    def environment(self) -> Environment | None:
        """Return where it took place: the latest that was recorded, None when it never got so far."""
        found = [record for record in self.records if isinstance(record, Environment)]
        return found[-1] if found else None

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Return the phases by their start; one that began and never ended has no end."""
        latest = {(r.name, r.start): r for r in self.records if isinstance(r, Phase)}
        return tuple(sorted(latest.values(), key=lambda phase: phase.start))

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Return the samples by their time."""
        return tuple(sorted((r for r in self.records if isinstance(r, Sample)), key=lambda r: r.t))

    @property
    def events(self) -> tuple[Event, ...]:
        """Return the events by their time."""
        return tuple(sorted((r for r in self.records if isinstance(r, Event)), key=lambda r: r.t))

    @property
    def errors(self) -> tuple[ErrorLine, ...]:
        """Return the error lines by their time."""
        return tuple(sorted((r for r in self.records if isinstance(r, ErrorLine)), key=lambda r: r.t))

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Return the measurements as they were recorded."""
        return tuple(r for r in self.records if isinstance(r, Measurement))

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Return the verdicts as they were recorded."""
        return tuple(r for r in self.records if isinstance(r, Verdict))
