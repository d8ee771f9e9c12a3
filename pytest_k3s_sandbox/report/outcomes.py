"""The records of what a run found: measurements, walls, the ablation and verdicts; see :mod:`~.schema`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise
from statistics import quantiles
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from pytest_k3s_sandbox.report.base import Count, FrozenModel, Number, SandboxKind, Seconds


class Spread(FrozenModel):
    """How far the observations behind a number lie apart, in the number's unit.

    Attributes:
        min: The least.
        p25: The lower quartile.
        median: The middle.
        p75: The upper quartile.
        max: The most.
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
        name: What it is, unique in the run.
        value: The number; the median where there are several observations.
        unit: Its unit, like ``s``, ``bytes`` or ``ratio``.
        n: How many observations it stands for.
        spread: How far they lie apart.
        values: The observations themselves, if they were kept.
        benchmark: The benchmark that it belongs to, like ``interceptor``.
        case: What was measured there, like ``statfs``.
        variant: With what, like ``ours``.
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
    """How far a node got; the order is that in which it gets there."""

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
        text: The line, or the part of it that matters, in the program's own words.
        t: Seconds since the run's zero; None when the line has no time.
    """

    component: str
    kind: str
    text: str
    t: Seconds | None = None


class Wall(FrozenModel):
    """The first error that stops a node with certain layers, and what makes it fall.

    Attributes:
        error: The error.
        layers: The layers that were in place.
        version: The version of Kubernetes.
        settings: Settings of the kubelet that differ from the project's own, by name.
        removed_by: The layer or setting that takes it away; None when that was not found.
        variant: What was done to the programs, if they are not as released.
    """

    type: Literal["wall"] = "wall"
    error: FirstError
    layers: tuple[str, ...]
    version: str
    settings: dict[str, str] = Field(default_factory=dict)
    removed_by: str | None = None
    variant: str | None = None


class Ablation(FrozenModel):
    """How far a node gets with one subset of the layers: one cell of the ablation.

    Attributes:
        layers: The layers that were in place.
        version: The version of Kubernetes.
        settings: Settings of the kubelet that differ from the project's own, by name.
        reached: How far it got.
        seconds_to_ready: From the kubelet's start to the first sample that saw the node Ready.
        error: The error that kept it from getting further; None when it got as far as can be.
        variant: What is not as usual about the programs or the sandbox.
        exit_code: The kubelet's, if it ended by itself; minus a signal's number.
        stats_summary: Whether /stats/summary was served; None when the node did not get so far.
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
    """A claim that a test was about to judge; without a verdict of its name it was not reached.

    Attributes:
        name: The verdict's name.
        text: The claim as a sentence.
        limit: What it is held against.
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
        measured: What was seen, or how far it got; None when there was nothing to see.
        limit: What it was held against.
        unit: The unit of both, like ``s``.
        text: The claim as a sentence.
        judged: Whether it could be judged. A claim that trouble or Ctrl-C has ended was not.
        ended: The error that ended the claim; None where a test has judged it.
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
"""What a run knows of a test, the worst last; see :class:`Tested`."""


class Tested(FrozenModel):
    """What became of one test that uses the run.

    A run of an experiment announces its tests when it begins. A test that stays announced was not reached.

    Attributes:
        t: Seconds since the run's zero.
        nodeid: The test's id, as pytest has it.
        text: The first line of the test's docstring.
        outcome: ``announced``; ``elsewhere`` for a test that is left to another run; ``passed``; ``skipped``;
            ``failed`` by an assertion; ``broken`` by any other error.
        phase: Where that happened: ``setup``, ``call`` or ``teardown``.
        message: Why, at most :data:`MAX_MESSAGE` characters.
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
"""Characters of a test's message that are recorded."""
