"""``python -m pytest_k3s_sandbox.layers.services JSON``: keep the rules of the API server's services."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any, Final, NamedTuple

from pytest_k3s_sandbox.layers.services import programs, rules
from pytest_k3s_sandbox.layers.services.entries import MOST_ENDPOINTS, Facts
from pytest_k3s_sandbox.layers.services.watch import SERVICES, SLICES, Watch
from pytest_k3s_sandbox.support.files import write_text

QUIET: Final = 0.03
"""Seconds from a change to the table; the changes in between share it."""

BETWEEN: Final = 0.2
"""Seconds between two tables at least."""

FIRST_RETRY: Final = 0.5
MOST_RETRY: Final = 30.0
"""Seconds until a table that was refused is written again."""


class Settings(NamedTuple):
    """What the process is told, as a JSON object.

    Attributes:
        kubeconfig: The file that says where the API server is.
        status: The file that says how far the process is.
        node: The node's name.
        address: The node's IPv4 address.
        gateway: The pods' gateway.
        service: The first address of the range of services, with the prefix' length.
        capacity: The bytes that the table may have; None for any number.
        pod_range: See :class:`.entries.Facts`.
    """

    kubeconfig: str
    status: str
    node: str
    address: str
    gateway: str
    service: str
    capacity: int | None = None
    pod_range: str = ""

    @property
    def facts(self) -> Facts:
        """What the rules need of them."""
        return Facts(self.node, self.address, self.gateway, self.capacity, self.pod_range)


class Proxy:
    """Keeps the rules.

    Args:
        settings: The settings.
    """

    def __init__(self, settings: Settings) -> None:
        """Prepare to be woken; nothing is changed yet."""
        self._settings = settings
        self._restore = programs.found(programs.RESTORE)
        self._save = programs.found(programs.SAVE)
        self._wakes, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._services = Watch(SERVICES, settings.kubeconfig, self._wake)
        self._slices = Watch(SLICES, settings.kubeconfig, self._wake)
        self._present = rules.Present()
        self._facts = settings.facts
        self._table: rules.Table | None = None
        self._error = ""
        self._writes = 0
        self._said: dict[str, Any] = {}
        self._ending = False

    def run(self) -> None:
        """Keep the rules until SIGTERM or SIGINT, and remove them.

        Raises:
            OSError: The kernel has no nat table, or the addresses cannot be added.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        self._addresses("replace")
        if self._facts.capacity is None:
            with contextlib.suppress(OSError):  # the kernel, or this iptables, does not have it
                self._write(rules.probe_text())
                self._facts = self._facts._replace(random=True)
        self._look()
        self._say()
        for watch in (self._services, self._slices):
            watch.start()
        self._keep()
        self._remove()

    def _keep(self) -> None:
        wait: float | None = None
        retry = FIRST_RETRY
        last = 0.0
        while not self._ending:
            self._until_woken(wait)
            now = time.monotonic()
            until = max(now + QUIET, last + BETWEEN)
            while not self._ending and now < until:
                self._until_woken(until - now)
                now = time.monotonic()
            if self._ending:
                break
            wrote = self._sync()
            last = time.monotonic() if wrote else last
            wait, retry = (retry, min(2 * retry, MOST_RETRY)) if self._error else (None, FIRST_RETRY)
            self._say()

    def _sync(self) -> bool:
        """Write the table if it is another one; return whether it was written or tried to be."""
        if not (self._services.synced and self._slices.synced):
            return False
        wanted = rules.table(self._services.objects(), self._slices.objects(), self._facts)
        if wanted == self._table and not self._error:
            return False
        try:
            if self._error:  # somebody else may have changed the table
                self._look()
            self._write(rules.restore_text(wanted, self._present))
        except OSError as error:
            self._error = str(error)[:500]
            return True
        self._present, self._table, self._error = rules.written(wanted), wanted, ""
        self._writes += 1
        return True

    def _write(self, text: str) -> None:
        ran = programs.run([self._restore, "--noflush", "--wait=5"], text)
        if ran.code != 0:
            raise OSError(f"{self._restore} ended with {ran.code}: {ran.errors.strip()}")

    def _look(self) -> None:
        ran = programs.run([self._save, "-t", "nat"])
        if ran.code != 0:
            raise OSError(f"{self._save} ended with {ran.code}: {ran.errors.strip()}")
        self._present = rules.present_in(ran.output)

    def _addresses(self, verb: str) -> None:
        """Add the addresses to the loopback device, or remove them.

        The kernel takes connections to a local address only to the OUTPUT chain, and refuses those to an
        address without rules.
        """
        lines = [
            f"address {verb} {each} dev lo"
            for each in (self._settings.service, f"{self._settings.gateway}/32")
        ]
        ran = programs.run(["ip", "-batch", "-"], "\n".join(lines) + "\n")
        if ran.code != 0:
            raise OSError(f"ip ended with {ran.code}: {ran.errors.strip()}")

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._look()
            self._write(rules.removal_text(self._present))
            self._addresses("del")

    def _say(self) -> None:
        """Write the status, if it is another one."""
        table = self._table
        said = {
            "pid": os.getpid(),
            "synced": table is not None,
            "services": len(self._services.objects()),
            "slices": len(self._slices.objects()),
            "ports": 0 if table is None else table.ports,
            "rules": 0 if table is None else len(table.lines),
            "bytes": 0 if table is None else table.size,
            "endpoints_of_a_port": MOST_ENDPOINTS if table is None else table.limit,
            "left_out": [] if table is None else list(table.left_out[:20]),
            "skipped": {**self._services.skipped(), **self._slices.skipped()},
            "writes": self._writes,
            "error": self._error,
            "api": self._services.error or self._slices.error,
        }
        if said != self._said:
            self._said = said
            write_text(self._settings.status, json.dumps({**said, "time": time.time()}))

    def _until_woken(self, seconds: float | None) -> None:
        select.select([self._wakes], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakes, 65536)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker, b"\0")

    def _end(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._ending = True


def main(argv: Sequence[str] | None = None) -> int:
    """Keep the rules until a signal comes.

    Args:
        argv: The settings, a JSON object as the only argument; by default the process' own.

    Returns:
        0 after SIGTERM or SIGINT, 2 if the rules cannot be kept.
    """
    (text,) = sys.argv[1:] if argv is None else argv
    try:
        Proxy(Settings(**json.loads(text))).run()
    except OSError as error:
        sys.stderr.write(f"services: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main())  # a thread may be in a read that has no end
