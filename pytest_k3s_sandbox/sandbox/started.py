"""A sandbox that has started: everything but the way its first process is launched."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import MissingCapability, StartError
from pytest_k3s_sandbox.sandbox import groups, layout, machine, network, outside, ownrun, reaper, watch
from pytest_k3s_sandbox.sandbox.base import STATE_DIR, Bind, Completed, Process, Usage, magic_argv
from pytest_k3s_sandbox.sandbox.beneath import Beneath
from pytest_k3s_sandbox.sandbox.client import AgentClient
from pytest_k3s_sandbox.sandbox.inside import InsidePath
from pytest_k3s_sandbox.sandbox.limits import Room, Wanted
from pytest_k3s_sandbox.sandbox.network import Network
from pytest_k3s_sandbox.support import forks

START_SECONDS = 20.0
FULL = (errno.ENOSPC, errno.EDQUOT)

ENDED: list[str] = []
"""Which sandboxes were ended for a limit, and why, until they are closed: tests that use them fail for it."""


def agent_argv() -> list[str]:
    """Return the command of process 1: the agent's file itself, which needs no packages."""
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("agent.py"))]


class StartedSandbox(ABC):
    """Base of the kinds of sandbox; implements :class:`~.base.Sandbox`.

    It starts when it is made, and ends with :meth:`close` or as a context manager.

    Args:
        programs: Programs on the machine that appear inside, in ``BIN_DIR``.
        binds: Further files and folders to show.
        one_root: Whether /var is a part of the root instead of a mount of its own.
        opened: TCP ports of the machine that programs inside may reach.
        limits: The limits of its resources; by default those of :class:`~.limits.Wanted`.

    Attributes:
        limits: The limits of its resources.
        unlimited: Why the machine does not limit its memory or processes, by the controller.
        ended: Why it was ended before its time; None if it was not.
        on_end: Called with that reason before its processes are killed.
        handed_over: Whether another process owns it now; then its content stays.

    Raises:
        MissingCapability: The machine cannot run this kind of sandbox.
        StartError: It did not start; nothing is left.
        ConfigError: A program or a bind's source does not exist; nothing is left.
    """

    kind: ClassVar[str]
    copies: ClassVar[bool] = False
    """Whether the programs inside are copies, because what runs there could change those of the cache."""

    def __init__(
        self,
        *,
        programs: Iterable[Path] = (),
        binds: Sequence[Bind] = (),
        one_root: bool = False,
        opened: Sequence[int] = (),
        limits: Wanted | None = None,
    ) -> None:
        """Start it; see the class."""
        if os.geteuid() != 0:
            raise MissingCapability(
                f"cannot start a sandbox of kind {self.kind}",
                cause="it needs root, for namespaces and mounts",
                remedy="run as root, for example with sudo",
            )
        self._owner = forks.Owner()
        self._opened = tuple(opened)
        self._numbers = itertools.count(1)
        self._closed = False
        self.handed_over = False
        self.unlimited: dict[str, str] = {}
        self.ended: str | None = None
        self.on_end: Callable[[str], None] | None = None
        self._watcher: watch.Watcher | None = None
        self._root_magic: int | None = None
        self._client: AgentClient | None = None
        try:
            reaper.reap()
            self.workdir, self._life, self._record = machine.new_workdir(self.kind, self._program())
            try:
                self._places = groups.find()
                self.limits = (limits or Wanted()).on(Room.found(self.workdir, self._places.around))
                plan = layout.plan(self.workdir, programs, binds, one_root=one_root, copied=self.copies)
                # Both mostly wait, the one for ip(8), the other for the disk.
                with ThreadPoolExecutor(1) as beside:
                    taken = beside.submit(self._take)
                    layout.prepare(plan, self.workdir, hostname=self.name)
                taken.result()
                self._start(plan)
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise StartError(
                f"cannot start a sandbox of kind {self.kind}",
                cause=str(error),
                remedy=f"free space below {machine.home()}, or set K3S_SANDBOX_HOME to another folder"
                if error.errno in FULL
                else None,
            ) from error

    @property
    def name(self) -> str:
        """The sandbox's name, also its host name."""
        return f"k3ssb-{self.workdir.name}"

    @property
    def mine(self) -> bool:
        """Whether this process started it, and was not forked from the one that did."""
        return self._owner.mine

    @property
    def address(self) -> str:
        """The IPv4 address by which the machine reaches the sandbox."""
        return self.network.address

    @property
    def logs(self) -> InsidePath:
        """The folder on the machine with every process' log."""
        return layout.below_var(self.workdir, f"{STATE_DIR}/logs")

    def __enter__(self) -> Self:
        """Return the sandbox, which runs already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        self.close()

    def spawn(
        self,
        argv: Sequence[str],
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
    ) -> Process:
        """Start a program; see :meth:`.base.Sandbox.spawn`."""
        inside = f"{STATE_DIR}/logs/{name}.log"
        return self._agent().spawn(
            argv,
            name=name,
            env=self._environment(env),
            cwd=cwd,
            outputs=(inside, inside),
            log=layout.below_var(self.workdir, inside),
        )

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a program to its end; see :meth:`.base.Sandbox.run`.

        A forked process has no agent, and runs it by the command of a shell.
        """
        if not self._owner.mine:
            shell = self.shell_argv([])
            return outside.run(shell, argv, where=self.name, timeout=timeout, check=check, env=env)
        return ownrun.run(
            self._agent(),
            argv,
            where=self.name,
            workdir=self.workdir,
            stem=f"{STATE_DIR}/logs/run-{next(self._numbers)}",
            timeout=timeout,
            check=check,
            env=self._environment(env),
        )

    def usage(self) -> list[Usage]:
        """Return what every process inside has used; see :meth:`.base.Sandbox.usage`."""
        return self._agent().usage()

    def processor_seconds(self) -> float | None:
        """Return the machine's count of the whole; see :meth:`.base.Sandbox.processor_seconds`."""
        return groups.used(self._record.cgroups)

    @property
    def files(self) -> Beneath:
        """The files that the inside can write; see :attr:`.base.Sandbox.files`."""
        return layout.shared(self.workdir)

    @property
    def control(self) -> Path:
        """The folder of files that only the machine uses; see :attr:`.base.Sandbox.control`."""
        return layout.control(self.workdir)

    def close(self) -> None:
        """End the sandbox and everything that belongs to it; see :meth:`.base.Sandbox.close`.

        In a process that was forked from its owner it does nothing.
        """
        if self._closed or not self._owner.mine:
            return
        self._closed = True
        if self.ended in ENDED:
            ENDED.remove(self.ended)
        try:
            if self._watcher is not None:
                self._watcher.stop()
            if self._client is not None:
                self._client.end(Deadline.after(10))
        finally:  # also when a second Ctrl-C comes meanwhile
            try:
                reaper.dispose(self.workdir, self._record)
            finally:
                self._life.release()

    def hand_over(self, receive: Callable[[int], None]) -> None:
        """Let another process own the sandbox; it goes on when this one ends.

        To this process it is then as if it had ended: nothing can be run in it, and :meth:`close`
        does nothing.

        Args:
            receive: Called with the descriptor of the channel to process 1. When it returns, the other
                process holds it and has claimed the sandbox's folder (:func:`.machine.claim`).

        Raises:
            StartError: The sandbox has ended.
        """
        self._owner.check(f"the sandbox {self.name}")
        try:
            self._agent().hand_over(receive)
            if self._watcher is not None:
                self._watcher.stop()
        except BaseException:
            machine.claim(
                self.workdir, self._record
            )  # the other process may have claimed it before it failed
            raise
        self._closed = self.handed_over = True
        self._life.release()

    def statfs_magic(self, path: str) -> int:
        """Return ``f_type`` of the file system that holds a path, as a program inside sees it."""
        return int(self.run(magic_argv(path)).stdout, 16)

    def root_magic(self) -> int:
        """Return ``f_type`` of ``/`` as a program inside sees it (statfs(2)); it is asked once."""
        if self._root_magic is None:
            self._root_magic = self.statfs_magic("/")
        return self._root_magic

    @abstractmethod
    def shell_argv(self, argv: Sequence[str]) -> list[str]:
        """Return the command on the machine that runs ``argv`` inside on the caller's terminal."""

    @abstractmethod
    def _launch(self) -> list[str]:
        """Prepare the launch and return the command that becomes the agent."""

    @abstractmethod
    def _assert_genuine(self) -> None:
        """Raise StartError unless the sandbox is what its kind promises."""

    def _take(self) -> None:
        """Make the objects of the sandbox outside its folder."""
        self._take_network()

    def _take_network(self) -> None:
        """Record the name of the network on disk, create it, and record its identity."""
        with machine.lock():
            self._claim(replace(self._record, network=network.choose(self.workdir.name)))
            made = network.create(self.network, self._opened)
        self._claim(replace(self._record, network=made))

    def _claim(self, record: machine.Owner) -> None:
        """Record on disk what belongs to the sandbox, before it is made."""
        self._record = record
        machine.claim(self.workdir, record)

    def _take_groups(self) -> list[str]:
        """Make control groups that limit the sandbox, where the machine has them; note the others."""
        self.unlimited = dict(self._places.lacking or {})
        planned = tuple(str(parent / self.name) for parent in self._places.parents)
        if not planned:
            return []
        self._claim(replace(self._record, cgroups=planned))
        try:
            return [str(group) for group in groups.make(self._places.parents, self.name, self.limits)]
        except OSError as error:
            why = f"{error.filename or self._places.parents[0]}: {error.strerror}"
            self.unlimited = dict.fromkeys(groups.CONTROLLERS, why) | self.unlimited
            self._claim(replace(self._record, cgroups=()))
            return []

    def _reached(self) -> str | None:
        """Return which limit was reached when process 1 has ended, or a process was killed."""
        why = None if self._watcher is None else self._watcher.reason()
        return why and self._has_ended(why)

    def _has_ended(self, why: str) -> str:
        self.ended = f"the sandbox {self.name}: {why}"
        if self.ended not in ENDED and not self._closed:
            ENDED.append(self.ended)
            if self.on_end is not None:
                self.on_end(self.ended)
        return why

    def _end_for(self, why: str) -> None:
        """End it at once for a limit that it has reached: what fills a disk does not stop politely."""
        if self._client is not None:
            self._client.end_because(self._has_ended(why))
        reaper.end_processes(self.workdir, self._record)

    def _processes(self) -> list[int]:
        return reaper.processes_of(self.workdir, self._record)

    @property
    def network(self) -> Network:
        """The sandbox's network."""
        return self._record.network

    @property
    def lock_fd(self) -> int:
        """The descriptor of the lock of the sandbox's owner; a process that inherits it has the lock."""
        return self._life.fd

    def _program(self) -> str | None:
        """Return the runsc program, for a sandbox that has one."""
        return None

    def _start(self, plan: layout.Layout) -> None:
        self.layout = plan
        launch_log = self.control / "sandbox.log"
        # A socket, because a pipe could be opened again inside, by /proc/1/fd (open(2), ENXIO).
        ours, theirs = socket.socketpair()
        try:
            with theirs, launch_log.open("ab") as log:
                command = self._launch()
                self._watcher = watch.Watcher(
                    self.workdir, self.limits, self._record.cgroups, self._processes, self._end_for
                )
                launcher = subprocess.Popen(
                    command,
                    stdin=theirs.fileno(),
                    stdout=log,
                    stderr=log,
                    # Not the caller's environment, which may hold secrets: /proc/1/environ shows it inside.
                    env={**self._environment(None), "PATH": os.environ.get("PATH", os.defpath)},
                    start_new_session=True,  # Ctrl-C is for pytest, which ends the sandbox in its order
                )
        except BaseException:
            ours.close()
            raise
        self._client = AgentClient(launcher, ours, what=self.name, log=launch_log, reason=self._reached)
        self._client.wait_ready(Deadline.after(START_SECONDS))
        self._assert_genuine()
        self._watcher.start()

    def _agent(self) -> AgentClient:
        if self._client is None or self._closed:
            raise StartError(self.ended or f"the sandbox {self.name} has ended")
        return self._client

    @staticmethod
    def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
        return {
            "PATH": layout.SHELL_PATH,
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            **(extra or {}),
        }
