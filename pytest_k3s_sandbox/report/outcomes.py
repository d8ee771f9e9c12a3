"""The records of outcomes: measurements, walls, the ablation, verdicts and tests; see :mod:`~.schema`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise
from statistics import quantiles
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from pytest_k3s_sandbox.report.base import Count, FrozenModel, Number, SandboxKind, Seconds


class Spread(FrozenModel):
    """The distribution of the observations behind a number, in the unit of the number.

    Attributes:
        min: The least value.
        p25: The lower quartile.
        median: The median.
        p75: The upper quartile.
        max: The greatest value.
    """

    min: Number
    p25: Number
    median: Number
    p75: Number
    max: Number

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        ordered = (self.min, self.p25, self.median, self.p75, self.max)
        slack = 1e-6 * max(map(abs, ordered))  # quartiles are computed with rounding
        if any(after < before - slack for before, after in pairwise(ordered)):
            message = "the values are not in order"
            raise ValueError(message)
        return self

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return the spread of one value or more; quartiles include the extremes (numpy's ``linear``)."""
        if len(values) == 1:
            low = middle = high = values[0]
        else:
            low, middle, high = quantiles(values, n=4, method="inclusive")
        return cls(min=min(values), p25=low, median=middle, p75=high, max=max(values))


class Measurement(FrozenModel):
    """A number that was measured.

    With a ``baseline`` it is a ratio: the ``variant``'s value divided by the baseline's, both measured
    side by side in this run.

    Attributes:
        name: Its name, unique in the run.
        value: The number; the median of several observations.
        unit: Its unit, like ``s``, ``bytes`` or ``ratio``.
        n: The number of observations.
        spread: The distribution of the observations.
        values: The observations, where the benchmark keeps them.
        benchmark: The benchmark that it belongs to, like ``interceptor``.
        case: The operation that was measured, like ``statfs``.
        variant: The program or setting that was measured, like ``ours``.
        baseline: The variant that it is a ratio to, like ``native``.
        limit: The target, which the value should not exceed.
    """

    type: Literal["measurement"] = "measurement"
    name: str
    value: Number
    unit: str
    n: Count | None = None
    spread: Spread | None = None
    values: tuple[Number, ...] = ()
    benchmark: str | None = None
    case: str | None = None
    variant: SandboxKind | None = None
    baseline: SandboxKind | None = None
    limit: Number | None = None

    @classmethod
    def of(
        cls,
        name: str,
        values: Sequence[float],
        unit: str,
        *,
        benchmark: str | None = None,
        case: str | None = None,
        variant: str | None = None,
        baseline: str | None = None,
        limit: float | None = None,
    ) -> Self:
        """Return the measurement of one observation or more: their median, number and spread."""
        spread = Spread.of(values)
        return cls(
            name=name,
            value=spread.median,
            unit=unit,
            n=len(values),
            spread=spread,
            values=tuple(values),
            benchmark=benchmark,
            case=case,
            variant=variant,
            baseline=baseline,
            limit=limit,
        )


class Stage(StrEnum):
    """The stages of a node's start in their order."""

    NOTHING = "nothing"
    STARTED = "started"
    REGISTERED = "registered"
    READY = "ready"
    POD = "pod"


class FirstError(FrozenModel):
    """The error that stopped a node.

    Attributes:
        component: The log's name, like ``kubelet``.
        kind: See :mod:`~.log_classifier`.
        text: The line of the log, or the message in it.
        t: Seconds since the run's zero; None where the line has no time.
    """

    component: str
    kind: str
    text: str
    t: Seconds | None = None


class Wall(FrozenModel):
    """The first error that stops a node with certain layers, and the layer that removes it.

    Attributes:
        error: The error.
        layers: The layers that were in place.
        version: The version of Kubernetes.
        settings: Settings of the kubelet that differ from the project's defaults, by name.
        removed_by: The layer or setting that removes the error; None where none was found.
        variant: The changes to the programs; None for released programs.
    """

    type: Literal["wall"] = "wall"
    error: FirstError
    layers: tuple[str, ...]
    version: str
    settings: dict[str, str] = Field(default_factory=dict)
    removed_by: str | None = None
    variant: str | None = None


class Ablation(FrozenModel):
    """The stage that a node reaches with one subset of the layers: one cell of the ablation.

    Attributes:
        layers: The layers that were in place.
        version: The version of Kubernetes.
        settings: Settings of the kubelet that differ from the project's defaults, by name.
        reached: The last stage of the node.
        seconds_to_ready: From the kubelet's start to the first sample that saw the node Ready.
        error: The error that stopped the node; None for a node that reached the last stage.
        variant: The changes to the programs or the sandbox.
        exit_code: The exit code of a kubelet that ended; for a signal, its negative number.
        stats_summary: Whether /stats/summary was served; None for a node that stopped before that.
    """

    type: Literal["ablation"] = "ablation"
    layers: tuple[str, ...]
    version: str
    settings: dict[str, str] = Field(default_factory=dict)
    reached: Stage
    seconds_to_ready: Seconds | None = None
    error: FirstError | None = None
    variant: str | None = None
    exit_code: Count | None = None
    stats_summary: bool | None = None


class Announced(FrozenModel):
    """A claim that a test announced. Without a verdict of its name it was not reached.

    Attributes:
        name: The verdict's name.
        text: The claim as a sentence.
        limit: The limit of the measured value.
        unit: The limit's unit.
    """

    type: Literal["announced"] = "announced"
    name: str
    text: str
    limit: Number | str | None = None
    unit: str = ""


class Verdict(FrozenModel):
    """Whether one claim held in this run.

    Attributes:
        name: A short name, like ``node-ready``.
        held: Whether it held.
        measured: The measured value, or the progress until the claim ended; None without a measurement.
        limit: The limit of the measured value.
        unit: The unit of both, like ``s``.
        text: The claim as a sentence.
        judged: Whether the test judged the claim. An error or Ctrl-C can end a claim before that.
        ended: The error that ended the claim; None for a judged claim.
    """

    type: Literal["verdict"] = "verdict"
    name: str
    held: bool
    measured: Number | str | None = None
    limit: Number | str | None = None
    unit: str = ""
    text: str
    judged: bool = True
    ended: str | None = None

    @property
    def word(self) -> str:
        """Return the result in words: ``held``, ``not held`` or ``not judged``."""
        if not self.judged:
            return "not judged"
        return "held" if self.held else "not held"


TEST_OUTCOMES = ("announced", "elsewhere", "passed", "skipped", "broken", "failed")
"""The outcomes of a test, the worst last; see :class:`Tested`."""


class Tested(FrozenModel):
    """The outcome of one test that uses the run.

    A run of an experiment announces its tests when it begins. A test that stays announced was not reached.

    Attributes:
        t: Seconds since the run's zero.
        nodeid: The test's id, as pytest has it.
        text: The first line of the test's docstring.
        outcome: ``announced``; ``elsewhere`` for a test of another run; ``passed``; ``skipped``;
            ``failed`` by an assertion; ``broken`` by any other error.
        phase: The phase of the test with this outcome: ``setup``, ``call`` or ``teardown``.
        message: The reason, at most :data:`MAX_MESSAGE` characters.
    """

    __test__: ClassVar[bool] = False  # for pytest, which takes a class of such a name for tests

    type: Literal["test"] = "test"
    t: Seconds
    nodeid: str
    text: str = ""
    outcome: Literal["announced", "elsewhere", "passed", "skipped", "broken", "failed"]
    phase: Literal["setup", "call", "teardown"] | None = None
    message: str | None = None

    @property
    def word(self) -> str:
        """Return the outcome in words."""
        return "not reached" if self.outcome == "announced" else self.outcome


MAX_MESSAGE = 2000
"""The most characters of a test's message that are recorded."""
