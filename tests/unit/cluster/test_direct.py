"""Our own addresses go through no proxy, and kubectl takes nothing from the user's files and variables."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.cluster import certificates, direct
from pytest_k3s_sandbox.cluster.certificates import kubeconfig, write_pki
from pytest_k3s_sandbox.cluster.cluster import Cluster
from pytest_k3s_sandbox.cluster.components import ClusterSettings
from pytest_k3s_sandbox.errors import ClusterError
from pytest_k3s_sandbox.toolchain import Toolchain

ADDRESS = "127.77.0.1"
"""An address of no machine; Go takes 127.0.0.0/8 for local, so that kubectl gets another one."""

NOWHERE = "192.0.2.1"
"""An address for documentation (RFC 5737); nothing answers there."""


class Proxy(socketserver.ThreadingTCPServer):
    """A proxy that notes what it is asked for, and does nothing else."""

    daemon_threads = True

    def __init__(self) -> None:
        """Listen."""
        self.asked: list[str] = []
        asked = self.asked

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                asked.append(self.rfile.readline().decode("latin-1").strip())
                self.wfile.write(b"HTTP/1.1 503 no\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that every client is told to use."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Proxy() as server:
        for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, server.url)
            monkeypatch.setenv(name.lower(), server.url)
        yield server
        server.shutdown()


@pytest.fixture
def kubectl() -> Path:
    found = Toolchain().find("kubectl")
    if found is None:
        pytest.skip("no kubectl; run `k3s-sandbox provision`")
    return found.path


def cluster(folder: Path, kubectl: Path, address: str) -> Cluster:
    """Return a cluster of which there is a kubeconfig only."""
    pki = write_pki(certificates.pki(folder), node="n", address=address)
    settings = ClusterSettings(node="n", address=address, api_port=6443)
    text = json.dumps(kubeconfig(settings.api_url, str(pki.ca.cert), str(pki.admin.cert), str(pki.admin.key)))
    (certificates.pki(folder) / certificates.ADMIN).write_text(text)
    sandbox: Any = SimpleNamespace(workdir=folder, logs=folder, control=folder)
    return Cluster(*[cast("Any", each) for each in (None, sandbox, settings, None, kubectl)])


def test_kubectl_asks_no_proxy_for_our_address(tmp_path: Path, proxy: Proxy, kubectl: Path) -> None:
    ours = cluster(tmp_path, kubectl, NOWHERE)
    with pytest.raises(ClusterError, match="kubectl"):
        ours.kubectl("get", "nodes", "--request-timeout=1s", timeout=20)
    assert proxy.asked == []


def test_kubectl_asks_it_for_other_hosts(tmp_path: Path, proxy: Proxy, kubectl: Path) -> None:
    ours = cluster(tmp_path, kubectl, NOWHERE)
    with pytest.raises(ClusterError, match="Unable to connect"):
        ours.kubectl("create", "--dry-run=client", "-f", "https://example.org/pod.yaml", timeout=20)
    assert proxy.asked[0].startswith("CONNECT example.org:443")


def test_downloads_ask_it(proxy: Proxy) -> None:
    with pytest.raises(OSError, match="503"):
        # Not urlopen: it keeps the proxies of its first call for the whole process.
        urllib.request.build_opener().open("https://example.org/release", timeout=5)
    assert proxy.asked[0].startswith("CONNECT example.org:443")


def test_the_client_asks_no_proxy_for_our_address(tmp_path: Path, proxy: Proxy) -> None:
    from urllib3.exceptions import HTTPError

    ours = cluster(tmp_path, Path("/none"), ADDRESS)
    with pytest.raises(HTTPError):
        ours.core.list_namespace(_request_timeout=1)
    assert proxy.asked == []


@pytest.mark.parametrize("later", [False, True])
def test_websockets_ask_no_proxy_for_our_address(
    tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, *, later: bool
) -> None:
    from kubernetes.client import ApiException
    from kubernetes.stream import portforward, stream

    ours = cluster(tmp_path, Path("/none"), ADDRESS)
    if later:  # the variables come when the client is there
        with monkeypatch.context() as patch:
            for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
                patch.delenv(name)
            assert ours.core is not None
    with pytest.raises(ApiException, match="refused"):
        stream(ours.core.connect_get_namespaced_pod_exec, "pod", "default", command=["true"])
    with pytest.raises(ApiException, match="refused"):
        portforward(ours.core.connect_get_namespaced_pod_portforward, "pod", "default", ports="80")
    assert proxy.asked == []


def test_the_reader_asks_no_proxy(tmp_path: Path, proxy: Proxy) -> None:
    ours = cluster(tmp_path, Path("/none"), ADDRESS)
    assert not ours.reader(1).answers()
    assert proxy.asked == []


PREFERENCES = """
apiVersion: kubectl.config.k8s.io/v1beta1
kind: Preference
defaults:
- command: config view
  options:
  - name: output
    default: json
"""


def test_preferences_of_the_user_change_nothing(
    tmp_path: Path, kubectl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / ".kube").mkdir(parents=True)
    (home / ".kube" / "kuberc").write_text(PREFERENCES)
    monkeypatch.setenv("HOME", str(home))
    # The same kubectl, as the user calls it, takes them: else this test would show nothing.
    words = [str(kubectl), "config", "view"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.startswith("{")
    said = cluster(tmp_path, kubectl, NOWHERE).kubectl("config", "view").stdout
    assert yaml.safe_load(said)["kind"] == "Config"
    assert not said.startswith("{")


@pytest.mark.parametrize("home", [None, "/proc/none", "/"])
def test_no_home_is_needed(
    tmp_path: Path, kubectl: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    assert cluster(tmp_path, kubectl, NOWHERE).kubectl("version", "--client").returncode == 0


HARMFUL = ["KUBECONFIG", "KUBERC", "KUBECTL_EXTERNAL_DIFF", "KUBERNETES_MASTER", "POD_NAMESPACE"]
HARMLESS = ["PATH", "HTTPS_PROXY", "NO_PROXY", "no_proxy"]


@given(st.dictionaries(st.sampled_from(HARMFUL + HARMLESS), st.text()))
def test_what_kubectl_gets_of_the_environment(environ: dict[str, str]) -> None:
    got = direct.kubectl_environment(environ, ADDRESS, Path("/ours"))
    assert got["KUBERC"] == "off"
    assert got["HOME"] == "/ours"
    known = set(got) - {"KUBERC", "KUBECTL_KUBERC", "KUBECACHEDIR"}
    assert not any(name.startswith("KUBE") or name == "POD_NAMESPACE" for name in known)
    assert got["NO_PROXY"] == got["no_proxy"]
    assert {"*", ADDRESS} & set(got["NO_PROXY"].split(","))
    assert {name: environ[name] for name in ("PATH", "HTTPS_PROXY") if name in environ} == {
        name: got[name] for name in ("PATH", "HTTPS_PROXY") if name in got
    }


def test_hosts_that_need_no_proxy_stay_so() -> None:
    got = direct.without_proxy({"no_proxy": "a.example, .b.example"}, ADDRESS)
    assert got["NO_PROXY"] == got["no_proxy"] == f"a.example,.b.example,{ADDRESS}"


PRINTS = r"""#!/bin/sh
printf 'h\303\251 \377\r\n'; printf '\376 no' >&2
"""

SAYS = """
import sys
from pathlib import Path
from types import SimpleNamespace
from pytest_k3s_sandbox.cluster.cluster import Cluster
from pytest_k3s_sandbox.cluster.components import ClusterSettings
sandbox = SimpleNamespace(workdir=Path(sys.argv[1]), logs=Path("/"), control=Path("/"))
kubectl = Path(sys.argv[1], "kubectl")
done = Cluster(None, sandbox, ClusterSettings("n", "192.0.2.1", 6443), None, kubectl).kubectl("logs")
print(ascii((done.stdout, done.stderr, done.stdout_bytes, done.stderr_bytes)))
"""


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "de_DE.ISO-8859-1"])
def test_what_is_not_utf_8_is_replaced_whatever_the_locale_is(tmp_path: Path, locale: str) -> None:
    (tmp_path / "kubectl").write_text(PRINTS)
    (tmp_path / "kubectl").chmod(0o755)
    variables = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    said = subprocess.run(
        [sys.executable, "-c", SAYS, str(tmp_path)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.strip() == ascii(("h\u00e9 \ufffd\r\n", "\ufffd no", b"h\xc3\xa9 \xff\r\n", b"\xfe no"))


def test_a_kubectl_that_hangs_is_killed(tmp_path: Path) -> None:
    (tmp_path / "kubectl").write_text("#!/bin/sh\nexec sleep 30\n")
    (tmp_path / "kubectl").chmod(0o755)
    with pytest.raises(ClusterError, match=r"`kubectl logs` took longer than 0\.2 s"):
        cluster(tmp_path, tmp_path / "kubectl", NOWHERE).kubectl("logs", timeout=0.2)


def test_no_interface_has_the_made_up_address() -> None:
    with socket.socket() as one, pytest.raises(ConnectionRefusedError):
        one.connect((ADDRESS, 6443))
