"""Pods that come and go beside a test, as they do on a node that is used."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_k3s_sandbox.cluster.answers import found, patient
from pytest_k3s_sandbox.cluster.reading import is_ready

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api

LABEL = "k3s-sandbox-churn"
IMAGE = "busybox:1.36"


@dataclass
class Life:
    """A pod's life, in seconds on the churn's clock.

    Attributes:
        name: Its name.
        asked: When it was created.
        ready: When it was seen Ready first; None before.
        deleted: When its deletion was asked for; None before.
        gone: When it was seen to be gone; None before.
        failure: Why it counts as a failed start; None if it does not.
    """

    name: str
    asked: float
    ready: float | None = None
    deleted: float | None = None
    gone: float | None = None
    failure: str | None = None


@dataclass
class Churn:
    """A pod every so many seconds, deleted as soon as it is Ready, or a while later.

    Attributes:
        core: The cluster's core API.
        namespace: Where the pods live; it must exist.
        clock: Gives the time in seconds.
        note: Told of each pod's creation and deletion: ``created`` or ``deleted`` and its name.
        every: Seconds from one creation to the next.
        timeout: Seconds after which a pod that is not Ready counts as a failed start.
        stay: Seconds for which a pod that is Ready stays.
        lives: All pods so far, in the order of their creation.
    """

    core: CoreV1Api
    namespace: str
    clock: Callable[[], float]
    note: Callable[[str, str], None] = lambda _what, _name: None
    every: float = 10.0
    timeout: float = 60.0
    stay: float = 0.0
    lives: list[Life] = field(default_factory=list)

    def step(self, *, create: bool = True) -> None:
        """Look at the pods once, and create or delete the ones that are due; call it about twice a second.

        An API server that does not answer is tried again with the next step.

        Args:
            create: Whether a pod that is due is created; without, the churn runs out.
        """
        patient(lambda: self._step(create=create))()

    def _step(self, *, create: bool) -> bool:
        if create and (not self.lives or self.clock() - self.lives[-1].asked >= self.every):
            self._create()
        if not self.idle:
            self._look()
        return True

    @property
    def alive(self) -> int:
        """How many pods are there."""
        return sum(life.gone is None for life in self.lives)

    @property
    def idle(self) -> bool:
        """Whether every pod is gone."""
        return self.alive == 0

    def _create(self) -> None:
        name = f"churn-{len(self.lives):05}"
        self.core.create_namespaced_pod(self.namespace, pod(name))
        self.lives.append(Life(name, self.clock()))
        self.note("created", name)

    def _look(self) -> None:
        pods = self.core.list_namespaced_pod(self.namespace, label_selector=LABEL).items
        seen = {pod.metadata.name: is_ready(pod.status.conditions) for pod in pods}
        for life in advance(self.lives, seen, self.clock(), self.timeout, self.stay):
            found(functools.partial(self.core.delete_namespaced_pod, life.name, self.namespace))
            life.deleted = self.clock()
            self.note("deleted", life.name)


def advance(
    lives: list[Life], seen: Mapping[str, bool], now: float, timeout: float, stay: float = 0.0
) -> list[Life]:
    """Write the observed states into the lives, and return those whose pods are to be deleted now.

    Args:
        lives: All pods so far.
        seen: Whether each pod that exists is Ready, by its name.
        now: The time.
        timeout: As of :class:`Churn`.
        stay: As of :class:`Churn`.
    """
    ripe = []
    for life in lives:
        if life.gone is not None:
            continue
        if life.name not in seen:
            life.gone = now
            if life.ready is None and life.failure is None:
                life.failure = "it vanished before it was Ready"
            continue
        if life.ready is None and seen[life.name]:
            life.ready = now
        if life.ready is None and life.failure is None and now - life.asked > timeout:
            life.failure = f"not Ready after {timeout:g} s"
        stayed = life.ready is not None and now - life.ready >= stay
        if life.deleted is None and (stayed or life.failure is not None):
            ripe.append(life)
    return ripe


def pod(name: str, **container: object) -> dict[str, Any]:
    """Return a small pod with its service account's token, that ends at once when it is told to.

    Args:
        name: Its name.
        container: Fields put over its container's.
    """
    return {
        "metadata": {"name": name, "labels": {LABEL: "true"}},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [
                {
                    "name": "c",
                    "image": IMAGE,
                    "command": ["sh", "-c", "trap 'exit 0' TERM; echo hello; sleep 86400 & wait"],
                    **container,
                }
            ],
        },
    }
