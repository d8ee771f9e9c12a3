"""The parts of the embedded distribution that need no cluster."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from pytest_k3s_sandbox.cluster import certificates, components
from pytest_k3s_sandbox.cluster.components import Settings
from pytest_k3s_sandbox.cluster.embedded import api_answers, assert_ports_free, listening_ports, with_effect
from pytest_k3s_sandbox.errors import ClusterError
from pytest_k3s_sandbox.layers.base import Effect
from pytest_k3s_sandbox.sandbox.base import Completed, Sandbox

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
REST = "00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n"
LISTEN = f"   0: 0100007F:192B 00000000:0000 0A {REST}"
ESTABLISHED = LISTEN.replace(" 0A ", " 01 ").replace("192B", "1F90")
V6 = f"   0: {'0' * 32}:280A {'0' * 32}:0000 0A {REST}"
ON_ETH0 = LISTEN.replace("0100007F:192B", "0200D50A:2811")


def test_listening_ports_are_those_in_state_listen() -> None:
    assert listening_ports(HEAD + LISTEN + ESTABLISHED + ON_ETH0 + HEAD + V6) == {6443, 10257, 10250}
    assert listening_ports(HEAD + HEAD) == set()
    assert listening_ports("") == set()


def test_a_real_listener_is_found() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        table = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        assert {server.getsockname()[1], six.getsockname()[1]} <= listening_ports(table)


class Tables:
    """A sandbox of which only the tables of connections are asked."""

    name = "k3ssb-test"

    def __init__(self, *ports: int) -> None:
        """Listen on these ports."""
        self._text = HEAD + "".join(LISTEN.replace("192B", f"{port:04X}") for port in ports)

    def run(self, argv: list[str], **_options: object) -> Completed:
        """Give the tables."""
        assert argv == ["cat", "/proc/net/tcp", "/proc/net/tcp6"]
        return Completed(tuple(argv), 0, self._text, "")


@pytest.mark.parametrize(
    ("port", "part", "remedy"),
    [
        (6443, "kube-apiserver", "--k3s-api-port"),
        (10250, "kubelet", "end that process"),
        (10257, "kube-controller-manager", "end that process"),
        (10259, "kube-scheduler", "end that process"),
    ],
)
def test_an_occupied_port_is_named_with_who_needs_it(port: int, part: str, remedy: str) -> None:
    settings = Settings(node="n", address="10.213.0.2")
    assert_ports_free(cast("Sandbox", Tables(22, 2379)), settings)
    with pytest.raises(ClusterError) as caught:
        assert_ports_free(cast("Sandbox", Tables(22, port)), settings)
    assert caught.value.what == f"port {port} in k3ssb-test is occupied"
    assert part in (caught.value.cause or "")
    assert remedy in (caught.value.remedy or "")


def test_another_api_port_is_the_one_that_is_looked_at() -> None:
    assert_ports_free(cast("Sandbox", Tables(6443)), Settings(node="n", address="1.2.3.4", api_port=7443))


def test_an_effect_goes_into_the_settings_where_it_says_something() -> None:
    settings = Settings(node="n", address="1.2.3.4")
    assert with_effect(settings, Effect()) == settings
    changed = with_effect(settings, Effect(cni_bin_dir="/b", cni_conf_dir="/c", runtime="/r"))
    assert (changed.cni_bin_dir, changed.cni_conf_dir, changed.runtime) == ("/b", "/c", "/r")
    assert "/b" in components.containerd_config(changed)


class Api:
    """An HTTPS server with the cluster's certificate, that answers /readyz as told."""

    def __init__(self, folder: Path) -> None:
        """Start it on a free port."""
        pki = certificates.write_pki(folder, node="n", address="127.0.0.1")
        self.folder = pki.folder
        self.code = 200
        outer = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                """Answer."""
                self.send_response(outer.code if self.path == "/readyz" else 404)
                self.end_headers()

            def log_message(self, *_words: object) -> None:
                return

        self.server = HTTPServer(("127.0.0.1", 0), Answer)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "apiserver.crt", self.folder / "apiserver.key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.settings = Settings(node="n", address="127.0.0.1", api_port=self.server.server_address[1])
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    made = Api(tmp_path / "pki")
    yield made
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


def test_the_api_is_ready_when_it_says_so_with_the_clusters_certificate(api: Api, tmp_path: Path) -> None:
    assert api_answers(api.settings, api.folder) is True
    api.code = 500
    assert api_answers(api.settings, api.folder) is False
    api.code = 200
    other = certificates.write_pki(tmp_path / "other", node="n", address="127.0.0.1")
    assert api_answers(api.settings, other.folder) is False  # another cluster's CA


def test_no_api_is_not_ready(tmp_path: Path) -> None:
    pki: Any = certificates.write_pki(tmp_path / "pki", node="n", address="127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert api_answers(Settings(node="n", address="127.0.0.1", api_port=port), pki.folder) is False
