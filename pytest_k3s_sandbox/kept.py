"""The clusters that a process of their own keeps: what is known of them, and how they end.

A sandbox lives as long as the process that owns it. A cluster that has to outlive the command or
the test that started it is therefore kept by another process (see :mod:`.keeper`), and a state file
says how to reach both. It exists exactly while the cluster can be used.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError, ConfigError, suggestion
from pytest_k3s_sandbox.sandbox import machine

END_SECONDS = 40.0
UP = "up"
"""The name of the cluster of ``k3s-sandbox up`` when it is given no other."""

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


@dataclass(frozen=True)
class State:
    """How to reach a kept cluster.

    Attributes:
        name: Its name.
        origin: Why it is kept, in a few words.
        pid: The process that keeps it.
        start: That process' start time, which tells it from a later process of the same number.
        folder: The run's folder.
        kubeconfig: The administrator's kubeconfig on the machine.
        shell: The command on the machine that opens a shell inside.
        sandbox: The name of the sandbox's folder.
        kind: The sandbox's kind.
        address: The sandbox's IPv4 address.
        api_port: The API server's port there.
        node: The node's name.
        layers: The layers' names.
        processes: The distribution's processes: their ids inside, by name.
        zero: The run's zero on the clock of :func:`time.monotonic`, which is one for all processes.
    """

    name: str
    origin: str
    pid: int
    start: int
    folder: str
    kubeconfig: str
    shell: tuple[str, ...]
    sandbox: str
    kind: str
    address: str
    api_port: int
    node: str
    layers: tuple[str, ...]
    processes: dict[str, int]
    zero: float

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Return the state of fields that have been JSON.

        Raises:
            TypeError: They are others than those of a state.
        """
        return cls(**tuples(fields))

    @property
    def alive(self) -> bool:
        """Whether the process that keeps it runs."""
        return machine.start_time(self.pid) == self.start


def tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields that have been JSON with tuples in the place of lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def check_name(name: str) -> str:
    """Return a name that a cluster can have.

    Raises:
        ConfigError: It cannot.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"the name {name!r}",
            cause="a name is up to 40 small letters, digits and dashes, and begins with no dash",
        )
    return name


def folder() -> Path:
    """Return the folder of the state files."""
    return machine.home() / "kept"


def state_file(name: str = UP) -> Path:
    """Return a cluster's state file."""
    return folder() / f"{name}.json"


def write_state(state: State) -> None:
    """Write a state file, atomically."""
    file = state_file(state.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(state)))
    partial.rename(file)


def read_state(name: str = UP) -> State | None:
    """Return the state of a cluster that is kept now; None when there is none of that name."""
    return _read(state_file(name))


def _read(file: Path) -> State | None:
    try:
        state = State.of(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return state if state.alive else None


def states() -> list[State]:
    """Return the clusters that are kept now, by their names."""
    found = (_read(file) for file in sorted(folder().glob("*.json")))
    return [state for state in found if state is not None]


def find(name: str | None = None) -> State:
    """Return a cluster that is kept now.

    Args:
        name: Its name; without one that of ``k3s-sandbox up``, or the only one that there is.

    Raises:
        ConfigError: There is none, or several could be meant.
    """
    there = {state.name: state for state in states()}
    if name is None and UP not in there and len(there) > 1:
        raise ConfigError(
            "several clusters are up", cause=", ".join(there), remedy="name one of them; see `k3s-sandbox ps`"
        )
    wanted = name or (next(iter(there), UP) if UP not in there else UP)
    if wanted in there:
        return there[wanted]
    if not there:
        raise ConfigError(
            "no cluster is up",
            cause=f"no running process keeps one (by {folder()})",
            remedy="start one with `k3s-sandbox up`",
        )
    raise ConfigError(
        f"no cluster is called {wanted!r}",
        cause=f"there are {', '.join(there)}",
        remedy=suggestion(wanted, there),
    )


def refuse_another(name: str) -> None:
    """Make sure that no cluster of that name is up.

    Raises:
        ConfigError: One is.
    """
    state = read_state(name)
    if state is not None:
        raise ConfigError(
            "a cluster is up already",
            cause=f"process {state.pid} keeps {name!r}, its records are in {state.folder}",
            remedy="use it, end it with `k3s-sandbox down`, or give the new one another --name",
        )


def end(state: State) -> None:
    """End a kept cluster and wait until nothing of it is left.

    Raises:
        ClusterError: It did not end in time.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(state.pid, signal.SIGTERM)
    if not wait_for(lambda: not state.alive, END_SECONDS):
        raise ClusterError(
            f"the process {state.pid}, which keeps {state.name!r}, does not end", log=Path(state.folder)
        )


def wait_for(condition: Callable[[], bool], seconds: float, poll: float = 0.05) -> bool:
    """Wait until a condition holds; return False when it does not after so many seconds."""
    deadline = Deadline.after(seconds)
    while not condition():
        if deadline.expired:
            return False
        time.sleep(poll)
    return True
