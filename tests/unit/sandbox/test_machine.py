"""Who owns a sandbox, and which sandboxes are nobody's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.errors import StartError
from pytest_k3s_sandbox.sandbox import machine, network
from pytest_k3s_sandbox.sandbox.machine import Owner
from pytest_k3s_sandbox.sandbox.network import Network

NET = Network("k3ssb-0123abcd", "k3s0123abcd", "10.213.0.1", "10.213.0.2")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(machine, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(network, "end_processes", lambda _net: None)
    monkeypatch.setattr(network, "remove", lambda _net: None)
    return tmp_path / "home"


def owner(pid: int, start: int | None) -> Owner:
    return Owner(pid=pid, start=start or 0, kind="here", network=NET, cgroups=("/a", "/b"), runsc=None)


def test_home_is_the_variables_folder_resolved(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.home() == home
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(tmp_path / "link" / "home"))
    assert machine.home() == home
    monkeypatch.setenv("K3S_SANDBOX_HOME", "")
    assert machine.home().name == "pytest-k3s-sandbox"


def test_an_owner_survives_the_way_to_disk_and_back(home: Path) -> None:
    folder = machine.new_workdir()
    assert folder.parent == home / "sandboxes"
    mine = owner(os.getpid(), 7)
    machine.claim(folder, mine)
    assert machine.read_owner(folder) == mine
    assert [path.name for path in folder.iterdir()] == [machine.OWNER_FILE]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"pid": 1, "network": {}}', '{"network": 3, "cgroups": []}', "7"]
)
def test_a_broken_owner_file_is_no_owner(home: Path, text: str) -> None:
    folder = machine.new_workdir()
    (folder / machine.OWNER_FILE).write_text(text)
    assert home.exists()
    assert machine.read_owner(folder) is None


def test_an_owner_file_with_a_field_of_a_later_version_is_no_owner(home: Path) -> None:
    folder = machine.new_workdir()
    machine.claim(folder, owner(1, 1))
    data = json.loads((folder / machine.OWNER_FILE).read_text())
    (folder / machine.OWNER_FILE).write_text(json.dumps({**data, "later": 1}))
    assert home.exists()
    assert machine.read_owner(folder) is None


def test_start_time_is_the_processes_own() -> None:
    mine = machine.start_time(os.getpid())
    assert mine is not None
    assert mine > 0
    time.sleep(0.05)
    with subprocess.Popen(["sleep", "100"]) as child:
        theirs = machine.start_time(child.pid)
        assert theirs is not None
        assert theirs > mine
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie has ended
        assert machine.start_time(child.pid) is None
    assert machine.start_time(child.pid) is None


def test_a_command_with_a_parenthesis_and_spaces_does_not_confuse_start_time() -> None:
    code = (  # PR_SET_NAME is 15 (linux/prctl.h)
        "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'a) R 1 (b'); "
        "print('named', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        before = machine.start_time(child.pid)
        child.stdout.readline()
        assert "a) R 1 (b" in Path(f"/proc/{child.pid}/comm").read_text()
        assert machine.start_time(child.pid) == before
        child.communicate()


def test_orphans_are_those_whose_owner_is_gone_or_unknown(home: Path) -> None:
    names = {}
    for what in ("mine", "reused", "dead", "unowned", "broken"):
        names[what] = machine.new_workdir()
    me = machine.start_time(os.getpid())
    assert me is not None
    machine.claim(names["mine"], owner(os.getpid(), me))
    machine.claim(names["reused"], owner(os.getpid(), me + 1))  # the number belongs to another process now
    with subprocess.Popen(["true"]) as child:
        start = machine.start_time(child.pid)
    machine.claim(names["dead"], owner(child.pid, start))
    (names["broken"] / machine.OWNER_FILE).write_text("{")
    assert {folder for folder, _ in machine.orphans()} == set(names.values()) - {names["mine"]}
    with machine.lock():
        assert set(machine.reap()) == {folder.name for folder in names.values()} - {names["mine"].name}
    assert list((home / "sandboxes").iterdir()) == [names["mine"]]
    with machine.lock():
        assert machine.reap() == []


def test_without_a_home_there_are_no_orphans(home: Path) -> None:
    assert machine.orphans() == []
    assert not home.exists()


def test_the_network_of_a_folder_without_an_owner_follows_from_its_name(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[Network] = []
    monkeypatch.setattr(network, "remove", removed.append)
    folder = machine.new_workdir()
    with machine.lock():
        machine.reap()
    assert home.exists()
    assert [net.netns for net in removed] == [f"k3ssb-{folder.name}"]
    assert [net.veth for net in removed] == [f"k3s{folder.name}"]


def test_the_lock_keeps_others_out_and_says_who_has_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LOCK_SECONDS", 0.2)
    messages: list[str] = []

    def want() -> None:
        try:
            with machine.lock():
                messages.append("got it")
        except StartError as error:
            messages.append(str(error))

    with machine.lock():
        thread = threading.Thread(target=want)
        thread.start()
        thread.join()
    assert home is not None
    assert "another process has held it for 0.2 s" in messages[0]
    assert "fuser" in messages[0]
    want()
    assert messages[1] == "got it"


def test_the_lock_is_free_after_an_exception(home: Path) -> None:
    def fail() -> None:
        with machine.lock():
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert home is not None
    with filelock.FileLock(machine.LOCK, timeout=0):
        pass


@given(st.text(alphabet=st.sampled_from("ab/ \t\n\\é"), max_size=20))
def test_mountinfo_escapes_are_undone(path: str) -> None:
    escaped = path  # as the kernel does: seq_path(9) escapes these four
    for char in "\\ \t\n":
        escaped = escaped.replace(char, f"\\{ord(char):03o}")
    assert machine.unescape(escaped) == path


def test_a_cgroup_goes_with_its_children(tmp_path: Path) -> None:
    group = tmp_path / "group"
    (group / "a" / "b").mkdir(parents=True)
    (group / "c").mkdir()
    machine.remove_cgroup(group)
    assert not group.exists()
    machine.remove_cgroup(group)  # gone already


def test_a_cgroup_that_stays_busy_is_given_up_in_time(tmp_path: Path) -> None:
    group = tmp_path / "group"
    group.mkdir()
    (group / "stays").write_text("a folder with a file cannot be removed, like a group with a task")
    began = time.monotonic()
    machine.remove_cgroup(group, seconds=0.1)
    assert 0.1 <= time.monotonic() - began < 1
    threading.Timer(0.1, (group / "stays").unlink).start()
    machine.remove_cgroup(group, seconds=5)
    assert not group.exists()


def test_a_container_without_a_state_folder_is_left_alone(tmp_path: Path) -> None:
    machine.end_container("/no/such/runsc", tmp_path)
    (tmp_path / "runsc").mkdir()
    machine.end_container("/no/such/runsc", tmp_path)  # a program that is gone is no error
    called = tmp_path / "fake"
    called.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\n')
    called.chmod(0o755)
    machine.end_container(str(called), tmp_path)
    assert (tmp_path / "words").read_text().split() == [
        "--root",
        str(tmp_path / "runsc"),
        "delete",
        "--force",
        tmp_path.name,
    ]
