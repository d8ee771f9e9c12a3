"""A cluster to play with: up, used, down, and what remains when its daemon process is killed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_k3s_sandbox.daemon import registry
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.sandbox import machine, reaper
from pytest_k3s_sandbox.sandbox.processes import start_time
from pytest_k3s_sandbox.toolchain import Toolchain

pytestmark = [pytest.mark.k3s_requires("root", "gvisor"), pytest.mark.timeout(900)]

Done = subprocess.CompletedProcess[str]
Cli = Callable[..., Done]

UP_SECONDS = 240.0
ENDS_BY_ITSELF = 5.0
"""Seconds that a sandbox may outlive a daemon process that was killed."""


@pytest.fixture
def nothing_kept(home: Path) -> Iterator[None]:
    """End what a test leaves up in its home, whatever the test did, also a cluster that is not Ready yet."""
    yield
    owners = [machine.read_owner(folder) for folder in (home / "sandboxes").glob("*")]
    for owner in owners:
        if owner is not None and owner.pid != os.getpid() and start_time(owner.pid) == owner.start:
            os.kill(owner.pid, signal.SIGKILL)
    wait_until(lambda: registry.states() == [])
    with machine.lock():
        reaper.reap()


@pytest.fixture
def up(cli: Cli, home: Path, nothing_kept: None) -> Iterator[Done]:  # noqa: ARG001 - it ends what this starts
    """Bring a cluster up."""
    done = cli("up", "--report", "reports", timeout=UP_SECONDS)
    assert done.returncode == 0, done.stderr
    yield done
    assert home.is_dir()


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = Deadline.after(seconds)
    while not condition():
        if deadline.expired:
            return False
        time.sleep(0.05)
    return True


def ours(home: Path) -> list[str]:
    """Return what is on the machine of sandboxes in this home, whoever else runs some."""
    keys = [folder.name for folder in (home / "sandboxes").glob("*")]
    left = reaper.leftovers()
    return [line for line in left if str(home) in line or any(key in line for key in keys)]


def processes(keys: list[str]) -> set[int]:
    """Return the processes of sandboxes: those that name one, and those in its network namespace."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            named = any(key.encode() in (folder / "cmdline").read_bytes() for key in keys)
        except OSError:
            continue
        if named:
            found.add(int(folder.name))
    for key in keys:
        done = subprocess.run(
            ["ip", "netns", "pids", f"k3ssb-{key}"], capture_output=True, text=True, check=False
        )
        found |= {int(word) for word in done.stdout.split()}
    return found - {os.getpid()}


def test_up_use_and_down(cli: Cli, up: Done, home: Path, tmp_path: Path) -> None:
    # What up says can be given to a shell.
    assert up.stdout.startswith("export KUBECONFIG=")
    config = shlex.split(up.stdout)[1].partition("=")[2]
    assert "node Ready" in up.stderr
    assert "records: " in up.stderr

    # The machine reaches the cluster by it.
    kubectl = Toolchain().get("kubectl").path
    nodes = subprocess.run(
        ["sh", "-c", f"{up.stdout.strip()}; {kubectl} get nodes"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert nodes.returncode == 0, nodes.stderr
    assert nodes.stdout.splitlines()[1].split()[:2] == ["k3s-sandbox", "Ready"]
    assert Path(config).stat().st_mode & 0o077 == 0

    # It is listed with its node's state, and no name but its own reaches it.
    (row,) = json.loads(cli("ps", "--json", "-").stdout)
    assert (row["name"], row["node"], row["kept"]) == ("up", "Ready", True)
    assert (row["kubeconfig"], row["owner"]) == (config, "k3s-sandbox up")
    assert cli("ps").stdout.splitlines()[1].split()[:4] == ["up", "gvisor", row["sandbox"], "Ready"]
    assert cli("shell", "--name", "up", "true").returncode == 0
    assert "did you mean 'up'?" in cli("stop", "upp").stderr

    # A command inside: its exit code, both of its streams, and no byte lost or moved in a file.
    assert cli("shell", "sh", "-c", "exit 7").returncode == 7
    inside = cli("shell", "uname", "-r")
    assert (inside.returncode, inside.stdout) == (0, "4.19.0-gvisor\n")
    assert "k3s-sandbox" in cli("shell", "kubectl", "get", "nodes").stdout
    both = cli("shell", "sh", "-c", "echo out; echo err >&2")
    assert (both.stdout, both.stderr) == ("out\n", "err\n")
    out = tmp_path / "out"
    with out.open("w") as file:
        file.write("written before\n")
        file.flush()
        argv = [
            sys.executable,
            "-m",
            "pytest_k3s_sandbox.cli.main",
            "shell",
            "sh",
            "-c",
            "seq 1 20000; echo last >&2",
        ]
        subprocess.run(argv, stdout=file, stderr=file, check=True, timeout=120)
        file.write("written after\n")
    # Two streams have no order between them: `last` may even stand within a line of the other stream.
    text = out.read_text()
    assert text.count("last\n") == 1
    lines = text.replace("last\n", "").splitlines()
    assert lines == ["written before", *map(str, range(1, 20001)), "written after"]

    # A second one is refused at once, and leaves no trace.
    reports = sorted((tmp_path / "reports").iterdir())
    second = cli("up", "--report", "reports")
    assert second.returncode == 2
    assert "a cluster is up already" in second.stderr
    assert (
        "Remedy: use it, end it with `k3s-sandbox down`, or give the new one another --name" in second.stderr
    )
    assert sorted((tmp_path / "reports").iterdir()) == reports

    # The end is one of everything but the records.
    keys = [folder.name for folder in (home / "sandboxes").glob("*")]
    assert len(keys) == 1
    assert processes(keys)
    down = cli("down")
    assert down.returncode == 0, down.stderr
    assert down.stderr.startswith("ended; records: ")
    assert processes(keys) == set()
    assert [line for line in reaper.leftovers() if keys[0] in line or str(home) in line] == []
    assert list((home / "sandboxes").iterdir()) == []
    assert not registry.state_file().exists()
    assert (Path(down.stderr.split(": ")[1].strip()) / "records.jsonl").is_file()
    assert cli("down").returncode == 2


def test_daemon_that_is_killed(cli: Cli, up: Done, home: Path) -> None:
    assert up.returncode == 0
    state = registry.find()
    keys = [folder.name for folder in (home / "sandboxes").glob("*")]
    assert processes(keys)

    os.kill(state.pid, signal.SIGKILL)
    assert wait_until(lambda: processes(keys) == set(), ENDS_BY_ITSELF), processes(keys)

    down = cli("down")
    assert down.returncode == 2
    assert "no cluster is up" in down.stderr
    assert ours(home) == []  # any next command removes what it left
    assert list((home / "kept").iterdir()) == []
    assert [line for line in reaper.leftovers() if keys[0] in line or str(home) in line] == []


@pytest.mark.usefixtures("nothing_kept")
def test_two_of_one_name_at_the_same_time(cli: Cli, home: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "pytest_k3s_sandbox.cli", "up", "--name", "mine", "--report", "reports"]
    both = [
        subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=UP_SECONDS) for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    first, second = sorted(said, key=lambda outputs: not outputs[0])
    assert first[0].startswith("export KUBECONFIG=")
    assert "the end: k3s-sandbox down --name mine" in first[1]
    assert second[0] == ""
    assert "the name 'mine' is taken" in second[1] or "a cluster is up already" in second[1]
    assert "Remedy: " in second[1]
    assert len(list((home / "sandboxes").iterdir())) == 1

    # Without its name it is not meant.
    refused = cli("down")
    assert refused.returncode == 2
    assert "Remedy: name one: `k3s-sandbox down --name mine`" in refused.stderr
    done = cli("down", "--name", "mine")
    assert done.returncode == 0, done.stderr
    assert list((home / "sandboxes").iterdir()) == list((home / "kept").iterdir()) == []


@pytest.mark.usefixtures("nothing_kept")
def test_up_that_is_interrupted(home: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "pytest_k3s_sandbox.cli", "up", "--report", "reports"]
    with subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if " layer " in line:  # the sandbox runs, and a layer is on its way
                break
        keys = [folder.name for folder in (home / "sandboxes").glob("*")]
        assert processes(keys)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode not in {0, 2}
    assert "Traceback" not in rest
    assert processes(keys) == set()
    assert [line for line in reaper.leftovers() if keys[0] in line or str(home) in line] == []
    assert list((home / "sandboxes").iterdir()) == []
    (run,) = (tmp_path / "reports").iterdir()
    assert '"outcome":"interrupted"' in (run / "records.jsonl").read_text()
