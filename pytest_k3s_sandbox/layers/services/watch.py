"""Services and slices as the API server has them: a list, then the changes.

"Efficient detection of changes" in Kubernetes' page "API Concepts" describes the protocol.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import IO, Any, Final, Generic, NamedTuple, TypeVar

from pytest_k3s_sandbox.layers.services import access, objects

_LABELS: Final = "labelSelector=!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless"
"""What kube-proxy leaves out, too (``NewProxyServer`` in ``cmd/kube-proxy/app/server.go``)."""

FIRST_DELAY: Final = 0.1
MOST_DELAY: Final = 2.0
"""Seconds until the API server is asked again; it is not there yet, or has ended."""

SHORT: Final = 1.0
"""A watch that ends within so many seconds counts as failed, so that nothing is asked in a tight loop."""

WATCH_SECONDS: Final = 1800
"""How long the API server keeps a watch (``timeoutSeconds``)."""

LIST_SECONDS: Final = 30.0
MOST_OBJECTS: Final = 10_000
MOST_BYTES: Final = 64 * 2**20
MOST_LINE: Final = 8 * 2**20

_GONE: Final = 410
T = TypeVar("T")
Key = tuple[str, str]


class Kind(NamedTuple, Generic[T]):
    """A kind of objects.

    Attributes:
        path: Where the API has them.
        parse: Returns an object's parts, or None for one that does not matter.
    """

    path: str
    parse: Callable[[Any], T | None]


SERVICES: Final = Kind("/api/v1/services", objects.service_of)
SLICES: Final = Kind("/apis/discovery.k8s.io/v1/endpointslices", objects.slice_of)


class _Gone(Exception):
    """The API server does not know the version any more; everything is listed again."""


class Watch(Generic[T]):
    """The objects of a kind, kept by a thread of its own.

    Args:
        kind: The kind.
        kubeconfig: The path of the file that says where the API server is; it need not be there yet.
        changed: Called after every change, in the thread.

    Attributes:
        synced: Whether they have been listed.
        error: Why the API server was not reached last; empty if it was.
    """

    def __init__(self, kind: Kind[T], kubeconfig: str, changed: Callable[[], None]) -> None:
        """Keep these; nothing is asked yet."""
        self._kind = kind
        self._kubeconfig = kubeconfig
        self._changed = changed
        self._lock = threading.Lock()
        self._objects: dict[Key, T] = {}
        self._unusable: dict[Key, str] = {}
        self._version = ""
        self.synced = False
        self.error = ""

    def start(self) -> None:
        """Start the thread, which ends with the process."""
        threading.Thread(target=self._run, daemon=True).start()

    def objects(self) -> list[T]:
        """Return the objects."""
        with self._lock:
            return list(self._objects.values())

    def skipped(self) -> dict[str, int]:
        """Return how many objects are not used, by the reason."""
        with self._lock:
            return dict(Counter(self._unusable.values()))

    def _run(self) -> None:
        delay = FIRST_DELAY
        while True:
            began = time.monotonic()
            try:
                self._once(access.load(self._kubeconfig))
            except _Gone:
                self._version = ""
            except (OSError, ValueError, RecursionError, access.Refused) as error:
                self._failed(f"{type(error).__name__}: {error}"[:500])
            if time.monotonic() - began >= SHORT:
                delay = FIRST_DELAY
            time.sleep(delay)
            delay = min(2 * delay, MOST_DELAY)

    def _once(self, server: access.Access) -> None:
        """List if nothing is known, and watch until the watch ends."""
        if not self._version:
            self._list(server)
        while True:
            began = time.monotonic()
            self._watch(server)
            if time.monotonic() - began < SHORT:
                return

    def _list(self, server: access.Access) -> None:
        # Version 0: whatever the API server has in memory, as client-go's reflector asks.
        with access.get(server, f"{self._kind.path}?resourceVersion=0&{_LABELS}", LIST_SECONDS) as body:
            text = body.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"a list of more than {MOST_BYTES} bytes")
        listed = json.loads(text)
        version = _version(listed)
        items = listed.get("items")
        found: dict[Key, T] = {}
        unusable: dict[Key, str] = {}
        for item in items if isinstance(items, list) else ():
            self._put(item, found, unusable)
        with self._lock:
            self._objects, self._unusable = found, unusable
        self._version = version
        self.synced = True
        self._reached()

    def _watch(self, server: access.Access) -> None:
        query = f"watch=1&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}"
        path = f"{self._kind.path}?{query}&resourceVersion={self._version}&{_LABELS}"
        try:
            with access.get(server, path, WATCH_SECONDS + 60.0) as body:
                if self.error:
                    self._reached()
                self._follow(body)
        except access.Refused as refused:
            if refused.status == _GONE:
                raise _Gone from refused
            raise

    def _follow(self, body: IO[bytes]) -> None:
        while line := body.readline(MOST_LINE):
            if not line.endswith(b"\n"):
                self._version = ""
                raise ValueError("a change without its end")
            what, item = _event(line)
            if what == "ERROR":
                # The usual one is 410; after any other one, a list is right, too.
                raise _Gone
            version = _version(item)
            if what != "BOOKMARK" and self._apply(what, item):
                self._changed()
            self._version = version

    def _apply(self, what: str, item: Any) -> bool:  # noqa: ANN401  # it is parsed JSON
        """Apply a change; return whether rules may change."""
        try:
            key = objects.key_of(item)
        except objects.Unusable:
            return False
        with self._lock:
            before = self._objects.pop(key, None), self._unusable.pop(key, None)
            if what != "DELETED":
                self._put(item, self._objects, self._unusable)
            return before != (self._objects.get(key), self._unusable.get(key))

    def _put(self, item: Any, found: dict[Key, T], unusable: dict[Key, str]) -> None:  # noqa: ANN401  # see above
        key, parsed, reason = ("", ""), None, ""
        try:
            key = objects.key_of(item)
            parsed = self._kind.parse(item)
        except objects.Unusable as error:
            reason = str(error)
        if parsed is not None and len(found) < MOST_OBJECTS:
            found[key] = parsed
        elif parsed is not None:
            reason = "too many objects"
        if reason and len(unusable) < MOST_OBJECTS:
            unusable[key] = reason

    def _reached(self) -> None:
        self.error = ""
        self._changed()

    def _failed(self, error: str) -> None:
        if error != self.error:
            self.error = error
            self._changed()


def _event(line: bytes) -> tuple[str, Any]:
    """Return the type and the object of a line of a watch.

    Raises:
        ValueError: It is none.
    """
    event = json.loads(line)
    what = event.get("type") if isinstance(event, dict) else None
    if not isinstance(what, str):
        raise ValueError("a change without a type")  # noqa: TRY004  # it is a wrong text, and no wrong call
    return what, event.get("object")


def _version(thing: Any) -> str:  # noqa: ANN401  # it is parsed JSON
    """Return the version of an object or a list.

    Raises:
        ValueError: It has none that can stand in a query.
    """
    metadata = thing.get("metadata") if isinstance(thing, dict) else None
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    if not isinstance(version, str) or not version.isalnum() or not version.isascii():
        raise ValueError("an answer without a version")
    return version
