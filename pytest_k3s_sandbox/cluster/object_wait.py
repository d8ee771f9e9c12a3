"""Waiting for objects, and the report when one does not meet its condition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_k3s_sandbox.cluster import podlogs
from pytest_k3s_sandbox.cluster.access import Access, short
from pytest_k3s_sandbox.cluster.events import events_of
from pytest_k3s_sandbox.cluster.goals import UNMENDED, Existence, Goal, Met, container_statuses
from pytest_k3s_sandbox.cluster.resources import Reference, Resource
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ConfigError, WaitError, on_purpose
from pytest_k3s_sandbox.support import clock

__tracebackhide__ = on_purpose

Item = Mapping[str, Any]

PODS_SECONDS = 1.0
"""How often a workload's pods are looked at while the workload is waited for."""

STAYS_SECONDS = 2.0
"""How long a pod must lack its image before its workload is given up: one of an old rollout goes soon."""

SHOWN_CONDITIONS = 12
SHOWN_PODS = 6
SHOWN_EVENTS = 12
SHOWN_LINES = 8
"""Of each container."""

SHOWN_CONTAINERS = 4


@dataclass(frozen=True)
class One:
    """An object that is waited for.

    Attributes:
        access: Its namespace.
        reference: The object.
    """

    access: Access
    reference: Reference

    @property
    def kind(self) -> str:
        """Its kind."""
        return self.reference.resource.kind

    def look(self) -> list[dict[str, Any]]:
        """Return it, or nothing."""
        found = self.access.item(self.reference)
        return [] if found is None else [found]

    def missing(self) -> str:
        """Return that it does not exist, and the names of those that do."""
        return self.access.missing(self.reference)

    def __str__(self) -> str:
        """Return its name."""
        return self.reference.shown


@dataclass(frozen=True)
class Several:
    """The objects of a kind that a label selector chooses.

    Attributes:
        access: Their namespace.
        resource: Their kind.
        selector: The label selector.
    """

    access: Access
    resource: Resource
    selector: str

    @property
    def kind(self) -> str:
        """Their kind."""
        return self.resource.kind

    def look(self) -> list[dict[str, Any]]:
        """Return the objects that exist."""
        path = self.resource.path(self.access.namespace)
        return self.access.items(path, labelSelector=self.selector)

    def missing(self) -> str:
        """Return that no object fits."""
        return f"no {self.resource.name} have the labels {self.selector}"

    def __str__(self) -> str:
        """Return them in words."""
        return f"all {self.resource.name} with {self.selector}"


def target(access: Access, what: str, selector: str | None) -> One | Several:
    """Return the objects of a wait.

    Args:
        access: The namespace.
        what: ``KIND/NAME``; with a selector ``KIND``.
        selector: A label selector.

    Raises:
        ConfigError: There is no such kind, or the selector goes with a name.
    """
    if selector is None:
        return One(access, access.resources.find(what))
    if "/" in what:
        raise ConfigError(
            f"the object {what!r} with the selector {selector!r}",
            cause="a selector chooses among all objects of a kind",
            remedy=f"leave the name out: {what.split('/', maxsplit=1)[0]!r}",
        )
    return Several(access, access.resources.resource(what), selector)


def wait(access: Access, of: One | Several, goal: Goal, deadline: Deadline) -> None:
    """Wait until objects meet a condition.

    Args:
        access: Their namespace.
        of: The objects.
        goal: The condition that all of them have to meet.
        deadline: When to give up.

    Raises:
        WaitError: The deadline passed, they cannot become it any more, or a program of the cluster has ended
            for good.
    """
    pods = _Pods(access, goal)

    def reached() -> bool:
        found = of.look()
        if isinstance(goal, Existence) and not goal.wanted:
            return not found
        if found and all(goal.met(each) for each in found):
            return True
        for each in found:
            why = goal.hopeless(each) or pods.trouble(each)
            if why is not None:
                name = f"{of.kind.lower()} {each['metadata']['name']}"
                raise WaitError(
                    f"waiting for {of} {goal.text} (namespace {access.namespace}) is of no use",
                    cause="\n".join([f"{short(name, 120)}: {short(why, 600)}", *state(access, [each])]),
                )
        return False

    def seen() -> str:
        found = of.look()
        if not found:
            return "\n".join([of.missing(), *last_events(access, set(), warnings=True)])
        unmet = [each for each in found if not goal.met(each)] or found
        return "\n".join(["the state of the cluster:", *state(access, unmet)])

    try:
        access.cluster.wait(reached, f"{of} {goal.text} (namespace {access.namespace})", deadline, seen)
    except WaitError as error:
        raise error.with_traceback(None) from None  # the frames of the wait tell a reader nothing


class _Pods:
    """Looks now and then whether the pods of a workload lack an image that does not come by itself."""

    def __init__(self, access: Access, goal: Goal) -> None:
        self._access = access
        self._wanted = isinstance(goal, Met) and goal.status == "True" and goal.type != "Failed"
        self._next = 0.0
        self._since: dict[str, float] = {}

    def trouble(self, item: Item) -> str | None:
        """Return the fault of a workload's pod that has had it for a while; None without one."""
        now = clock.monotonic()
        if not self._wanted or item.get("kind") in {"Pod", "Service"} or now < self._next:
            return None
        self._next = now + PODS_SECONDS
        lacking = {}
        for pod in self._access.pods(item):
            why = None if pod["metadata"].get("deletionTimestamp") else _lacks_image(pod)
            if why is not None:
                lacking[pod["metadata"]["name"]] = why
        self._since = {name: self._since.get(name, now) for name in lacking}
        late = [name for name, since in self._since.items() if now - since >= STAYS_SECONDS]
        return f"pod {late[0]}: {lacking[late[0]]}" if late else None


def _lacks_image(pod: Item) -> str | None:
    for each in container_statuses(pod.get("status") or {}):
        waiting = (each.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in UNMENDED:
            return f"container {each.get('name')} waits: {waiting['reason']}: {waiting.get('message', '')}"
    return None


def state(access: Access, items: list[dict[str, Any]]) -> list[str]:
    """Return the known state of objects: conditions, pods, events, the last lines of logs; a line each.

    Every line is bounded and escaped, because most of the text comes from inside the sandbox.

    Args:
        access: Their namespace.
        items: The objects.
    """
    lines: list[str] = []
    pods: list[dict[str, Any]] = []
    for item in items[:SHOWN_PODS]:
        lines += _conditions(item)
        pods += access.pods(item)
    if any(item.get("kind") != "Pod" for item in items):
        lines += [f"  {described(pod)}" for pod in pods[:SHOWN_PODS]] or ["  it has no pods"] * bool(
            any(_has_pods(item) for item in items)
        )
    names = {each["metadata"]["name"] for each in [*items, *pods]}
    owners = {each["name"] for pod in pods for each in pod["metadata"].get("ownerReferences") or []}
    lines += last_events(access, names | owners)
    said = podlogs.tails(access, pods[:SHOWN_PODS], SHOWN_LINES, SHOWN_CONTAINERS)
    return [*lines, *(["last lines of the logs:"] if said else []), *(f"  {line}" for line in said)]


def _has_pods(item: Item) -> bool:
    return bool((item.get("spec") or {}).get("selector"))


def _conditions(item: Item) -> list[str]:
    """Return an object's line, and one for each condition."""
    metadata, status = item.get("metadata") or {}, item.get("status") or {}
    if item.get("kind") == "Pod":
        head = described(item)
    else:
        phase = f" is {short(status['phase'], 40)}" if status.get("phase") else ""
        head = f"{short(item.get('kind', '')).lower()} {short(metadata.get('name'), 120)}{phase}"
    if metadata.get("deletionTimestamp"):
        finalizers = short(", ".join(metadata.get("finalizers") or []) or "none")
        head += f", being deleted since {short(metadata['deletionTimestamp'], 40)}, finalizers: {finalizers}"
    conditions = status.get("conditions") or []
    counts = {key: value for key, value in status.items() if "eplicas" in key or key.startswith("number")}
    if counts:
        head += f" ({', '.join(f'{short(key, 40)} {short(value, 20)}' for key, value in counts.items())})"
    if not conditions and not status.get("phase") and not counts:
        head += ", which reports no conditions"
    return [
        f"  {head}",
        *(
            f"  condition {short(each.get('type'), 60)}={short(each.get('status'), 20)}"
            + (f" ({short(each.get('reason'), 80)})" if each.get("reason") else "")
            + (f": {short(each.get('message'))}" if each.get("message") else "")
            for each in conditions[:SHOWN_CONDITIONS]
        ),
    ]


def described(pod: Item) -> str:
    """Return a pod's phase and its containers' states, in one escaped line.

    Args:
        pod: The pod.
    """
    status = pod.get("status") or {}
    parts = []
    for each in container_statuses(status):
        name = each.get("name")
        word, what = next(iter((each.get("state") or {"unknown": {}}).items()))
        if word == "running" and each.get("ready"):
            continue
        why = ": ".join(str(what[key]) for key in ("reason", "message") if what.get(key))
        code = f" with exit code {what['exitCode']}" if "exitCode" in what else ""
        ready = " and not ready" if word == "running" else ""
        again = f", {each['restartCount']} restarts" if each.get("restartCount") else ""
        parts.append(f"container {name} is {word}{ready}{code}{f': {why}' if why else ''}{again}")
    said = f"; {'; '.join(parts)}" if parts else ""
    return short(f"pod {pod['metadata']['name']} is {status.get('phase', 'new')}{said}", 500)


def last_events(access: Access, names: set[str], *, warnings: bool = False) -> list[str]:
    """Return the last events of a namespace, with a line that says so above; nothing if there are none.

    Args:
        access: The namespace.
        names: The objects that they are about; those of all if there are none about these.
        warnings: Only warnings.
    """
    every = events_of(access.items(f"/api/v1/namespaces/{access.namespace}/events"))
    wanted = [event for event in every if event.warning or not warnings]
    about = [event for event in wanted if event.about.partition("/")[2] in names] or wanted
    return [*(["events:"] if about else []), *(f"  {event}" for event in about[-SHOWN_EVENTS:])]
