"""Ctrl-C while another process takes a sandbox over: it stays its owner's, and the other one ends."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pytest_k3s_sandbox.daemon import process as daemon
from pytest_k3s_sandbox.daemon import registry
from pytest_k3s_sandbox.errors import StartError
from pytest_k3s_sandbox.node.session import NodeSession
from pytest_k3s_sandbox.sandbox import locks, machine
from pytest_k3s_sandbox.sandbox.client import AgentClient
from pytest_k3s_sandbox.sandbox.host import HostSandbox
from pytest_k3s_sandbox.sandbox.limits import Limits
from pytest_k3s_sandbox.sandbox.processes import Identity
from pytest_k3s_sandbox.support import forks


class FakeClient:
    """In the place of the channel to process 1."""

    def __init__(self) -> None:
        """Have it still."""
        self.given = False

    def hand_over(self, receive: Callable[[int], None]) -> None:
        """As the real one does."""
        receive(0)
        self.given = True


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostSandbox]:
    """A sandbox that was not started."""
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(tmp_path / "home"))
    made = HostSandbox.__new__(HostSandbox)
    made.workdir, life, made._record = machine.new_workdir("host")
    made._life = life
    made._owner, made._client, made._watcher = forks.Owner(), cast("AgentClient", FakeClient()), None
    made._closed = made.handed_over = False
    made.limits, made.ended = Limits(), None
    made._record = replace(made._record, network=replace(made._record.network, address="192.0.2.1"))
    monkeypatch.setattr(HostSandbox, "shell_argv", lambda _self, argv: ["env", *argv])
    yield made
    life.release()


@pytest.fixture
def up(sandbox: HostSandbox, tmp_path: Path) -> NodeSession:
    """A cluster around it."""
    cluster = SimpleNamespace(
        kubeconfig="/none", settings=SimpleNamespace(api_port=1), node=SimpleNamespace(name="n"), processes={}
    )
    stack = SimpleNamespace(sandbox=sandbox, names=())
    runner = SimpleNamespace(distribution=SimpleNamespace(name="embedded"))
    writer = SimpleNamespace(zero=0.0)
    made = SimpleNamespace(cluster=cluster, runner=runner, stack=stack, folder=tmp_path, writer=writer)
    return cast("NodeSession", made)


@pytest.fixture
def taker(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that were to take over; each one claims the sandbox, and comes no further."""
    launched: list[subprocess.Popen[bytes]] = []

    def launch(order: daemon.Hold, log: Path) -> subprocess.Popen[bytes]:
        log.write_text("it came no further")
        launched.append(subprocess.Popen(["sleep", "100"]))
        workdir = Path(order.workdir)
        owner = machine.read_owner(workdir)
        assert owner is not None
        machine.claim(workdir, owner.owned_by(replace(Identity.own(), pid=launched[0].pid)))
        return launched[0]

    monkeypatch.setattr(daemon, "launch", launch)
    return launched


@pytest.mark.parametrize("why", [KeyboardInterrupt(), SystemExit(1), OSError("no state can be read")])
def test_ctrl_c_during_a_hand_over_leaves_the_sandbox_to_its_owner(
    sandbox: HostSandbox,
    up: NodeSession,
    taker: list[subprocess.Popen[bytes]],
    why: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wait_for(*_: object) -> bool:
        owner = machine.read_owner(sandbox.workdir)
        assert owner is not None
        assert owner.pid == taker[0].pid
        assert taker[0].poll() is None
        raise why

    monkeypatch.setattr(registry, "wait_for", wait_for)
    with pytest.raises(type(why)) as raised:
        daemon.hand_over(up, "a test")
    assert raised.value is why
    stays(sandbox, taker)


def test_one_that_does_not_take_over_in_time_is_ended(
    sandbox: HostSandbox,
    up: NodeSession,
    taker: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(daemon, "HOLD_SECONDS", 0.1)
    with pytest.raises(StartError, match="the cluster cannot be kept: it came no further"):
        daemon.hand_over(up, "a test")
    stays(sandbox, taker)


def stays(sandbox: HostSandbox, taker: list[subprocess.Popen[bytes]]) -> None:
    """Check that a sandbox is this process' own, and that the other one has ended and was waited for."""
    assert [process.returncode for process in taker] == [-9]
    owner = machine.read_owner(sandbox.workdir)
    assert owner is not None
    assert owner.process == Identity.own()
    assert locks.held(sandbox.workdir / machine.LIFE_FILE)
    given = cast("FakeClient", sandbox._client).given
    assert (sandbox.handed_over, sandbox._closed, given) == (False, False, False)
    assert registry.states() == []
