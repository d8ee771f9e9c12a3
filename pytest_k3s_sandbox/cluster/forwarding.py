"""A port of a pod on 127.0.0.1 of the machine, for as long as a block lasts."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator

from pytest_k3s_sandbox.cluster.access import Access, short
from pytest_k3s_sandbox.cluster.resources import Reference
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError, ConfigError, on_purpose
from pytest_k3s_sandbox.support import forks

__tracebackhide__ = on_purpose

HOST = "127.0.0.1"
POLL_SECONDS = 0.02
AGAIN_SECONDS = 1
"""Between two starts of a kubectl that has ended."""

SAID_BYTES = 4096
PORTS = range(1, 65536)

_FORWARDING = re.compile(rb"^Forwarding from 127\.0\.0\.1:(\d+) -> (\d+)", re.MULTILINE)
_PORT_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?")


class Url(str):
    """The URL of a forwarded port; a text, with its parts for protocols other than HTTP.

    Attributes:
        host: The address on the machine, ``127.0.0.1``.
        port: The TCP port there.
    """

    __slots__ = ("host", "port")
    host: str
    port: int

    @classmethod
    def of(cls, scheme: str, host: str, port: int) -> Url:
        """Return the URL.

        Args:
            scheme: Like ``http``.
            host: The address.
            port: The port.
        """
        made = cls(f"{scheme}://{host}:{port}")
        made.host, made.port = host, port
        return made


def check_port(port: int | str) -> str:
    """Return a port as kubectl takes it.

    Args:
        port: A number, or the name of a port.

    Raises:
        ConfigError: It is not a port.
    """
    number = int(port) if isinstance(port, str) and port.isascii() and port.isdigit() else port
    if isinstance(number, int) and not isinstance(number, bool) and number in PORTS:
        return str(number)
    if isinstance(number, str) and _PORT_NAME.fullmatch(number):
        return number
    raise ConfigError(
        f"the port {port!r}",
        cause="it is neither a TCP port (1 to 65535) nor the name of one",
        remedy="write it like 80 or 'http'",
    )


@contextlib.contextmanager
def forward(
    access: Access, reference: Reference, port: int | str, deadline: Deadline, scheme: str = "http"
) -> Iterator[Url]:
    """Forward a free port of 127.0.0.1 to a pod for as long as the block lasts.

    Args:
        access: The namespace.
        reference: A pod, or an object that has pods.
        port: The port, as the pod or the service has it.
        deadline: When to give up waiting for a pod that runs.
        scheme: The URL's scheme.

    Raises:
        ConfigError: It is not a port.
        ClusterError: There is no such pod, or kubectl cannot forward to it; in its own words.
    """
    owner = forks.Owner()
    forwarded = _Forward(access, reference, check_port(port))
    try:
        local = forwarded.start(deadline)
        try:
            yield Url.of(scheme, HOST, local)
        except Exception as error:
            if said := forwarded.trouble():
                error.add_note(f"{forwarded.what} was forwarded to {HOST}:{local}; {said}")
            raise
    finally:
        if owner.mine:
            forwarded.stop()


class _Forward:
    """A kubectl that forwards, started again when it has ended: it ends with a connection that is refused.

    Args:
        access: The namespace.
        reference: The target.
        port: The port there.
    """

    def __init__(self, access: Access, reference: Reference, port: str) -> None:
        self.what = f"port {port} of {reference.shown} (namespace {access.namespace})"
        self._access = access
        self._reference = reference
        self._port = port
        # A file and no pipe: kubectl writes a line for each connection, and no program reads them.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        self._process: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()
        self._keeper: threading.Thread | None = None

    def start(self, deadline: Deadline) -> int:
        """Start it, and return the port of the machine when it listens there."""
        process = self._launch("", max(1, round(deadline.remaining())))
        while (found := _FORWARDING.search(self._text())) is None:
            ended = process.poll() is not None
            if ended or deadline.expired:
                raise self._failed(ended=ended)
            time.sleep(POLL_SECONDS)
        local = found[1].decode()
        self._keeper = threading.Thread(target=self._keep, args=(local,), name="port-forward", daemon=True)
        self._keeper.start()
        return int(local)

    def stop(self) -> None:
        """End it."""
        self._over.set()
        if self._keeper is not None:
            self._keeper.join()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def trouble(self) -> str | None:
        """Return kubectl's message about connections that failed; None if there is no message."""
        size = os.fstat(self._said.fileno()).st_size
        text = self._text(max(0, size - SAID_BYTES)).decode(errors="replace")
        lines = [line for line in text.splitlines() if "rror" in line or "lost connection" in line]
        return f"kubectl said: {short(lines[-1])}" if lines else None

    def _launch(self, local: str, seconds: int) -> subprocess.Popen[bytes]:
        argv, environment = self._access.cluster.kubectl_command(
            f"--namespace={self._access.namespace}",
            "port-forward",
            f"--address={HOST}",
            f"--pod-running-timeout={seconds}s",
            str(self._reference),
            f"{local}:{self._port}",
        )
        self._process = subprocess.Popen(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=self._said, stderr=subprocess.STDOUT
        )
        return self._process

    def _keep(self, local: str) -> None:
        while not self._over.wait(POLL_SECONDS):
            if self._process is not None and self._process.poll() is not None:
                self._launch(local, AGAIN_SECONDS)
                self._over.wait(AGAIN_SECONDS)

    def _text(self, offset: int = 0) -> bytes:
        """Return kubectl's output without moving the file offset, which kubectl shares."""
        return os.pread(self._said.fileno(), SAID_BYTES, offset)

    def _failed(self, *, ended: bool) -> ClusterError:
        text = short(self._text().decode(errors="replace").strip().removeprefix("error: "))
        late = not ended or any(word in text for word in ("timed out", "not running", "pending"))
        return ClusterError(
            f"forwarding {self.what}",
            cause=text or ("kubectl ended" if ended else "no pod of it runs in time"),
            remedy="wait for it before: `wait(..., 'Ready')`, or 'Available' for a deployment"
            if late
            else None,
            log=self._access.cluster.logs,
        )
