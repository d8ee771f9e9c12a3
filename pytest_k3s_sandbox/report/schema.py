"""The records of a run: one versioned schema of immutable models.

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
that a file of version 1 is valid in version 2. Version 3 added ``announced`` and ``test`` and fields of
``verdict`` in the same way: a run of an earlier version has no records of its tests. A change of another
kind needs an upgrade in the reader.
"""

RECORDS_FILE = "records.jsonl"
"""The name of the records' file in a run's folder."""


class Header(FrozenModel):
    """The first line of every run; the writer adds it.

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
        version: The version that the program reports.
        origin: Its source: ``env``, ``path``, ``cache``, ``release``, ``package`` or ``build``.
        sha256: The SHA-256 of its file in hexadecimal.
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
    """The environment of a run, with everything that is needed to repeat it.

    Attributes:
        experiment: The experiment's name, like ``exp08``.
        sandbox: The sandbox's kind, ``gvisor`` or ``host``.
        root_magic: ``statfs("/").f_type`` in the sandbox; None where it was not read.
        kernel: The release of the kernel in the sandbox.
        programs: The programs under test, by name.
        pins: The pinned versions that the project asked for, by module or program.
        layers: The layers' names, in the order in which they were put up.
        python: The version of Python that ran the experiment.
        project_version: The version of pytest-k3s-sandbox.
        started: The run's zero in UTC, ISO 8601.
        argv: The command line.
        machine: The machine below the sandbox.
        distribution: The form of Kubernetes: ``embedded`` (its parts) or ``k3s`` (the binary).
        kubernetes: The version of Kubernetes under test.
        runtime: The OCI runtime that starts containers, with the sandboxer if one runs them, and why it is
            runc where crun was wanted; None in records from before 2026-11-27.
        variables: The environment variables of this project that were set.
        network: The reach of programs in the sandbox, in words; None in records from before 2026-11-26.
        limits: The resources of the machine that the sandbox could use, in words; None likewise.
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
    runtime: str | None = None
    variables: dict[str, str] = Field(default_factory=dict)
    network: str | None = None
    limits: str | None = None


class Phase(FrozenModel):
    """One step of the bring-up.

    Attributes:
        name: The step, like ``kubelet``.
        start: Seconds since the run's zero.
        end: Seconds since the run's zero; None for a step that has not ended.
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
        restarts: The number of restarts of its containers so far; None where it was not read.
    """

    phase: str
    ready: bool
    restarts: Count | None = None


class Cost(FrozenModel):
    """The resources that a layer has used so far.

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
        node_ready: The node's condition ``Ready``; None where it is ``Unknown`` or could not be read.
        reason: The condition's reason, like ``KubeletNotReady``.
        conditions: The status of every condition of the node, by its type.
        pods: The pods that exist, by ``namespace/name``.
        api_reachable: Whether the API server answered.
        errors: Error lines in the logs so far, by kind (see :mod:`~.log_classifier`).
        cost: The resources that each layer has used, by the name of the layer.
        heartbeat_age: Seconds since the kubelet renewed the node's lease; None where that was not read.
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
    """The result of a layer's check at one moment.

    Attributes:
        t: Seconds since the run's zero.
        name: The layer's name.
        ok: Whether the layer has its effect.
        details: The observations of the check, by name.
    """

    type: Literal["layer"] = "layer"
    t: Seconds
    name: str
    ok: bool
    details: dict[str, str] = Field(default_factory=dict)


class EventKind(StrEnum):
    """The kinds of events that reports show specially. Events may have other kinds."""

    POD_CREATED = "pod-created"
    POD_DELETED = "pod-deleted"
    FAULT = "fault"
    RESTART = "restart"
    RECOVERY = "recovery"
    TRANSITION = "transition"


class Event(FrozenModel):
    """An action of a test, or a change in the cluster.

    Attributes:
        t: Seconds since the run's zero.
        kind: Its kind, often one of :class:`EventKind`.
        what: The name of the object, like ``default/hello``, or a description.
        component: The program or layer that it affects.
        seconds: The duration of a restart or recovery.
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
        text: The whole line.
        errno: The name of the error number in the line, like ``EINTR``.
        count: The number of lines that this record stands for. A line that is repeated very often, with
            differences in numbers only, is counted instead of recorded. The record then has the time and the
            text of the last such line.
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
        reason: The reason of the interruption.
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
"""A record of any kind, which ``type`` names."""

RECORD: TypeAdapter[Record] = TypeAdapter(Record)
"""Validates a line, and generates the JSON Schema of all records."""
