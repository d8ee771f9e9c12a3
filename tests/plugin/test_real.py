"""A user's project on the real thing: it passes, or is interrupted, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_k3s_sandbox.report.records import read_run
from pytest_k3s_sandbox.sandbox import machine, reaper
from pytest_k3s_sandbox.toolchain.resolve import cache_folder

pytestmark = [pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor"), pytest.mark.timeout(280)]

TEST = '''
"""A deployment of mine runs."""

import time

def test_my_pod_runs(k3s, k3s_node, k3s_namespace):
    container = {"name": "it", "image": "busybox:1.36", "command": ["sh", "-c", "echo hello; sleep 1000"]}
    pod = {
        "metadata": {"name": "mine"},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
    }
    k3s.core.create_namespaced_pod(k3s_namespace, pod)
    deadline = time.monotonic() + 60
    while k3s.core.read_namespaced_pod("mine", k3s_namespace).status.phase != "Running":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert k3s.kubectl("logs", "-n", k3s_namespace, "mine").stdout == "hello\\n"
    assert k3s_node.conditions()["Ready"].status == "True"
'''

CACHE = cache_folder(os.environ)  # taken here: pytester gives every test a home of its own


@pytest.fixture
def folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's project with sandboxes of its own and the machine's programs."""
    monkeypatch.setenv("K3S_SANDBOX_CACHE", str(CACHE))
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(pytester.path / "state"))
    pytester.makepyfile(test_mine=TEST)
    yield pytester.path
    # Whatever failed above, no sandbox of this test stays.
    with machine.lock():
        reaper.reap()


@contextlib.contextmanager
def started(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run pytest in the user's project; it has ended when this ends."""
    with subprocess.Popen(
        [sys.executable, "-mpytest", "-pno:cacheprovider", "-rA", "--k3s-require", "--rootdir=."],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def sandbox_names(folder: Path) -> list[str]:
    return [path.name for path in (folder / "state" / "sandboxes").glob("*")]


def assert_nothing_is_left(folder: Path, name: str) -> None:
    """Look for a sandbox by its name, which is in all that belongs to it."""
    assert sandbox_names(folder) == []
    assert [line for line in reaper.leftovers() if name in line] == []
    assert name not in Path("/proc/self/mountinfo").read_text()
    assert not list(Path("/run/netns").glob(f"*{name}*"))
    assert not list(Path("/sys/class/net").glob(f"*{name}*"))
    for argv in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert name.encode() not in argv.read_bytes()
        except OSError:
            continue


def wait_for(process: subprocess.Popen[str], folder: Path, phase: str, seconds: float) -> str:
    """Wait until a phase of the bring-up has begun; return the sandbox's name."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        for records in (folder / "reports").glob("*/records.jsonl"):
            if f'"name":"{phase}"' in records.read_text():
                (name,) = sandbox_names(folder)
                return name
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"phase {phase} did not begin: {process.communicate()[0]}")


def test_a_users_test_passes_and_leaves_nothing_but_its_run(folder: Path) -> None:
    with started(folder) as process:
        name = wait_for(process, folder, "configuration", 100)
        output, _ = process.communicate(timeout=250)
    assert process.returncode == 0, output
    assert "PASSED test_mine.py::test_my_pod_runs" in output
    (page,) = re.findall(r"^k3s-sandbox report: (.*)$", output, re.MULTILINE)
    run = read_run(Path(page).parent)
    assert run.complete
    assert run.environment is not None
    assert run.environment.root_magic == 0x01021997
    assert any(sample.node_ready for sample in run.samples)
    assert (Path(page).parent / "logs" / "kubelet.log").stat().st_size > 0
    assert_nothing_is_left(folder, name)


@pytest.mark.parametrize("phase", ["layer fuse_cgroupfs", "containerd"])
def test_ctrl_c_during_the_bring_up_leaves_nothing_and_the_records_say_so(folder: Path, phase: str) -> None:
    with started(folder) as process:
        name = wait_for(process, folder, phase, 100)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=100)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    (page,) = re.findall(r"^k3s-sandbox report: (.*)$", output, re.MULTILINE)
    run = read_run(Path(page).parent)
    assert run.end is not None
    assert (run.end.outcome, run.end.reason) == ("interrupted", "pytest: interrupted")
    assert_nothing_is_left(folder, name)
