"""Why the sandbox of a kept cluster was ended: all that use the cluster are told the limit and its option."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from pytest_k3s_sandbox.cli import main
from pytest_k3s_sandbox.daemon import endings, inventory, process, registry
from pytest_k3s_sandbox.daemon.attached import attached_cluster
from pytest_k3s_sandbox.daemon.clients import Clients
from pytest_k3s_sandbox.daemon.registry import State
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError, StartError
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.pytestplugin import sharing
from pytest_k3s_sandbox.report.records import RunWriter
from pytest_k3s_sandbox.sandbox import locks, machine, outside, reaper, watch
from pytest_k3s_sandbox.sandbox.host import HostSandbox
from pytest_k3s_sandbox.sandbox.processes import Identity

LIMIT = watch.explained("it took 101 MiB of the disk, and its limit is 100 MiB", "disk")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a home of the test's own."""
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(tmp_path))
    return tmp_path


def state(name: str = "up", **changes: Any) -> State:  # noqa: ANN401 - fields of a state
    fields: dict[str, Any] = {"name": name, "origin": registry.UP_ORIGIN, "folder": "/runs/1"}
    fields |= {"kubeconfig": "/none", "shell": ["env"], "sandbox": "0011aabb", "kind": "host"}
    fields |= {"address": "10.213.0.2", "api_port": 1, "node": "n", "layers": [], "zero": 0.0}
    return State.of({**fields, "processes": {"kubelet": 7}, **asdict(Identity.own()), **changes})


@pytest.fixture
def up() -> State:
    """A cluster of ``up``."""
    made = state()
    registry.write_state(made)
    return made


def test_the_reason_is_of_one_cluster(up: State) -> None:
    assert endings.why(up) is None
    endings.check("up")
    endings.note(up, LIMIT)
    assert endings.why(up) == LIMIT
    assert endings.why(replace(up, start=up.start + 1)) is None
    assert endings.why(replace(up, name="other")) is None
    with pytest.raises(ClusterError, match=r"'up' has ended: it took 101 MiB.*--k3s-disk.*\n.*sandbox down"):
        endings.check("up")
    endings.forget("up")
    endings.forget("up")
    assert endings.why(up) is None


@pytest.mark.parametrize(
    "forged", ["[]", "{", '{"name": "up"}', {"pid": None}, {"pid": True}, {"why": 1}, {"name": "x"}, {"x": 1}]
)
def test_what_does_not_tell_an_end_tells_nothing(up: State, forged: str | dict[str, object]) -> None:
    endings.note(up, LIMIT)
    if isinstance(forged, dict):
        forged = json.dumps({**json.loads(endings.file("up").read_text()), **forged})
    endings.file("up").write_text(forged)
    assert endings.why(up) is None
    assert endings.lines() == []
    os.utime(endings.file("up"), (1, 1))
    registry.state_file("up").unlink()
    endings.remove_old()
    assert endings.file("up").exists()  # it is not known to be ours


def test_a_folder_that_is_gone_prevents_the_word_alone() -> None:
    endings.note(state(), LIMIT)
    assert endings.lines() == []


def test_what_is_told_goes_a_day_after_its_cluster(up: State) -> None:
    endings.note(up, LIMIT)
    endings.remove_old()
    os.utime(endings.file("up"), (1, 1))
    endings.remove_old()
    assert endings.file("up").exists()
    registry.state_file("up").unlink()
    endings.remove_old()
    assert not endings.file("up").exists()


def test_who_is_attached_is_told(up: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = Clients(tmp_path / "users")
    clients.enter()
    cluster = attached_cluster(up, clients, Path("/none"))
    kubelet = cluster.processes["kubelet"]
    assert (kubelet.poll(), cluster.lost) == (None, None)
    assert cluster.sandbox.run(["false"], check=False).returncode == 1
    with pytest.raises(StartError, match="`false` in k3ssb-0011aabb failed"):
        cluster.sandbox.run(["false"])
    endings.note(up, LIMIT)
    assert kubelet.poll() == kubelet.wait(Deadline.after(1)) == -signal.SIGKILL
    assert cluster.lost == LIMIT
    with pytest.raises(ClusterError, match=r"of kubelet was lost while waiting for it: it took.*--k3s-disk"):
        cluster.wait(lambda: False, "it", Deadline.after(5))
    for check in (True, False):
        with pytest.raises(StartError, match=r"^it took 101 MiB.*--k3s-disk"):
            cluster.sandbox.run(["false"], check=check)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(outside, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cluster.sandbox.run(["false"])
    clients.leave()


def sandboxes_folder(key: str) -> None:
    machine.private_folder(machine.sandboxes())
    folder, life, _ = machine.new_workdir("host")
    life.release()
    folder.rename(folder.with_name(key))
    found = json.loads((folder.with_name(key) / machine.OWNER_FILE).read_text().replace(folder.name, key))
    (folder.with_name(key) / machine.OWNER_FILE).write_text(json.dumps(found))


def test_ps_and_shell_tell_it(up: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "reap", list)
    sandboxes_folder("0011aabb")
    endings.note(up, LIMIT)
    endings.note(replace(up, name="held"), LIMIT)  # its state went with it
    (row,) = inventory.running()
    assert (row.name, row.node, row.ended) == ("up", "ended", LIMIT)
    said = CliRunner().invoke(main.app, ["ps"]).stdout
    assert f"\nended: held: {LIMIT}; records: /runs/1\nended: up: {LIMIT}; records: /runs/1\n" in said
    for words in (["shell"], ["shell", "--name", "up"], ["shell", "--name", "held"]):
        result = CliRunner().invoke(main.app, words)
        assert "has ended: it took 101 MiB" in str(result.exception) + result.output


def test_who_comes_to_a_shared_cluster_later_is_told(tmp_path: Path) -> None:
    mine = sharing.Share("0123456789", tmp_path, "never")
    own = Identity.own()
    launched: dict[str, Any] = {"pid": own.pid, "start": own.start, "folder": str(tmp_path / "run")}
    spec = NodeSpec()
    launched["spec"] = json.loads(json.dumps(asdict(spec)))
    mine.clients.note("launched", json.dumps(launched))
    RunWriter(tmp_path / "run").close()
    shared = state(mine.name, folder=str(tmp_path / "run"))
    registry.write_state(shared)
    toolchain: Any = SimpleNamespace(kubernetes=None, get=lambda _name: SimpleNamespace(path=Path("/none")))
    assert mine.ended is None
    mine.up(spec, toolchain)
    assert mine.ended is None
    endings.note(shared, LIMIT)
    assert mine.ended == LIMIT
    late = sharing.Share("0123456789", tmp_path, "never")
    with pytest.raises(ClusterError, match=r"^the shared cluster has ended: it took 101 MiB.*--k3s-disk"):
        late.up(spec, toolchain)
    for each in (mine, late):
        each.leave(failed=False)


def sandbox() -> HostSandbox:
    """Return a sandbox that was not started."""
    made = HostSandbox.__new__(HostSandbox)
    made.workdir = Path("/sandboxes/0011aabb")
    made.ended, made.on_end, made._closed, made._client = None, None, False, None
    return made


@pytest.mark.parametrize("when", ["before", "after"])
def test_who_keeps_a_cluster_tells_it(up: State, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_k3s_sandbox.sandbox.started.ENDED", [])
    endings.note(up, "an earlier one's")
    ending = sandbox()
    tell: list[Callable[[], object]] = [lambda: process.tell_ends(ending, up)]
    tell.insert(1 if when == "after" else 0, lambda: ending._has_ended(LIMIT))
    tell[0]()
    assert endings.why(up) == (None if when == "after" else "an earlier one's")
    tell[1]()
    assert endings.why(up) == f"the sandbox k3ssb-0011aabb: {LIMIT}"


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # the end of its process closes it
@pytest.mark.parametrize("limit", ["seen by the watcher", "the kernel's"])
def test_who_holds_a_cluster_tells_it_when_its_state_is_gone(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair()

    class FakeWatcher:
        """In the place of the watch."""

        def __init__(self, *_: object) -> None:
            """Keep what it is to call."""
            self._end: Any = _[-1]

        def start(self) -> None:
            """Reach the limit at once."""
            if limit != "the kernel's":
                threading.Thread(target=self._end, args=(LIMIT,)).start()
            else:
                theirs.close()

        def reason(self) -> str | None:
            """As the real one's."""
            return LIMIT if limit == "the kernel's" else None

        def stop(self) -> None:
            """Do nothing."""

    monkeypatch.setattr(watch, "Watcher", FakeWatcher)
    monkeypatch.setattr(reaper, "end_processes", lambda *_: theirs.close())
    monkeypatch.setattr(reaper, "dispose", lambda *_: True)
    monkeypatch.setattr(signal, "pthread_sigmask", lambda *_: set())
    folder, life, _ = machine.new_workdir("host")
    fields = {**asdict(state(folder.name, sandbox=folder.name, folder=str(tmp_path)))}
    for name in asdict(Identity.own()):
        del fields[name]
    copy = os.dup(life.fd)
    process.hold(process.Hold(fields, str(folder), ours.detach(), copy))
    life.release()
    assert registry.states() == []
    (line,) = endings.lines()
    assert line == f"ended: {folder.name}: the sandbox k3ssb-{folder.name}: {LIMIT}; records: {tmp_path}"
    assert "--k3s-disk" in (tmp_path / "keeper.log").read_text()
    assert not locks.held(folder / machine.LIFE_FILE)
