"""The process that keeps a cluster for ``k3s-sandbox up`` until ``down``.

A sandbox lives as long as the process that started it, so ``up`` leaves this one behind.
What others need to reach it is in a state file, which exists exactly while the cluster
can be used.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError, ConfigError, SandboxError
from pytest_k3s_sandbox.sandbox import machine

END_SECONDS = 40.0


@dataclass(frozen=True)
class State:
    """How to reach a kept cluster.

    Attributes:
        pid: The keeper.
        start: Its start time, which tells it from a later process of the same number.
        folder: The run's folder.
        kubeconfig: The administrator's kubeconfig on the machine.
        shell: The command on the machine that opens a shell inside.
    """

    pid: int
    start: int
    folder: str
    kubeconfig: str
    shell: tuple[str, ...]


def state_file() -> Path:
    """Return the state file's path."""
    return machine.home() / "up.json"


def read_state() -> State | None:
    """Return the state of a cluster that is kept now; None when there is none."""
    try:
        data = json.loads(state_file().read_text())
        state = State(**{**data, "shell": tuple(data["shell"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if machine.start_time(state.pid) == state.start else None


def kept() -> State:
    """Return the state of the cluster that is kept now.

    Raises:
        ConfigError: There is none.
    """
    state = read_state()
    if state is None:
        raise ConfigError(
            "no cluster is up",
            cause=f"no running process keeps one (by {state_file()})",
            remedy="start one with `k3s-sandbox up`",
        )
    return state


def refuse_another() -> None:
    """Make sure that no cluster is up.

    Raises:
        ConfigError: One is.
    """
    state = read_state()
    if state is not None:
        raise ConfigError(
            "a cluster is up already",
            cause=f"process {state.pid} keeps it, its records are in {state.folder}",
            remedy="use it, or end it with `k3s-sandbox down`",
        )


def launch(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a keeper that outlives this process.

    Args:
        arguments: What :func:`main` takes.
        log: The file for its output.

    Raises:
        ConfigError: A cluster is up already.
    """
    refuse_another()
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "pytest_k3s_sandbox.keeper", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def end() -> State:
    """End the kept cluster and wait until nothing of it is left.

    Raises:
        ConfigError: There is none.
        ClusterError: It did not end in time.
    """
    state = kept()
    os.kill(state.pid, signal.SIGTERM)
    deadline = Deadline.after(END_SECONDS)
    while machine.start_time(state.pid) == state.start:
        if deadline.expired:
            raise ClusterError(f"the keeper (process {state.pid}) does not end", log=Path(state.folder))
        time.sleep(0.05)
    return state


def keep() -> None:
    """Bring up what the arguments say, keep it until SIGTERM or SIGINT, then end it.

    Arguments: the sandbox's kind, the layers with commas (``default`` for the kind's own),
    the API server's port, and the run's folder.
    """
    from pytest_k3s_sandbox.bringup import Wish, everything  # noqa: PLC0415 - the command line reads states, too
    from pytest_k3s_sandbox.layers.stack import parse  # noqa: PLC0415 - likewise
    from pytest_k3s_sandbox.toolchain import Toolchain  # noqa: PLC0415 - likewise

    kind, layers, port, folder = sys.argv[1:]
    wish = Wish(kind, None if layers == "default" else parse(layers), int(port))
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))  # during the bring-up: unwind
    with everything(wish, Toolchain(), Path(folder), experiment="up") as up:
        up.cluster.node.wait_ready(90)
        signal.pthread_sigmask(signal.SIG_BLOCK, stop)
        state = State(
            pid=os.getpid(),
            start=machine.start_time(os.getpid()) or 0,
            folder=folder,
            kubeconfig=str(up.cluster.kubeconfig),
            shell=tuple(up.stack.sandbox.shell_argv([])),  # type: ignore[attr-defined]
        )
        try:
            partial = state_file().with_suffix(".partial")
            partial.write_text(json.dumps(asdict(state)))
            partial.rename(state_file())
            # Another thread may take a signal that comes before the wait; its handler runs between two waits.
            while signal.sigtimedwait(stop, 1.0) is None:
                pass
        finally:
            state_file().unlink(missing_ok=True)


def main() -> None:
    """Do what :func:`keep` says; an error of ours is one message, for ``up`` to show, and exit code 2."""
    try:
        keep()
    except SandboxError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
