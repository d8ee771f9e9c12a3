"""Owners of sandboxes, and sandboxes whose owner is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.errors import StartError
from pytest_k3s_sandbox.sandbox import locks, machine, network, processes, reaper
from pytest_k3s_sandbox.sandbox.machine import Owner
from pytest_k3s_sandbox.sandbox.processes import Identity
from pytest_k3s_sandbox.support import mountinfo


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(machine, "LOCK", tmp_path / "lock")
    return tmp_path / "home"


def new_folder() -> Path:
    """Make a sandbox's folder whose owner, as far as its lock says, is gone."""
    folder, life, _ = machine.new_workdir("host")
    life.release()
    return folder


def owner(folder: Path) -> Owner:
    """Return a record that fits a folder."""
    net = network.named(folder.name, "10.213.0.1", "10.213.0.2")
    groups = (f"/none/a/{net.netns}", f"/none/b/{net.netns}")
    return Owner(**asdict(Identity.own()), kind="host", network=net, cgroups=groups)


def dead(folder: Path) -> Owner:
    """Return a record of a process that has ended."""
    return replace(owner(folder), start=1)


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
    folder = new_folder()
    assert folder.parent == home / "sandboxes"
    mine = owner(folder)
    machine.claim(folder, mine)
    assert machine.read_owner(folder) == mine
    assert mine.alive(folder)
    assert {path.name for path in folder.iterdir()} == {machine.OWNER_FILE, machine.LIFE_FILE}
    assert (folder / machine.OWNER_FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"pid": 1, "network": {}}', '{"network": 3, "cgroups": []}', "7"]
)
def test_a_broken_owner_file_is_no_owner(home: Path, text: str) -> None:
    folder = new_folder()
    (folder / machine.OWNER_FILE).write_text(text)
    assert home.exists()
    assert machine.read_owner(folder) is None
    assert list(machine.strangers()) == [folder]


def test_a_nested_owner_file_is_no_owner(home: Path) -> None:
    folder = new_folder()
    (folder / machine.OWNER_FILE).write_text("[" * 60000)
    assert home.exists()
    assert machine.read_owner(folder) is None


ALIEN: dict[str, tuple[dict[str, Any], str]] = {
    "later": ({"later": 1}, "broken or forged"),
    "format 3": ({"format": 3}, "another version"),
    "another program": ({"made_by": "podman"}, "another version"),
    "pid -1": ({"pid": -1}, "broken or forged"),
    "pid null": ({"pid": None}, "broken or forged"),
    "pid true": ({"pid": True}, "broken or forged"),
    "start null": ({"start": None}, "broken or forged"),
    "start text": ({"start": "7"}, "broken or forged"),
    "no boot": ({"boot": ""}, "broken or forged"),
    "boot null": ({"boot": None}, "broken or forged"),
    "namespace": ({"pid_namespace": 4026531836}, "broken or forged"),
    "runsc": ({"runsc": ["rm"]}, "broken or forged"),
    "cgroups text": ({"cgroups": "/sys/fs/cgroup"}, "broken or forged"),
    "cgroups": ({"cgroups": ["/sys/fs/cgroup/system.slice"]}, "broken or forged"),
    "network": ({"network": {"netns": "k3ssb-ffffffff", "veth": "k3sffffffff", "gateway": "", "address": ""}},
        "broken or forged"),
    "interface": ({"network": {"netns": "KEY", "veth": "eth0", "gateway": "", "address": ""}},
        "broken or forged"),
    "network null": ({"network": None}, "broken or forged"),
}  # fmt: skip


@pytest.mark.parametrize("what", ALIEN)
def test_a_forged_owner_file_or_one_of_another_version_is_no_owner(home: Path, what: str) -> None:
    folder = new_folder()
    machine.claim(folder, owner(folder))
    data = json.loads((folder / machine.OWNER_FILE).read_text())
    changes, reason = ALIEN[what]
    text = json.dumps({**data, **changes}).replace("KEY", f"k3ssb-{folder.name}")
    (folder / machine.OWNER_FILE).write_text(text)
    assert home.exists()
    assert machine.read_owner(folder) is None
    assert reason in machine.strangers()[folder]
    assert reaper.reap() == []
    assert (folder / machine.OWNER_FILE).read_text() == text


def test_the_owner_file_of_the_version_before_is_no_owner(home: Path) -> None:
    folder = new_folder()
    net = {"netns": f"k3ssb-{folder.name}", "veth": f"k3s{folder.name}", "gateway": "", "address": ""}
    before = {"pid": 17, "start": 3, "kind": "gvisor", "network": net, "cgroups": [], "runsc": "/bin/runsc"}
    (folder / machine.OWNER_FILE).write_text(json.dumps(before))
    assert home.exists()
    assert "another version of this project made it" in machine.strangers()[folder]
    assert reaper.reap() == []
    assert folder.exists()


@pytest.mark.parametrize("how", ["writable by others", "a link", "a pipe", "a folder"])
def test_an_owner_file_that_another_user_may_have_written_is_no_owner(
    home: Path, tmp_path: Path, how: str
) -> None:
    folder = new_folder()
    machine.claim(folder, dead(folder))
    file = folder / machine.OWNER_FILE
    if how == "writable by others":
        file.chmod(0o666)
    else:
        file.rename(tmp_path / "moved")
        if how == "a link":
            file.symlink_to(tmp_path / "moved")
        elif how == "a pipe":
            os.mkfifo(file)
        else:
            file.mkdir()
    assert home.exists()
    assert reaper.reap() == []
    assert list(machine.strangers()) == [folder]


def test_what_a_user_keeps_there_stays(home: Path) -> None:
    ours = new_folder()
    machine.claim(ours, dead(ours))
    there = home / "sandboxes"
    (there / "notes.txt").write_text("mine")
    (there / "0123abcd").mkdir()  # called as a sandbox
    (there / "0123abcd" / "data").write_text("mine")
    (there / "76543210").write_text("mine")
    (there / "aaaaaaaa").symlink_to(ours)
    (there / "my data").mkdir()
    machine.claim(there / "my data", dead(ours))
    assert set(machine.strangers()) == {
        there / name for name in ("notes.txt", "0123abcd", "76543210", "aaaaaaaa", "my data")
    }
    assert reaper.reap() == [ours.name]
    assert (there / "0123abcd" / "data").read_text() == "mine"
    assert len(list(there.iterdir())) == 5
    assert len(machine.strangers()) == 5


def test_start_time_is_the_processes_own() -> None:
    mine = processes.start_time(os.getpid())
    assert mine is not None
    assert mine > 0
    time.sleep(0.05)
    with subprocess.Popen(["sleep", "100"]) as child:
        theirs = processes.start_time(child.pid)
        assert theirs is not None
        assert theirs > mine
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie has ended
        assert processes.start_time(child.pid) is None
    assert processes.start_time(child.pid) is None


def test_a_command_with_a_parenthesis_and_spaces_does_not_confuse_start_time() -> None:
    code = (  # PR_SET_NAME is 15 (linux/prctl.h)
        "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'a) R 1 (b'); "
        "print('named', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        before = processes.start_time(child.pid)
        child.stdout.readline()
        assert "a) R 1 (b" in Path(f"/proc/{child.pid}/comm").read_text()
        assert processes.start_time(child.pid) == before
        child.communicate()


def test_orphans_are_those_whose_owner_is_gone(home: Path) -> None:
    names = {what: new_folder() for what in ("mine", "reused", "dead", "rebooted", "away")}
    machine.claim(names["mine"], owner(names["mine"]))
    # The number belongs to another process now.
    machine.claim(names["reused"], replace(owner(names["reused"]), start=Identity.own().start + 1))
    with subprocess.Popen(["sleep", "100"]) as child:
        start = processes.start_time(child.pid)
        child.kill()
    assert start is not None
    machine.claim(names["dead"], replace(owner(names["dead"]), pid=child.pid, start=start))
    machine.claim(
        names["rebooted"], replace(owner(names["rebooted"]), boot="another")
    )  # the same pid and start
    machine.claim(names["away"], replace(owner(names["away"]), pid_namespace="pid:[1]"))
    life = locks.take(names["away"] / machine.LIFE_FILE)
    assert {folder for folder, _ in reaper.orphans()} == set(names.values()) - {names["mine"], names["away"]}
    assert set(reaper.reap()) == {names[what].name for what in ("reused", "dead", "rebooted")}
    assert set((home / "sandboxes").iterdir()) == {names["mine"], names["away"]}
    assert list(machine.partial().iterdir()) == []
    assert reaper.reap() == []
    life.release()
    # Its owner is gone. What it has outside the folder can only be removed in its own pid namespace,
    # so that the record waits for a run there, but not for ever.
    (names["away"] / "var").mkdir()
    assert reaper.reap() == []
    assert {path.name for path in names["away"].iterdir()} == {machine.OWNER_FILE, machine.LIFE_FILE}
    os.utime(names["away"] / machine.OWNER_FILE, (1, 1))
    assert reaper.reap() == [names["away"].name]


def test_without_a_home_there_are_no_orphans(home: Path) -> None:
    assert reaper.orphans() == []
    assert machine.strangers() == {}
    machine.remove_unfinished()
    assert not home.exists()


def test_a_start_or_a_removal_that_was_killed_half_way_is_swept(home: Path) -> None:
    ours = new_folder()
    machine.claim(ours, dead(ours))
    partial = machine.partial()
    ours.rename(partial / ours.name)
    (partial / "0123abcd").mkdir()  # killed before it wrote anything
    (partial / "a user's").mkdir()
    (partial / "ffffffff").mkdir()
    (partial / "ffffffff" / "data").write_text("mine")
    assert reaper.reap() == []
    assert {path.name for path in partial.iterdir()} == {"a user's", "ffffffff"}
    assert (partial / "ffffffff" / "data").read_text() == "mine"
    assert home.exists()


def test_a_folder_nested_deeper_than_the_stack_goes(home: Path) -> None:
    folder = new_folder()
    machine.claim(folder, dead(folder))
    at = os.open(folder, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    assert home.exists()
    assert reaper.reap(60) == [folder.name]
    assert not folder.exists()


def test_a_link_in_a_folder_is_removed_and_not_followed(home: Path, tmp_path: Path) -> None:
    folder = new_folder()
    machine.claim(folder, dead(folder))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "data").write_text("mine")
    (folder / "var").symlink_to(tmp_path / "theirs")
    assert home.exists()
    assert reaper.reap() == [folder.name]
    assert (tmp_path / "theirs" / "data").read_text() == "mine"


def test_what_hangs_keeps_neither_the_others_nor_a_start(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [new_folder() for _ in range(4)]
    for folder in folders:
        machine.claim(folder, dead(folder))
    hang = threading.Event()
    genuine = reaper.end_processes

    def end(workdir: Path, owner: Owner) -> bool:
        if workdir != folders[0]:
            hang.wait(20)
        return genuine(workdir, owner)

    monkeypatch.setattr(reaper, "end_processes", end)
    began = time.monotonic()
    assert reaper.reap(0.3) == [folders[0].name]
    with machine.lock():  # which is free meanwhile
        assert time.monotonic() - began < 2
    assert reaper.reap(0.3) == []  # others' removals are not begun twice
    hang.set()
    assert home.exists()
    until = time.monotonic() + 10
    while any(folder.exists() for folder in folders) and time.monotonic() < until:
        time.sleep(0.02)
    assert list((home / "sandboxes").iterdir()) == []


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
    assert not locks.held(machine.LOCK)


@pytest.mark.parametrize("how", ["a link", "a folder"])
def test_a_lock_that_is_none_is_told_and_left(home: Path, tmp_path: Path, how: str) -> None:
    target = tmp_path / "theirs"
    target.write_text("mine")
    if how == "a link":
        machine.LOCK.symlink_to(target)
    else:
        machine.LOCK.mkdir()
    with pytest.raises(StartError, match="Remedy: look at it with `ls -l"), machine.lock():
        pass
    assert target.read_text() == "mine"
    assert not home.exists()


@given(st.text(alphabet=st.sampled_from("ab/ \t\n\\é"), max_size=20))
def test_mountinfo_escapes_are_undone(path: str) -> None:
    escaped = path  # as the kernel does: seq_path(9) escapes these four
    for char in "\\ \t\n":
        escaped = escaped.replace(char, f"\\{ord(char):03o}")
    assert mountinfo.unescape(escaped) == path


def test_a_cgroup_goes_with_its_children(tmp_path: Path) -> None:
    group = tmp_path / "group"
    (group / "a" / "b").mkdir(parents=True)
    (group / "c").mkdir()
    reaper.remove_cgroup(group)
    assert not group.exists()
    reaper.remove_cgroup(group)  # gone already


def test_a_cgroup_that_stays_busy_is_given_up_in_time(tmp_path: Path) -> None:
    group = tmp_path / "group"
    group.mkdir()
    (group / "stays").write_text("a folder with a file cannot be removed, like a group with a task")
    began = time.monotonic()
    reaper.remove_cgroup(group, seconds=0.1)
    assert 0.1 <= time.monotonic() - began < 1
    threading.Timer(0.1, (group / "stays").unlink).start()
    reaper.remove_cgroup(group, seconds=5)
    assert not group.exists()
