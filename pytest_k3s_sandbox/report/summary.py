"""A run in a few numbers, for ``--json``, and in one sentence, for people."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from pytest_k3s_sandbox.report.beginning import start_restarts
from pytest_k3s_sandbox.report.facts import Facts, PodFacts, facts

if TYPE_CHECKING:
    from pytest_k3s_sandbox.report.records import Run, Tested, Verdict

_ROOTS = {
    0x01021997: "9p",
    0x01021994: "tmpfs",
    0x794C7630: "overlayfs",
    0x65735546: "FUSE",
    0xEF53: "ext",
    0x58465342: "XFS",
    0x9123683E: "Btrfs",
}


def root_name(magic: int | None) -> str:
    """Return a root's magic as people read it, like ``9p (0x01021997)``; see statfs(2) for the numbers."""
    if magic is None:
        return "not read"
    return f"{_ROOTS.get(magic, 'unknown')} (0x{magic:08x})"


def seconds_text(seconds: float) -> str:
    """Return a duration as people read it: ``8.4 s``, ``2 min 03 s``, ``1 h 02 min``."""
    if round(seconds, 1) < 60:  # noqa: PLR2004 - seconds in a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:  # noqa: PLR2004 - minutes in an hour
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def is_ok(run: Run) -> bool:
    """Tell whether all held: the run is complete, every claim was reached and held, and no test failed."""
    return (
        run.complete
        and bool(run.verdicts)
        and all(verdict.held for verdict in run.verdicts)
        and not run.unreached
        and all(test.outcome in {"passed", "skipped"} for test in run.tests)
    )


def outcome(run: Run) -> str:
    """Return ``held``, ``not held``, or ``incomplete`` for a run that has no say in the matter.

    A claim that did not hold, or a test that failed, counts even if the run was cut off after it. A broken
    test, a claim that could not be judged and one that was not reached make a run incomplete.
    """
    if any(verdict.word == "not held" for verdict in run.verdicts) or _failed(run):
        return "not held"
    return "held" if is_ok(run) else "incomplete"


def _failed(run: Run) -> list[Tested]:
    return [test for test in run.tests if test.outcome == "failed"]


def incomplete_reason(run: Run) -> str | None:
    """Return why a run does not say all that it should, in sentences; None when it does."""
    last = seconds_text(facts(run).last)
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
        said.append(f"The test {test_name(first)} broke{_first_line(first.message)}{others}.")
    unjudged = [verdict for verdict in run.verdicts if verdict.word == "not judged"]
    if unjudged:
        said.append(f"{_count(len(unjudged), 'claim')} could not be judged.")
    missed = [test for test in run.tests if test.outcome == "announced"]
    if run.unreached:
        said.append(f"{_count(len(run.unreached), 'announced claim')} not reached.")
    if missed:
        said.append(f"{_count(len(missed), 'test')} not reached.")
    return " ".join(said) or None


def worst(run: Run, name: str, text: str | None = None) -> Verdict | None:
    """Return what decides about a claim of that name (and text): a verdict that is not *held*, else the last.

    A claim may be judged several times; it holds if it did each time.
    """
    found = [v for v in run.verdicts if v.name == name and text in (None, v.text)]
    bad = [v for word in ("not held", "not judged") for v in found if v.word == word]
    return bad[0] if bad else found[-1] if found else None


def test_name(test: Tested) -> str:
    """Return a test's id without its file."""
    return test.nodeid.partition("::")[2] or test.nodeid


test_name.__test__ = False  # type: ignore[attr-defined] # for pytest, where a test module imports it


def _first_line(message: str | None) -> str:
    line = (message or "").strip().partition("\n")[0].rstrip(".")
    return f": {line}" if line else ""


def sentence(run: Run) -> str:
    """Return a run's verdict and its evidence as one sentence."""
    lost = [verdict for verdict in run.verdicts if verdict.word == "not held"]
    total = len(run.verdicts)
    if lost:
        others = f", and {len(lost) - 1} more of {total} claims" if len(lost) > 1 else ""
        return f"{lost[0].text.rstrip('.')}: this did not hold{_against(run)}{others}; {_evidence(run)}."
    failed = _failed(run)
    if failed:
        others = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        said = f"The test {test_name(failed[0])} failed{_first_line(failed[0].message)}{others}"
        return f"{said}; {_evidence(run)}."
    if not total:
        return f"No claim was judged; {_evidence(run)}."
    held = sum(verdict.held for verdict in run.verdicts)
    if held < total:
        return f"{held} of {_count(total, 'claim')} held, the others could not be judged: {_evidence(run)}."
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


def value_text(value: float | str | None, unit: str = "") -> str:
    """Return a value as text: numbers without needless digits and with their unit, nothing for None."""
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.10g} {unit}".rstrip()


def _evidence(run: Run) -> str:
    restarts = again(run)
    return _readiness(facts(run)) + (f"; {restarts}" if restarts else "")


def _readiness(known: Facts) -> str:
    if not known.samples:
        return "no sample was taken"
    if known.seconds_to_ready is None:
        return f"the node was Ready at none of {_count(known.samples, 'sample')}"
    if known.ready_samples == known.samples_since_ready:
        stayed = f"stayed so at all {_count(known.samples_since_ready, 'sample')}"
    else:
        stayed = f"was so at {known.ready_samples} of {_count(known.samples_since_ready, 'sample')}"
    errors = sum(known.errors.values())
    logged = "no error was logged" if not errors else f"{_count(errors, 'error line')} logged"
    return (
        f"the node was Ready {seconds_text(known.seconds_to_ready)} after {beginning(known)} and {stayed} "
        f"since (unbroken for {seconds_text(known.hold_seconds)}); {logged}"
    )


def beginning(known: Facts) -> str:
    """Return from when on the time to Ready is counted, in words."""
    if known.bring_up is None:
        return "the sandbox's start"
    return f"its bring-up's start (in a sandbox that others had used for {seconds_text(known.began)})"


def again(run: Run) -> str | None:
    """Return which programs were started again during the node's start, in words; None if none was."""
    counts = _restarts(run)
    if not counts:
        return None
    each = [f"{name} was started again {'once' if n == 1 else f'{n} times'}" for name, n in counts.items()]
    return f"{' and '.join(each)} during the start"


def _restarts(run: Run) -> Counter[str]:
    return Counter(event.component or "?" for event in start_restarts(run))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def summarize(run: Run) -> dict[str, Any]:
    """Return a run's key figures as plain values for JSON; times are seconds since the run's zero.

    ``seconds_to_ready`` counts from ``bring_up_began``, which is 0 unless others used the sandbox before;
    ``seconds_to_pod_running`` is that of the first pod, from its creation. ``ok`` is true only for
    a complete run with verdicts that all held, whose tests all passed or were skipped, and all were reached.
    """
    known = facts(run)
    environment = run.environment
    first = known.first_pod
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
        "bring_up_began": known.began,
        "seconds_to_ready": known.seconds_to_ready,
        "seconds_to_pod_running": None if first is None else first.to_running,
        "hold_seconds": known.hold_seconds,
        "samples": known.samples,
        "samples_since_ready": known.samples_since_ready,
        "ready_samples": known.ready_samples,
        "longest_gap_seconds": known.longest_gap,
        "transitions": [{"t": c.t, "ready": c.ready, "reason": c.reason} for c in known.transitions],
        "restarts_during_start": dict(_restarts(run)),
        "errors": known.errors,
        "pods": [_pod(pod) for pod in known.pods],
        "measurements": [m.model_dump(exclude={"type"}) for m in run.measurements],
        "verdicts": [v.model_dump(exclude={"type"}) for v in run.verdicts],
        "not_reached": [a.model_dump(exclude={"type"}) for a in run.unreached],
        "tests": [test.model_dump(exclude={"type"}) for test in run.tests],
    }


def _pod(pod: PodFacts) -> dict[str, Any]:
    return {key: value for key, value in vars(pod).items() if key != "seen"}
