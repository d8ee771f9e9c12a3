"""Lists and watches, from an API server that only says what a test tells it."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pytest_k3s_sandbox.cluster.certificates import write_kubeconfig, write_pki
from pytest_k3s_sandbox.layers.services import access, watch
from pytest_k3s_sandbox.layers.services.objects import Service
from support.stub_api import SERVICES, StubApi, service
from support.waiting import until


@pytest.fixture
def api() -> Iterator[StubApi]:
    with StubApi() as made:
        yield made


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(watch, "MOST_DELAY", 0.05)


class Watched:
    """A watch of Services that counts what it says."""

    def __init__(self, kubeconfig: str) -> None:
        """Start it."""
        self.changes = 0
        self.watch: watch.Watch[Service] = watch.Watch(watch.SERVICES, kubeconfig, self._changed)
        self.watch.start()

    def _changed(self) -> None:
        self.changes += 1

    def names(self) -> list[str]:
        """Return the names of its objects."""
        return sorted(each.key[1] for each in self.watch.objects())


def lists(api: StubApi) -> int:
    return sum("watch=1" not in request for request in api.requests)


def watches(api: StubApi) -> int:
    return sum("watch=1" in request for request in api.requests)


def test_objects_come_change_and_go(api: StubApi, tmp_path: Path) -> None:
    api.put(SERVICES, service("first"))
    watched = Watched(api.write_kubeconfig(tmp_path))
    until(lambda: watched.names() == ["first"])
    assert watched.watch.synced
    until(lambda: watches(api))
    api.put(SERVICES, service("second", "10.43.7.8"))
    until(lambda: watched.names() == ["first", "second"])
    api.put(SERVICES, service("second", "10.43.7.9"))
    until(lambda: "10.43.7.9" in {each.address for each in watched.watch.objects()})
    api.delete(SERVICES, "first")
    until(lambda: watched.names() == ["second"])
    assert (lists(api), watches(api)) == (1, 1)
    assert "allowWatchBookmarks=true" in api.requests[1]
    assert all("labelSelector=!service.kubernetes.io/service-proxy-name," in each for each in api.requests)


def test_a_change_that_no_rule_depends_on_wakes_nobody(api: StubApi, tmp_path: Path) -> None:
    api.put(SERVICES, service("first"))
    watched = Watched(api.write_kubeconfig(tmp_path))
    until(lambda: watches(api) == 1)
    before = watched.changes
    thing = service("first")
    thing["metadata"]["annotations"] = {"renewed": "now"}
    api.put(SERVICES, thing)
    api.put(SERVICES, service("second"))
    until(lambda: watched.names() == ["first", "second"])
    assert watched.changes == before + 1


def test_a_watch_goes_on_where_it_ended(api: StubApi, tmp_path: Path) -> None:
    watched = Watched(api.write_kubeconfig(tmp_path))
    until(lambda: watches(api) == 1)
    api.event(SERVICES, "BOOKMARK", {"metadata": {"resourceVersion": "77"}})
    api.end_watches()
    until(lambda: watches(api) == 2)
    assert "resourceVersion=77" in api.requests[-1]
    api.put(SERVICES, service("first"))
    until(lambda: watched.names() == ["first"])
    assert lists(api) == 1


@pytest.mark.parametrize("how", ["status", "event"])
def test_a_version_that_is_gone_leads_to_a_list(api: StubApi, tmp_path: Path, how: str) -> None:
    api.gone[SERVICES] = how
    watched = Watched(api.write_kubeconfig(tmp_path))
    until(lambda: lists(api) == 2)
    api.put(SERVICES, service("first"))
    until(lambda: watched.names() == ["first"])


def test_what_was_deleted_meanwhile_is_gone_after_a_list(api: StubApi, tmp_path: Path) -> None:
    api.put(SERVICES, service("first"))
    watched = Watched(api.write_kubeconfig(tmp_path))
    until(lambda: watched.names() == ["first"])
    until(lambda: watches(api) == 1)
    del api.things[SERVICES]["default", "first"]
    api.event(SERVICES, "ERROR", {"kind": "Status", "code": 410})
    until(lambda: watched.names() == [])


@pytest.mark.parametrize(
    "line", ["[]", "{", '{"type": "ADDED"}', '{"type": "ADDED", "object": {"metadata": 3}}']
)
def test_a_wrong_event_ends_the_watch_and_not_the_thread(api: StubApi, tmp_path: Path, line: str) -> None:
    watched = Watched(api.write_kubeconfig(tmp_path))
    until(lambda: watches(api) == 1)
    for watcher in api._watchers[SERVICES]:
        watcher.put(line.encode() + b"\n")
    until(lambda: watches(api) == 2)
    api.put(SERVICES, service("first"))
    until(lambda: watched.names() == ["first"])


def test_an_object_of_another_form_is_counted_and_the_others_are_used(api: StubApi, tmp_path: Path) -> None:
    api.put(SERVICES, service("wrong", "10.43.7.7.7"))
    api.put(SERVICES, service("right"))
    watched = Watched(api.write_kubeconfig(tmp_path))
    until(lambda: watched.names() == ["right"])
    assert watched.watch.skipped() == {"address": 1}
    until(lambda: watches(api) == 1)
    api.delete(SERVICES, "wrong")
    until(lambda: watched.watch.skipped() == {})


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_an_api_server_that_refuses_is_asked_again(api: StubApi, tmp_path: Path, status: int) -> None:
    api.status = status
    watched = Watched(api.write_kubeconfig(tmp_path))
    until(lambda: lists(api) >= 3)
    assert not watched.watch.synced
    assert str(status) in watched.watch.error
    api.status = None
    until(lambda: watched.watch.synced)
    assert watched.watch.error == ""


def test_an_api_server_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    watched = Watched(str(path))
    until(lambda: "FileNotFoundError" in watched.watch.error)
    with StubApi() as api:
        port = api.port
    path.write_text(api.kubeconfig)
    until(lambda: "ConnectionRefusedError" in watched.watch.error)
    with StubApi(port=port) as api:
        until(lambda: watched.watch.synced)


def test_the_objects_stay_while_the_api_server_is_away(tmp_path: Path) -> None:
    with StubApi() as api:
        api.put(SERVICES, service("first"))
        watched = Watched(api.write_kubeconfig(tmp_path))
        until(lambda: watched.names() == ["first"])
        until(lambda: watches(api) == 1)
    until(lambda: "ConnectionRefusedError" in watched.watch.error)
    assert watched.names() == ["first"]


def test_a_watch_that_always_ends_at_once_is_not_repeated_in_a_loop(api: StubApi, tmp_path: Path) -> None:
    api.brief = True
    Watched(api.write_kubeconfig(tmp_path))
    until(lambda: watches(api) >= 5)
    before = watches(api)
    time.sleep(0.5)
    assert watches(api) - before <= 0.5 / 0.05 + 1


def test_a_client_certificate_of_this_projects_kubeconfig_is_shown(tmp_path: Path) -> None:
    pki = write_pki(tmp_path / "pki", node="node", address="127.0.0.1")
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            subject = self.connection.getpeercert()["subject"]
            seen.append(dict(each[0] for each in subject)["commonName"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"body")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class' name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pki.ca.cert)
    context.load_cert_chain(pki.apiserver.cert, pki.apiserver.key)
    context.verify_mode = ssl.CERT_REQUIRED
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"https://127.0.0.1:{server.server_address[1]}"
    try:
        for embed in (True, False):
            path = tmp_path / f"kubeconfig-{embed}"
            write_kubeconfig(path, server=url, ca=pki.ca.cert, client=pki.admin, embed=embed)
            with access.get(access.load(str(path)), "/", 5) as body:
                assert body.read() == b"body"
        fields = json.loads(path.read_text())
        lines = [f"- cluster:\n    server: {url}"]
        lines += [
            f"    {name}: {value}"
            for name, value in fields["clusters"][0]["cluster"].items()
            if name != "server"
        ]
        lines += [
            "users:\n- user:",
            *(f"    {name}: {value}" for name, value in fields["users"][0]["user"].items()),
        ]
        path.write_text("apiVersion: v1\nclusters:\n" + "\n".join(lines) + "\n")
        with access.get(access.load(str(path)), "/", 5) as body:
            assert body.read() == b"body"
        assert seen == ["kubernetes-admin"] * 3
        other = write_pki(tmp_path / "other", node="node", address="127.0.0.1")
        write_kubeconfig(path, server=url, ca=other.ca.cert, client=pki.admin)
        with pytest.raises(ssl.SSLError), access.get(access.load(str(path)), "/", 5):
            pass
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("text", ["", "{}", "[]", "{", "server: 3", '{"clusters": 3, "users": 4}'])
def test_a_kubeconfig_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "kubeconfig").write_text(text)
    with pytest.raises(ValueError):  # noqa: PT011  # JSON's errors are such, too
        access.load(str(tmp_path / "kubeconfig"))
