"""What looks after a running sandbox: its limits are kept, and its logs stay small.

Memory and processes are limited by the kernel (:mod:`.groups`); a sandbox that reached a limit is ended, so
that nothing is measured in one that lacks a process. The disk has no limit of the kernel's that every
machine offers, so that it is measured here.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pytest_k3s_sandbox.sandbox import layout, rotation
from pytest_k3s_sandbox.sandbox.groups import Gauge
from pytest_k3s_sandbox.sandbox.limits import Limits, in_words
from pytest_k3s_sandbox.support import bounded, clock

LOOK_SECONDS = 1.0
MEASURE_SECONDS = 30.0
"""Between two measurements of the disk while little is written."""
SLOW = 10.0
"""The pause between measurements, as a multiple of the time of the last one."""
MOST_SECONDS = 60.0
"""How long a measurement may take: the inside can make millions of files."""

ROTATE_SECONDS = 5.0

RESERVE_BYTES = 256 << 20
RESERVE_INODES = 4096
"""The space that has to stay free on the disk; below it, a sandbox that has taken more than that is ended."""

REMEDY = {
    "memory": "give it more by --k3s-memory (`k3s-sandbox up --memory`)",
    "disk": "give it more by --k3s-disk (`k3s-sandbox up --disk`)",
    "processes": "give it more by --k3s-processes (`k3s-sandbox up --processes`)",
}


def explained(why: str, what: str) -> str:
    """Return the reason for the end of a sandbox, with the remedy.

    Args:
        why: How the sandbox reached the limit.
        what: The limit: ``memory``, ``disk`` or ``processes``.
    """
    return f"{why}, and was ended; {REMEDY[what]}"


@dataclass(frozen=True)
class Free:
    """The free space of a file system.

    Attributes:
        size: Bytes.
        inodes: Files that can be made; None where the file system sets no number (statvfs(3)).
    """

    size: int
    inodes: int | None

    @classmethod
    def on(cls, folder: Path) -> Free:
        """Return the free space where a folder is."""
        found = os.statvfs(folder)
        return cls(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


def used(folder: Path) -> int | None:
    """Return the bytes that a folder takes on the disk; None when that took too long to tell.

    du(1) follows no link, counts a file with several names once and stays on the file system. It manages
    folders that are nested deeper than Python's stack, which the inside can make.
    """
    command = [
        "nice",
        "-n",
        "10",
        "du",
        "--summarize",
        "--one-file-system",
        "--block-size=1",
        "--",
        str(folder),
    ]
    try:
        done = bounded.run(command, MOST_SECONDS, env={**os.environ, "LC_ALL": "C"})
    except (subprocess.TimeoutExpired, OSError):
        return None
    # It fails when a file goes meanwhile, and says the sum all the same.
    word = done.stdout.split(b"\t")[0]
    return int(word) if word.isdigit() else None


def unlinked(pids: Iterable[int], folder: Path) -> int:
    """Return the bytes of files that processes hold open and that have no name any more (proc_pid_fd(5)).

    Args:
        pids: The processes. Those of runsc see other paths, so that a file's device tells where it is.
        folder: A folder of the file system that counts.
    """
    device = folder.stat().st_dev
    found: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if not str(Path(entry.path).readlink()).endswith(" (deleted)"):
                        continue
                    there = entry.stat()
                    if stat.S_ISREG(there.st_mode) and there.st_nlink == 0 and there.st_dev == device:
                        found[there.st_ino] = there.st_blocks * 512
    return sum(found.values())


class Disk:
    """Tells whether a sandbox has taken more of the disk than its limit.

    The free space shows at once, and cheaply, that something was written; then the sandbox's own
    files are measured. They are measured now and then in any case, because others may remove files.

    Args:
        folder: The folder that the sandbox writes to.
        limit: Its limit in bytes; None for no limit.
        free: Returns the free space.
        measure: Returns the space that the folder takes.
        now: The clock, in seconds.
    """

    def __init__(
        self,
        folder: Path,
        limit: int | None,
        *,
        free: Callable[[Path], Free] = Free.on,
        measure: Callable[[Path], int | None] = used,
        now: Callable[[], float] = clock.monotonic,
    ) -> None:
        """Note the free space at the start."""
        self._folder, self._limit = folder, limit
        self._free, self._measure, self._now = free, measure, now
        self._used = 0
        self._then = free(folder)
        self._next = now() + MEASURE_SECONDS
        self._soonest = now()

    def exceeded(self) -> str | None:
        """Return how the sandbox reached its limit; None while it is below.

        Raises:
            OSError: The folder is not there any more.
        """
        now, free = self._now(), self._free(self._folder)
        most = self._used + max(0, self._then.size - free.size)  # if nothing else wrote meanwhile
        short = free.size < RESERVE_BYTES or (free.inodes is not None and free.inodes < RESERVE_INODES)
        over = self._limit is not None and most > self._limit
        if not (now >= self._next or ((over or short) and now >= self._soonest)):
            return None
        measured = self._measure(self._folder)
        took = self._now() - now
        self._used = most if measured is None else measured
        self._then = free
        self._next = self._now() + max(MEASURE_SECONDS, SLOW * took)
        self._soonest = self._now() + SLOW * took
        if self._limit is not None and self._used > self._limit:
            return f"it took {in_words(self._used)} of the disk, and its limit is {in_words(self._limit)}"
        if short and self._used > RESERVE_BYTES:
            left = in_words(free.size) if free.size < RESERVE_BYTES else f"{free.inodes} inodes"
            return (
                f"the disk of {self._folder} is nearly full ({left} free), "
                f"of which it took {in_words(self._used)}"
            )
        return None


class Watcher:
    """Watches a sandbox from a thread of its own.

    Args:
        workdir: The sandbox's folder.
        limits: Its limits.
        groups: Its control groups.
        processes: Tells which processes of the machine belong to it.
        end: Called with the reason when a limit is reached, from the thread.
    """

    def __init__(
        self,
        workdir: Path,
        limits: Limits,
        groups: tuple[str, ...],
        processes: Callable[[], Iterable[int]],
        end: Callable[[str], None],
    ) -> None:
        """Prepare; nothing runs yet."""
        self._workdir = workdir
        self._end = end
        self._gauge = Gauge(groups, limits)

        def measure(folder: Path) -> int | None:
            named = used(folder)
            return None if named is None else named + unlinked(processes(), folder)

        var = workdir / "var"
        self._disk = Disk(workdir / "rootfs" if var.is_symlink() else var, limits.disk_bytes, measure=measure)
        self._left = threading.Event()
        self._lock = threading.Lock()
        self._rotated = clock.monotonic()
        self._noted: set[str] = set()
        self._thread = threading.Thread(target=self._loop, name=f"watch-{workdir.name}", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more; returns at once, also in the thread itself."""
        self._left.set()
        with self._lock:
            self._gauge.close()

    def reason(self) -> str | None:
        """Return which limit of memory or processes was reached, with the remedy; None if none was."""
        with self._lock:
            why = self._gauge.exceeded()
        if why is None:
            return None
        return explained(why, "memory" if "memory" in why else "processes")

    def _loop(self) -> None:
        while not self._left.wait(LOOK_SECONDS):
            why = None
            try:
                why = self._look()
            except OSError:  # it is ending
                continue
            except Exception as error:  # noqa: BLE001 - without a watch the disk would have no limit
                broke = f"{type(error).__name__}: {error}"
                why = f"the watch of its limits broke ({broke}), and it was ended; report it as a fault"
            if why is not None and not self._left.is_set():
                self._end(why)
                return

    def _note(self, log: Path, text: str) -> None:
        """Write a note to the sandbox's log, each once."""
        if text not in self._noted:
            self._noted.add(text)
            rotation.noted(log, text)

    def _look(self) -> str | None:
        why = self.reason()
        if why is None and (filled := self._disk.exceeded()) is not None:
            why = explained(filled, "disk")
        if why is None and clock.monotonic() - self._rotated >= ROTATE_SECONDS:
            self._rotated = clock.monotonic()
            log = layout.control(self._workdir) / "sandbox.log"
            rotation.rotate(layout.shared(self._workdir), rotation.LOG_BYTES, partial(self._note, log))
            rotation.cut(log, rotation.LOG_BYTES)
        return why
