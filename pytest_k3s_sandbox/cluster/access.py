"""One namespace of a cluster, as the parts of its API reach it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlencode

from pytest_k3s_sandbox.cluster.goals import selector_of
from pytest_k3s_sandbox.cluster.reading import READ_SECONDS, ApiReader
from pytest_k3s_sandbox.cluster.resources import Reference, Resources
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError, ConfigError, on_purpose
from pytest_k3s_sandbox.support import escaping

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api

    from pytest_k3s_sandbox.sandbox.base import Completed

__tracebackhide__ = on_purpose

Timeout = float | Deadline
"""Seconds, or a point in time that several steps share."""

ITEMS = 500
"""How many objects of a list are looked at: the inside can make any number."""


def deadline_of(timeout: Timeout) -> Deadline:
    """Return when to give up.

    Args:
        timeout: Seconds from now, or a deadline, which stays as it is.

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(timeout, Deadline):
        return timeout
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not number or not math.isfinite(timeout) or timeout < 0:
        raise ConfigError(
            f"the timeout {timeout!r}",
            cause="it is neither a number of seconds nor a Deadline",
            remedy="write it like timeout=30, or timeout=Deadline.after(30)",
        )
    return Deadline.after(timeout)


def short(text: object, most: int = 300) -> str:
    """Return a text from inside in one harmless line.

    Args:
        text: The text; None is an empty one.
        most: How many characters of it are shown.
    """
    whole = "" if text is None else str(text)
    return escaping.line(whole if len(whole) <= most else f"{whole[:most]}\u2026")


class ClusterApi(Protocol):
    """The part of :class:`~.cluster.Cluster` that a namespace uses and hands out."""

    @property
    def logs(self) -> Path:
        """The folder on the machine with every process' log."""

    @property
    def lost(self) -> str | None:
        """Why the cluster's sandbox cannot be used any more; None as long as it can."""

    @property
    def core(self) -> CoreV1Api:
        """The core API of the ``kubernetes`` package."""

    def reader(self, seconds: float = READ_SECONDS) -> ApiReader:
        """Return a new reader of the API; see :meth:`.Cluster.reader`."""

    def kubectl(
        self, *words: str, check: bool = True, timeout: float = 30.0, stdin: str | None = None
    ) -> Completed:
        """Run kubectl; see :meth:`.Cluster.kubectl`."""

    def kubectl_command(self, *words: str) -> tuple[list[str], dict[str, str]]:
        """Return kubectl's command line and environment; see :meth:`.Cluster.kubectl_command`."""

    def wait(
        self,
        condition: Callable[[], bool],
        what: str,
        deadline: Deadline,
        hint: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Wait for a condition; see :meth:`.Cluster.wait`."""

    def load_image(self, tar: Path, seconds: float = 60.0) -> tuple[str, ...]:
        """Load an image into the node; see :meth:`.Cluster.load_image`."""


class Access:
    """A namespace of a cluster.

    Attributes:
        cluster: The cluster.
        namespace: The namespace's name.

    Args:
        cluster: The cluster.
        namespace: The namespace's name.
    """

    def __init__(self, cluster: ClusterApi, namespace: str) -> None:
        """Keep the arguments; nothing is read yet."""
        self.cluster = cluster
        self.namespace = namespace
        self.resources = Resources(lambda: self.reader)

    @functools.cached_property
    def reader(self) -> ApiReader:
        """The reader of the API, over one connection."""
        return self.cluster.reader()

    def kubectl(
        self, *words: str, deadline: Deadline, stdin: str | None = None, check: bool = False
    ) -> Completed:
        """Run kubectl in the namespace; see :meth:`.Cluster.kubectl`.

        Args:
            words: Its arguments.
            deadline: When it is killed.
            stdin: Its input.
            check: Whether an exit code other than 0 is an error.
        """
        return self.cluster.kubectl(
            f"--namespace={self.namespace}",
            *words,
            check=check,
            timeout=max(0.1, deadline.remaining()),
            stdin=stdin,
        )

    def item(self, reference: Reference) -> dict[str, Any] | None:
        """Return an object as JSON; None if it does not exist.

        Raises:
            ApiUnavailable: The API server does not answer.
        """
        return self.reader.read(reference.resource.path(self.namespace, reference.name))

    def items(self, path: str, **query: str) -> list[dict[str, Any]]:
        """Return the objects of a list as JSON, :data:`ITEMS` at most.

        Args:
            path: The list's path.
            query: Further parameters, as ``labelSelector``.

        Raises:
            ApiUnavailable: The API server does not answer.
        """
        listed = self.reader.read(f"{path}?{urlencode({'limit': str(ITEMS), **query})}") or {}
        kind = str(listed.get("kind", "")).removesuffix("List")  # items of a list have no kind of their own
        return [{"kind": kind, **each} for each in listed.get("items") or []]

    def there(self, reference: Reference) -> dict[str, Any]:
        """Return an object that has to exist.

        Raises:
            ClusterError: It does not.
            ApiUnavailable: The API server does not answer.
        """
        found = self.item(reference)
        if found is None:
            raise ClusterError(
                f"{reference.shown} in namespace {self.namespace}",
                cause=self.missing(reference),
                remedy="apply it first, or wait for it to be 'created'",
            )
        return found

    def missing(self, reference: Reference) -> str:
        """Return that an object does not exist, and which of its kind do."""
        others = self.items(reference.resource.path(self.namespace))
        names = ", ".join(short(each["metadata"]["name"], 80) for each in others[:10])
        return f"it does not exist; {reference.resource.name} that exist: {names or 'none'}"

    def pods(self, item: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the pods of an object: itself, or those that it selects, the oldest first.

        Args:
            item: A pod, a workload or a service.

        Raises:
            ApiUnavailable: The API server does not answer.
        """
        if item.get("kind") == "Pod":
            return [dict(item)]
        selector = selector_of(item)
        if selector is None:
            return []
        found = self.items(f"/api/v1/namespaces/{self.namespace}/pods", labelSelector=selector)
        return sorted(
            found, key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"])
        )


def folders_of(*folders: Path) -> tuple[Path, ...]:
    """Return where relative paths are looked for: the given folders, then the working directory."""
    return tuple(dict.fromkeys([*folders, Path.cwd()]))


def places(path: str | Path, folders: Sequence[Path]) -> list[Path]:
    """Return where a user's path may be: itself if it is absolute, else below each folder, in this order."""
    return [Path(path)] if Path(path).is_absolute() else list(dict.fromkeys(each / path for each in folders))


def existing(path: str | Path, folders: Sequence[Path]) -> Path | None:
    """Return the first of the :func:`places` of a path where something exists; None if there is none."""
    return next((each for each in places(path, folders) if each.exists()), None)
