"""Processes that are forked from the one that has a sandbox or a cluster, on the real thing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_k3s_sandbox.cluster.cluster import Cluster, Node
from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.layers.stack import FULL
from pytest_k3s_sandbox.sandbox import reaper
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.sandbox.host import HostSandbox
from pytest_k3s_sandbox.sandbox.started import StartedSandbox
from pytest_k3s_sandbox.toolchain import Toolchain

pytestmark = [pytest.mark.k3s_requires("root"), pytest.mark.timeout(280)]

OWNER = """
import os, subprocess, sys, time
from pathlib import Path
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.sandbox.host import HostSandbox
sandbox = HostSandbox() if sys.argv[1] == "host" else GvisorSandbox(Path(sys.argv[1]))
sandbox.spawn(["sleep", "1000"], name="sleeper")
child = os.fork()
if child == 0:
    os.setsid()  # as a daemon does
    time.sleep(60)
    os._exit(0)
print(child, sandbox.workdir.name, flush=True)
time.sleep(1000)
"""
"""Has a sandbox, and a child that stays."""


@pytest.fixture(params=["host", pytest.param("gvisor", marks=pytest.mark.k3s_requires("gvisor"))])
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(tmp_path / "home"))
    return str(request.param)


@pytest.fixture
def sandbox(kind: str) -> Iterator[StartedSandbox]:
    with HostSandbox() if kind == "host" else GvisorSandbox(Toolchain().get("runsc").path) as made:
        yield made


def child(body: Callable[[], None], seconds: float = 60.0) -> int:
    """Run a function in a forked process; return its exit code, 0 when it came to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - nothing may come back from here
            os.write(2, f"in the child: {error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"the child still ran after {seconds:g} s")


def test_a_child_runs_programs_and_ends_nothing(sandbox: StartedSandbox) -> None:
    sleeper = sandbox.spawn(["sleep", "1000"], name="sleeper")

    def body() -> None:
        assert sandbox.run(["echo", "from a child"]).stdout == "from a child\n"
        assert sleeper.poll() is None
        for refused in (
            lambda: sandbox.spawn(["true"], name="another"),
            sandbox.usage,
            sleeper.stop,
            lambda: sleeper.signal(signal.SIGKILL),
            lambda: sandbox.hand_over(lambda _channel: None),
        ):
            with pytest.raises(ConfigError, match="was forked from its owner"):
                refused()
        sandbox.close()

    # Whoever has the locks of the client at the fork: that thread is not in the child.
    client = sandbox._client
    assert client is not None
    with client._changed, client._write:
        assert child(body) == 0
    assert sleeper.poll() is None
    assert sandbox.run(["echo", "still here"]).stdout == "still here\n"
    assert sleeper.stop() == -signal.SIGTERM


def test_a_child_that_stays_keeps_no_sandbox_alive(kind: str) -> None:
    word = kind if kind == "host" else str(Toolchain().get("runsc").path)
    with subprocess.Popen([sys.executable, "-c", OWNER, word], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, name = owner.stdout.readline().split()
        assert inside(name) != []
        owner.kill()
        owner.wait()
        try:
            until = time.monotonic() + 10
            while inside(name):
                assert time.monotonic() < until, "the sandbox went on without its owner"
                time.sleep(0.05)
            os.kill(int(pid), 0)  # the child is there still
            reaper.reap()
            assert [line for line in reaper.leftovers() if name in line] == []
        finally:
            os.kill(int(pid), signal.SIGKILL)


def inside(name: str) -> list[str]:
    """Return the processes on the machine that belong to a sandbox, by their arguments."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes()
        except OSError:
            continue
        if name.encode() in words:
            found.append(words.decode(errors="replace"))
    return found


@pytest.mark.k3s_layers(*FULL)  # a cluster of its own: experiments ask for an undisturbed one
@pytest.mark.k3s_requires("fuse", "ptrace", "gvisor")
def test_a_child_uses_its_parents_cluster(k3s: Cluster, k3s_node: Node, k3s_namespace: str) -> None:
    """As a test of pytest-forked does; the parent's connections work afterwards."""
    core = k3s.core
    core.list_namespace()  # a connection that is open at the fork
    assert k3s_node.ready

    def body() -> None:
        assert k3s_namespace in k3s.kubectl("get", "namespaces", "-o", "name").stdout
        core.create_namespaced_config_map(k3s_namespace, {"metadata": {"name": "made"}})
        assert k3s_node.ready
        with k3s.namespace(f"{k3s_namespace}-child"):
            pass
        assert k3s.sandbox.run(["echo", "hi"]).stdout == "hi\n"

    for _ in range(2):
        assert child(body) == 0
        core.delete_namespaced_config_map("made", k3s_namespace)
    assert k3s_node.ready
    assert k3s.kubectl("get", "namespace", k3s_namespace).returncode == 0
