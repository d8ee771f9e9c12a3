"""A kubelet or k3s that ends during a start: it is started again, unless it is an experiment's.

The kubelet is a script that fails some times as one did whose call a signal had interrupted, and then becomes
the real one: the programs of Kubernetes are one, which goes by the name that it is called by.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_k3s_sandbox.cli.experiments import experiments_folder
from pytest_k3s_sandbox.errors import WaitError
from pytest_k3s_sandbox.node.session import NodeSession, open_session
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.report.headline import outcome, sentence
from pytest_k3s_sandbox.report.page import render
from pytest_k3s_sandbox.report.records import Run, read_run
from pytest_k3s_sandbox.sandbox import machine, reaper
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR
from pytest_k3s_sandbox.toolchain import Toolchain
from pytest_k3s_sandbox.toolchain.resolve import cache_folder
from support.outside import outside
from support.stand_in_node import node, write_stand_in

pytestmark = [pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor"), pytest.mark.timeout(280)]

READY_SECONDS = 90.0
GIVEN_UP_SECONDS = 60.0
"""Five restarts wait for 7.5 s together; the rest is the start itself."""

FOR_EVER = 1000
SAID = "openat2 /sys/fs/cgroup/memory/memory.kmem.tcp.limit_in_bytes: interrupted system call"
AGAIN = "kubelet was started again once during the start"
CACHE = cache_folder(os.environ)  # taken here: pytester gives every test a home of its own


def mortal(folder: Path, deaths: int, real: str = f"{BIN_DIR}/kube-apiserver") -> Path:
    """Write a kubelet that fails so many times in a sandbox.

    Args:
        folder: Where.
        deaths: How many times.
        real: A program inside that is the real one when it is called so.
    """
    program = folder / "kubelet"
    program.write_text(
        textwrap.dedent(f"""\
            #!/bin/bash
            test "$1" != --version || exit 0
            died=$(cat /run/kubelet-died 2>/dev/null || echo 0)
            if test "$died" -lt {deaths}; then
                echo $((died + 1)) > /run/kubelet-died
                echo 'E1126 12:00:00.000000       7 run.go:72] "command failed" err="{SAID}"' >&2
                exit 1
            fi
            exec -a kubelet {real} "$@"
            """)
    )
    program.chmod(0o755)
    return program


def toolchain(kubelet: Path) -> Toolchain:
    """Return a toolchain with this kubelet."""
    return Toolchain(environ={**os.environ, "K3S_SANDBOX_KUBELET": str(kubelet)})


def kinds(run: Run, component: str = "kubelet") -> list[str]:
    """Return what the supervisor recorded of a program."""
    return [event.kind for event in run.events if event.component == component]


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with sandboxes of its own, a kubelet that fails once, and the machine's programs."""
    monkeypatch.setenv("K3S_SANDBOX_CACHE", str(CACHE))
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(pytester.path / "state"))
    monkeypatch.setenv("K3S_SANDBOX_KUBELET", str(mortal(pytester.path, 1)))
    yield pytester.path
    with machine.lock():
        reaper.reap()


def ran(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a module of Python to its end."""
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=240
    )


def the_run(folder: Path) -> Run:
    """Return the only run below a folder of reports."""
    (records,) = folder.glob("*/records.jsonl")
    return read_run(records)


def test_a_kubelet_that_ends_once_is_started_again_for_a_users_test(project: Path) -> None:
    (project / "test_mine.py").write_text("def test_ready(k3s_node):\n    assert k3s_node.ready\n")
    words = ("pytest", "-pno:cacheprovider", "--k3s-require", "--k3s-keep=always", "--rootdir=.")
    done = ran(*words, f"--k3s-report={project / 'reports'}", folder=project)
    assert done.returncode == 0, done.stdout
    assert f"k3s-sandbox: {AGAIN}; records: " in done.stdout
    run = the_run(project / "reports")
    assert kinds(run) == ["fault", "restart"]
    assert SAID in run.events[0].what
    (page,) = (project / "reports").glob("*/index.html")
    text = page.read_text()
    assert AGAIN in text
    assert SAID in text


def test_a_kubelet_that_ends_once_is_started_again_by_up(project: Path) -> None:
    up = ran("pytest_k3s_sandbox.cli.main", "up", "--name=again", "--report=reports", folder=project)
    try:
        assert up.returncode == 0, up.stderr
        assert re.search(rf"node Ready; {AGAIN}$", up.stderr, re.MULTILINE), up.stderr
        assert kinds(the_run(project / "reports")) == ["fault", "restart"]
    finally:
        down = ran("pytest_k3s_sandbox.cli.main", "down", "--name=again", folder=project)
    assert down.returncode == 0, down.stderr


def test_an_experiments_kubelet_is_not_started_again_and_its_start_is_not_clean(project: Path) -> None:
    reports = project / "reports"
    done = ran(
        *("pytest", "-pno:cacheprovider", f"-c{os.devnull}", f"--rootdir={project}", "--k3s-require"),
        *(f"--k3s-report={reports}", "--k3s-duration=5", "--strict-markers"),
        str(experiments_folder() / "exp08" / "test_exp08.py"),
        folder=project,
    )
    assert done.returncode == 1, done.stdout
    run = the_run(reports)
    assert kinds(run) == ["fault"]
    (verdict,) = [one for one in run.verdicts if one.name == "clean-start"]
    assert verdict.word == "not held"
    assert SAID in str(verdict.measured)
    assert outcome(run) == "not held"
    assert "No program of the node ends by itself during its start: this did not hold" in sentence(run)
    assert "k3s-sandbox exp08: not held" in done.stdout


def test_a_kubelet_that_always_ends_is_given_up(tmp_path: Path) -> None:
    spec, folder = NodeSpec(supervised=True), tmp_path / "run"
    began = time.monotonic()
    with (
        pytest.raises(WaitError) as caught,
        open_session(
            spec, toolchain=toolchain(mortal(tmp_path, FOR_EVER)), folder=folder, experiment="test"
        ) as up,
    ):
        up.cluster.node.wait_ready(READY_SECONDS)
    assert time.monotonic() - began < GIVEN_UP_SECONDS
    assert "kubelet ended with exit code 1 while waiting for" in str(caught.value)
    assert "after it was started again 5 times" in str(caught.value)
    assert SAID in str(caught.value)
    run = read_run(folder)
    assert kinds(run) == [*["fault", "restart"] * 5, "fault", "given-up"]
    assert "kubelet was started again 5 times during the start" in render([folder], folder).read_text()


@pytest.mark.nightly
def test_an_interrupt_during_a_restart_leaves_nothing(project: Path) -> None:
    mortal(project, FOR_EVER)
    (project / "test_mine.py").write_text("def test_ready(k3s_node):\n    assert k3s_node.ready\n")
    words = ["-mpytest", "-pno:cacheprovider", "--k3s-require", "--k3s-keep=always", "--rootdir=."]
    with subprocess.Popen(
        [sys.executable, *words, f"--k3s-report={project / 'reports'}"],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            deadline = time.monotonic() + READY_SECONDS
            while not _restarts(project / "reports"):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            (sandbox,) = (project / "state" / "sandboxes").glob("*")
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    assert list((project / "state" / "sandboxes").glob("*")) == []
    assert [line for line in reaper.leftovers() if sandbox.name in line] == []


def _restarts(reports: Path) -> bool:
    return any('"kind":"restart"' in records.read_text() for records in reports.glob("*/records.jsonl"))


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for k3s."""
    return write_stand_in(tmp_path_factory.mktemp("k3s"))


@contextlib.contextmanager
def mortal_k3s(stand_in: Path, folder: Path, deaths: int, *, supervised: bool) -> Iterator[NodeSession]:
    """Bring up a node on k3s whose kubelet fails so many times, and k3s with it."""
    kubelet = mortal(folder, deaths, f"{STATE_DIR}/parts/kube-apiserver")
    with node(stand_in, folder / "run", supervised=supervised, kubelet=kubelet) as up:
        up.cluster.node.wait_ready(READY_SECONDS)
        yield up


def test_k3s_is_started_again_as_a_whole(stand_in: Path, tmp_path: Path) -> None:
    with mortal_k3s(stand_in, tmp_path, 1, supervised=True) as up:
        assert "kubelet exited" in up.cluster.log("k3s").read_text()
        assert outside(up.cluster.sandbox, STATE_DIR).is_dir()
    run = read_run(tmp_path / "run")
    assert kinds(run, "k3s") == ["fault", "restart"]
    assert "k3s was started again once during the start" in sentence(run)


@pytest.mark.nightly
def test_k3s_without_supervision_is_not_started_again(stand_in: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(WaitError, match="k3s ended with exit code 1"),
        mortal_k3s(stand_in, tmp_path, 1, supervised=False),
    ):
        pass
    assert "restart" not in kinds(read_run(tmp_path / "run"), "k3s")
