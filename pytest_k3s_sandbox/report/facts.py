"""A run's key figures, each with the records that it comes from; all pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from pytest_k3s_sandbox.report.beginning import bring_up, first_ready
from pytest_k3s_sandbox.report.records import Event, EventKind, Phase, Run, Sample
from pytest_k3s_sandbox.report.series import Transition, lives, transitions

if TYPE_CHECKING:
    from collections.abc import Sequence


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
        seen: The records that these times come from, by the names above.
    """

    name: str
    created: float
    running: float | None
    ready: float | None
    deleted: float | None
    gone: float | None
    seen: dict[str, Sample | Event] = field(repr=False, compare=False)

    @property
    def to_running(self) -> float | None:
        """Return the seconds from its creation to Running; None where either was not seen."""
        return self._after_creation("running")

    @property
    def to_ready(self) -> float | None:
        """Return the seconds from its creation to Ready; None where either was not seen."""
        return self._after_creation("ready")

    def _after_creation(self, what: str) -> float | None:
        # One that was so at first sight came into being at a time that nobody knows.
        seen, created = self.seen.get(what), self.seen["created"]
        return None if seen is None or seen is created else seen.t - created.t

    @property
    def to_gone(self) -> float | None:
        """Return the seconds from its deletion to its absence."""
        return None if self.gone is None or self.deleted is None else self.gone - self.deleted


@dataclass(frozen=True)
class Facts:
    """A run's key figures.

    Attributes:
        bring_up: The phase with which the node's bring-up began where its sandbox was in use before;
            None where it began with the sandbox.
        first_ready: The first sample that saw the node Ready.
        samples: How many samples there are.
        samples_since_ready: How many from the first Ready one on.
        ready_samples: How many of those saw the node Ready.
        hold: The ends of the longest time in which every sample saw the node Ready.
        longest_gap: The longest time, in seconds, between two neighbouring samples.
        transitions: The changes of the node's condition ``Ready``; the first one is its becoming so.
        errors: Error lines by kind.
        pods: Every pod that was seen, in the order of creation.
        last: The time of the last record that has one.
    """

    bring_up: Phase | None
    first_ready: Sample | None
    samples: int
    samples_since_ready: int
    ready_samples: int
    hold: tuple[Sample, Sample] | None
    longest_gap: float
    transitions: tuple[Transition, ...]
    errors: dict[str, int]
    pods: tuple[PodFacts, ...]
    last: float

    @property
    def began(self) -> float:
        """Return when the node's bring-up began: 0, the sandbox's start, unless others used that before."""
        return 0.0 if self.bring_up is None else self.bring_up.start

    @property
    def seconds_to_ready(self) -> float | None:
        """Return the seconds from the bring-up's beginning to the first sample that saw the node Ready."""
        return None if self.first_ready is None else self.first_ready.t - self.began

    @property
    def hold_seconds(self) -> float:
        """Return the longest time in which every sample saw the node Ready."""
        return 0.0 if self.hold is None else self.hold[1].t - self.hold[0].t

    @property
    def first_pod(self) -> PodFacts | None:
        """Return the first pod whose way from its creation to Running was seen."""
        return next((pod for pod in self.pods if pod.to_running is not None), None)

    @property
    def losses(self) -> int:
        """Return how often the node stopped being Ready."""
        return sum(not transition.ready for transition in self.transitions)


def facts(run: Run) -> Facts:
    """Compute a run's key figures from its records."""
    samples = run.samples
    ready = first_ready(run)
    since = () if ready is None else samples[samples.index(ready) :]
    return Facts(
        bring_up=bring_up(run),
        first_ready=ready,
        samples=len(samples),
        samples_since_ready=len(since),
        ready_samples=sum(sample.node_ready is True for sample in since),
        hold=_longest_hold(samples),
        longest_gap=max((b.t - a.t for a, b in pairwise(samples)), default=0.0),
        transitions=transitions(samples),
        errors=_errors(run),
        pods=tuple(sorted(_pods(run), key=lambda pod: (pod.created, pod.name))),
        last=_last(run),
    )


def _longest_hold(samples: Sequence[Sample]) -> tuple[Sample, Sample] | None:
    longest: tuple[Sample, Sample] | None = None
    start: Sample | None = None
    for sample in samples:
        if not sample.node_ready:
            start = None
            continue
        start = sample if start is None else start
        if longest is None or sample.t - start.t > longest[1].t - longest[0].t:
            longest = (start, sample)
    return longest


def _errors(run: Run) -> dict[str, int]:
    """Count by kind: the lines, or the samples' totals where they are higher (lines may be capped)."""
    counts: Counter[str] = Counter()
    for line in run.errors:
        counts[line.kind] += line.count
    for sample in run.samples:
        counts |= Counter(sample.errors)
    return dict(sorted(counts.items()))


def _pods(run: Run) -> list[PodFacts]:
    samples = run.samples
    events = {(event.kind, event.what): event for event in reversed(run.events)}
    found = []
    for name, (first, last) in lives(samples).items():
        life = [sample for sample in samples[first : last + 1] if name in sample.pods]
        seen: dict[str, Sample | Event | None] = {
            "created": events.get((EventKind.POD_CREATED, name), life[0]),
            "running": next((s for s in life if s.pods[name].phase == "Running"), None),
            "ready": next((s for s in life if s.pods[name].ready), None),
            "deleted": events.get((EventKind.POD_DELETED, name)),
            # A sample that could not ask does not know that the pod is gone.
            "gone": next((s for s in samples[last + 1 :] if s.api_reachable), None),
        }
        times = {key: None if record is None else record.t for key, record in seen.items()}
        known = {key: record for key, record in seen.items() if record is not None}
        found.append(
            PodFacts(
                name=name,
                created=known["created"].t,
                running=times["running"],
                ready=times["ready"],
                deleted=times["deleted"],
                gone=times["gone"],
                seen=known,
            )
        )
    return found


def _last(run: Run) -> float:
    times = [sample.t for sample in run.samples[-1:]]
    times += [event.t for event in run.events[-1:]]
    times += [line.t for line in run.errors[-1:]]
    times += [phase.start if phase.end is None else phase.end for phase in run.phases]
    return max([*times, run.end.t if run.end is not None else 0.0, 0.0])
