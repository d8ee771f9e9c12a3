"""Reads of an API server, from one with the cluster's certificate that answers as a test tells it."""

from __future__ import annotations

import contextlib
import gc
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pytest_k3s_sandbox.cluster import certificates
from pytest_k3s_sandbox.cluster.components import ClusterSettings
from pytest_k3s_sandbox.cluster.reading import ApiReader, ApiUnavailable, Condition, conditions, is_ready

READY = {
    "type": "Ready",
    "status": "False",
    "reason": "KubeletNotReady",
    "lastTransitionTime": "2026-11-25T00:00:00Z",
}


class Api:
    """An HTTPS server that asks for the client's certificate, as the API server does."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        """Start it, on a free port by default."""
        if not folder.exists():
            certificates.write_pki(folder, node="n", address="127.0.0.1")
        self.folder = folder
        self.answers: dict[str, tuple[int, bytes]] = {"/readyz": (200, b"ok")}
        self.connections = 0
        self.pause = 0.0
        outer = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # which keeps connections open

            def setup(self) -> None:
                """Count the connection."""
                outer.connections += 1
                outer.open.append(self.request)
                super().setup()

            def do_GET(self) -> None:
                """Answer."""
                time.sleep(outer.pause)
                status, body = outer.answers.get(self.path, (404, b"{}"))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_words: object) -> None:
                return

        self.open: list[socket.socket] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Answer)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "apiserver.crt", folder / "apiserver.key")
        context.load_verify_locations(folder / "ca.crt")
        context.verify_mode = ssl.CERT_REQUIRED
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.settings = ClusterSettings(node="n", address="127.0.0.1", api_port=self.port)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def end(self) -> None:
        """End it, with all connections."""
        self.server.shutdown()
        self.thread.join()
        self.cut()
        self.server.server_close()

    def cut(self) -> None:
        """Close all connections behind their clients' backs."""
        for each in self.open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    made = Api(tmp_path / "pki")
    yield made
    made.end()


@pytest.fixture
def reader(api: Api) -> Iterator[ApiReader]:
    made = ApiReader(api.settings, api.folder)
    yield made
    made.close()


def test_a_path_answers_when_it_says_so(api: Api, reader: ApiReader) -> None:
    assert reader.answers() is True
    api.answers["/readyz"] = (500, b"[-]poststarthook/rbac/bootstrap-roles failed")
    assert reader.answers() is False
    assert reader.answers("/nowhere") is False


def test_a_server_that_another_authority_vouches_for_is_not_ours(api: Api, tmp_path: Path) -> None:
    other = certificates.write_pki(tmp_path / "other", node="n", address="127.0.0.1")
    stranger = ApiReader(api.settings, other.folder)
    assert stranger.answers() is False
    with pytest.raises(ApiUnavailable, match="certificate verify failed"):
        stranger.read("/readyz")


def test_many_reads_take_one_connection(api: Api, reader: ApiReader) -> None:
    api.answers["/x"] = (200, b'{"a": 1}')
    assert [reader.read("/x") for _ in range(5)] == [{"a": 1}] * 5
    assert api.connections == 1


def test_a_list_has_items_and_what_is_not_there_is_none(api: Api, reader: ApiReader) -> None:
    api.answers["/api/v1/nodes"] = (200, b'{"items": [{"kind": "Node"}]}')
    api.answers["/api/v1/pods"] = (200, b'{"items": null}')
    assert reader.items("/api/v1/nodes") == [{"kind": "Node"}]
    assert reader.items("/api/v1/pods") == []
    assert reader.read("/api/v1/nodes/n") is None


def test_an_error_says_what_was_asked_and_answered(api: Api, reader: ApiReader) -> None:
    api.answers["/api/v1/nodes"] = (503, b"etcd is away")
    with pytest.raises(ApiUnavailable) as caught:
        reader.read("/api/v1/nodes")
    assert caught.value.what == f"reading {api.settings.api_url}/api/v1/nodes"
    assert (caught.value.cause, caught.value.status) == ("503 etcd is away", 503)


def test_a_server_that_ended_and_came_back_is_read_again(api: Api, reader: ApiReader) -> None:
    assert reader.answers()
    api.end()
    assert not reader.answers()
    again = Api(api.folder, api.port)
    try:
        assert reader.answers()
        again.cut()
        assert reader.read("/nowhere") is None
        assert again.connections == 2
    finally:
        again.end()


def test_certificates_may_come_later(api: Api, tmp_path: Path) -> None:
    late = ApiReader(api.settings, tmp_path / "late")
    with pytest.raises(ApiUnavailable, match="No such file"):
        late.read("/readyz")
    (tmp_path / "late").symlink_to(api.folder)
    assert late.answers()
    late.close()


def test_a_server_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    certificates.write_pki(tmp_path / "pki", node="n", address="127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = ClusterSettings(node="n", address="127.0.0.1", api_port=silent.getsockname()[1])
        with pytest.raises(ApiUnavailable, match="timed out") as caught:
            ApiReader(settings, tmp_path / "pki", seconds=0.05).read("/readyz")
        assert caught.value.status is None


def test_a_question_that_took_too_long_is_not_asked_once_more(api: Api) -> None:
    impatient = ApiReader(api.settings, api.folder, seconds=0.2)
    assert impatient.answers()
    api.pause = 1.0
    with pytest.raises(ApiUnavailable, match="timed out"):
        impatient.read("/readyz")
    api.pause = 0.0
    assert api.connections == 1
    assert impatient.answers()
    impatient.close()


def test_it_is_closed_without_a_call_of_close(api: Api) -> None:
    forgotten = ApiReader(api.settings, api.folder)
    assert forgotten.answers()
    del forgotten
    gc.collect()  # a connection that is still open would be a ResourceWarning, which is an error here


def test_conditions_are_known_by_their_type() -> None:
    found = conditions(json.loads(json.dumps({"status": {"conditions": [READY]}})))
    midnight = datetime(2026, 11, 25, tzinfo=UTC)
    assert found == {"Ready": Condition("Ready", "False", "KubeletNotReady", None, midnight)}
    assert conditions({}) == conditions({"status": {}}) == conditions({"status": {"conditions": None}}) == {}


def test_watching_a_start_does_not_import_the_kubernetes_package() -> None:
    modules = "pytest_k3s_sandbox.node.session, pytest_k3s_sandbox.cluster.sampler, sys"
    code = f"import {modules}; print([name for name in sys.modules if name.startswith('kubernetes')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ready_is_a_condition_that_is_true() -> None:
    assert is_ready([Condition("DiskPressure", "True"), Condition("Ready", "True")])
    assert not is_ready([Condition("DiskPressure", "True"), Condition("Ready", "Unknown")])
    assert not is_ready([])
    assert not is_ready(None)
