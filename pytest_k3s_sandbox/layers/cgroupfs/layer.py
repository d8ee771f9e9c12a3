"""The FUSE cgroupfs as a layer: a server in the sandbox, and a probe that checks it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import LayerError, StartError
from pytest_k3s_sandbox.layers import ownprogram
from pytest_k3s_sandbox.layers.base import Health, NodeOverrides
from pytest_k3s_sandbox.layers.cgroupfs import probe
from pytest_k3s_sandbox.layers.cgroupfs.__main__ import READY
from pytest_k3s_sandbox.layers.cgroupfs.controllers import DEFAULT
from pytest_k3s_sandbox.sandbox.base import Process, Sandbox, described

_TAIL = 2000  # characters of the log in an error


class FuseCgroupfs:
    """Serves cgroup v1 in a sandbox while it is entered; implements :class:`~..base.Layer`.

    Args:
        sandbox: Where.
        controllers: Names of the controllers.
        at: The directory inside that gets each controller.
        real: Whether to mount the sandbox's own cgroups below the served ones, so that mount tables have
            lines of type ``cgroup`` without the interceptor, too; by default in gVisor.
        opens: Whether programs send opens where gVisor can do without; a signal can interrupt an open.
        stats: A file inside for counts of operations; the server's ``--stats``.
        timeout: The most seconds until the server is ready.
    """

    name = "fuse_cgroupfs"
    overrides = NodeOverrides()

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        controllers: Sequence[str] = DEFAULT,
        at: str = "/sys/fs/cgroup",
        real: bool | None = None,
        opens: bool = False,
        stats: str | None = None,
        timeout: float = 15.0,
    ) -> None:
        """Bind the layer to its sandbox; nothing starts yet."""
        self._sandbox = sandbox
        self._controllers = tuple(controllers)
        self._at = at
        self._real = sandbox.kind == "gvisor" if real is None else real
        self._opens = opens
        self._stats = stats
        self._timeout = timeout
        self._process: Process | None = None

    def __enter__(self) -> Self:
        """Start the server, wait until it serves, and check it.

        Raises:
            LayerError: The server does not come up, or fails its check.
        """
        self._start()
        return self

    def fault(self) -> str | None:
        """See :meth:`~..base.Restorable.fault`."""
        code = None if self._process is None else self._process.poll()
        return None if code is None else f"the server {described(code)}"

    def restore(self) -> None:
        """Start a server again, which unmounts the dead mounts ("Transport endpoint is not connected").

        The server restores groups and their members from the kernel's own hierarchies, if any. Values written
        to the groups' files are lost, and files that programs hold open stay broken.
        """
        self._start()

    def _start(self) -> None:
        words = ["--stack-on" if self._real else "--at", self._at]
        words += ["--controllers", ",".join(name.replace(",", "+") for name in self._controllers)]
        words += ["--opens"] if self._opens else []
        words += ["--stats", self._stats] if self._stats else []
        argv = ownprogram.argv("pytest_k3s_sandbox.layers.cgroupfs", *words)
        try:
            process = self._process = self._sandbox.spawn(argv, name="cgroupfs")
        except StartError as error:
            raise LayerError(f"layer {self.name}", cause=str(error), log=error.log) from error
        try:
            self._come_up(process)
        except BaseException:
            process.stop()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the server, which unmounts everything that it mounted."""
        process, self._process = self._process, None
        if process is not None:
            process.stop()

    @property
    def pid(self) -> int | None:
        """The server's process id inside; None if it does not run."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def check(self) -> Health:
        """Read, write, make and remove groups with a program inside."""
        if self.pid is None:
            return Health(ok=False, details={"problems": "the server is not running"})
        try:
            done = self._sandbox.run([*ownprogram.PYTHON, probe.__file__, self._at, *self._controllers])
            seen = probe.parse(done.stdout)
        except (StartError, ValueError) as failed:
            seen = {"problems": f"the probe failed: {failed}"}
        return Health(ok=not seen["problems"], details=seen)

    def _come_up(self, process: Process) -> None:
        self._wait(process, Deadline.after(self._timeout))
        # The server probes its own mounts before it is ready; a second program would cost as much.
        try:
            problems = probe.parse(_text(process))["problems"]
        except ValueError as failed:
            problems = str(failed)
        if problems:
            raise self._error(process, f"its check found: {problems}")

    def _wait(self, process: Process, deadline: Deadline) -> None:
        while READY.format(process.pid) not in _text(process).splitlines():
            if process.poll() is not None:
                raise self._error(
                    process, f"it ended with {process.poll()}: {_text(process)[-_TAIL:].strip()}"
                )
            if deadline.expired:
                raise self._error(process, f"not ready after {self._timeout:g} s: {_text(process)[-_TAIL:]}")
            time.sleep(0.02)

    def _error(self, process: Process, cause: str) -> LayerError:
        remedy = "`k3s-sandbox cgroupfs` in the sandbox shows it in the foreground."
        return LayerError(f"layer {self.name}", cause=cause, remedy=remedy, log=process.log)


def _text(process: Process) -> str:
    try:
        return process.log.read_text()
    except FileNotFoundError:
        return ""
