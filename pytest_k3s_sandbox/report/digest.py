"""An experiment in one line: its key figures over all of its runs; all pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pytest_k3s_sandbox.report.facts import facts
from pytest_k3s_sandbox.report.summary import outcome, seconds_text

if TYPE_CHECKING:
    from pytest_k3s_sandbox.report.records import Run


_OUTCOMES = ("held", "finished", "incomplete", "not held")


@dataclass(frozen=True)
class Digest:
    """The key figures of one run, as plain values.

    Attributes:
        run: The run's name.
        experiment: The experiment's, ``test`` for a user's own tests.
        outcome: ``held``, ``not held`` or ``incomplete``; ``finished`` where nothing was claimed.
        to_ready: Seconds to the node Ready, from its bring-up's beginning (see :mod:`.beginning`).
        to_running: Seconds from the first pod's creation to Running.
        ready: Samples that saw the node Ready.
        samples: Samples since the first of them.
        losses: How often the node stopped being Ready.
        errors: Error lines.
        held: Claims that held.
        claims: Claims that were announced or judged.
        unreached: Claims and tests that were announced and not reached.
        failed: Tests that failed or broke.
        skipped: Tests that were skipped.
    """

    run: str
    experiment: str
    outcome: str
    to_ready: float | None
    to_running: float | None
    ready: int
    samples: int
    losses: int
    errors: int
    held: int
    claims: int
    unreached: int
    failed: int
    skipped: int

    def values(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def digest(run: Run) -> Digest:
    """Return the key figures of a run."""
    known = facts(run)
    pod = known.first_pod
    tests = Counter(test.outcome for test in run.tests)
    return Digest(
        run=run.name,
        experiment="test" if run.environment is None else run.environment.experiment,
        outcome="finished" if _claims_nothing(run) else outcome(run),
        to_ready=known.seconds_to_ready,
        to_running=None if pod is None else pod.to_running,
        ready=known.ready_samples,
        samples=known.samples_since_ready,
        losses=known.losses,
        errors=sum(known.errors.values()),
        held=sum(verdict.held for verdict in run.verdicts),
        claims=len(run.verdicts) + len(run.unreached),
        unreached=len(run.unreached) + tests["announced"],
        failed=tests["failed"] + tests["broken"],
        skipped=tests["skipped"],
    )


def _claims_nothing(run: Run) -> bool:
    """Tell whether a run has no say: it came to its end, nothing was claimed, and no test went wrong."""
    wrong = [test for test in run.tests if test.outcome not in {"passed", "skipped"}]
    return run.complete and not (run.verdicts or run.unreached or wrong)


def lines(digests: Sequence[Digest], strays: Sequence[Mapping[str, str]] = ()) -> list[str]:
    """Return a line for each experiment, in the order of their first runs.

    Args:
        digests: The key figures of the runs.
        strays: Tests of experiments that failed and belong to no run: their ``experiment``, ``test`` and
            ``outcome``.
    """
    names = dict.fromkeys([*(one.experiment for one in digests), *(one["experiment"] for one in strays)])
    return [
        _line(
            name,
            [one for one in digests if one.experiment == name],
            [one["outcome"] for one in strays if one["experiment"] == name],
        )
        for name in names
    ]


def _line(name: str, of: Sequence[Digest], strays: Sequence[str]) -> str:
    outcomes = Counter(one.outcome for one in of)
    worst = "not held" if "failed" in strays else "incomplete"
    if len(of) == 1:
        result = worst if strays and of[0].outcome in {"held", "finished"} else of[0].outcome
    elif of:
        counts = [f"{outcomes[word]} {word}" for word in _OUTCOMES if outcomes[word]]
        result = ", ".join([f"{len(of)} runs", *counts])
    else:
        result = worst
    if strays:
        result += f", {_count(len(strays), 'test')} without a run {' or '.join(sorted(set(strays)))}"
    if not of:
        return f"{name}: {result}"
    claims = sum(one.claims for one in of)
    ready = sum(one.ready for one in of)
    parts = [f"{sum(one.held for one in of)} of {claims} claims"] if claims else []
    parts += _times("Ready after", [one.to_ready for one in of])
    parts += _times("pod Running after", [one.to_running for one in of])
    if ready:
        parts.append(f"{ready} of {sum(one.samples for one in of)} samples Ready")
        parts.append(f"lost {_count(sum(one.losses for one in of), 'time')}")
    parts.append(_count(sum(one.errors for one in of), "error line"))
    for word, number in (
        ("failed", sum(one.failed for one in of)),
        ("skipped", sum(one.skipped for one in of)),
    ):
        parts += [f"{_count(number, 'test')} {word}"] if number else []
    missed = sum(one.unreached for one in of)
    parts += [f"{missed} not reached"] if missed else []
    return f"{name}: {result}; {', '.join(parts)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _times(words: str, values: Sequence[float | None]) -> list[str]:
    known = [value for value in values if value is not None]
    if not known:
        return []
    low, high = seconds_text(min(known)), seconds_text(max(known))
    return [f"{words} {low}" if low == high else f"{words} {low} to {high}"]
