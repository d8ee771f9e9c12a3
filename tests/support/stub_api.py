"""An API server that lists and watches what a test puts into it, and fails as a test tells it."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"


def service(name: str = "web", address: str = "10.43.7.7", **spec: object) -> dict[str, Any]:
    """Return a Service as the API has it, without a version."""
    ports = [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}]
    whole = {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ports": ports, **spec}
    return {"metadata": {"namespace": "default", "name": name}, "spec": whole, "status": {"loadBalancer": {}}}


def endpoint_slice(*addresses: str, service: str = "web", **other: object) -> dict[str, Any]:
    """Return an EndpointSlice as the API has it, without a version."""
    labels = {"kubernetes.io/service-name": service}
    return {
        "metadata": {"namespace": "default", "name": f"{service}-abcde", "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [
            {"addresses": [each], "conditions": {"ready": True}, "nodeName": "here"} for each in addresses
        ],
        **other,
    }


@dataclass
class StubApi:
    """The server, on loopback without TLS.

    Attributes:
        things: The objects of each kind by namespace and name.
        requests: The paths and queries that it was asked.
        status: What it answers everything with instead, or None.
        brief: Whether a watch ends at once.
        gone: Whether the next watch of each kind answers 410: by the status, or by an event.
    """

    things: dict[str, dict[tuple[str, str], dict[str, Any]]] = field(
        default_factory=lambda: {SERVICES: {}, SLICES: {}}
    )
    requests: list[str] = field(default_factory=list)
    status: int | None = None
    brief: bool = False
    gone: dict[str, str] = field(default_factory=dict)
    port: int = 0

    def __enter__(self) -> Self:
        """Serve."""
        self._version = 100
        self._watchers: dict[str, list[queue.Queue[bytes | None]]] = {SERVICES: [], SLICES: []}
        self._lock = threading.Lock()
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                api._answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class' name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every watch, and the server."""
        self.end_watches()
        self._server.shutdown()
        self._server.server_close()

    @property
    def kubeconfig(self) -> str:
        """The content of a file that leads here."""
        cluster = {"server": f"http://127.0.0.1:{self.port}"}
        return json.dumps({"clusters": [{"cluster": cluster}], "users": [{"user": {}}]})

    def write_kubeconfig(self, folder: Path) -> str:
        """Write that file; return its path."""
        (folder / "kubeconfig").write_text(self.kubeconfig)
        return str(folder / "kubeconfig")

    def put(self, path: str, thing: dict[str, Any]) -> None:
        """Create or replace an object."""
        key = thing["metadata"]["namespace"], thing["metadata"]["name"]
        with self._lock:
            what = "MODIFIED" if key in self.things[path] else "ADDED"
            self.things[path][key] = thing
            self._send(path, what, thing)

    def delete(self, path: str, name: str) -> None:
        """Delete an object."""
        with self._lock:
            self._send(path, "DELETED", self.things[path].pop(("default", name)))

    def event(self, path: str, what: str, thing: object) -> None:
        """Send an event, right or wrong."""
        for watcher in self._watchers[path]:
            watcher.put(json.dumps({"type": what, "object": thing}).encode() + b"\n")

    def end_watches(self) -> None:
        """Let every watch end, as after its time."""
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.put(None)
            watchers.clear()

    def watched(self) -> bool:
        """Return whether both kinds are watched."""
        return all(self._watchers.values())

    def _send(self, path: str, what: str, thing: dict[str, Any]) -> None:
        self._version += 1
        thing["metadata"]["resourceVersion"] = str(self._version)
        self.event(path, what, thing)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        query = parse_qs(parts.query)
        status = self.status
        if status is None and "watch" in query and self.gone.get(parts.path) == "status":
            del self.gone[parts.path]
            status = 410
        if status is not None or "watch" not in query:
            self.requests.append(handler.path)
        handler.send_response(status or 200)
        handler.end_headers()
        if status is not None:
            return
        if "watch" not in query:
            with self._lock:
                items = list(self.things[parts.path].values())
                metadata = {"resourceVersion": str(self._version)}
            handler.wfile.write(json.dumps({"metadata": metadata, "items": items}).encode())
            return
        changes: queue.Queue[bytes | None] = queue.Queue()
        with self._lock:
            for thing in self.things[parts.path].values():  # what came between the list and the watch
                if int(thing["metadata"]["resourceVersion"]) > int(query["resourceVersion"][0]):
                    changes.put(json.dumps({"type": "ADDED", "object": thing}).encode() + b"\n")
            self._watchers[parts.path].append(changes)
            self.requests.append(handler.path)  # a watch counts when events reach it
        if self.gone.pop(parts.path, None) == "event":
            gone = {"type": "ERROR", "object": {"kind": "Status", "code": 410}}
            changes.put(json.dumps(gone).encode() + b"\n")
        if self.brief:
            return
        with contextlib.suppress(ConnectionError):  # the client has ended
            while (line := changes.get()) is not None:
                handler.wfile.write(line)
                handler.wfile.flush()
