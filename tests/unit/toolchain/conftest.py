"""A machine of its own for each test: fake programs, a fake go, a release server on loopback."""

from __future__ import annotations

import http.server
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_k3s_sandbox.toolchain.pins import Build, GoPin, Pin, Pins
from support.machines import OTHER, TOOL, Machine, Server


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bin").mkdir()
    module = tmp_path / "module"
    module.mkdir()
    (module / "go.mod").write_text("module fake\n\ngo 1.23.1\n")
    (module / "go.sum").write_text("")
    certificates = tmp_path / "certificates"
    certificates.write_text("")
    pins = Pins(
        programs={
            name: Pin(
                name=name,
                group="k3sfake",
                version="1.2.3",
                siblings=(TOOL, OTHER),
                version_args=("--version",),
                version_regex=re.compile(r"tool version (\S+)"),
                build=Build(module=module, packages=("./...",), ldflags="-s"),
            )
            for name in (TOOL, OTHER)
        },
        go=GoPin(package="k3sfake-go", version="1.25.0", sha256="0" * 64, executable="go/bin/go"),
    )
    environ = {
        "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "K3S_SANDBOX_CACHE": str(tmp_path / "cache"),
        "SSL_CERT_FILE": str(certificates),
        "K3S_SANDBOX_RELEASES": "unpinned",
        "K3S_SANDBOX_HTTP_LOOPBACK": "1",
    }
    return Machine(tmp_path, pins, environ)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            offering.requests.append((self.path, wanted))
            time.sleep(offering.delay)
            if self.path in offering.redirects:
                self.send_response(302)
                self.send_header("Location", offering.redirects[self.path])
                self.end_headers()
                return
            data = offering.files.get(self.path)
            if data is None:
                self.send_error(404)
                return
            begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
            if begin >= len(data):
                self.send_error(416)
                return
            self.send_response(206 if wanted else 200)
            if offering.length != "":
                self.send_header("Content-Length", offering.length or str(len(data) - begin))
            self.end_headers()
            rest = data[begin:]
            if offering.cut_after is not None and not self.path.endswith(".sha256"):
                rest, offering.cut_after = rest[: offering.cut_after], None
                self.close_connection = True
            self.wfile.write(rest)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class' name
            pass

    service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    offering = Server(f"http://127.0.0.1:{service.server_port}")
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield offering
    service.shutdown()
    thread.join()
    service.server_close()
