"""The process that serves a tree: mount, ready, serve until told to stop, unmount."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_k3s_sandbox.errors import ConfigError, LayerError, MissingCapability
from pytest_k3s_sandbox.layers.cgroupfs import mounts
from pytest_k3s_sandbox.layers.cgroupfs.accounting import ProcAccounting
from pytest_k3s_sandbox.layers.cgroupfs.controllers import CONTROLLERS
from pytest_k3s_sandbox.layers.cgroupfs.filesystem import CgroupOperations
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree

DEFAULT_MOUNTPOINT = "/tmp/fuse-cgroup"  # noqa: S108  # the research's path, which its tools name
"""Where the tree is mounted when nothing else is said."""

_LONG = 3600  # nothing changes but by requests, of which the kernel knows
_PRETENDED_SIZE = 8192  # more than any usual content, so that gVisor need not ask before each read


@dataclass
class Server:
    """Serves the controllers on one FUSE mount.

    Attributes:
        mountpoint: Where the whole tree is mounted; made when missing.
        controllers: Their names.
        at: A directory that gets each controller as a bind mount of its subtree.
        real: Whether the kernel's own cgroup mounts are put below those, where the kernel
            has the controller, so that mount tables keep a line of type ``cgroup``.
        stats: A file that gets counts of operations as JSON, every few seconds and at the end.
        max_age: Seconds for which sampled numbers are good.
    """

    mountpoint: Path
    controllers: Sequence[str] = tuple(CONTROLLERS)
    at: Path | None = None
    real: bool = False
    stats: Path | None = None
    max_age: float = 1.0
    _undo: list[str] = field(default_factory=list)
    _failure: BaseException | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT; everything that was mounted is unmounted then.

        Args:
            ready: Called once programs can use the mounts.

        Raises:
            ConfigError: A controller is unknown.
            MissingCapability: No root, no ``/dev/fuse`` or no libfuse 2.
            LayerError: A mount was refused.
        """
        unknown = sorted(set(self.controllers) - CONTROLLERS.keys())
        if unknown or not self.controllers:
            raise ConfigError(
                f"controllers {','.join(unknown) or '(none)'}",
                cause="unknown" if unknown else "at least one is needed",
                remedy=f"Choose from {','.join(CONTROLLERS)}.",
            )
        fuse = _fuse()
        try:
            mounts.clear_dead(str(self.mountpoint))
            self.mountpoint.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LayerError(f"mountpoint {self.mountpoint}", cause=str(error)) from error
        tree = Tree(ProcAccounting(self.max_age), self.controllers)
        operations = CgroupOperations(
            tree,
            caller=lambda: int(fuse.fuse_get_context()[2]),
            started=lambda: self._thread(lambda: self._publish(operations, ready)),
        )
        try:
            # Returns after a signal, which libfuse takes, and unmounts.
            fuse.FUSE(
                operations,
                str(self.mountpoint),
                foreground=True,
                # Operations wait for nothing and share one tree: one thread serves them soonest. In
                # gVisor a read took 0.9-1.3 ms so, and 2.3-3.7 ms with libfuse's pool of threads.
                nothreads=True,
                fsname="cgroup",
                nonempty=True,
                allow_other=True,
                default_permissions=True,
                direct_io=True,
                big_writes=True,
                entry_timeout=_LONG,
                attr_timeout=_LONG,
                negative_timeout=0,
            )
        except RuntimeError as error:
            # fusepy knows no more than the exit code; libfuse has written why.
            raise LayerError(
                f"FUSE mount on {self.mountpoint}",
                cause=f"libfuse ended with {error}",
                remedy="See the lines above it; inside a container /dev/fuse and CAP_SYS_ADMIN are needed.",
            ) from error
        finally:
            self._stop.set()
            self._withdraw()
            self._write(operations)
        if self._failure is not None:
            raise LayerError(f"mounts at {self.at}", cause=str(self._failure)) from self._failure

    def _publish(self, operations: CgroupOperations, ready: Callable[[], None]) -> None:
        try:
            # Linux reads with direct I/O whatever the size; what reads nothing goes by the size.
            probe = self.mountpoint / self.controllers[0] / "notify_on_release"
            if not probe.read_bytes():
                operations.pretend(_PRETENDED_SIZE)
                if not probe.read_bytes():
                    raise OSError(f"{probe} reads as empty")  # noqa: TRY301  # one way to fail for all of them
            if self.at is not None:
                for name in self.controllers:
                    self._expose(name, self.at / name)
            operations.tree.refresh()
        except OSError as error:
            self._failure = error
            os.kill(os.getpid(), signal.SIGTERM)
            return
        ready()
        self._watch(operations)

    def _expose(self, name: str, target: Path) -> None:
        mounts.clear_dead(str(target))
        if mounts.make_directory(target):
            self._undo.append(str(target.parent))
        if self.real and name in _hierarchies():
            mounts.mount("none", str(target), "cgroup", 0, name)
            self._undo.append(str(target))
        mounts.mount(str(self.mountpoint / name), str(target), "", mounts.MS_BIND)
        self._undo.append(str(target))

    def _withdraw(self) -> None:
        while self._undo:
            with suppress(OSError):
                mounts.unmount(self._undo.pop())
        # libfuse leaves the mount when it believes that somebody else has unmounted it.
        with suppress(OSError):
            mounts.clear_dead(str(self.mountpoint))

    def _watch(self, operations: CgroupOperations) -> None:
        """Sample while groups have processes, so that little of what they do before they die is lost."""
        turns = 0
        while not self._stop.wait(self.max_age):
            operations.sample()
            turns += 1
            if turns % 5 == 0:
                self._write(operations)

    def _write(self, operations: CgroupOperations) -> None:
        if self.stats is None:
            return
        new = self.stats.with_name(self.stats.name + ".new")
        try:
            new.write_text(json.dumps(operations.statistics(), indent=1) + "\n")
            new.replace(self.stats)
        except OSError as error:
            sys.stderr.write(f"cgroupfs: {self.stats} is not written any more: {error}\n")
            self.stats = None

    def _thread(self, work: Callable[[], None]) -> None:
        def body() -> None:
            # Signals are for the main thread: only there do they interrupt libfuse's read.
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            work()

        threading.Thread(target=body, name="cgroupfs", daemon=True).start()


def _hierarchies() -> set[str]:
    """Return the controllers that have a v1 hierarchy; to mount another would make one, system-wide."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return {line.split(":")[1] for line in lines if ":" in line}


def _fuse() -> Any:  # noqa: ANN401  # fusepy publishes no types
    if os.geteuid() != 0:
        raise MissingCapability("cgroupfs", cause="not root", remedy="Run it as root.")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MissingCapability("cgroupfs", cause="no /dev/fuse", remedy="Load the module: modprobe fuse")
    try:
        import fuse  # noqa: PLC0415  # looks for libfuse when imported
    except OSError as error:
        raise MissingCapability("cgroupfs", cause=str(error), remedy="apt-get install libfuse2") from error
    return fuse
