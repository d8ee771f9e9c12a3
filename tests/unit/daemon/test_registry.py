"""The state files of kept clusters: found by name, believed only while their process lives."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.daemon import registry
from pytest_k3s_sandbox.daemon.registry import State
from pytest_k3s_sandbox.errors import ClusterError, ConfigError
from pytest_k3s_sandbox.sandbox import locks, processes


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a home of the test's own."""
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(tmp_path))
    return tmp_path


def state(name: str, pid: int | None = None) -> State:
    pid = pid or os.getpid()
    return State(  # noqa: S604 - `shell` is a field of ours
        name=name,
        origin="a test",
        pid=pid,
        start=processes.start_time(pid) or 0,
        boot=processes.boot_id(),
        pid_namespace=processes.pid_namespace(),
        folder="/runs/1",
        kubeconfig="/k",
        shell=("nsenter", "--all"),
        sandbox="0011aabb",
        kind="host",
        address="10.213.0.2",
        api_port=6443,
        node="n",
        layers=("fake_cni",),
        processes={"kubelet": 7},
        zero=1.5,
    )


def test_what_is_written_is_read() -> None:
    registry.write_state(state("up"))
    assert registry.read_state() == state("up")
    assert registry.states() == [state("up")]


def test_a_state_whose_process_is_gone_or_another_one_is_none(home: Path) -> None:
    registry.write_state(replace(state("up"), start=1))
    registry.write_state(replace(state("gone"), pid=2**22 + 1))
    (home / "kept" / "half.json").write_text('{"name": "ha')
    (home / "kept" / "list.json").write_text("[]")
    (home / "kept" / "other.json").write_text('{"name": "other"}')
    assert registry.states() == []


@pytest.mark.parametrize(
    "forged",
    [
        {"pid": -1, "start": None},
        {"pid": -1},
        {"pid": 0},
        {"pid": 1},
        {"pid": True},
        {"pid": "17"},
        {"pid": 17.0},
        {"start": None},
        {"start": 0},
        {"boot": None},
        {"pid_namespace": 4},
        {"name": "../up"},
        {"shell": "rm -rf"},
        {"shell": [1]},
        {"processes": {"kubelet": "7"}},
        {"processes": []},
        {"zero": "1"},
    ],
)
def test_a_forged_state_is_refused(forged: dict[str, object], home: Path) -> None:
    registry.write_state(state("up"))
    fields = json.loads(registry.state_file().read_text())
    assert State.of(fields) == state("up")
    with pytest.raises((TypeError, ValueError)):
        State.of({**fields, **forged})
    (home / "kept" / "up.json").write_text(json.dumps({**fields, **forged}))
    assert registry.states() == []
    registry.remove_stale_states()
    assert registry.state_file().exists()  # it is not known to be ours


@pytest.mark.parametrize("start", [None, 0, 1, 7])
@pytest.mark.parametrize("pid", [-1, 0, 1])
def test_a_state_that_names_every_process_has_none_signalled(
    pid: int, start: int | None, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill(2) takes the process id -1 for all processes, and 0 for the caller's group."""
    signalled: list[tuple[object, ...]] = []
    for module, name in ((os, "kill"), (os, "killpg"), (signal, "pidfd_send_signal")):
        monkeypatch.setattr(module, name, lambda *what: signalled.append(what))
    monkeypatch.setattr(processes, "start_time", lambda _pid: start)  # as if a process had this number
    monkeypatch.setattr(registry, "END_SECONDS", 0.1)
    registry.write_state(replace(state("up"), origin=registry.UP_ORIGIN))
    fields = {**json.loads(registry.state_file().read_text()), "pid": pid, "start": start}
    (home / "kept" / "up.json").write_text(json.dumps(fields))
    for refused in (registry.find, registry.made_by_up):
        with pytest.raises(ConfigError, match="no cluster is up"):
            refused("up")
    registry.remove_stale_states()
    with contextlib.suppress(ClusterError):  # and if it had come that far
        registry.end(replace(state("up"), pid=pid, start=cast("int", start)))
    assert not processes.send(pid, signal.SIGKILL, lambda _pid: True)
    assert signalled == []
    assert registry.state_file().exists()


def test_a_state_under_another_name_is_none(home: Path) -> None:
    registry.write_state(state("up"))
    (home / "kept" / "up.json").rename(home / "kept" / "down.json")
    assert registry.states() == []


def test_a_daemon_of_another_pid_namespace_lives_while_it_has_its_name(home: Path) -> None:
    away = replace(state("away"), pid_namespace="pid:[1]", pid=2**22 + 1)
    registry.write_state(away)
    assert registry.states() == []
    held = registry.take_name("away")
    assert registry.states() == [away]
    registry.remove_stale_states()
    with pytest.raises(
        ConfigError,
        match=r"'away' cannot be ended .*another pid namespace.*\nRemedy: run `k3s-sandbox .*away`",
    ):
        registry.end(away)
    held.release()
    registry.remove_stale_states()
    assert list((home / "kept").iterdir()) == []


def test_after_a_reboot_no_daemon_lives(home: Path) -> None:
    held = registry.take_name("up")
    registry.write_state(replace(state("up"), boot="another"))
    assert registry.states() == []
    held.release(remove=True)
    registry.remove_stale_states()
    assert list((home / "kept").iterdir()) == []


def test_a_name_belongs_to_one_daemon(home: Path) -> None:
    held = registry.take_name("mine")
    for refused in (registry.take_name, registry.refuse_another):
        with pytest.raises(ConfigError, match="the name 'mine' is taken"):
            refused("mine")
    registry.take_name("other").release(remove=True)
    held.release(remove=True)
    held.release(remove=True)
    registry.refuse_another("mine")
    assert list((home / "kept").iterdir()) == []
    assert not locks.held(registry.lock_file("mine"))


def test_down_ends_only_what_up_made() -> None:
    with pytest.raises(ConfigError, match="no cluster is up"):
        registry.made_by_up()
    shared = replace(state("share-1"), origin="shared by workers")
    registry.write_state(shared)
    with pytest.raises(ConfigError, match="without a name is up: there are share-1\nRemedy: end one that"):
        registry.made_by_up()
    with pytest.raises(ConfigError, match=r"was not made by `k3s-sandbox up`.*\n.*k3s-sandbox stop share-1"):
        registry.made_by_up("share-1")
    named = replace(state("mine"), origin=registry.UP_ORIGIN)
    registry.write_state(named)
    with pytest.raises(ConfigError, match="down --name mine"):
        registry.made_by_up()
    assert registry.made_by_up("mine") == named
    with pytest.raises(ConfigError, match="did you mean 'mine'"):
        registry.made_by_up("mind")
    plain = replace(state("up"), origin=registry.UP_ORIGIN)
    registry.write_state(plain)
    assert registry.made_by_up() == plain
    assert registry.end_command(plain) == "k3s-sandbox down"
    assert registry.end_command(named) == "k3s-sandbox down --name mine"
    assert registry.end_command(shared) == "k3s-sandbox stop share-1"


def test_find() -> None:
    with pytest.raises(ConfigError, match="no cluster is up"):
        registry.find()
    registry.write_state(state("one"))
    assert registry.find() == registry.find("one") == state("one")
    registry.write_state(state("two"))
    with pytest.raises(ConfigError, match="several clusters are up: one, two\nRemedy: name one"):
        registry.find()
    with pytest.raises(ConfigError, match="no cluster is called 'tow': there are one, two") as refused:
        registry.find("tow")
    assert refused.value.remedy == "did you mean 'two'?"
    registry.write_state(state("up"))
    assert registry.find().name == "up"


def test_a_second_one_of_the_same_name_is_refused() -> None:
    registry.refuse_another("mine")
    registry.write_state(state("mine"))
    registry.refuse_another("up")
    with pytest.raises(ConfigError, match="a cluster is up already"):
        registry.refuse_another("mine")


@given(st.text() | st.from_regex(r"[a-zA-Z0-9./-]{0,50}", fullmatch=True))
def test_a_name_is_safe_in_a_path_or_refused(name: str) -> None:
    try:
        assert registry.check_name(name) == name
    except ConfigError:
        return
    assert Path(name).name == name
    assert not name.startswith(("-", "."))
    assert len(name) <= 40


def test_the_end_is_waited_for_and_one_that_does_not_come_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "END_SECONDS", 0.5)
    waits = "print('on', flush=True); import time; time.sleep(99)"
    deaf = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {waits}"
    for code, ends in ((waits, True), (deaf, False)):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                if ends:
                    registry.end(state("it", process.pid))
                    assert process.wait(timeout=5) == -15
                else:
                    with pytest.raises(
                        ClusterError,
                        match=r"does not end: it still runs 0\.5 s .*\nRemedy: .*`kill -KILL \d+`",
                    ):
                        registry.end(state("it", process.pid))
            finally:
                process.kill()
