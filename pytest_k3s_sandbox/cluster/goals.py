"""The conditions that a wait for an object can have: when one is met, and when it cannot be met any more.

Goals are written as for ``kubectl wait``: a condition (``Available``, ``Ready=False``), a phase
(``Running``), ``jsonpath={.status.readyReplicas}=3``, ``created`` and ``deleted``. Kinds that report no
conditions have ``Ready`` and ``Available``, too: then all their pods are updated and ready.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pytest_k3s_sandbox.cluster import jsonpath
from pytest_k3s_sandbox.errors import ConfigError, on_purpose

__tracebackhide__ = on_purpose

Item = Mapping[str, Any]

PHASES = {
    "Pod": ("Pending", "Running", "Succeeded", "Failed", "Unknown"),
    "PersistentVolumeClaim": ("Pending", "Bound", "Lost"),
    "PersistentVolume": ("Pending", "Available", "Bound", "Released", "Failed"),
    "Namespace": ("Active", "Terminating"),
}
"""The values of ``status.phase`` by kind; any other word is a condition."""

FINAL = ("Succeeded", "Failed")
"""The phases that a pod does not leave (Kubernetes' "Pod Lifecycle", pod phase)."""

UNMENDED = ("InvalidImageName", "ErrImageNeverPull", "ImagePullBackOff")
"""Why a container waits that never starts by itself; an image has to be loaded before its pod is made."""

STATUSES = ("True", "False", "Unknown")


class Goal(Protocol):
    """A condition that a wait has."""

    @property
    def text(self) -> str:
        """The condition in words, behind the object's name, as ``to be Ready``."""

    def met(self, item: Item | None) -> bool:
        """Tell whether an object is so; None if it does not exist."""

    def hopeless(self, item: Item | None) -> str | None:
        """Return why an object cannot become so any more; None as long as it can."""


@dataclass(frozen=True)
class Existence:
    """That an object is there, or is gone.

    Attributes:
        wanted: Whether it is to be there.
    """

    wanted: bool

    @property
    def text(self) -> str:
        """The condition in words."""
        return "to be created" if self.wanted else "to be deleted"

    def met(self, item: Item | None) -> bool:
        """Tell whether it is so."""
        return (item is not None) == self.wanted

    def hopeless(self, item: Item | None) -> str | None:
        """Return nothing: it can come and go at any time."""
        del item
        return None


@dataclass(frozen=True)
class Phase:
    """That ``status.phase`` has a value.

    Attributes:
        kind: The object's kind.
        phase: The value.
    """

    kind: str
    phase: str

    @property
    def text(self) -> str:
        """The condition in words."""
        return f"to be {self.phase}"

    def met(self, item: Item | None) -> bool:
        """Tell whether it has the value now."""
        return _phase(item) == self.phase

    def hopeless(self, item: Item | None) -> str | None:
        """Return why a pod that has come to its end does not get there, or one whose image is not there."""
        return None if self.kind != "Pod" or self.phase == "Pending" else pod_trouble(item)


@dataclass(frozen=True)
class Met:
    """That a condition has a status.

    Attributes:
        kind: The object's kind.
        type: The condition.
        status: ``True``, ``False`` or ``Unknown``.
    """

    kind: str
    type: str
    status: str = "True"

    @property
    def text(self) -> str:
        """The condition in words."""
        return f"to be {self.type}" if self.status == "True" else f"to have {self.type}={self.status}"

    def met(self, item: Item | None) -> bool:
        """Tell whether the current object has it; a status from before a change does not count."""
        if item is None or not _observed(item):
            return False
        rolled_out = ROLLED_OUT.get(self.kind)
        if (
            rolled_out is not None
            and self.type in {"Ready", "Available"}
            and condition(item, self.type) is None
        ):
            return rolled_out(item) == (self.status == "True")
        found = condition(item, self.type)
        return found is not None and str(found.get("status", "")).lower() == self.status.lower()

    def hopeless(self, item: Item | None) -> str | None:
        """Return why it cannot come any more: a pod or a job has ended, a rollout has given up."""
        if item is None:
            return None
        if self.kind == "Pod":
            return pod_trouble(item) if self.status == "True" else None
        if self.kind == "Job":
            other = {"Complete": "Failed", "Failed": "Complete", "SuccessCriteriaMet": "Failed"}.get(
                self.type
            )
            found = condition(item, other) if other is not None and self.status == "True" else None
            return _told(found) if found is not None and found.get("status") == "True" else None
        if self.kind == "Deployment" and self.type in {"Available", "Ready"} and _observed(item):
            found = condition(item, "Progressing")
            late = found is not None and found.get("reason") == "ProgressDeadlineExceeded"
            return _told(found) if late else None
        return None


@dataclass(frozen=True)
class Value:
    """That something is at a path, or has a value.

    Attributes:
        path: The path.
        value: The value as text; None if any will do.
    """

    path: jsonpath.Path
    value: str | None

    @property
    def text(self) -> str:
        """The condition in words."""
        return f"to have {self.path.text}" + ("" if self.value is None else f" = {self.value}")

    def met(self, item: Item | None) -> bool:
        """Tell whether it is so; where the path finds several values, all have to be it."""
        found = [] if item is None else self.path.find(item)
        return bool(found) and (
            self.value is None or all(jsonpath.text_of(each) == self.value for each in found)
        )

    def hopeless(self, item: Item | None) -> str | None:
        """Return None: the value at a path may come late."""
        del item
        return None


def parse(text: str, kind: str) -> Goal:
    """Return the condition that a text names.

    Args:
        text: Like ``Available``, ``Ready=False``, ``Running``, ``deleted``, ``jsonpath={.data.x}=1``.
        kind: The object's kind, which tells phases from conditions.

    Raises:
        ConfigError: It is not a condition.
    """
    words = text.strip().removeprefix("condition=")
    if words.startswith("jsonpath="):
        path, value = _expression(words.removeprefix("jsonpath="))
        return Value(jsonpath.parse(path), value)
    if words.lower() in {"deleted", "delete", "created", "create"}:
        return Existence(words.lower().startswith("create"))
    name, equals, status = words.partition("=")
    if not name.strip() or any(character.isspace() for character in words):
        raise ConfigError(
            f"the condition {text!r}",
            cause="it is not a condition",
            remedy="write 'Available', 'Ready=False', a phase like 'Running', 'created', 'deleted', or "
            "'jsonpath={.status.readyReplicas}=3'",
        )
    for phase in PHASES.get(kind, ()):
        if not equals and name.lower() == phase.lower():
            return Phase(kind, phase)
    if equals and status.lower() not in {each.lower() for each in STATUSES}:
        raise ConfigError(
            f"the condition {text!r}",
            cause=f"a condition's status is {', '.join(STATUSES)}, and not {status!r}",
            remedy="for another field write 'jsonpath={.status.FIELD}=VALUE'",
        )
    return Met(kind, name, status.capitalize() if equals else "True")


def _expression(words: str) -> tuple[str, str | None]:
    """Return the path and the value; an equals sign in braces or brackets belongs to the path."""
    depth = 0
    for at, character in enumerate(words):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(character, 0)
        if character == "=" and depth == 0:
            return words[:at].strip("'\""), words[at + 1 :].strip("'\"")
    return words.strip("'\""), None


def condition(item: Item, name: str) -> Mapping[str, Any] | None:
    """Return a condition of an object; None if it has none of that type.

    Args:
        item: The object.
        name: The condition's type, in small or capital letters.
    """
    every = (item.get("status") or {}).get("conditions") or []
    return next((each for each in every if str(each.get("type", "")).lower() == name.lower()), None)


def _phase(item: Item | None) -> str | None:
    return None if item is None else (item.get("status") or {}).get("phase")


def _told(found: Mapping[str, Any] | None) -> str:
    found = found or {}
    return f"{found.get('type')}={found.get('status')}, {found.get('reason')}: {found.get('message')}"


def _observed(item: Item) -> bool:
    """Tell whether an object's status describes its current generation. Without a generation it does."""
    generation = (item.get("metadata") or {}).get("generation", 0)
    seen = (item.get("status") or {}).get("observedGeneration", generation)
    return bool(seen >= generation)


def _replicas(item: Item) -> bool:
    status, wanted = item.get("status") or {}, (item.get("spec") or {}).get("replicas", 1)
    updated = status.get("updatedReplicas", 0 if item.get("kind") != "ReplicaSet" else wanted)
    ready, there = status.get("readyReplicas", 0), status.get("replicas", 0)
    return bool(updated == ready == there == wanted)


def _daemons(item: Item) -> bool:
    status = item.get("status") or {}
    wanted = status.get("desiredNumberScheduled")
    return wanted is not None and status.get("numberReady", 0) == wanted == status.get(
        "updatedNumberScheduled", 0
    )


ROLLED_OUT: dict[str, Callable[[Item], bool]] = {
    "DaemonSet": _daemons,
    "Deployment": _replicas,
    "ReplicaSet": _replicas,
    "ReplicationController": _replicas,
    "StatefulSet": _replicas,
}
"""The meaning of ``Ready`` and ``Available`` for kinds without such conditions."""


def pod_trouble(item: Item | None) -> str | None:
    """Return why a pod does not get any further; None as long as it can.

    Args:
        item: The pod; None if it does not exist.
    """
    if item is None:
        return None
    status = item.get("status") or {}
    if status.get("phase") in FINAL:
        why = ": ".join(str(status[key]) for key in ("reason", "message") if status.get(key))
        ends = "; ".join(_ends(status))
        return f"it has {status['phase'].lower()} already" + "".join(
            f": {said}" for said in (why, ends) if said
        )
    for each in container_statuses(status):
        waiting = (each.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in UNMENDED:
            return f"container {each.get('name')} waits: {waiting['reason']}: {waiting.get('message', '')}"
    return None


def container_statuses(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the statuses of a pod's containers, those of init containers first.

    Args:
        status: The pod's ``status``.
    """
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _ends(status: Mapping[str, Any]) -> list[str]:
    """Return how the containers of a pod have ended."""
    found = []
    for each in container_statuses(status):
        end = (each.get("state") or {}).get("terminated")
        if end:
            found.append(f"container {each.get('name')} ended with exit code {end.get('exitCode')}")
    return found


def selector_of(item: Item) -> str | None:
    """Return the label selector of an object's pods, as the API takes it; None if it selects none.

    Args:
        item: A workload, a service or another object with ``spec.selector``.
    """
    selector = (item.get("spec") or {}).get("selector")
    if not selector:
        return None
    if not {"matchLabels", "matchExpressions"} & set(selector):
        selector = {"matchLabels": selector}
    words = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    for each in selector.get("matchExpressions") or []:
        values = ",".join(each.get("values") or [])
        words.append(
            {
                "In": f"{each['key']} in ({values})",
                "NotIn": f"{each['key']} notin ({values})",
                "Exists": each["key"],
                "DoesNotExist": f"!{each['key']}",
            }[each["operator"]]
        )
    return ",".join(words)
