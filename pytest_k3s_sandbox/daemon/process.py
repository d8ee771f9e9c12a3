"""The daemon processes: one brings a cluster up and keeps it, the other takes over the sandbox of a test.

``python -m pytest_k3s_sandbox.daemon.process keep|hold ORDER``, the order as JSON; see :class:`Keep` and
:class:`Hold`. The state file (:mod:`.registry`) tells other processes how to reach the cluster.
"""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pytest_k3s_sandbox.daemon import endings, registry
from pytest_k3s_sandbox.daemon.clients import Clients
from pytest_k3s_sandbox.daemon.registry import State
from pytest_k3s_sandbox.errors import SandboxError, StartError
from pytest_k3s_sandbox.sandbox import locks, machine, reaper, watch
from pytest_k3s_sandbox.sandbox.limits import Limits
from pytest_k3s_sandbox.sandbox.processes import Identity
from pytest_k3s_sandbox.support import clock

if TYPE_CHECKING:
    from pytest_k3s_sandbox.node.session import NodeSession
    from pytest_k3s_sandbox.sandbox.base import Process
    from pytest_k3s_sandbox.sandbox.started import StartedSandbox

STOP = {signal.SIGTERM, signal.SIGINT}
POLL_SECONDS = 0.5
HOLD_SECONDS = 30.0
"""How long the process that takes a sandbox over may take to start."""


@dataclass(frozen=True)
class Keep:
    """Bring a cluster up and keep it until a signal, or until its last client is gone.

    Attributes:
        name: The cluster's name.
        origin: Why it is kept, in a few words.
        spec: The fields of its :class:`~.spec.NodeSpec`.
        experiment: The experiment's name, for the records.
        folder: The run's folder.
        clients: The folder of its :class:`~.clients.Clients`; without it the process waits only for a signal.
        keep: Whether the run's folder is kept when it has clients: ``never``, ``failed`` or ``always``.
    """

    name: str
    origin: str
    spec: dict[str, Any]
    experiment: str
    folder: str
    clients: str | None = None
    keep: str = "always"


@dataclass(frozen=True)
class Hold:
    """Own a sandbox that another process started, until a signal.

    Attributes:
        state: The fields of its :class:`~.registry.State`, without those of the process.
        workdir: The sandbox's folder.
        channel: The descriptor of the socket that leads to process 1.
        lock: The descriptor of the lock that an owner of the sandbox holds.
        limits: The fields of its :class:`~.sandbox.limits.Limits`.
    """

    state: dict[str, Any]
    workdir: str
    channel: int
    lock: int
    limits: dict[str, int | None] = field(default_factory=dict)


def launch(order: Keep | Hold, log: Path) -> subprocess.Popen[bytes]:
    """Start a process that carries out an order and outlives this one.

    Args:
        order: The order.
        log: The file for its output.
    """
    mode, fds = ("keep", ()) if isinstance(order, Keep) else ("hold", (order.channel, order.lock))
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "pytest_k3s_sandbox.daemon.process", mode, json.dumps(asdict(order))],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            pass_fds=fds,
        )


def disown(process: subprocess.Popen[bytes]) -> None:
    """Forget a process that outlives this one, without the ResourceWarning of an open Popen."""
    process.returncode = 0


def started(session: NodeSession) -> StartedSandbox:
    """Return the sandbox of a cluster that this process has started."""
    return cast("StartedSandbox", session.stack.sandbox)


def described(session: NodeSession, *, name: str, origin: str) -> dict[str, Any]:
    """Return the fields of a cluster's state, without those of the process."""
    cluster, sandbox = session.cluster, started(session)
    return {
        "name": name,
        "origin": origin,
        "folder": str(session.folder),
        "kubeconfig": str(cluster.kubeconfig),
        "shell": tuple(sandbox.shell_argv([])),
        "sandbox": sandbox.workdir.name,
        "kind": sandbox.kind,
        "address": sandbox.address,
        "api_port": cluster.settings.api_port,
        "node": cluster.node.name,
        "distribution": session.runner.distribution.name,
        "layers": session.stack.names,
        "processes": {name: process.pid for name, process in cluster.processes.items()},
        "zero": session.writer.zero,
    }


def hand_over(session: NodeSession, origin: str) -> State:
    """Give the sandbox of a running cluster to another process, so that it outlives this one.

    Args:
        session: The cluster; afterwards this process can run nothing in its sandbox.
        origin: Why it is kept, in a few words.

    Raises:
        StartError: The other process did not take the sandbox over; this process still owns it.
    """
    sandbox = started(session)
    name = sandbox.workdir.name
    fields = described(session, name=name, origin=origin)
    log = session.folder / "keeper.log"
    lock, limits = sandbox.lock_fd, asdict(sandbox.limits)

    def receive(channel: int) -> None:
        process = launch(Hold(fields, str(sandbox.workdir), channel, lock, limits), log)
        try:
            registry.wait_for(
                lambda: registry.read_state(name) is not None or process.poll() is not None, HOLD_SECONDS
            )
        except BaseException:  # such as Ctrl-C: this process still owns the sandbox
            process.kill()
            process.wait()
            raise
        if registry.read_state(name) is None:
            process.kill()
            process.wait()
            registry.remove_stale_states()  # the killed process may have written one
            raise StartError("the cluster cannot be kept", cause=log.read_text(errors="replace")[-2000:])
        disown(process)
        log.unlink()

    sandbox.hand_over(receive)
    state = registry.read_state(name)
    if state is None:
        raise StartError("the cluster cannot be kept", cause="its sandbox has ended meanwhile")
    return state


def _state(fields: Mapping[str, Any]) -> State:
    return State.of({**fields, **asdict(Identity.own())})


def keep(order: Keep) -> None:
    """Carry out an order to bring a cluster up and keep it."""
    from pytest_k3s_sandbox.node.session import open_session
    from pytest_k3s_sandbox.node.spec import NodeSpec
    from pytest_k3s_sandbox.report.finalize import finalize
    from pytest_k3s_sandbox.toolchain import Toolchain

    spec = NodeSpec(**registry.tuples(order.spec))
    clients = Clients(Path(order.clients)) if order.clients is not None else None
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))  # unwind a bring-up
    with contextlib.ExitStack() as last:
        name = registry.take_name(order.name)
        last.callback(name.release, remove=True)
        with open_session(
            spec,
            toolchain=Toolchain(kubernetes=spec.version),
            folder=Path(order.folder),
            experiment=order.experiment,
        ) as session:
            session.cluster.node.wait_ready(90)
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
            try:
                state = _state(described(session, name=order.name, origin=order.origin))
                registry.write_state(state)
                tell_ends(started(session), state)
                _wait(clients, lambda: session.runner.unsupervised, last)
            finally:
                registry.state_file(order.name).unlink(missing_ok=True)
                endings.forget(order.name)
        if clients is not None:
            finalize(Path(order.folder), keep=order.keep, failed=clients.read("failed") is not None)


def tell_ends(sandbox: StartedSandbox, state: State) -> None:
    """Write down for the clients of a cluster why its sandbox was ended, now or later.

    Args:
        sandbox: The cluster's sandbox.
        state: The cluster's state.
    """
    endings.forget(state.name)  # the end of an earlier cluster of that name
    sandbox.on_end = lambda why: endings.note(state, why)
    if sandbox.ended is not None:
        endings.note(state, sandbox.ended)


def _wait(
    clients: Clients | None, final: Callable[[], Mapping[str, Process]], last: contextlib.ExitStack
) -> None:
    """Return after a signal, or when no client is left; new clients then wait until ``last`` is closed."""
    # Another thread may take a signal that comes before the wait; its handler runs between two waits.
    while signal.sigtimedwait(STOP, POLL_SECONDS) is None:
        if clients is None:
            continue
        clients.write_ended(
            {name: code for name, process in final().items() if (code := process.poll()) is not None}
        )
        with contextlib.ExitStack() as alone:
            # A client writes ``stay`` before it leaves.
            if clients.gone(alone) and not clients.stay:
                alone.callback(clients.remove)
                last.enter_context(alone.pop_all())
                return


def hold(order: Hold) -> None:
    """Carry out an order to own a sandbox, and end it after a signal or with its process 1."""
    workdir = Path(order.workdir)
    life = locks.Lock.inherited(workdir / machine.LIFE_FILE, order.lock)
    channel = socket.socket(fileno=order.channel)
    channel.set_inheritable(False)
    found = machine.read_owner(workdir)
    if found is None:
        raise StartError(f"the sandbox {workdir.name}", cause="it has ended")
    state = _state(order.state)
    owner = found.owned_by(state.process)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    name = registry.take_name(state.name)
    machine.claim(workdir, owner)
    endings.forget(state.name)
    registry.write_state(state)  # after a failure until here, the other process keeps the sandbox
    watcher = watch.Watcher(
        workdir,
        Limits(**order.limits),
        owner.cgroups,
        lambda: reaper.processes_of(workdir, owner),
        lambda why: _end_for(why, state, workdir, owner),
    )
    try:
        watcher.start()
        while signal.sigtimedwait(STOP, 0) is None:
            if _drained(channel, POLL_SECONDS):
                with contextlib.suppress(OSError):  # its control groups are gone
                    if (why := watcher.reason()) is not None:
                        _tell(why, state)
                break
    finally:
        watcher.stop()
        registry.state_file(state.name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # process 1 has ended
            # Process 1 ends at the end of its input, and the sandbox with it.
            channel.shutdown(socket.SHUT_WR)
        until = clock.monotonic() + machine.LOCK_SECONDS / 6
        while clock.monotonic() < until and not _drained(channel, POLL_SECONDS):
            pass
        reaper.dispose(workdir, owner)
        life.release()
        name.release(remove=True)


def _end_for(why: str, state: State, workdir: Path, owner: machine.Owner) -> None:
    """End a sandbox for a limit that it has reached."""
    _tell(why, state)
    reaper.end_processes(workdir, owner)


def _tell(why: str, state: State) -> None:
    """Write the reason for a sandbox's end for the clients of its cluster, and to the run's folder."""
    said = f"the sandbox k3ssb-{state.sandbox}: {why}"
    endings.note(state, said)
    with contextlib.suppress(OSError):
        (Path(state.folder) / "keeper.log").write_text(f"{said}\n")


def _drained(channel: socket.socket, seconds: float) -> bool:
    """Read and drop messages from process 1; return whether it has ended."""
    readable, _, _ = select.select([channel], [], [], seconds)
    try:
        return bool(readable) and not channel.recv(65536)
    except OSError:
        return True


def main() -> None:
    """Carry out an order; a SandboxError becomes one message and exit code 2."""
    mode, text = sys.argv[1:]
    order = json.loads(text)
    try:
        if mode == "keep":
            keep(Keep(**order))
        else:
            hold(Hold(**order))
    except SandboxError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
