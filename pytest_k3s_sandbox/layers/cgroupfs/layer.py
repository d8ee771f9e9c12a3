"""The FUSE cgroupfs as a layer: a process in the sandbox, checked by a program beside it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import LayerError, StartError
from pytest_k3s_sandbox.layers.base import Effect, Health
from pytest_k3s_sandbox.layers.cgroupfs.controllers import CONTROLLERS
from pytest_k3s_sandbox.layers.cgroupfs.server import DEFAULT_MOUNTPOINT
from pytest_k3s_sandbox.sandbox.base import Process, Sandbox

_PACKAGE = "pytest_k3s_sandbox.layers.cgroupfs"
_READY = "ready"
_TAIL = 2000  # characters of the log that an error shows


class FuseCgroupfs:
    """Serves cgroup v1 in a sandbox while it is entered; implements :class:`~..base.Layer`.

    Args:
        sandbox: Where.
        controllers: Names of the controllers.
        at: The directory inside that gets each controller.
        real: Whether the sandbox's own cgroup mounts go below ours, so that its mount
            table has lines of type ``cgroup`` also without the interceptor; by default in gVisor.
        timeout: Seconds until it has to be ready.
    """

    name = "fuse_cgroupfs"
    effect = Effect()

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        controllers: Sequence[str] = tuple(CONTROLLERS),
        at: str = "/sys/fs/cgroup",
        real: bool | None = None,
        timeout: float = 15.0,
    ) -> None:
        """Bind the layer to its sandbox; nothing starts yet."""
        self._sandbox = sandbox
        self._controllers = tuple(controllers)
        self._at = at
        self._real = sandbox.kind == "gvisor" if real is None else real
        self._timeout = timeout
        self._process: Process | None = None

    def __enter__(self) -> Self:
        """Start the server, wait until it serves, and check it.

        Raises:
            LayerError: It does not come up, or not as it should.
        """
        argv = [sys.executable, "-m", _PACKAGE, DEFAULT_MOUNTPOINT, "--at", self._at]
        argv += ["--controllers", ",".join(self._controllers), *(["--real"] if self._real else [])]
        try:
            process = self._process = self._sandbox.spawn(argv, name="cgroupfs")
        except StartError as error:
            raise LayerError(f"layer {self.name}", cause=str(error), log=error.log) from error
        try:
            self._come_up(process)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

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

    def check(self) -> Health:
        """Read, write, make and remove groups from a program inside."""
        process = self._process
        if process is None or process.poll() is not None:
            return Health(ok=False, details={"problems": "the server is not running"})
        argv = [sys.executable, "-m", f"{_PACKAGE}.probe", self._at, *self._controllers]
        try:
            found = json.loads(self._sandbox.run(argv).stdout)
        except (StartError, ValueError) as failed:
            return Health(ok=False, details={"problems": f"the probe failed: {failed}"})
        return Health(ok=not found["problems"], details=found)

    def _come_up(self, process: Process) -> None:
        self._wait(process, Deadline.after(self._timeout))
        health = self.check()
        if not health.ok:
            raise self._error(process, f"its check found: {health.details.get('problems')}")

    def _wait(self, process: Process, deadline: Deadline) -> None:
        while _READY not in _text(process).splitlines():
            if process.poll() is not None:
                raise self._error(
                    process, f"it ended with {process.poll()}: {_text(process)[-_TAIL:].strip()}"
                )
            if deadline.expired:
                raise self._error(process, f"not ready after {self._timeout:g} s: {_text(process)[-_TAIL:]}")
            time.sleep(0.02)

    def _error(self, process: Process, cause: str) -> LayerError:
        remedy = "`python -m pytest_k3s_sandbox.layers.cgroupfs` in the sandbox shows it in the foreground."
        return LayerError(f"layer {self.name}", cause=cause, remedy=remedy, log=process.log)


def _text(process: Process) -> str:
    try:
        return process.log.read_text("utf-8", "replace")
    except FileNotFoundError:
        return ""
