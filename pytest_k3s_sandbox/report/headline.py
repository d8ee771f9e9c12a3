"""A run in one line for the terminal, in one sentence for its page, and in key figures for ``--json``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pytest_k3s_sandbox.report.metrics import Metrics, PodMetrics
from pytest_k3s_sandbox.report.records import Run, Tested, Verdict
from pytest_k3s_sandbox.report.wording import (
    count_text,
    first_line,
    root_name,
    seconds_text,
    short_id,
    value_text,
)

_OUTCOMES = ("held", "finished", "incomplete", "not held")


def is_ok(run: Run) -> bool:
    """Tell whether the run is complete, each claim was reached and held, and each test passed or was skipped.

    A run without a claim is not.
    """
    return (
        run.complete
        and bool(run.verdicts)
        and all(verdict.held for verdict in run.verdicts)
        and not run.unreached
        and all(test.outcome in {"passed", "skipped"} for test in run.tests)
    )


def outcome(run: Run) -> str:
    """Return ``held``, ``not held`` or ``incomplete``.

    A claim that did not hold or a test that failed makes a run *not held*, even if the run was cut off later.
    A broken test, a claim that was not judged and one that was not reached make a run *incomplete*.
    """
    if any(verdict.word == "not held" for verdict in run.verdicts) or _failed(run):
        return "not held"
    return "held" if is_ok(run) else "incomplete"


def _failed(run: Run) -> list[Tested]:
    return [test for test in run.tests if test.outcome == "failed"]


def incomplete_reason(run: Run) -> str | None:
    """Return what is missing from a run, in sentences; None where nothing is."""
    last = seconds_text(run.metrics.last)
    said = []
    if run.end is not None and not run.complete:
        said.append(f"This run was interrupted after {last}: {run.end.reason or 'no reason was recorded'}.")
    elif not run.complete:
        half = " and its last line is half-written" if run.truncated else ""
        said.append(
            f"This run was cut off: its records stop at {last} without an end{half}. "
            "It was killed, or is running still."
        )
    broken = [test for test in run.tests if test.outcome == "broken"]
    if broken:
        first = broken[0]
        others = f", and {len(broken) - 1} more" if len(broken) > 1 else ""
        said.append(f"The test {short_id(first)} broke{first_line(first.message)}{others}.")
    unjudged = [verdict for verdict in run.verdicts if verdict.word == "not judged"]
    if unjudged:
        said.append(f"{count_text(len(unjudged), 'claim')} could not be judged.")
    missed = [test for test in run.tests if test.outcome == "announced"]
    if run.unreached:
        said.append(f"{count_text(len(run.unreached), 'announced claim')} not reached.")
    if missed:
        said.append(f"{count_text(len(missed), 'test')} not reached.")
    return " ".join(said) or None


def decisive_verdict(run: Run, name: str, text: str | None = None) -> Verdict | None:
    """Return the verdict that decides about a claim: one that is not *held*, else the last.

    A claim may be judged several times. It holds if each verdict is *held*.

    Args:
        run: The run.
        name: The name of the claim.
        text: The text of the claim; None for any.

    Returns:
        None where the claim has no verdict.
    """
    found = [v for v in run.verdicts if v.name == name and text in (None, v.text)]
    bad = [v for word in ("not held", "not judged") for v in found if v.word == word]
    return bad[0] if bad else found[-1] if found else None


def sentence(run: Run) -> str:
    """Return the verdict of a run and its evidence as one sentence."""
    lost = [verdict for verdict in run.verdicts if verdict.word == "not held"]
    total = len(run.verdicts)
    if lost:
        others = f", and {len(lost) - 1} more of {total} claims" if len(lost) > 1 else ""
        return f"{lost[0].text.rstrip('.')}: this did not hold{_against(run)}{others}; {_evidence(run)}."
    failed = _failed(run)
    if failed:
        others = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        said = f"The test {short_id(failed[0])} failed{first_line(failed[0].message)}{others}"
        return f"{said}; {_evidence(run)}."
    if not total:
        return f"No claim was judged; {_evidence(run)}."
    held = sum(verdict.held for verdict in run.verdicts)
    if held < total:
        return (
            f"{held} of {count_text(total, 'claim')} held, the others could not be judged: {_evidence(run)}."
        )
    all_held = "The only claim" if total == 1 else f"All {total} claims"
    return f"{all_held} {'' if is_ok(run) else 'judged so far '}held: {_evidence(run)}."


def _against(run: Run) -> str:
    verdict = next(verdict for verdict in run.verdicts if verdict.word == "not held")
    parts = [
        f"{word} {value_text(value, verdict.unit)}"
        for word, value in (("measured", verdict.measured), ("limit", verdict.limit))
        if value is not None
    ]
    return f" ({', '.join(parts)})" if parts else ""


def _evidence(run: Run) -> str:
    restarts = restarts_text(run)
    return _readiness(run.metrics) + (f"; {restarts}" if restarts else "")


def _readiness(metrics: Metrics) -> str:
    if not metrics.samples:
        return "no sample was taken"
    if metrics.seconds_to_ready is None:
        return f"the node was Ready at none of {count_text(metrics.samples, 'sample')}"
    if metrics.ready_samples == metrics.samples_since_ready:
        stayed = f"stayed so at all {count_text(metrics.samples_since_ready, 'sample')}"
    else:
        stayed = f"was so at {metrics.ready_samples} of {count_text(metrics.samples_since_ready, 'sample')}"
    errors = metrics.error_lines
    logged = "no error was logged" if not errors else f"{count_text(errors, 'error line')} logged"
    seconds, start = seconds_text(metrics.seconds_to_ready), start_text(metrics)
    unbroken = seconds_text(metrics.hold_seconds)
    return (
        f"the node was Ready {seconds} after {start} and {stayed} since (unbroken for {unbroken}); {logged}"
    )


def start_text(metrics: Metrics) -> str:
    """Return the moment from which the time to Ready counts, in words."""
    if metrics.bring_up_start is None:
        return "the sandbox's start"
    return f"its bring-up's start (in a sandbox that others had used for {seconds_text(metrics.began)})"


def restarts_text(run: Run) -> str | None:
    """Return which programs were restarted before the node was Ready, in words; None where none was."""
    counts = _restarts(run)
    if not counts:
        return None
    each = [f"{name} was started again {'once' if n == 1 else f'{n} times'}" for name, n in counts.items()]
    return f"{' and '.join(each)} during the start"


def _restarts(run: Run) -> Counter[str]:
    return Counter(event.component or "?" for event in run.metrics.start_restarts)


def summarize(run: Run) -> dict[str, Any]:
    """Return the key figures of a run as values for JSON; times are seconds since the run's zero.

    ``seconds_to_ready`` counts from ``bring_up_began``. That is 0 unless other tests used the sandbox before.
    ``seconds_to_pod_running`` counts from the creation of the first pod. :func:`is_ok` returns ``ok``.
    """
    metrics = run.metrics
    environment = run.environment
    first = metrics.first_pod
    return {
        "schema_version": run.header.schema_version,
        "run": run.name,
        "ok": is_ok(run),
        "outcome": outcome(run),
        "complete": run.complete,
        "incomplete_reason": incomplete_reason(run),
        "sentence": sentence(run),
        "environment": None if environment is None else environment.model_dump(mode="json", exclude={"type"}),
        "root": root_name(environment.root_magic) if environment is not None else None,
        "bring_up_began": metrics.began,
        "seconds_to_ready": metrics.seconds_to_ready,
        "seconds_to_pod_running": None if first is None else first.to_running,
        "hold_seconds": metrics.hold_seconds,
        "samples": metrics.samples,
        "samples_since_ready": metrics.samples_since_ready,
        "ready_samples": metrics.ready_samples,
        "longest_gap_seconds": metrics.longest_gap,
        "transitions": [{"t": c.t, "ready": c.ready, "reason": c.reason} for c in metrics.transitions],
        "restarts_during_start": dict(_restarts(run)),
        "errors": metrics.errors,
        "pods": [_pod(pod) for pod in metrics.pods],
        "measurements": [m.model_dump(exclude={"type"}) for m in run.measurements],
        "verdicts": [v.model_dump(exclude={"type"}) for v in run.verdicts],
        "not_reached": [a.model_dump(exclude={"type"}) for a in run.unreached],
        "tests": [test.model_dump(exclude={"type"}) for test in run.tests],
    }


def _pod(pod: PodMetrics) -> dict[str, Any]:
    return {key: value for key, value in vars(pod).items() if key != "seen"}


@dataclass(frozen=True)
class Headline:
    """The key figures of one run as plain values, which workers of pytest-xdist can send.

    Attributes:
        run: The run's name.
        experiment: The name of the experiment, or ``test`` for tests of a user.
        outcome: ``held``, ``not held`` or ``incomplete``; ``finished`` where nothing was claimed.
        to_ready: Seconds from the start of the bring-up to the node Ready.
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
        """Return the figures as JSON values, by name."""
        return asdict(self)


def headline(run: Run) -> Headline:
    """Return the headline of a run."""
    metrics = run.metrics
    pod = metrics.first_pod
    tests = Counter(test.outcome for test in run.tests)
    return Headline(
        run=run.name,
        experiment="test" if run.environment is None else run.environment.experiment,
        outcome="finished" if _only_finished(run) else outcome(run),
        to_ready=metrics.seconds_to_ready,
        to_running=None if pod is None else pod.to_running,
        ready=metrics.ready_samples,
        samples=metrics.samples_since_ready,
        losses=metrics.losses,
        errors=metrics.error_lines,
        held=sum(verdict.held for verdict in run.verdicts),
        claims=len(run.verdicts) + len(run.unreached),
        unreached=len(run.unreached) + tests["announced"],
        failed=tests["failed"] + tests["broken"],
        skipped=tests["skipped"],
    )


def _only_finished(run: Run) -> bool:
    """Tell whether a run is complete, has no claim, and each of its tests passed or was skipped."""
    wrong = [test for test in run.tests if test.outcome not in {"passed", "skipped"}]
    return run.complete and not (run.verdicts or run.unreached or wrong)


def headline_lines(headlines: Sequence[Headline], strays: Sequence[Mapping[str, str]] = ()) -> list[str]:
    """Return one line for each experiment, in the order of their first runs.

    Args:
        headlines: The key figures of the runs.
        strays: Failed tests of experiments that belong to none of the runs, each with its ``experiment``,
            ``test`` and ``outcome``.
    """
    names = dict.fromkeys([*(one.experiment for one in headlines), *(one["experiment"] for one in strays)])
    return [
        _line(
            name,
            [one for one in headlines if one.experiment == name],
            [one["outcome"] for one in strays if one["experiment"] == name],
        )
        for name in names
    ]


def _line(name: str, of: Sequence[Headline], strays: Sequence[str]) -> str:
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
        result += f", {count_text(len(strays), 'test')} without a run {' or '.join(sorted(set(strays)))}"
    if not of:
        return f"{name}: {result}"
    claims = sum(one.claims for one in of)
    ready = sum(one.ready for one in of)
    parts = [f"{sum(one.held for one in of)} of {claims} claims"] if claims else []
    parts += _times("Ready after", [one.to_ready for one in of])
    parts += _times("pod Running after", [one.to_running for one in of])
    if ready:
        parts.append(f"{ready} of {sum(one.samples for one in of)} samples Ready")
        parts.append(f"lost {count_text(sum(one.losses for one in of), 'time')}")
    parts.append(count_text(sum(one.errors for one in of), "error line"))
    for word, number in (
        ("failed", sum(one.failed for one in of)),
        ("skipped", sum(one.skipped for one in of)),
    ):
        parts += [f"{count_text(number, 'test')} {word}"] if number else []
    missed = sum(one.unreached for one in of)
    parts += [f"{missed} not reached"] if missed else []
    return f"{name}: {result}; {', '.join(parts)}"


def _times(words: str, values: Sequence[float | None]) -> list[str]:
    known = [value for value in values if value is not None]
    if not known:
        return []
    low, high = seconds_text(min(known)), seconds_text(max(known))
    return [f"{words} {low}" if low == high else f"{words} {low} to {high}"]
