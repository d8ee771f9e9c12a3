"""A sandbox that another process takes over goes on, and ends with that process and without a trace."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_k3s_sandbox.daemon import process as daemon
from pytest_k3s_sandbox.daemon import registry
from pytest_k3s_sandbox.daemon.attached import AttachedSandbox
from pytest_k3s_sandbox.daemon.registry import State
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import StartError
from pytest_k3s_sandbox.sandbox import machine, reaper
from pytest_k3s_sandbox.sandbox.base import V9FS_MAGIC
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.sandbox.host import HostSandbox
from pytest_k3s_sandbox.sandbox.processes import Identity
from pytest_k3s_sandbox.sandbox.started import StartedSandbox
from pytest_k3s_sandbox.toolchain import Toolchain
from support.held import next_command

pytestmark = [pytest.mark.k3s_requires("root"), pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the folder of sandboxes, which is a test's own; no kept one of it is left."""
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    for state in registry.states():
        registry.end(state)
    with machine.lock():
        reaper.reap()


@pytest.fixture(params=["host", pytest.param("gvisor", marks=pytest.mark.k3s_requires("gvisor"))])
def started(request: pytest.FixtureRequest) -> Iterator[StartedSandbox]:
    """Give a sandbox of each kind."""
    kind = request.param
    with HostSandbox() if kind == "host" else GvisorSandbox(Toolchain().get("runsc").path) as sandbox:
        yield sandbox


def hold(sandbox: StartedSandbox, log: Path) -> State:
    """Let another process own a sandbox."""
    name = sandbox.workdir.name
    fields = {"name": name, "origin": "a test", "folder": "/none", "kubeconfig": "/none"}
    fields |= {"sandbox": name, "kind": sandbox.kind, "address": sandbox.address, "node": "n"}
    more = {"shell": sandbox.shell_argv([]), "api_port": 1, "layers": [], "processes": {}, "zero": 0.0}

    def receive(channel: int) -> None:
        order = daemon.Hold({**fields, **more}, str(sandbox.workdir), channel, sandbox.lock_fd)
        process = daemon.launch(order, log)
        daemon.disown(process)
        assert registry.wait_for(lambda: registry.read_state(name) is not None, 30), log.read_text()

    sandbox.hand_over(receive)
    return registry.find(name)


def left(key: str) -> list[str]:
    return [line for line in reaper.leftovers() if key in line]


def test_it_goes_on_without_the_process_that_started_it(started: StartedSandbox, tmp_path: Path) -> None:
    sleeper = started.spawn(["sleep", "1000"], name="sleeper")
    owner = machine.read_owner(started.workdir)
    state = hold(started, tmp_path / "log")
    key = started.workdir.name

    # To this process it is as if it had ended, at once and without an error.
    assert sleeper.poll() == sleeper.stop() == -signal.SIGKILL
    with pytest.raises(StartError, match="has ended"):
        started.run(["true"])
    started.close()
    started.close()

    # It has not: another process owns it, the next start leaves it alone, and it can be used.
    claimed = machine.read_owner(started.workdir)
    assert owner is not None
    assert claimed is not None
    assert (claimed.pid, claimed.network) == (state.pid, owner.network)
    with machine.lock():
        assert reaper.reap() == []
    other = AttachedSandbox(state)
    assert other.run(["sh", "-c", f"kill -0 {sleeper.pid}; echo $?"]).stdout == "0\n"
    assert (other.root_magic() == V9FS_MAGIC) == (started.kind == "gvisor")
    assert other.run(["sh", "-c", "exit 3"], check=False).returncode == 3
    with pytest.raises(StartError, match="failed with exit code 3: why"):
        other.run(["sh", "-c", "echo why >&2; exit 3"])
    with pytest.raises(StartError, match=r"ran longer than 0\.5 s and was killed"):
        other.run(["sleep", "100"], timeout=0.5)
    assert left(key) == []

    registry.end(state)
    assert left(key) == []
    assert not started.workdir.exists()
    assert key not in Path("/proc/self/mountinfo").read_text()
    assert not registry.state_file(state.name).exists()


def test_it_ends_when_the_process_that_took_over_is_killed(started: StartedSandbox, tmp_path: Path) -> None:
    state = hold(started, tmp_path / "log")
    key = started.workdir.name
    os.kill(state.pid, signal.SIGKILL)
    assert registry.wait_for(lambda: not state.alive, 5)

    def reaped() -> bool:
        with machine.lock():
            reaper.reap()
        return left(key) == []

    assert registry.wait_for(reaped, 10, poll=0.2)
    assert registry.states() == []


def test_one_that_cannot_be_taken_over_stays_its_owners(started: StartedSandbox) -> None:
    def receive(_channel: int) -> None:
        raise StartError("nothing listens")

    with pytest.raises(StartError, match="nothing listens"):
        started.hand_over(receive)
    assert started.run(["echo", "mine"]).stdout == "mine\n"
    process = started.spawn(["sleep", "100"], name="sleeper")
    assert process.stop() == -signal.SIGTERM
    assert process.wait(Deadline.after(1)) is not None


@pytest.mark.parametrize("when", ["before it claims", "after it has claimed"])
def test_a_hand_over_that_fails_leaves_the_sandbox_to_a_living_owner(
    started: StartedSandbox, home: Path, tmp_path: Path, when: str
) -> None:
    name = started.workdir.name
    if when == "before it claims":
        taken = registry.take_name(name)  # so that the other process is refused the name
    else:
        registry.state_file(name).mkdir(parents=True)  # so that it cannot say that it keeps the cluster
        taken = None
    cluster = SimpleNamespace(
        kubeconfig="/none", settings=SimpleNamespace(api_port=1), node=SimpleNamespace(name="n"), processes={}
    )
    stack = SimpleNamespace(sandbox=started, names=())
    runner = SimpleNamespace(distribution=SimpleNamespace(name="embedded"))
    writer = SimpleNamespace(zero=0.0)
    up: Any = SimpleNamespace(cluster=cluster, runner=runner, stack=stack, folder=tmp_path, writer=writer)
    with pytest.raises(StartError, match="the cluster cannot be kept"):
        daemon.hand_over(up, "a test")
    owner = machine.read_owner(started.workdir)
    assert owner is not None
    assert owner.process == Identity.own()
    assert registry.states() == []
    next_command(home)  # which removes what has no owner
    assert started.run(["echo", "mine"]).stdout == "mine\n"
    if taken is not None:
        taken.release(remove=True)
    started.close()
    assert not started.workdir.exists()
    assert left(name) == []
