"""What a run records: one versioned schema of immutable records.

A run is a folder; its records are in ``records.jsonl``, one JSON object a line, told apart by
``type``. The first line is the :class:`Header`, the last one, when the run came to its end, the
:class:`End`. All times are seconds since the run's zero: the moment the sandbox was started
(whatever happened before it, getting the programs for instance, has a negative time).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from pytest_k3s_sandbox.report.base import Count, FrozenModel, Number, SandboxKind, Seconds
from pytest_k3s_sandbox.report.outcomes import (
    Ablation,
    Announced,
    Measurement,
    Tested,
    Verdict,
    Wall,
)

SCHEMA_VERSION = 3
"""The version of the schema that this module writes; it reads this one and earlier ones.

Version 2 added the kinds ``layer``, ``wall`` and ``ablation`` and fields with defaults to older kinds, so
that a file of version 1 is one of version 2 as it stands. Version 3 added ``announced`` and ``test`` and
fields of ``verdict`` in the same way: a run of an earlier version does not know its tests. A change that
is not of this sort needs an upgrade in the reader.
"""

RECORDS_FILE = "records.jsonl"
"""The name of the records' file in a run's folder."""


class Header(FrozenModel):
    """The first line of every run, written by the writer itself.

    Attributes:
        schema_version: The version of this schema.
        project_version: The version of pytest-k3s-sandbox that wrote it.
    """

    type: Literal["header"] = "header"
    schema_version: Count = SCHEMA_VERSION
    project_version: str


class ProgramRecord(FrozenModel):
    """One program under test.

    Attributes:
        version: As the program itself says it.
        origin: Where it came from: ``environment``, ``path``, ``cache``, ``release``, ``build``.
        sha256: Of the file, in hexadecimal.
    """

    version: str
    origin: str
    sha256: str | None = None


class Machine(FrozenModel):
    """The machine below the sandbox.

    Attributes:
        cores: Logical processors that the run could use.
        memory_bytes: Physical memory.
    """

    cores: Count
    memory_bytes: Count


class Environment(FrozenModel):
    """Where a run took place, enough to tell it from another and to repeat it.

    Attributes:
        experiment: The experiment's name, like ``exp08``.
        sandbox: The sandbox's kind, ``gvisor`` or ``host``.
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
        distribution: What Kubernetes came as: ``embedded`` (the parts) or ``k3s`` (the binary).
        kubernetes: The version of Kubernetes under test.
        variables: The environment variables of this project's that were set, which are options, too.
        network: What programs inside could reach, in words; None in records from before 2026-11-26.
        limits: What the sandbox could take of the machine, in words; None likewise.
    """

    type: Literal["environment"] = "environment"
    experiment: str
    sandbox: SandboxKind
    root_magic: Count | None
    kernel: str | None
    programs: dict[str, ProgramRecord] = Field(default_factory=dict)
    pins: dict[str, str] = Field(default_factory=dict)
    layers: tuple[str, ...] = ()
    python: str
    project_version: str
    started: str
    argv: tuple[str, ...]
    machine: Machine
    distribution: str | None = None
    kubernetes: str | None = None
    variables: dict[str, str] = Field(default_factory=dict)
    network: str | None = None
    limits: str | None = None


class Phase(FrozenModel):
    """One step of the bring-up.

    Attributes:
        name: The step, like ``kubelet``.
        start: Seconds since the run's zero.
        end: Likewise; None for a step that has begun and not ended yet.
    """

    type: Literal["phase"] = "phase"
    name: str
    start: Seconds
    end: Seconds | None


class PodState(FrozenModel):
    """A pod at one moment.

    Attributes:
        phase: ``Pending``, ``Running``, ``Succeeded``, ``Failed`` or ``Unknown``.
        ready: The pod's condition ``Ready``.
        restarts: How often its containers were restarted so far; None when that was not read.
    """

    phase: str
    ready: bool
    restarts: Count | None = None


class Cost(FrozenModel):
    """What a layer has used up so far.

    Attributes:
        cpu_seconds: User and system time of its processes since they started.
        rss_bytes: Their resident memory at this moment.
    """

    cpu_seconds: Number
    rss_bytes: Count


class Sample(FrozenModel):
    """The cluster at one moment.

    Attributes:
        t: Seconds since the run's zero.
        node_ready: The node's condition ``Ready``; None when it could not be read or is ``Unknown``.
        reason: The condition's reason, like ``KubeletNotReady``.
        conditions: The status of every condition of the node, by its type.
        pods: The pods that exist, by ``namespace/name``.
        api_reachable: Whether the API server answered.
        errors: Error lines in the logs so far, by kind (see :mod:`~.log_classifier`).
        cost: What each layer has used, by the layer's name.
        heartbeat_age: Seconds since the kubelet renewed the node's lease; None when that was not read.
    """

    type: Literal["sample"] = "sample"
    t: Seconds
    node_ready: bool | None
    reason: str | None = None
    conditions: dict[str, str] = Field(default_factory=dict)
    pods: dict[str, PodState] = Field(default_factory=dict)
    api_reachable: bool
    errors: dict[str, Count] = Field(default_factory=dict)
    cost: dict[str, Cost] = Field(default_factory=dict)
    heartbeat_age: Seconds | None = None


class LayerState(FrozenModel):
    """What a layer's check found at one moment.

    Attributes:
        t: Seconds since the run's zero.
        name: The layer's name.
        ok: Whether it does what it is for.
        details: What was seen, by name.
    """

    type: Literal["layer"] = "layer"
    t: Seconds
    name: str
    ok: bool
    details: dict[str, str] = Field(default_factory=dict)


class EventKind(StrEnum):
    """The kinds of events that reports know by name; there may be others."""

    POD_CREATED = "pod-created"
    POD_DELETED = "pod-deleted"
    FAULT = "fault"
    RESTART = "restart"
    RECOVERY = "recovery"
    TRANSITION = "transition"


class Event(FrozenModel):
    """Something that was done or that happened.

    Attributes:
        t: Seconds since the run's zero.
        kind: What sort; see :class:`EventKind` for those that reports know by name.
        what: The object or the words, like ``default/hello``.
        component: The program or layer that it happened to.
        seconds: How long it took, for what takes time: a restart, a recovery.
    """

    type: Literal["event"] = "event"
    t: Seconds
    kind: str
    what: str
    component: str | None = None
    seconds: Seconds | None = None


class ErrorLine(FrozenModel):
    """An error line of a component's log.

    Attributes:
        t: Seconds since the run's zero.
        component: The log's name, like ``kubelet``; its file is ``logs/<component>.log``.
        kind: See :mod:`~.log_classifier`.
        text: The line as it was.
        errno: The error's name when the line has one, like ``EINTR``.
        count: How many lines this record stands for: more than 1 where one that differs in numbers only has
            been repeated so often that it is counted and not recorded each time. The time and the text are
            the last one's then.
    """

    type: Literal["error"] = "error"
    t: Seconds
    component: str
    kind: str
    text: str
    errno: str | None = None
    count: Count = 1


class End(FrozenModel):
    """The last line of a run that was closed.

    Attributes:
        t: Seconds since the run's zero.
        outcome: ``finished``, or ``interrupted`` by an error or a signal.
        reason: Why it was interrupted.
    """

    type: Literal["end"] = "end"
    t: Seconds
    outcome: Literal["finished", "interrupted"] = "finished"
    reason: str | None = None


Record = Annotated[
    Header
    | Environment
    | Phase
    | LayerState
    | Sample
    | Event
    | ErrorLine
    | Measurement
    | Wall
    | Ablation
    | Announced
    | Verdict
    | Tested
    | End,
    Field(discriminator="type"),
]
"""Any record; ``type`` says which."""

RECORD: TypeAdapter[Record] = TypeAdapter(Record)
"""Validates a line, and gives the JSON Schema of all records."""
