"""The samples of a run over time: spans of one state, gaps and transitions; all pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from pytest_k3s_sandbox.report.schema import Sample

GAP_FLOOR = 2.0
"""The most seconds between two samples that never count as a gap."""

_PHASES = frozenset({"Pending", "Running", "Succeeded", "Failed"})

GAP_FACTOR = 3.0
"""A gap is so many times longer than the median distance of the samples around it."""


@dataclass(frozen=True)
class Span:
    """A time in which every sample saw the same state.

    Attributes:
        start: Seconds since the run's zero of the first such sample.
        end: The time of the first sample that saw another state. Before a gap and at the end of the run, the
            time of the last sample, because the state after it is unknown.
        state: The state's name; it is a class in the page and in figures.
        samples: The number of samples that saw it.
    """

    start: float
    end: float
    state: str
    samples: int


@dataclass(frozen=True)
class Lane:
    """The states of one object over time.

    Attributes:
        name: The name of the object, like ``Node`` or ``default/hello``.
        spans: Its states. Times without the object and gaps have none.
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
        sample: That sample.
    """

    t: float
    ready: bool
    reason: str | None
    sample: Sample = field(repr=False, compare=False)


def gaps(times: Sequence[float]) -> tuple[bool, ...]:
    """Tell for each pair of neighbouring samples whether a gap lies between them.

    The sampler asks more often during the bring-up than later. So each distance is compared with its
    neighbours and not with the whole run.

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


def spans(
    times: Sequence[float], states: Sequence[str | None], breaks: Sequence[bool] | None = None
) -> tuple[Span, ...]:
    """Join neighbouring samples of one state.

    Args:
        times: The samples' times in seconds, ascending.
        states: The state at each time; None where the object did not exist.
        breaks: The result of :func:`gaps` for the times; computed if None.
    """
    found: list[Span] = []
    first = 0
    breaks = gaps(times) if breaks is None else breaks
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
    """Return ``pod-ready``, the phase of the pod in lower case, or ``unknown``; None without the pod."""
    pod = sample.pods.get(name)
    if pod is None:
        return None
    if pod.ready:
        return "pod-ready"
    return pod.phase.lower() if pod.phase in _PHASES else "unknown"


def lanes(samples: Sequence[Sample]) -> tuple[Lane, ...]:
    """Return the lanes of a run: the API server, the node, and each pod in the order of its appearance.

    Args:
        samples: The samples of the run by their time.
    """
    times = [sample.t for sample in samples]
    breaks = gaps(times)
    api = ["up" if sample.api_reachable else "down" for sample in samples]
    node = [node_state(sample) for sample in samples]
    found = [
        Lane("API server", spans(times, _starting(api, "up", "down"), breaks)),
        Lane("Node", spans(times, _starting(node, "ready", "not-ready"), breaks)),
    ]
    for name, (first, last) in lives(samples).items():
        states = [pod_state(sample, name) for sample in samples[first : last + 1]]
        # The samples before and after, which lack the pod, bound its life.
        begin, end = max(0, first - 1), min(len(samples), last + 2)
        padded = [None] * (first - begin) + states + [None] * (end - last - 1)
        found.append(Lane(name, spans(times[begin:end], padded, breaks[begin : end - 1])))
    return tuple(found)


def lives(samples: Sequence[Sample]) -> dict[str, tuple[int, int]]:
    """Return the first and the last sample that saw each pod, in the order of appearance."""
    lives: dict[str, tuple[int, int]] = {}
    for number, sample in enumerate(samples):
        for name in sample.pods:
            lives[name] = (lives[name][0] if name in lives else number, number)
    return lives


def _starting(states: Sequence[str], good: str, bad: str) -> list[str]:
    """Replace the bad states before the first good one by ``starting``, if a good one follows."""
    first = states.index(good) if good in states else 0
    return ["starting" if state == bad and i < first else state for i, state in enumerate(states)]


def missing(samples: Sequence[Sample]) -> tuple[tuple[float, float], ...]:
    """Return the gaps between samples as pairs of times."""
    times = [sample.t for sample in samples]
    return tuple(pair for pair, gap in zip(pairwise(times), gaps(times), strict=True) if gap)


def transitions(samples: Sequence[Sample]) -> tuple[Transition, ...]:
    """Return the changes of the node's condition ``Ready`` among the samples that could read it.

    A node begins as not Ready, so its first Ready is the first transition.
    """
    found: list[Transition] = []
    known = False
    for sample in samples:
        if sample.node_ready is not None and sample.node_ready != known:
            found.append(Transition(sample.t, sample.node_ready, sample.reason, sample))
            known = sample.node_ready
    return tuple(found)
