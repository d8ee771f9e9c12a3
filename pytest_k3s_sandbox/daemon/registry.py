"""The clusters that daemon processes keep: their state files, their names and their ends.

A sandbox ends with the process that owns it. When a cluster has to outlive the command or the test that
started it, a daemon process keeps it (see :mod:`.process`). A state file says how to reach the cluster and
that process. The file exists exactly while the cluster can be used.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, get_args, get_origin, get_type_hints

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError, ConfigError, suggestion
from pytest_k3s_sandbox.sandbox import locks, machine, processes
from pytest_k3s_sandbox.sandbox.processes import Identity
from pytest_k3s_sandbox.settings import DISTRIBUTIONS
from pytest_k3s_sandbox.support import files

END_SECONDS = 40.0
UP_ORIGIN = "k3s-sandbox up"
UP = "up"
"""The default name of the cluster of ``k3s-sandbox up``."""

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


@dataclass(frozen=True)
class State:
    """How to reach a kept cluster.

    Attributes:
        name: Its name.
        origin: Why it is kept, in a few words.
        pid: The process that keeps it.
        start: That process' start time; a later process with the same id has another one.
        boot: The boot in which that process runs (:func:`.processes.boot_id`).
        pid_namespace: The pid namespace in which ``pid`` means it.
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
        distribution: The form in which Kubernetes comes.
    """

    name: str
    origin: str
    pid: int
    start: int
    boot: str
    pid_namespace: str
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
    distribution: str = "embedded"

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Return the state of fields that come from JSON.

        Raises:
            TypeError: A field is missing, unknown or of another type.
            ValueError: A process id, a start time, the name or the distribution is impossible.
        """
        state = cls(**tuples(fields))
        for field, kind in get_type_hints(cls).items():
            if not _is(getattr(state, field), kind):
                raise TypeError(f"{field} is not of the type {kind}")
        if state.pid <= 1 or state.start <= 1 or not NAME.fullmatch(state.name):
            raise ValueError(f"process {state.pid} of start {state.start} cannot keep {state.name!r}")
        if state.distribution not in DISTRIBUTIONS:
            raise ValueError(f"the distribution {state.distribution!r} is unknown")
        return state

    @property
    def process(self) -> Identity:
        """The process that keeps it."""
        return Identity(self.pid, self.start, self.boot, self.pid_namespace)

    @property
    def alive(self) -> bool:
        """Whether the process that keeps it runs, here or in another pid namespace that shares the home."""
        return self.process.alive or (self.process.this_boot and locks.held(lock_file(self.name)))


def _is(value: object, kind: object) -> bool:
    """Return whether a value is of the type that a field of :class:`State` is declared with."""
    base, inner = get_origin(kind) or kind, get_args(kind)
    if base is tuple:
        return isinstance(value, tuple) and all(_is(each, inner[0]) for each in value)
    if base is dict:
        return isinstance(value, dict) and all(
            _is(each, inner[0]) and _is(of, inner[1]) for each, of in value.items()
        )
    if isinstance(value, bool):
        return False
    if base is float:
        return isinstance(value, int | float)
    return isinstance(base, type) and isinstance(value, base)


def tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields that come from JSON, with tuples in place of lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def check_name(name: str) -> str:
    """Return a name if a cluster can have it.

    Raises:
        ConfigError: A cluster cannot have this name.
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


def lock_file(name: str) -> Path:
    """Return the file that the process which keeps a cluster of that name has locked for its life."""
    return folder() / f"{name}.lock"


def take_name(name: str) -> locks.Lock:
    """Take a name for the life of this process, which keeps a cluster.

    Raises:
        ConfigError: Another process has it.
    """
    machine.private_folder(folder())
    try:
        return locks.take(lock_file(name))
    except BlockingIOError:
        raise _taken(name) from None


def _taken(name: str) -> ConfigError:
    return ConfigError(
        f"the name {name!r} is taken",
        cause="another process brings a cluster of that name up, or keeps one",
        remedy="wait for it, end it (see `k3s-sandbox ps`), or give the new one another --name",
    )


def write_state(state: State) -> None:
    """Write a state file, atomically."""
    file = state_file(state.name)
    machine.private_folder(folder())
    put(file, asdict(state))


def put(file: Path, fields: Mapping[str, Any]) -> None:
    """Write a file of JSON in the folder of states, atomically."""
    files.write_text(file, json.dumps(fields))


def remove_stale_states() -> None:
    """Remove the state files of daemon processes that were killed; other files stay."""
    for file in sorted(folder().glob("*.json")):
        try:
            state = State.of(json.loads(file.read_text()))
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            continue
        if state.name != file.stem or state.alive:
            continue
        with contextlib.suppress(OSError):
            held = locks.take(lock_file(state.name))
            try:
                if not state.process.alive:  # state.alive sees this process' own lock
                    file.unlink(missing_ok=True)
            finally:
                held.release(remove=True)


def read_state(name: str = UP) -> State | None:
    """Return the state of a kept cluster; None when no cluster has that name."""
    return _read(state_file(name))


def _read(file: Path) -> State | None:
    try:
        state = State.of(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return state if state.name == file.stem and state.alive else None


def states() -> list[State]:
    """Return the kept clusters, sorted by their names."""
    found = (_read(file) for file in sorted(folder().glob("*.json")))
    return [state for state in found if state is not None]


def find(name: str | None = None) -> State:
    """Return a kept cluster.

    Args:
        name: Its name; without it, the default cluster of ``k3s-sandbox up``, or the only one.

    Raises:
        ConfigError: No cluster has the name, or several clusters are up and none was named.
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
        raise _none_up()
    raise ConfigError(
        f"no cluster is called {wanted!r}",
        cause=f"there are {', '.join(there)}",
        remedy=suggestion(wanted, there),
    )


def made_by_up(name: str | None = None) -> State:
    """Return a cluster of ``k3s-sandbox up``, for ``k3s-sandbox down`` to end.

    Args:
        name: The ``--name`` of ``up``; None for the default.

    Raises:
        ConfigError: No cluster of ``up`` has that name.
    """
    there = {state.name: state for state in states()}
    found = there.get(name or UP)
    if found is not None and found.origin == UP_ORIGIN:
        return found
    if found is not None:
        raise ConfigError(
            f"the cluster {found.name!r} was not made by `k3s-sandbox up`",
            cause=f"it is {found.origin}",
            remedy=f"end it with `k3s-sandbox stop {found.name}`",
        )
    if not there:
        raise _none_up()
    named = [state.name for state in there.values() if state.origin == UP_ORIGIN]
    raise ConfigError(
        "no cluster of `k3s-sandbox up` without a name is up"
        if name is None
        else f"no cluster is called {name!r}",
        cause=f"there are {', '.join(there)}",
        remedy=suggestion(name, there)
        if name is not None
        else f"name one: `k3s-sandbox down --name {named[0]}`"
        if named
        else "end one that `up` has not made with `k3s-sandbox stop NAME`",
    )


def _none_up() -> ConfigError:
    return ConfigError(
        "no cluster is up",
        cause=f"no running process keeps one (by {folder()})",
        remedy="start one with `k3s-sandbox up`",
    )


def refuse_another(name: str) -> None:
    """Refuse a name when a cluster of that name is up or on its way up.

    Raises:
        ConfigError: The name is taken.
    """
    state = read_state(name)
    if state is not None:
        raise ConfigError(
            "a cluster is up already",
            cause=f"process {state.pid} keeps {name!r}, its records are in {state.folder}",
            remedy=f"use it, end it with `{end_command(state)}`, or give the new one another --name",
        )
    if locks.held(lock_file(name)):
        raise _taken(name)


def end_command(state: State) -> str:
    """Return the command that ends a kept cluster."""
    if state.origin != UP_ORIGIN:
        return f"k3s-sandbox stop {state.name}"
    return "k3s-sandbox down" if state.name == UP else f"k3s-sandbox down --name {state.name}"


def end(state: State) -> None:
    """End a kept cluster and wait until nothing of it is left.

    Raises:
        ConfigError: The process that keeps it cannot be signalled from here.
        ClusterError: It did not end in time.
    """
    if not state.process.local and state.alive:
        raise ConfigError(
            f"the cluster {state.name!r} cannot be ended from here",
            cause="the process that keeps it runs in another pid namespace, such as another container's",
            remedy=f"run `{end_command(state)}` there",
        )
    processes.send(state.pid, signal.SIGTERM, lambda _pid: state.process.alive)
    if not wait_for(lambda: not state.alive, END_SECONDS):
        raise ClusterError(
            f"the process {state.pid}, which keeps {state.name!r}, does not end",
            cause=f"it still runs {END_SECONDS:g} s after SIGTERM",
            remedy=f"wait and try again, or end it by `kill -KILL {state.pid}`; the next start of a sandbox "
            "removes what it leaves",
            log=Path(state.folder),
        )


def wait_for(condition: Callable[[], bool], seconds: float, poll: float = 0.05) -> bool:
    """Wait until a condition holds; return False after the given seconds."""
    deadline = Deadline.after(seconds)
    while not condition():
        if deadline.expired:
            return False
        time.sleep(poll)
    return True
