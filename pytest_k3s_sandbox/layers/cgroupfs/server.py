"""The server's process: mounts, reports ready, serves until a signal, unmounts.

It starts with every node, from a slow file system, so it imports little: this package, and two small
modules of ``support``.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from pytest_k3s_sandbox.layers.cgroupfs import mounts, protocol
from pytest_k3s_sandbox.layers.cgroupfs.accounting import ProcAccounting
from pytest_k3s_sandbox.layers.cgroupfs.adopting import adopt
from pytest_k3s_sandbox.layers.cgroupfs.backing import Backing
from pytest_k3s_sandbox.layers.cgroupfs.controllers import CONTROLLERS, DEFAULT
from pytest_k3s_sandbox.layers.cgroupfs.filesystem import CgroupFilesystem
from pytest_k3s_sandbox.layers.cgroupfs.hierarchy import Hierarchy
from pytest_k3s_sandbox.layers.cgroupfs.probe import probe
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree
from pytest_k3s_sandbox.support import files

DEFAULT_MOUNTPOINT = "/tmp/fuse-cgroup"  # noqa: S108  # the research's path, which its tools name
"""The default mountpoint."""

_PRETENDED_SIZE = 8192  # more than usual contents, so that gVisor does not ask before each read
_GONE = (errno.ENOENT, errno.EINVAL)  # errors of Linux and gVisor for the answer to an interrupted request
_STATS_TURNS = 5


class _Stop(Exception):  # not an error: a signal to end
    """Raised in the main thread by SIGTERM and SIGINT."""


STAND_INS = {"freezer": "job"}
"""Controllers of gVisor that have no effect, by those that gVisor lacks and whose groups they keep.

So a child starts in its parent's group of the freezer, too. The link of the other name is for crun, which
makes a group for each line of /proc/self/cgroup whose folder there is.
"""


class Server:
    """Serves controllers on one FUSE mount.

    Args:
        mountpoint: Where the whole tree is mounted; made when missing.
        controllers: Their names.
        at: A directory that gets each controller as a bind mount of its subtree.
        real: Whether to mount the kernel's own cgroups below those, if the kernel has the controller, so that
            mount tables keep a line of type ``cgroup``.
        stats: A file for counts of operations as JSON, written every few seconds, on SIGUSR1 and at the end.
        max_age: Seconds for which sampled numbers are good.
        opens: Whether programs send opens where the kernel can do without, as gVisor.
        log: Called with a line for each change by a program.
    """

    def __init__(
        self,
        mountpoint: str = DEFAULT_MOUNTPOINT,
        controllers: Sequence[str] = DEFAULT,
        *,
        at: str | None = None,
        real: bool = False,
        stats: str | None = None,
        max_age: float = 1.0,
        opens: bool = False,
        log: Callable[[str], None] | None = None,
    ) -> None:
        """Keep the arguments; nothing is mounted yet."""
        self.mountpoint = os.path.abspath(mountpoint)
        self.controllers = tuple(controllers)
        self.at = None if at is None else os.path.abspath(at)
        self.real = real
        self.stats = stats
        self.max_age = max_age
        self.opens = opens
        self.version = ""
        self._log = log
        self._undo: list[Callable[[], None]] = []
        self._failure: OSError | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def run(self, ready: Callable[[dict[str, str]], None]) -> None:
        """Serve until SIGTERM or SIGINT, then unmount everything.

        Args:
            ready: Called when programs can use the mounts, with the findings of the probe.

        Raises:
            ConfigError: A controller is unknown.
            MissingCapability: No root or no ``/dev/fuse``.
            LayerError: A mount was refused.
        """
        self._check()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        tree = Tree(ProcAccounting(self.max_age), self.controllers)
        filesystem = CgroupFilesystem(
            tree, started=lambda: self._thread(lambda: self._publish(filesystem, ready))
        )
        if self._log is not None:
            filesystem.report = self._log
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        try:
            self._mount(device)
            if self.stats is not None:
                # In the main thread, between two requests, so nothing changes meanwhile.
                signal.signal(signal.SIGUSR1, lambda _number, _frame: self._write(filesystem))
            self._serve(device, filesystem)
        except _Stop:
            pass
        finally:
            self._end(device)
            self._write(filesystem)
        if self._failure is not None:
            from pytest_k3s_sandbox.errors import LayerError

            raise LayerError(f"mounts at {self.at}", cause=str(self._failure)) from self._failure

    def _check(self) -> None:
        unknown = sorted(set(self.controllers) - CONTROLLERS.keys())
        if unknown or not self.controllers:
            from pytest_k3s_sandbox.errors import ConfigError

            raise ConfigError(
                f"controllers {','.join(unknown) or '(none)'}",
                cause="unknown" if unknown else "at least one is needed",
                remedy=f"Choose from {' '.join(CONTROLLERS)}.",
            )
        lack, remedy = "", ""
        if os.geteuid() != 0:
            lack, remedy = "not root", "Run it as root."
        elif not os.access("/dev/fuse", os.R_OK | os.W_OK):
            lack, remedy = "no /dev/fuse", "Load the module: modprobe fuse"
        if lack:
            from pytest_k3s_sandbox.errors import MissingCapability

            raise MissingCapability("cgroupfs", cause=lack, remedy=remedy)

    def _mount(self, device: int) -> None:
        options = f"fd={device},rootmode=40555,user_id=0,group_id=0,allow_other,default_permissions"
        try:
            mounts.refuse_others(self.mountpoint)
            mounts.clear_dead(self.mountpoint)
            self._make(self.mountpoint)
            mounts.refuse_others(self.mountpoint)  # another process may have mounted it meanwhile
            mounts.mount("cgroup", self.mountpoint, "fuse", mounts.MS_NOSUID | mounts.MS_NODEV, options)
        except OSError as error:
            from pytest_k3s_sandbox.errors import LayerError

            raise LayerError(
                f"FUSE mount on {self.mountpoint}",
                cause=str(error),
                remedy="Name a directory of root's; inside a container CAP_SYS_ADMIN is needed.",
            ) from error
        self._undo.append(lambda: mounts.unmount(self.mountpoint))

    def _make(self, path: str) -> None:
        if not os.path.isdir(path):
            if mounts.make_directory(path):
                self._undo.append(lambda: mounts.unmount(os.path.dirname(path)))
            self._undo.append(lambda: os.rmdir(path))

    def _serve(self, device: int, filesystem: CgroupFilesystem) -> None:
        """Answer requests in turn, until the unmount.

        Requests do not block and share one tree, so one thread is fastest. In gVisor a thread switch costs
        more than a request.
        """
        buffer = bytearray(protocol.BUFFER)
        view, buffers = memoryview(buffer), [buffer]
        answer, lock = filesystem.answer, self._lock
        readv, write = os.readv, os.write
        while True:
            try:
                length = readv(device, buffers)
            except OSError as error:
                if error.errno == errno.ENODEV:  # another process unmounted it
                    return
                if error.errno != errno.ENOENT:  # the request was interrupted before
                    raise
                continue
            with lock:
                reply = answer(view[:length])
            if reply is None:
                continue
            try:
                write(device, reply)
            except OSError as error:
                if error.errno not in _GONE:
                    raise

    def _publish(self, filesystem: CgroupFilesystem, ready: Callable[[dict[str, str]], None]) -> None:
        try:
            self._adapt(filesystem)
            if self.at is not None:
                for name in self.controllers:
                    self._expose(name, filesystem.tree.hierarchies[name], self.at)
                with self._lock:
                    adopt(filesystem.tree)
                for name, target in filesystem.tree.links.items():
                    self._link(f"{self.at}/{name}", target)
        except OSError as error:
            self._failure = error
            os.kill(os.getpid(), signal.SIGTERM)
            return
        ready(probe(self.at or self.mountpoint, self.controllers))
        self._watch(filesystem)

    def _adapt(self, filesystem: CgroupFilesystem) -> None:
        """Probe how the kernel reads files.

        Raises:
            OSError: Files cannot be read.
        """
        file = f"{self.mountpoint}/{self.controllers[0]}/notify_on_release"
        if _content(file):  # Linux, with direct I/O, ignores the size
            return
        filesystem.size = _PRETENDED_SIZE
        if not _content(file):
            raise OSError(f"{file} reads as empty")
        if self.opens:
            return
        filesystem.unopened = True
        try:
            works = _content(file) and _content(file)
        except OSError:
            works = ""
        filesystem.unopened = bool(works)

    def _expose(self, name: str, hierarchy: Hierarchy[Any], at: str) -> None:
        target = f"{at}/{name}"
        taken_over = mounts.clear_dead(target) > 0
        self._make(target)
        own = _own(name)
        new = bool(own) and self.real and mounts.kind(target) != "cgroup"
        if new:
            mounts.mount("none", target, "cgroup", 0, own)
        if new or (taken_over and mounts.kind(target) == "cgroup"):  # the mount of the killed server
            self._undo.append(lambda: mounts.unmount(target))
            hierarchy.backing = Backing.at(target)
            if own not in {"", name}:
                hierarchy.stand_in = own
                self._link(f"{at}/{own}", name)
            self._undo.append(hierarchy.close)
        mounts.mount(f"{self.mountpoint}/{name}", target, "", mounts.MS_BIND)
        self._undo.append(lambda: mounts.unmount(target))

    def _link(self, path: str, target: str) -> None:
        with suppress(FileExistsError):
            os.symlink(target, path)
            self._undo.append(lambda: os.unlink(path))

    def _end(self, device: int) -> None:
        self._stop.set()
        for number in (signal.SIGTERM, signal.SIGINT):  # a signal must not interrupt the end
            signal.signal(number, signal.SIG_IGN)
        while self._undo:
            with suppress(OSError):
                self._undo.pop()()
        os.close(device)

    def _watch(self, filesystem: CgroupFilesystem) -> None:
        """Sample while groups have processes, so that little time of dying processes is lost."""
        turns = 0
        while not self._stop.wait(self.max_age):
            if filesystem.tree.populated:
                with self._lock:
                    filesystem.tree.refresh()
            turns += 1
            if turns % _STATS_TURNS == 0:
                self._write(filesystem)

    def _write(self, filesystem: CgroupFilesystem) -> None:
        if self.stats is None:
            return
        import json

        try:
            files.write_text(self.stats, json.dumps(filesystem.statistics(), indent=1) + "\n")
        except OSError as error:
            sys.stderr.write(f"cgroupfs: {self.stats} is not written any more: {error}\n")
            self.stats = None

    def _thread(self, work: Callable[[], None]) -> None:
        def body() -> None:
            # Signals interrupt the read of a request only in the main thread.
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            work()

        threading.Thread(target=body, name="cgroupfs", daemon=True).start()


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _Stop


def _content(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _own(name: str) -> str:
    """Return the kernel's controllers for below a hierarchy: its own, or a stand-in; empty without."""
    present = _hierarchies()
    candidates = (name, STAND_INS.get(name, name))
    return next((own for own in candidates if set(own.split(",")) <= present), "")


def _hierarchies() -> set[str]:
    """Return the controllers with a v1 hierarchy; a mount of another would create one, system-wide."""
    names: set[str] = set()
    for line in _content("/proc/self/cgroup").splitlines():
        names.update(line.split(":")[1].split(","))
    return names
