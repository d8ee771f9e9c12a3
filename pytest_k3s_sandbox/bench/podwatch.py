"""When pods were Running, Ready and gone, from a watch: no interval between questions blurs the moment.

A watch costs the API server one message for each change, where a question twenty times a second costs it a
list of all pods each time. The messages are read as plain JSON, because the two cores that are measured are
also this process' (see :mod:`~pytest_k3s_sandbox.cluster.reading`).
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api

SECONDS = 5
"""How long the API server keeps one watch open; the next one goes on where it ended."""
PAUSE = 0.05
"""Seconds until an API server that does not answer is asked again."""


class OutdatedError(Exception):
    """The API server does not know any more what happened since; everything must be listed anew."""


@dataclass
class Sightings:
    """When something was seen first of each pod, by its name, in seconds of :func:`time.monotonic`.

    Attributes:
        running: When its phase was Running.
        ready: When its condition Ready was True.
        gone: When it was deleted from the API.
        version: The resource version up to which everything was seen.
    """

    running: dict[str, float] = field(default_factory=dict)
    ready: dict[str, float] = field(default_factory=dict)
    gone: dict[str, float] = field(default_factory=dict)
    version: str = ""
    _there: set[str] = field(default_factory=set)

    def listed(self, answer: Mapping[str, Any], now: float) -> None:
        """Take a list of all pods: those that were there and are not in it are gone.

        Args:
            answer: A ``v1.PodList`` as JSON.
            now: The time.
        """
        pods = answer.get("items") or []
        for pod in pods:
            self._seen(pod, now)
        for name in self._there - {pod["metadata"]["name"] for pod in pods}:
            self._ended(name, now)
        self.version = answer["metadata"]["resourceVersion"]

    def told(self, event: Mapping[str, Any], now: float) -> None:
        """Take one event of a watch.

        Args:
            event: A ``v1.WatchEvent`` as JSON.
            now: The time.

        Raises:
            OutdatedError: The event is an error; in a watch that means an outdated version.
        """
        if event["type"] == "ERROR":
            raise OutdatedError(event["object"].get("message", ""))
        pod = event["object"]
        self.version = pod["metadata"]["resourceVersion"]
        if event["type"] == "DELETED":
            self._ended(pod["metadata"]["name"], now)
        elif event["type"] in {"ADDED", "MODIFIED"}:
            self._seen(pod, now)

    def _ended(self, name: str, now: float) -> None:
        self._there.discard(name)
        self.gone.setdefault(name, now)

    def _seen(self, pod: Mapping[str, Any], now: float) -> None:
        name, status = pod["metadata"]["name"], pod.get("status") or {}
        self._there.add(name)
        if status.get("phase") == "Running":
            self.running.setdefault(name, now)
        if {("Ready", "True")} & {(one["type"], one["status"]) for one in status.get("conditions") or ()}:
            self.ready.setdefault(name, now)


class PodWatch:
    """Watches the pods of a namespace in a thread, as a context manager.

    Args:
        core: The core API.
        namespace: The namespace.

    Attributes:
        seen: What was seen so far.
    """

    def __init__(self, core: CoreV1Api, namespace: str) -> None:
        """Keep the arguments; nothing is watched yet."""
        self.seen = Sightings()
        self._core = core
        self._namespace = namespace
        self._stop = threading.Event()
        self._answer: Any = None
        self._thread = threading.Thread(target=self._watch, name="pod-watch", daemon=True)

    def __enter__(self) -> Self:
        """List the pods and watch from there on.

        Raises:
            ApiException: The pods cannot be listed.
            HTTPError: The API server does not answer.
        """
        self._list()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; without ``shutdown`` (urllib3 2.3) when the API server ends the last watch."""
        self._stop.set()
        with contextlib.suppress(AttributeError, HTTPError, OSError, RuntimeError, ValueError):
            self._answer.shutdown()  # it may have ended just now
        self._thread.join(SECONDS + 1)

    def _list(self) -> None:
        answer = self._core.list_namespaced_pod(self._namespace, _preload_content=False)
        self.seen.listed(json.loads(answer.data), time.monotonic())

    def _watch(self) -> None:
        from kubernetes.client import ApiException

        outdated = False
        while not self._stop.is_set():
            try:
                if outdated:
                    self._list()
                    outdated = False
                self._follow()
            except OutdatedError:
                outdated = True
            except (ApiException, HTTPError, ValueError):
                outdated = True  # a line that was cut off may be an event that was missed
                self._stop.wait(PAUSE)

    def _follow(self) -> None:
        self._answer = answer = self._core.list_namespaced_pod(
            self._namespace,
            watch=True,
            resource_version=self.seen.version,
            timeout_seconds=SECONDS,
            _preload_content=False,
            _request_timeout=SECONDS + 5,
        )
        try:
            for event in events(answer.stream(decode_content=True)):
                self.seen.told(event, time.monotonic())
                if self._stop.is_set():
                    return
        finally:
            answer.release_conn()


def events(pieces: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Return the JSON objects of a stream, one a line, each as soon as its line has ended.

    Args:
        pieces: The bytes as they come, which need not end where a line ends.

    Raises:
        ValueError: A line is not JSON, or the stream ends within one.
    """
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)
    if rest.strip():
        yield json.loads(rest)
