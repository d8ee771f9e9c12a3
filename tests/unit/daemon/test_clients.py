"""Who uses a shared cluster is counted by the kernel: also of processes that are killed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from pytest_k3s_sandbox.daemon import registry
from pytest_k3s_sandbox.daemon.clients import Clients
from pytest_k3s_sandbox.daemon.registry import wait_for
from pytest_k3s_sandbox.pytestplugin import sharing
from pytest_k3s_sandbox.sandbox import machine
from pytest_k3s_sandbox.sandbox.processes import Identity

USER = """
import sys, time
from pathlib import Path
from pytest_k3s_sandbox.daemon.clients import Clients
clients = Clients(Path(sys.argv[1]))
clients.enter()
print("in", flush=True)
time.sleep(100)
"""


@contextlib.contextmanager
def another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is a user."""
    argv = [sys.executable, "-c", USER, str(folder)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "in\n"
            yield process
        finally:
            process.kill()


def is_gone(clients: Clients) -> bool:
    with contextlib.ExitStack() as last:
        if gone := clients.gone(last):
            last.callback(clients.remove)
        return gone


def test_a_user_that_is_killed_counts_no_longer(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    daemon = Clients(folder)
    with another(folder) as first, another(folder) as second:
        assert not is_gone(daemon)
        first.kill()
        first.wait()
        assert not is_gone(daemon)
        second.kill()
        second.wait()
    assert is_gone(daemon)
    assert not folder.exists()
    assert is_gone(daemon)  # also when another one has found it out before


def test_who_comes_while_the_cluster_ends_waits_and_finds_nothing_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    first, late = Clients(folder), Clients(folder)
    first.enter()
    first.note("launched", "it")
    first.leave()
    with contextlib.ExitStack() as last:
        assert first.gone(last)
        last.callback(first.remove)
        thread = threading.Thread(target=late.enter)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()
    assert late.read("launched") is None
    assert not is_gone(first)
    late.leave()
    assert is_gone(first)


def test_leaving_twice_or_without_having_come_is_no_error(tmp_path: Path) -> None:
    clients = Clients(tmp_path)
    clients.leave()
    clients.enter()
    clients.leave()
    clients.leave()


def test_words_are_left_for_the_others(tmp_path: Path) -> None:
    one, other = Clients(tmp_path), Clients(tmp_path)
    assert (other.read("failed"), other.stay, other.ended()) == (None, False, {})
    one.note("failed")
    one.note("stay")
    one.write_ended({})
    one.write_ended({"kubelet": -9})
    assert (other.read("failed"), other.stay, other.ended()) == ("", True, {"kubelet": -9})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ended", "failed", "stay"]


def test_what_a_new_user_has_made_is_not_removed_by_one_that_saw_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    last, user = Clients(folder), Clients(folder)
    with contextlib.ExitStack() as stack:
        assert last.gone(stack)
        user.enter()
        user.note("launched", "x")
        last.remove()
        assert user.read("launched") == "x"
        assert not last.gone(stack)


def test_a_folder_that_is_just_removed_counts_as_gone_only_when_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    clients = Clients(folder)
    gone_too: list[Path] = []

    def removed(_fd: int, _how: int) -> None:
        (folder / "users").unlink()
        for path in gone_too:
            path.rmdir()

    monkeypatch.setattr(fcntl, "flock", removed)
    with contextlib.ExitStack() as stack:
        assert not clients.gone(stack)
        gone_too.append(folder)
        assert clients.gone(stack)


def test_a_race_of_clients_and_daemons_ends_with_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    failures: list[BaseException] = []

    def come_and_go() -> None:
        try:
            for _ in range(30):
                clients = Clients(folder)
                clients.enter()
                clients.note("launched", "x")
                assert clients.read("launched") == "x"
                clients.leave()
                is_gone(clients)
        except BaseException as error:  # noqa: BLE001 - told by the test
            failures.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert wait_for(lambda: is_gone(Clients(folder)), 5)
    assert not folder.exists()


@pytest.mark.parametrize("held", [True, False])
def test_the_one_who_starts_is_one(tmp_path: Path, *, held: bool) -> None:
    clients = Clients(tmp_path)
    with clients.start_lock if held else contextlib.nullcontext():
        lock = Clients(tmp_path).start_lock
        got = False
        with contextlib.suppress(TimeoutError), lock.acquire(timeout=0.1):
            got = True
        assert got is not held


def test_what_killed_workers_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(tmp_path))
    shared = tmp_path / "shared"
    for name in ("left", "used", "kept", "daemon lives", "theirs", "mixed"):
        (shared / name).mkdir(parents=True)
        if name != "theirs":
            (shared / name / "users").touch()
    (shared / "theirs" / "thesis.txt").write_text("mine")
    (shared / "mixed" / "thesis.txt").write_text("mine")
    launched = {"name": "share-1", "pid": 2**22 + 1, "start": 7}
    Clients(shared / "left").note("launched", json.dumps({**launched, "name": "share-2"}))
    Clients(shared / "kept").note("launched", json.dumps(launched))
    own = asdict(Identity.own())
    Clients(shared / "daemon lives").note("launched", json.dumps({**launched, **own}))
    (shared / "link").symlink_to(shared / "left")
    taken = registry.take_name("share-1")  # by a process of another pid namespace
    with another(shared / "used"):
        sharing.remove_stale_folders()
    stay = {"daemon lives", "theirs", "mixed", "link"}
    assert {path.name for path in shared.iterdir()} == {*stay, "used", "kept"}
    assert (shared / "theirs" / "thesis.txt").read_text() == "mine"
    assert [path.name for path in (shared / "mixed").iterdir()] == ["thesis.txt"]
    taken.release(remove=True)
    sharing.remove_stale_folders()
    assert {path.name for path in shared.iterdir()} == stay


def test_a_home_that_sharing_makes_first_is_one_that_a_start_accepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(tmp_path / "home"))
    shared = sharing.Share("0123456789", tmp_path, "never")
    _, life, _ = machine.new_workdir("host")
    life.release()
    shared.leave(failed=False)
    assert (tmp_path / "home").stat().st_mode & 0o077 == 0
