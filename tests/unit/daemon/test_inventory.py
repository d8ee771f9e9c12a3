"""What ``k3s-sandbox ps`` says of sandboxes that run."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.daemon import inventory
from pytest_k3s_sandbox.daemon.inventory import Running
from pytest_k3s_sandbox.sandbox import locks, machine, network
from pytest_k3s_sandbox.sandbox.machine import Owner
from pytest_k3s_sandbox.sandbox.processes import Identity


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a home of the test's own."""
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(tmp_path))
    return tmp_path


def sandbox(home: Path, key: str, age: float, start: int | None = None) -> Path:
    """Make the folder of a sandbox of this process'."""
    folder = home / "sandboxes" / key
    folder.mkdir(parents=True)
    own = Identity.own()
    net = network.named(key, "10.213.0.1", "10.213.0.2")
    me = asdict(own if start is None else replace(own, start=start))
    machine.claim(folder, Owner(**me, kind="host", network=net))
    file = folder / machine.OWNER_FILE
    then = file.stat().st_mtime - age
    os.utime(file, (then, then))
    return folder


def test_sandboxes_that_live_are_listed_by_age_with_their_owner(home: Path) -> None:
    sandbox(home, "00000001", age=30)
    sandbox(home, "00000002", age=4000)
    sandbox(home, "0000dead", age=1, start=1)
    (home / "sandboxes" / "no-owner").mkdir()
    rows = inventory.running()
    assert [(row.name, row.node, row.kubeconfig, row.kept) for row in rows] == [
        ("00000002", "none", None, False),
        ("00000001", "none", None, False),
    ]
    assert rows[0].age == pytest.approx(4000, abs=5)
    assert rows[0].owner == inventory.command(os.getpid())
    assert inventory.table(rows).splitlines()[1].startswith("00000002  host 00000002  none  1h 6m  ")


def test_a_sandbox_of_another_pid_namespace_is_listed_while_its_owner_has_the_lock(home: Path) -> None:
    folder = sandbox(home, "00000001", age=1)
    owner = machine.read_owner(folder)
    assert owner is not None
    machine.claim(folder, replace(owner, pid_namespace="pid:[1]"))
    assert inventory.running() == []
    held = locks.take(folder / machine.LIFE_FILE)
    assert [row.owner for row in inventory.running()] == [inventory.ELSEWHERE]
    held.release()


def test_what_is_not_ours_is_named_with_the_reason(home: Path) -> None:
    sandbox(home, "00000001", age=1)
    (home / "sandboxes" / "notes.txt").write_text("a user's")
    (line,) = inventory.strange()
    assert "notes.txt: its name is not that of a sandbox's folder (if it is not needed: rm -r " in line


def test_a_cluster_that_does_not_answer_says_so(home: Path) -> None:
    folder = sandbox(home, "00000001", age=1)
    config = folder / "control/pki/admin.kubeconfig"
    config.parent.mkdir(parents=True)
    config.write_text("nonsense: [")
    (row,) = inventory.running(ask=False)
    assert (row.node, row.kubeconfig) == ("?", str(config))
    config.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
        "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}]\n"
        "users: [{name: u, user: {}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n"
    )
    assert inventory.running()[0].node == "no answer"


def node(*conditions: tuple[str, str]) -> SimpleNamespace:
    made = [SimpleNamespace(type=kind, status=status) for kind, status in conditions]
    return SimpleNamespace(status=SimpleNamespace(conditions=made or None))


@pytest.mark.parametrize(
    ("nodes", "word"),
    [
        ([], "no node"),
        ([node(("Ready", "True"), ("DiskPressure", "False"))], "Ready"),
        ([node(("Ready", "Unknown"))], "NotReady"),
        ([node()], "NotReady"),
        ([node(("Ready", "True")), node(("Ready", "False"))], "NotReady"),
    ],
)
def test_the_state_of_nodes_in_one_word(nodes: list[SimpleNamespace], word: str) -> None:
    assert inventory.ready(nodes) == word


@given(st.floats(0, 10**8))
def test_an_age_is_exact_to_its_second_unit(seconds: float) -> None:
    words = inventory.duration(seconds).split()
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    told = sum(int(word[:-1]) * units[word[-1]] for word in words)
    assert 0 <= seconds - told < units[words[-1][-1]]


def test_a_command_line_is_short_and_without_folders() -> None:
    argv = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(9)", "x" * 200]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        text = inventory.command(process.pid)
        process.kill()
    assert text.startswith(f"{Path(sys.executable).name} -c import time")
    assert len(text) == 60
    assert inventory.command(2**22 + 1) == "?"


def test_nothing_is_a_table_of_heads() -> None:
    row = Running("n", "s", "host", "a", 1, "o", kept=True, age=5, node="Ready", kubeconfig=None, folder=None)
    assert inventory.table([row]).splitlines() == [
        "NAME  SANDBOX  NODE   AGE  PID  OWNER",
        "n     host s   Ready  5s   1    o",
    ]
