"""The clients of a shared cluster, counted by locks of the kernel.

Every client holds a shared flock(2) on one file. The kernel drops the lock when the process ends, also when
it is killed. A process that gets the exclusive lock knows that the cluster has no clients.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

import filelock

from pytest_k3s_sandbox.support import files, forks

OURS = re.compile(r"(users|start\.lock|launched|log|stay|failed|failure|ended)(\.[0-9a-f]{8})?")
"""The names of the files in the folder of a cluster's clients; ``users`` is the file with their locks."""


class Clients:
    """The clients of one shared cluster.

    Args:
        folder: The folder for their files; the first client makes it.
    """

    def __init__(self, folder: Path) -> None:
        """Keep the folder's name, and make nothing."""
        self.folder = folder
        self._fd: int | None = None
        self._alone = False
        forks.watch(self)

    def forked(self) -> None:
        """Close the lock in a forked process: it would count as a client after its parent's end."""
        self.leave()

    @property
    def start_lock(self) -> filelock.FileLock:
        """The lock that a client holds while it starts the cluster; the others wait for it."""
        return filelock.FileLock(self.folder / "start.lock")

    def enter(self) -> None:
        """Count as a client until :meth:`leave` or this process' end; wait while the cluster ends."""
        while self._fd is None:
            # Another process may remove the folder, before or after mkdir finds that it exists.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._fd = self._locked(fcntl.LOCK_SH)

    def leave(self) -> None:
        """Stop counting as a client."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def gone(self, until: contextlib.ExitStack) -> bool:
        """Return whether all clients are gone; if so, lock new ones out until a stack of exits is closed.

        Args:
            until: The caller closes it when the cluster has ended.
        """
        try:
            fd = self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            # Another process removes the folder or has removed it; meanwhile a new client can make it again.
            return not self.folder.exists()
        except BlockingIOError:
            return False
        if fd is None:
            return False
        self._alone = True
        until.callback(self._alone_no_longer, fd)
        return True

    def _alone_no_longer(self, fd: int) -> None:
        self._alone = False
        os.close(fd)

    def remove(self) -> None:
        """Remove the folder if :meth:`gone` locks new clients out; otherwise do nothing.

        Other files in the folder stay, and the folder with them.
        """
        if not self._alone:
            return
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                if OURS.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            self.folder.rmdir()

    def _locked(self, how: int) -> int | None:
        """Return the descriptor of the locked file; None when another file has taken its place."""
        path = self.folder / "users"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, how)
            if path.stat().st_ino == os.fstat(fd).st_ino:
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    @property
    def stay(self) -> bool:
        """Whether the cluster goes on without clients, for a look at it after a test failed."""
        return (self.folder / "stay").exists()

    def note(self, word: str, text: str = "") -> None:
        """Write a file for the other clients, such as ``stay``, ``failed`` or ``launched``."""
        files.write_text(self.folder / word, text, temporary=f"{word}.{secrets.token_hex(4)}")

    def read(self, word: str) -> str | None:
        """Return the content of a file that :meth:`note` wrote; None when it does not exist."""
        try:
            return (self.folder / word).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def write_ended(self, codes: Mapping[str, int]) -> None:
        """Write the exit codes of processes that have ended."""
        if codes and codes != self.ended():
            self.note("ended", json.dumps(codes))

    def ended(self) -> dict[str, int]:
        """Return the exit codes of the cluster's processes that have ended."""
        codes: dict[str, int] = json.loads(self.read("ended") or "{}")
        return codes
