"""Reads of the API as plain JSON, for questions while a node starts.

Importing the ``kubernetes`` package's models takes 0.4 s of processor time. On two cores a node that starts
beside it has to wait for that (docs/findings.md). So the code that watches a start uses the standard library,
and only code that works with objects imports the package.
"""

from __future__ import annotations

import json
import ssl
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pytest_k3s_sandbox.cluster.components import ClusterSettings
from pytest_k3s_sandbox.errors import ClusterError
from pytest_k3s_sandbox.support import forks

if TYPE_CHECKING:
    from kubernetes.client import V1NodeCondition, V1PodCondition

READ_SECONDS = 10.0


class ApiUnavailable(ClusterError):
    """The API server cannot be reached, or answered with an error; the message says which.

    Attributes:
        status: The HTTP status; None if there was no answer at all.
    """

    def __init__(self, url: str, cause: str, status: int | None = None) -> None:
        """Keep the URL and the cause."""
        super().__init__(f"reading {url}", cause=cause)
        self.status = status


@dataclass(frozen=True)
class Condition:
    """A condition of an object (``metav1.Condition`` and its like).

    Attributes:
        type: Its name, as ``Ready``.
        status: ``True``, ``False`` or ``Unknown``.
        reason: One word for why.
        message: Why, for people.
        last_transition_time: When the status changed last.
        last_heartbeat_time: When it was reported last.
    """

    type: str
    status: str
    reason: str | None = None
    message: str | None = None
    last_transition_time: datetime | None = None
    last_heartbeat_time: datetime | None = None

    @classmethod
    def of(cls, raw: dict[str, Any]) -> Self:
        """Return a condition from its JSON."""
        times = (raw.get(name) for name in ("lastTransitionTime", "lastHeartbeatTime"))
        return cls(
            raw["type"],
            raw["status"],
            raw.get("reason"),
            raw.get("message"),
            *(datetime.fromisoformat(time) if time else None for time in times),
        )


def conditions(item: dict[str, Any]) -> dict[str, Condition]:
    """Return the conditions of an object by type; none while its status has none."""
    raw = item.get("status", {}).get("conditions") or []
    return {each["type"]: Condition.of(each) for each in raw}


def is_ready(conditions: Iterable[Condition | V1NodeCondition | V1PodCondition] | None) -> bool:
    """Tell whether the condition Ready is True among those of a node or a pod.

    Args:
        conditions: The conditions, as this module or the ``kubernetes`` package gives them; None for none.
    """
    return any(each.type == "Ready" and each.status == "True" for each in conditions or ())


class ApiReader:
    """Reads from an API server as its administrator, over one connection that is kept open.

    Args:
        settings: Where the API server listens.
        pki: The folder on the machine with ``ca.crt``, ``admin.crt`` and ``admin.key``, which may come later.
        seconds: How long each step of an answer may take: connecting, the handshake, each piece of it.
    """

    def __init__(self, settings: ClusterSettings, pki: Path, seconds: float = READ_SECONDS) -> None:
        """Prepare; nothing is connected yet."""
        self._settings = settings
        self._pki = pki
        self._seconds = seconds
        self._connection: HTTPSConnection | None = None
        self._closing: weakref.finalize[[], ApiReader] | None = None
        self._lock = threading.RLock()
        forks.watch(self)

    def forked(self) -> None:
        """Leave the connection to the parent: a request of a forked process would break it for both."""
        self._lock = threading.RLock()
        self._drop()

    def read(self, path: str) -> dict[str, Any] | None:
        """Return the parsed JSON at a path; None if the server answers 404.

        Raises:
            ApiUnavailable: The API server did not give an answer.
        """
        body = self._content(path)
        found: dict[str, Any] | None = None if body is None else json.loads(body)
        return found

    def text(self, path: str) -> str | None:
        """Return the text at a path, as of a container's log; None if the server answers 404.

        Raises:
            ApiUnavailable: The API server did not give an answer.
        """
        body = self._content(path)
        return None if body is None else body.decode("utf-8", "replace")

    def _content(self, path: str) -> bytes | None:
        status, body = self._get(path)
        if status == HTTPStatus.NOT_FOUND:
            return None
        if status != HTTPStatus.OK:
            text = body.decode(errors="replace").strip()
            raise ApiUnavailable(f"{self._settings.api_url}{path}", f"{status} {text}", status)
        return body

    def items(self, path: str) -> list[dict[str, Any]]:
        """Return the items of a list.

        Raises:
            ApiUnavailable: The API server did not give an answer.
        """
        return (self.read(path) or {}).get("items") or []

    def answers(self, path: str = "/readyz") -> bool:
        """Tell whether a path is answered with 200 OK; ``/readyz`` is when everything has started."""
        try:
            return self._get(path)[0] == HTTPStatus.OK
        except ApiUnavailable:
            return False

    def close(self) -> None:
        """Close the connection; the next read opens it again."""
        with self._lock:
            self._drop()

    def _get(self, path: str) -> tuple[int, bytes]:
        with self._lock:
            kept = self._connection is not None
            try:
                return self._ask(path)
            except (HTTPException, OSError) as error:
                self._drop()
                if not kept or isinstance(error, TimeoutError):
                    raise ApiUnavailable(f"{self._settings.api_url}{path}", str(error)) from error
            # It was open before, and may have been closed by a server that ended meanwhile.
            return self._get(path)

    def _ask(self, path: str) -> tuple[int, bytes]:
        if self._connection is None:
            context = ssl.create_default_context(cafile=str(self._pki / "ca.crt"))
            context.load_cert_chain(self._pki / "admin.crt", self._pki / "admin.key")
            self._connection = HTTPSConnection(
                self._settings.address, self._settings.api_port, timeout=self._seconds, context=context
            )
            # It is closed with this object, also without a call of close().
            self._closing = weakref.finalize(self, self._connection.close)
        self._connection.request("GET", path, headers={"Accept": "application/json"})
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def _drop(self) -> None:
        if self._closing is not None:
            self._closing()
        self._connection = self._closing = None
