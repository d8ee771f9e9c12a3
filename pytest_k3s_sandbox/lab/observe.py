"""How far a kubelet gets, and the error that stops it. An end of the kubelet is recorded, not raised."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pytest_k3s_sandbox.cluster.answers import found, patient
from pytest_k3s_sandbox.cluster.cluster import Cluster
from pytest_k3s_sandbox.cluster.embedded import NODE
from pytest_k3s_sandbox.cluster.reading import is_ready
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.report.log_classifier import classify, kind_of
from pytest_k3s_sandbox.report.records import Ablation, FirstError, Stage
from pytest_k3s_sandbox.support import clock

POLL_SECONDS = 0.1
POD_NAMESPACE = "default"
LOG_BYTES = 16 << 20
TAIL = 500  # characters of a log without an error line
POD_FAILURE = "Error syncing pod"
"""The kubelet's log line for each failed attempt to run a pod (``pod_workers.go``)."""

ENDINGS = (
    '"command failed"',
    '"Failed to initialize internal modules"',
    '"Failed to listen and serve"',
    '"Failed to start ContainerManager"',
    '"Failed to start cAdvisor"',
)
"""The kubelet's messages before an ``os.Exit(1)`` (``kubelet.go``, ``server.go``, ``run.go``).

Another goroutine can still write a line between such a message and the end.
"""


class Milestone(StrEnum):
    """The milestones of a node, in this order."""

    CONTAINERD = "containerd serves"
    KUBELET = "the kubelet started"
    REGISTERED = "registered"
    READY = "Ready"
    POD = "pod Running"
    SUMMARY = "/stats/summary served"


STAGES = {
    Milestone.KUBELET: Stage.STARTED,
    Milestone.REGISTERED: Stage.REGISTERED,
    Milestone.READY: Stage.READY,
    Milestone.POD: Stage.POD,
}
"""The stages of an ablation's record by the milestones that they begin with."""


@dataclass(frozen=True)
class Limits:
    """How long each step is waited for, in seconds.

    Attributes:
        registered: For the node's object, from the kubelet's start.
        ready: For Ready, from the node's registration.
        settled: How long the node's reason for not being Ready has to stay the same to count as final.
        pod: For a pod to be Running.
        summary: For /stats/summary.
    """

    registered: float = 15.0
    ready: float = 20.0
    settled: float = 4.0
    pod: float = 20.0
    summary: float = 3.0

    def stretched(self, factor: float) -> Limits:
        """Return limits for a machine that is slower by a factor."""
        return Limits(*(factor * each for each in vars(self).values()))


@dataclass(frozen=True)
class Observation:
    """How far a node got.

    Attributes:
        reached: Its stage.
        milestones: When it reached what, in seconds from the kubelet's start.
        error: The error that kept it from the next milestone; None if it reached all.
        exit_code: The kubelet's, if it ended by itself (minus the signal's number).
    """

    reached: Stage
    milestones: Mapping[Milestone, float] = field(default_factory=dict)
    error: FirstError | None = None
    exit_code: int | None = None

    @property
    def ready(self) -> bool:
        """Whether the node was Ready."""
        return self.reached in {Stage.READY, Stage.POD}

    @property
    def said(self) -> str:
        """The error's text, or that there was none."""
        return "no error" if self.error is None else self.error.text

    def speaks_of(self, words: str) -> bool:
        """Tell whether there was an error, and words are in it."""
        return self.error is not None and words in self.error.text

    def cell(
        self,
        layers: Sequence[str],
        version: str,
        settings: Mapping[str, str] | None = None,
        variant: str | None = None,
    ) -> Ablation:
        """Return the record of an ablation's cell.

        Args:
            layers: The layers' words.
            version: The version of Kubernetes.
            settings: The kubelet's settings that are not as usual.
            variant: Any other unusual condition.
        """
        return Ablation(
            layers=tuple(layers),
            version=version,
            settings=dict(settings or {}),
            variant=variant,
            reached=self.reached,
            seconds_to_ready=self.milestones.get(Milestone.READY) if self.ready else None,
            error=self.error,
            exit_code=self.exit_code,
            stats_summary=Milestone.SUMMARY in self.milestones if self.reached is Stage.POD else None,
        )


def stage_of(milestones: Mapping[Milestone, float], *, ended: bool = False) -> Stage:
    """Return how far a node got.

    Args:
        milestones: The milestones that it reached.
        ended: Whether a part of it ended by itself. Then only its object can be left.
    """
    reached = [STAGES[each] for each in Milestone if each in milestones and each in STAGES]
    last = reached[-1] if reached else Stage.NOTHING
    return Stage.REGISTERED if ended and last in {Stage.READY, Stage.POD} else last


def stopping_error(component: str, log: str) -> FirstError | None:
    """Return the error that ended a program: the last of its :data:`ENDINGS`, else the last error.

    Errors before it did not end it; the kubelet, for instance, goes on without /sys/class/net.

    Args:
        component: The program's name.
        log: Its log.
    """
    errors = [error for error in map(classify, log.splitlines()) if error and error.severity != "warning"]
    if not errors:
        return None
    endings = [error for error in errors if error.severity == "fatal" or error.message.startswith(ENDINGS)]
    last = (endings or errors)[-1]
    return FirstError(component=component, kind=last.kind, text=last.message)


def pod_error(log: str) -> FirstError | None:
    """Return why the kubelet cannot run a pod: the first error of its last attempt.

    One failure is logged by each of the functions that it passes on its way up; the first names its cause.

    Args:
        log: The kubelet's log.
    """
    first: FirstError | None = None
    last: FirstError | None = None
    for line in log.splitlines():
        error = classify(line)
        if error is None or error.severity == "warning":
            continue
        if POD_FAILURE in error.message:
            last, first = first or FirstError(component="kubelet", kind=error.kind, text=error.message), None
        elif first is None and "rpc error" in error.message:
            first = FirstError(component="kubelet", kind=error.kind, text=error.message)
    return last


class Watch:
    """Follows one start of a node, milestone by milestone.

    Args:
        cluster: The cluster whose node was started just now.
        pod: The manifest of the pod that is to run on it, which names its node.
        limits: How long each step is waited for.
    """

    def __init__(self, cluster: Cluster, pod: Mapping[str, Any], limits: Limits) -> None:
        """Begin to count the seconds."""
        self._cluster = cluster
        self._pod = pod
        self._limits = limits
        self._start = clock.monotonic()
        self._milestones: dict[Milestone, float] = {}
        self._why: FirstError | None = None
        self._since = self._start
        self._stuck = False
        self._pods = 0

    def follow(self) -> Observation:
        """Return how far the node got, as soon as it has reached all or will get no further."""
        steps = (
            (Milestone.REGISTERED, self._registered, self._limits.registered),
            (Milestone.READY, self._ready, self._limits.ready),
            (Milestone.POD, self._pod_runs, self._limits.pod),
            (Milestone.SUMMARY, self._summary_served, self._limits.summary),
        )
        if "kubelet" in self._cluster.processes:
            self._milestones |= {Milestone.CONTAINERD: 0.0, Milestone.KUBELET: 0.0}
        for milestone, condition, seconds in steps:
            if not self._until(condition, Deadline.after(seconds)):
                break
            self._reach(milestone)
            self._why = None
        return self._observed()

    def _until(self, condition: Callable[[], bool], deadline: Deadline) -> bool:
        met = patient(condition)
        while self._ended() is None and not self._stuck and not deadline.expired:
            if met():
                return self._ended() is None
            time.sleep(POLL_SECONDS)
        return False

    def _reach(self, milestone: Milestone) -> None:
        self._milestones[milestone] = round(clock.monotonic() - self._start, 3)

    def _registered(self) -> bool:
        return found(lambda: self._cluster.core.read_node(self._cluster.node.name)) is not None

    def _ready(self) -> bool:
        condition = self._cluster.node.conditions().get("Ready")
        if condition is None:
            return False
        if is_ready([condition]):
            self._create_pod()
            return True
        if self._because(f"{condition.reason}: {condition.message}"):
            self._stuck = clock.monotonic() - self._since > self._limits.settled
        return False

    def _because(self, text: str) -> bool:
        """Note why the node is not Ready; return whether it was that before."""
        if self._why is not None and self._why.text == text:
            return True
        self._why, self._since = (
            FirstError(component="kubelet", kind=kind_of(text), text=text),
            clock.monotonic(),
        )
        return False

    def _pod_runs(self) -> bool:
        pods = self._cluster.core.list_namespaced_pod(POD_NAMESPACE).items
        if any(pod.status.phase == "Running" for pod in pods):
            return True
        log = self._log("kubelet")
        self._why = pod_error(log)
        failed = log.count(POD_FAILURE)
        if failed == 1 and self._pods == 1:
            self._create_pod()  # it tells whether that repeats, and sooner than the kubelet's back-off does
        self._stuck = failed > 1
        return False

    def _create_pod(self) -> None:
        self._pods += 1
        name = f"{self._pod['metadata']['name']}-{self._pods}"
        self._cluster.core.create_namespaced_pod(POD_NAMESPACE, {**self._pod, "metadata": {"name": name}})

    def _summary_served(self) -> bool:
        from kubernetes.client import ApiException

        name = self._cluster.node.name
        try:
            self._cluster.core.connect_get_node_proxy_with_path(name, "stats/summary")
        except ApiException as error:
            text = f"/stats/summary: {error.status} {error.body}".strip()
            self._why = FirstError(component="kubelet", kind=kind_of(text), text=text)
            return False
        return True

    def _ended(self) -> str | None:
        processes = self._cluster.processes
        return next((name for name in NODE if name in processes and processes[name].poll() is not None), None)

    def _log(self, component: str) -> str:
        return self._cluster.log(component).tail(LOG_BYTES).decode(errors="replace")

    def _observed(self) -> Observation:
        ended = self._ended()
        error = self._why
        if ended is not None:
            log = self._log(ended)
            error = stopping_error(ended, log) or FirstError(
                component=ended, kind=kind_of(log), text=log[-TAIL:].strip() or "(an empty log)"
            )
        kubelet = self._cluster.processes.get("kubelet")
        return Observation(
            stage_of(self._milestones, ended=ended is not None),
            dict(self._milestones),
            error,
            None if kubelet is None else kubelet.poll(),
        )
