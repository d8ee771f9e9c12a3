"""A cluster that another process keeps, as the fixtures hand it out.

Only the owner can start and end its parts and check its layers. These calls are refused here, with the
reason.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

from pytest_k3s_sandbox.cluster.cluster import Cluster
from pytest_k3s_sandbox.cluster.components import ClusterSettings
from pytest_k3s_sandbox.cluster.sampler import Sampler
from pytest_k3s_sandbox.daemon import endings
from pytest_k3s_sandbox.daemon.clients import Clients
from pytest_k3s_sandbox.daemon.registry import State
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import StartError, owners_only
from pytest_k3s_sandbox.layers.base import Health
from pytest_k3s_sandbox.layers.stack import LayerStack
from pytest_k3s_sandbox.node.session import NodeSession
from pytest_k3s_sandbox.node.spec import FORMS
from pytest_k3s_sandbox.report.records import ErrorLine, RunWriter, Sample, read_run
from pytest_k3s_sandbox.sandbox import machine, outside
from pytest_k3s_sandbox.sandbox.base import STATE_DIR, Completed, Process, Sandbox, Usage, magic_argv
from pytest_k3s_sandbox.sandbox.beneath import Beneath
from pytest_k3s_sandbox.sandbox.inside import InsidePath
from pytest_k3s_sandbox.sandbox.layout import below_var, control, shared
from pytest_k3s_sandbox.sandbox.started import StartedSandbox


def refuse(what: str) -> NoReturn:
    """Say that something is the owner's.

    Raises:
        ConfigError: Always.
    """
    raise owners_only(what)


def refuse_the_rest(owner: type, what: str) -> Callable[[object, str], NoReturn]:
    """Return a ``__getattr__`` that refuses names that only the owner's class has.

    Args:
        owner: The class of the owner's object.
        what: A name of that object, for the message.
    """

    def find(_self: object, name: str) -> NoReturn:
        if not name.startswith("_") and name in public_names(owner):
            refuse(f"{name} of {what}")
        raise AttributeError(name)

    return find


def public_names(owner: type) -> frozenset[str]:
    """Return the public attributes of a class: its methods, and the names in its annotations."""
    declared = {name for base in owner.__mro__ for name in vars(base).get("__annotations__", {})}
    return frozenset(name for name in {*dir(owner), *declared} if not name.startswith("_"))


class AttachedSandbox:
    """The sandbox of a cluster that another process keeps; implements :class:`~.sandbox.base.Sandbox`."""

    def __init__(self, state: State) -> None:
        """Keep the state."""
        self._state = state
        self.kind = state.kind
        self.handed_over = True
        self.address = state.address
        self.workdir = machine.home() / "sandboxes" / state.sandbox
        self.name = f"k3ssb-{state.sandbox}"

    @property
    def logs(self) -> InsidePath:
        """The folder on the machine with every process' log."""
        return below_var(self.workdir, f"{STATE_DIR}/logs")

    @property
    def files(self) -> Beneath:
        """The files that the inside can write; see :attr:`.sandbox.base.Sandbox.files`."""
        return shared(self.workdir)

    @property
    def control(self) -> Path:
        """The folder of the files that only the machine uses; see :attr:`.sandbox.base.Sandbox.control`."""
        return control(self.workdir)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a program inside to its end; see :meth:`.sandbox.base.Sandbox.run`.

        Raises:
            StartError: It ran too long, or failed; or the owner has ended the sandbox, with the reason.
        """
        try:
            done = outside.run(
                self._state.shell, argv, where=self.name, timeout=timeout, check=check, env=env
            )
        except Exception:
            self._refuse_if_ended()
            raise
        if done.returncode != 0:
            self._refuse_if_ended()
        return done

    def _refuse_if_ended(self) -> None:
        if (why := endings.why(self._state)) is not None:
            raise StartError(why)

    def statfs_magic(self, path: str) -> int:
        """Return ``f_type`` of a path as a program inside sees it (statfs(2))."""
        return int(self.run(magic_argv(path)).stdout, 16)

    def root_magic(self) -> int:
        """Return ``f_type`` of ``/`` as a program inside sees it (statfs(2))."""
        return self.statfs_magic("/")

    def shell_argv(self, argv: Sequence[str]) -> list[str]:
        """Return a command for the machine that runs a program inside, with this terminal."""
        return [*self._state.shell, *argv]

    def spawn(
        self, argv: Sequence[str], *, name: str, env: Mapping[str, str] | None = None, cwd: str = "/"
    ) -> Process:
        """Refuse: a process inside must be ended by the process that started it."""
        del argv, env, cwd
        refuse(f"starting {name} in a shared sandbox")

    def usage(self) -> list[Usage]:
        """Refuse: the owner samples it, and the run's records have it."""
        refuse("the usage of a shared sandbox")

    def processor_seconds(self) -> float | None:
        """Refuse, as :meth:`usage`."""
        refuse("the usage of a shared sandbox")

    def close(self) -> None:
        """Do nothing: only the owner ends the sandbox."""

    __getattr__ = refuse_the_rest(StartedSandbox, "a shared sandbox")


class AttachedProcess:
    """A process of the shared cluster; implements :class:`~.sandbox.base.Process`.

    Args:
        name: Its name.
        pid: Its id inside.
        log: Its log on the machine.
        state: The cluster's state.
        clients: The clients of its cluster, where its exit code is written.
    """

    def __init__(self, name: str, pid: int, log: InsidePath, state: State, clients: Clients) -> None:
        """Keep the arguments."""
        self.name = name
        self.pid = pid
        self.log = log
        self._state = state
        self._clients = clients

    @property
    def lost(self) -> str | None:
        """Why the owner has ended it with its sandbox; None if it has not."""
        return endings.why(self._state)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs; all processes end with the owner."""
        if self.lost is not None or not self._state.alive:
            return -signal.SIGKILL
        return self._clients.ended().get(self.name)

    def wait(self, deadline: Deadline) -> int | None:
        """Wait for its end."""
        while (code := self.poll()) is None and not deadline.expired:
            time.sleep(0.1)
        return code

    def signal(self, number: int) -> None:
        """Refuse."""
        refuse(f"signal {number} for {self.name} of a shared cluster")

    def stop(self, grace: float = 5.0) -> int:
        """Refuse."""
        del grace
        refuse(f"ending {self.name} of a shared cluster")


class AttachedParts:
    """The programs of a shared cluster; implements :class:`~pytest_k3s_sandbox.cluster.base.Parts`.

    Args:
        state: The cluster's state.
        clients: The clients of the cluster, where exit codes are written.
        logs: The folder of its logs.
    """

    def __init__(self, state: State, clients: Clients, logs: InsidePath) -> None:
        """Keep the processes' names and ids."""
        self.processes: Mapping[str, Process] = {
            name: AttachedProcess(name, pid, logs / f"{name}.log", state, clients)
            for name, pid in state.processes.items()
        }

    @property
    def unsupervised(self) -> Mapping[str, Process]:
        """All of them: their owner's supervisor writes only final ends."""
        return self.processes

    def restarts(self, name: str) -> int:
        """Return 0: restarts are in the owner's records."""
        del name
        return 0

    def trouble(self) -> str | None:
        """Return None: the owner records which programs ended."""
        return None


def attached_cluster(state: State, clients: Clients, kubectl: Path) -> Cluster:
    """Return a cluster that another process owns.

    Args:
        state: The cluster's state.
        clients: The clients of the cluster, where exit codes are written.
        kubectl: The kubectl program on the machine.
    """
    sandbox = AttachedSandbox(state)
    settings = ClusterSettings(node=state.node, address=state.address, api_port=state.api_port)
    return Cluster(
        AttachedParts(state, clients, sandbox.logs), sandbox, settings, FORMS[state.distribution], kubectl
    )


@dataclass(frozen=True)
class AttachedStack(LayerStack):
    """The layers of a shared cluster, by their names; the objects exist in the owner.

    Attributes:
        words: The names.
    """

    words: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The layers' names."""
        return self.words

    def check(self) -> dict[str, Health]:
        """Refuse."""
        refuse("checking the layers of a shared cluster")


class RecordedReadiness:
    """The samples of the owner's sampler, read from the run's records."""

    failure: BaseException | None = None
    __getattr__ = refuse_the_rest(Sampler, "the sampler of a shared cluster")

    def __init__(self, folder: Path) -> None:
        """Keep the run's folder."""
        self._folder = folder

    @property
    def samples(self) -> list[Sample]:
        """The samples so far."""
        return list(read_run(self._folder).samples)

    @property
    def error_lines(self) -> list[ErrorLine]:
        """The error lines so far."""
        return list(read_run(self._folder).errors)

    def errors(self, kind: str) -> list[ErrorLine]:
        """Return the error lines of one kind so far."""
        return [line for line in self.error_lines if line.kind == kind]


def attach(state: State, clients: Clients, kubectl: Path) -> NodeSession:
    """Return a cluster that another process keeps, as the fixtures hand it out.

    Args:
        state: Its state.
        clients: Its clients, of which this process is one.
        kubectl: The kubectl program on the machine.
    """
    folder = Path(state.folder)
    cluster = attached_cluster(state, clients, kubectl)
    return NodeSession(
        stack=AttachedStack(cast("Sandbox", cluster.sandbox), (), state.layers),
        cluster=cluster,
        writer=RunWriter(folder, zero=state.zero, joined=True),
        readiness=cast("Sampler", RecordedReadiness(folder)),  # tests use only these members
        folder=folder,
    )
