"""What a run's samples say: spans of one state, transitions and key figures, all pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_k3s_sandbox.report.schema import Run, Sample

GAP_FLOOR = 2.0
"""Seconds between two samples that are never taken for a gap."""

_PHASES = frozenset({"Pending", "Running", "Succeeded", "Failed"})

GAP_FACTOR = 3.0
"""A gap is this many times longer than the usual distance of the samples around it."""


@dataclass(frozen=True)
class Span:
    """A time in which every sample saw the same state.

    Attributes:
        start: Seconds since the run's zero of the first such sample.
        end: The time of the first sample that saw another state, or of the last sample before a
            gap or the run's end: no state is claimed where nothing was sampled.
        state: The state's name; it is a class in the page and in figures.
        samples: How many samples saw it.
    """

    start: float
    end: float
    state: str
    samples: int


@dataclass(frozen=True)
class Lane:
    """The states of one thing over time.

    Attributes:
        name: What it is, like ``node`` or ``pod default/hello``.
        spans: Its states; nothing where it did not exist or was not sampled.
    """

    name: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Transition:
    """A change of the node's condition ``Ready`` between two samples that could read it.

    Attributes:
        t: The time of the first sample with the new value.
        ready: The new value.
        reason: The condition's reason at that time.
    """

    t: float
    ready: bool
    reason: str | None


@dataclass(frozen=True)
class PodFacts:
    """One pod's way, as far as samples saw it; all times are seconds since the run's zero.

    Attributes:
        name: ``namespace/name``.
        created: When it was created, by its event ``pod-created``, else by the first sample with it.
        running: The first sample with the phase ``Running``.
        ready: The first sample with the condition ``Ready``.
        deleted: When its deletion was asked for, by its event ``pod-deleted``.
        gone: The first sample without it after it was there.
    """

    name: str
    created: float
    running: float | None
    ready: float | None
    deleted: float | None
    gone: float | None


@dataclass(frozen=True)
class Facts:
    """A run's key figures.

    Attributes:
        seconds_to_ready: The time of the first sample that saw the node Ready.
        samples: How many samples there are.
        samples_since_ready: How many from the first Ready one on.
        ready_samples: How many of those saw the node Ready.
        hold_seconds: The longest time in which every sample saw the node Ready.
        longest_gap: The longest time, in seconds, between two neighbouring samples.
        transitions: The changes of the node's condition ``Ready``; the first one is its becoming so.
        errors: Error lines by kind.
        pods: Every pod that was seen, in the order of creation.
        last: The time of the last record that has one.
    """

    seconds_to_ready: float | None
    samples: int
    samples_since_ready: int
    ready_samples: int
    hold_seconds: float
    longest_gap: float
    transitions: tuple[Transition, ...]
    errors: dict[str, int]
    pods: tuple[PodFacts, ...]
    last: float

    @property
    def losses(self) -> int:
        """Return how often the node stopped being Ready."""
        return sum(not transition.ready for transition in self.transitions)


def gaps(times: Sequence[float]) -> tuple[bool, ...]:
    """Tell for each pair of neighbouring samples whether a gap lies between them.

    The distance of samples may change within a run (often during the bring-up, rarely while
    holding), so each is compared with its neighbours, not with the whole run.

    Args:
        times: The samples' times in seconds, ascending.

    Returns:
        ``len(times) - 1`` values.
    """
    steps = [after - before for before, after in pairwise(times)]
    return tuple(
        step > max(GAP_FLOOR, GAP_FACTOR * median(steps[max(0, i - 3) : i + 4]))
        for i, step in enumerate(steps)
    )


def spans(times: Sequence[float], states: Sequence[str | None]) -> tuple[Span, ...]:
    """Join neighbouring samples of one state.

    Args:
        times: The samples' times in seconds, ascending.
        states: The state at each; None where there was nothing to see.
    """
    found: list[Span] = []
    first = 0
    breaks = gaps(times)
    for i, state in enumerate(states):
        last = i + 1 == len(states)
        if not last and states[i + 1] == state and not breaks[i]:
            continue
        if state is not None:
            end = times[i] if last or breaks[i] else times[i + 1]
            found.append(Span(times[first], end, state, i + 1 - first))
        first = i + 1
    return tuple(found)


def node_state(sample: Sample) -> str:
    """Return ``ready``, ``not-ready`` or ``unknown``."""
    if sample.node_ready is None:
        return "unknown"
    return "ready" if sample.node_ready else "not-ready"


def pod_state(sample: Sample, name: str) -> str | None:
    """Return ``pod-ready``, the pod's phase in small letters or ``unknown``; None when it does not exist."""
    pod = sample.pods.get(name)
    if pod is None:
        return None
    if pod.ready:
        return "pod-ready"
    return pod.phase.lower() if pod.phase in _PHASES else "unknown"


def lanes(run: Run) -> tuple[Lane, ...]:
    """Return the lanes of a run: the API, the node, and each pod in the order of its appearance."""
    samples = run.samples
    times = [sample.t for sample in samples]
    api = ["up" if sample.api_reachable else "down" for sample in samples]
    node = [node_state(sample) for sample in samples]
    found = [
        Lane("API server", spans(times, _starting(api, "up", "down"))),
        Lane("Node", spans(times, _starting(node, "ready", "not-ready"))),
    ]
    found += [Lane(name, spans(times, [pod_state(s, name) for s in samples])) for name in pod_names(samples)]
    return tuple(found)


def _starting(states: Sequence[str], good: str, bad: str) -> list[str]:
    """Tell being not yet good from being no longer so; what never got good stays bad throughout."""
    first = states.index(good) if good in states else 0
    return ["starting" if state == bad and i < first else state for i, state in enumerate(states)]


def pod_names(samples: Sequence[Sample]) -> tuple[str, ...]:
    """Return the names of all pods in the order of their appearance."""
    return tuple(dict.fromkeys(name for sample in samples for name in sample.pods))


def missing(run: Run) -> tuple[tuple[float, float], ...]:
    """Return the gaps between samples as pairs of times."""
    times = [sample.t for sample in run.samples]
    return tuple(pair for pair, gap in zip(pairwise(times), gaps(times), strict=True) if gap)


def transitions(samples: Sequence[Sample]) -> tuple[Transition, ...]:
    """Return the changes of the node's condition ``Ready``, not counting samples that could not read it.

    A node that is not Ready at first has not changed; its first Ready is the first transition.
    """
    found: list[Transition] = []
    known = False
    for sample in samples:
        if sample.node_ready is not None and sample.node_ready != known:
            found.append(Transition(sample.t, sample.node_ready, sample.reason))
            known = sample.node_ready
    return tuple(found)


def facts(run: Run) -> Facts:
    """Compute a run's key figures from its records."""
    samples = run.samples
    first = next((i for i, sample in enumerate(samples) if sample.node_ready), None)
    since = samples[first:] if first is not None else ()
    return Facts(
        seconds_to_ready=since[0].t if since else None,
        samples=len(samples),
        samples_since_ready=len(since),
        ready_samples=sum(sample.node_ready is True for sample in since),
        hold_seconds=_longest_hold(samples),
        longest_gap=max((b.t - a.t for a, b in pairwise(samples)), default=0.0),
        transitions=transitions(samples),
        errors=_errors(run),
        pods=tuple(
            sorted((_pod(run, name) for name in pod_names(samples)), key=lambda pod: (pod.created, pod.name))
        ),
        last=_last(run),
    )


def _longest_hold(samples: Sequence[Sample]) -> float:
    longest = 0.0
    start: float | None = None
    for sample in samples:
        if not sample.node_ready:
            start = None
            continue
        start = sample.t if start is None else start
        longest = max(longest, sample.t - start)
    return longest


def _errors(run: Run) -> dict[str, int]:
    """Count by kind: the lines, or the samples' totals where they are higher (lines may be capped)."""
    counts = Counter(line.kind for line in run.errors)
    for sample in run.samples:
        counts |= Counter(sample.errors)
    return dict(sorted(counts.items()))


def _pod(run: Run, name: str) -> PodFacts:
    seen = [sample for sample in run.samples if name in sample.pods]
    after = (s.t for s in run.samples if s.t > seen[-1].t and s.api_reachable)
    created = _event(run, "pod-created", name)
    return PodFacts(
        name=name,
        created=seen[0].t if created is None else created,
        running=next((s.t for s in seen if s.pods[name].phase == "Running"), None),
        ready=next((s.t for s in seen if s.pods[name].ready), None),
        deleted=_event(run, "pod-deleted", name),
        gone=next(after, None),
    )


def _event(run: Run, kind: str, what: str) -> float | None:
    return next((event.t for event in run.events if (event.kind, event.what) == (kind, what)), None)


def _last(run: Run) -> float:
    times = [sample.t for sample in run.samples[-1:]]
    times += [event.t for event in run.events[-1:]]
    times += [line.t for line in run.errors[-1:]]
    times += [phase.start if phase.end is None else phase.end for phase in run.phases]
    return max([*times, run.end.t if run.end is not None else 0.0, 0.0])
