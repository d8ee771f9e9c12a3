"""The key figures of a run, each with the records that it is computed from; all pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from pytest_k3s_sandbox.report.run_records import RunRecords
from pytest_k3s_sandbox.report.schema import Event, EventKind, Phase, Sample
from pytest_k3s_sandbox.report.series import Transition, lives, transitions

IDLE_SECONDS = 10.0
"""After this time without any phase, the next phase begins another bring-up.

Between two phases of one bring-up lie hundredths of a second, on a machine that stalls a few seconds.
"""


@dataclass(frozen=True)
class PodMetrics:
    """The times of one pod as samples and events have them, in seconds since the run's zero.

    Attributes:
        name: ``namespace/name``.
        created: The time of its event ``pod-created``, or of the first sample that has the pod.
        running: The time of the first sample with the phase ``Running``.
        ready: The time of the first sample with the condition ``Ready``.
        deleted: The time of its event ``pod-deleted``.
        gone: The time of the first sample that no longer has the pod.
        seen: The records of these times, by the names above.
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
        """Return the seconds from its creation to Running; None where one of the two was not seen."""
        return self._after_creation("running")

    @property
    def to_ready(self) -> float | None:
        """Return the seconds from its creation to Ready; None where one of the two was not seen."""
        return self._after_creation("ready")

    def _after_creation(self, state: str) -> float | None:
        # If the first sample with the pod has the state already, the time of the creation is unknown.
        seen, created = self.seen.get(state), self.seen["created"]
        return None if seen is None or seen is created else seen.t - created.t

    @property
    def to_gone(self) -> float | None:
        """Return the seconds from its deletion to its absence; None where one of the two was not seen."""
        return None if self.gone is None or self.deleted is None else self.gone - self.deleted


@dataclass(frozen=True)
class Metrics:
    """The key figures of a run.

    Attributes:
        bring_up_start: The phase with which the bring-up of the node began in a sandbox that other tests
            had used before; None where the bring-up began with the sandbox.
        first_ready: The first sample that saw the node Ready.
        start_faults: The ends of programs before the node was Ready for the first time.
        start_restarts: The restarts of programs before the node was Ready for the first time.
        samples: The number of samples.
        samples_since_ready: The number of samples from ``first_ready`` on.
        ready_samples: The number of those that saw the node Ready.
        hold: The first and last sample of the longest time in which every sample saw the node Ready.
        longest_gap: The longest time between two neighbouring samples, in seconds.
        transitions: The changes of the node's condition ``Ready``, the first Ready included.
        errors: The number of error lines by kind.
        pods: The pods in the order of their creation.
        last: The time of the last record that has a time.
    """

    bring_up_start: Phase | None
    first_ready: Sample | None
    start_faults: tuple[Event, ...]
    start_restarts: tuple[Event, ...]
    samples: int
    samples_since_ready: int
    ready_samples: int
    hold: tuple[Sample, Sample] | None
    longest_gap: float
    transitions: tuple[Transition, ...]
    errors: dict[str, int]
    pods: tuple[PodMetrics, ...]
    last: float

    @property
    def began(self) -> float:
        """Return when the bring-up of the node began: 0 unless other tests had used the sandbox before."""
        return 0.0 if self.bring_up_start is None else self.bring_up_start.start

    @property
    def seconds_to_ready(self) -> float | None:
        """Return the seconds from the start of the bring-up to ``first_ready``."""
        return None if self.first_ready is None else self.first_ready.t - self.began

    @property
    def hold_seconds(self) -> float:
        """Return the longest time in which every sample saw the node Ready."""
        return 0.0 if self.hold is None else self.hold[1].t - self.hold[0].t

    @property
    def first_pod(self) -> PodMetrics | None:
        """Return the first pod of which both the creation and Running were seen."""
        return next((pod for pod in self.pods if pod.to_running is not None), None)

    @property
    def losses(self) -> int:
        """Return how often the node stopped being Ready."""
        return sum(not transition.ready for transition in self.transitions)

    @property
    def error_lines(self) -> int:
        """Return the number of error lines of all kinds."""
        return sum(self.errors.values())


def compute(run: RunRecords) -> Metrics:
    """Compute the key figures of a run; :attr:`.run.Run.metrics` has them.

    Args:
        run: The run, whose end may not be recorded yet.
    """
    samples = run.samples
    ready = next((sample for sample in samples if sample.node_ready), None)
    since = () if ready is None else samples[samples.index(ready) :]
    return Metrics(
        bring_up_start=_bring_up_start(run.phases, ready),
        first_ready=ready,
        start_faults=_before(ready, run.events, EventKind.FAULT),
        start_restarts=_before(ready, run.events, EventKind.RESTART),
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


def _bring_up_start(phases: Sequence[Phase], ready: Sample | None) -> Phase | None:
    """Return the phase with which the bring-up of the node began, if that was not the run's zero.

    The tests of a session share a sandbox. If the first of them need no node, the sandbox and some layers are
    up long before the bring-up of the node begins. That is the first phase after a pause.
    """
    found: Phase | None = None
    reached = 0.0
    for phase in phases:
        if ready is not None and phase.start > ready.t:
            break
        if phase.start - reached > IDLE_SECONDS:
            found = phase
        reached = max(reached, phase.start if phase.end is None else phase.end)
    return found


def _before(ready: Sample | None, events: Sequence[Event], kind: EventKind) -> tuple[Event, ...]:
    return tuple(event for event in events if event.kind == kind and (ready is None or event.t < ready.t))


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


def _errors(run: RunRecords) -> dict[str, int]:
    """Count error lines by kind: the records, or the samples' totals where those are higher."""
    counts: Counter[str] = Counter()
    for line in run.errors:
        counts[line.kind] += line.count
    for sample in run.samples:
        counts |= Counter(sample.errors)
    return dict(sorted(counts.items()))


def _pods(run: RunRecords) -> list[PodMetrics]:
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
            # A sample without an answer of the API server has no pods at all.
            "gone": next((s for s in samples[last + 1 :] if s.api_reachable), None),
        }
        times = {key: None if record is None else record.t for key, record in seen.items()}
        known = {key: record for key, record in seen.items() if record is not None}
        found.append(
            PodMetrics(
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


def _last(run: RunRecords) -> float:
    times = [sample.t for sample in run.samples[-1:]]
    times += [event.t for event in run.events[-1:]]
    times += [line.t for line in run.errors[-1:]]
    times += [phase.start if phase.end is None else phase.end for phase in run.phases]
    return max([*times, run.end.t if run.end is not None else 0.0, 0.0])
