"""Who uses a shared cluster: a count that the kernel keeps, so that it is right whoever is killed.

Every user holds a shared flock(2) on one file. The kernel drops it with the process, however
that ends; who can get the exclusive lock knows that there is no user.
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
"""The names of the files in a folder of users."""


class Users:
    """The users of one shared cluster.

    Args:
        folder: A folder of their own; made by the first one.
    """

    def __init__(self, folder: Path) -> None:
        """Keep the folder's name; nothing is made yet."""
        self.folder = folder
        self._fd: int | None = None
        self._alone = False
        forks.watch(self)

    def forked(self) -> None:
        """Close the lock in a forked process: it would count as a user after its parent's end."""
        self.leave()

    @property
    def start_lock(self) -> filelock.FileLock:
        """Held by the one who starts the cluster while the others wait for it."""
        return filelock.FileLock(self.folder / "start.lock")

    def enter(self) -> None:
        """Count as a user until :meth:`leave` or this process' end; waits while a cluster is ended."""
        while self._fd is None:
            # Another one may remove it, before mkdir looks why it was there and after.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._fd = self._locked(fcntl.LOCK_SH)

    def leave(self) -> None:
        """Count no longer."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def gone(self, until: contextlib.ExitStack) -> bool:
        """Tell whether there is no user; new ones have to wait then, until a stack of exits is closed.

        Args:
            until: Whoever ends the cluster closes it when that is done.
        """
        try:
            fd = self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            # Another one removes it, or has: then a new user can come before this one has looked.
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
        """Remove the folder, while :meth:`gone` keeps new users out; else there is nothing of ours to remove.

        What is not ours in it stays, and so does the folder then.
        """
        if not self._alone:
            return
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                if OURS.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            self.folder.rmdir()

    def _locked(self, how: int) -> int | None:
        """Return the locked file's descriptor; None when it is not the folder's file any more."""
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
        """Whether the cluster goes on without users: a test failed, and somebody wants to look at it."""
        return (self.folder / "stay").exists()

    def note(self, word: str, text: str = "") -> None:
        """Leave a word for the other users: ``stay``, ``failed`` or ``failure``."""
        files.write_text(self.folder / word, text, temporary=f"{word}.{secrets.token_hex(4)}")

    def read(self, word: str) -> str | None:
        """Return what was left under a word; None when nothing was."""
        try:
            return (self.folder / word).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def write_ended(self, codes: Mapping[str, int]) -> None:
        """Tell the exit codes of processes that have ended."""
        if codes and codes != self.ended():
            self.note("ended", json.dumps(codes))

    def ended(self) -> dict[str, int]:
        """Return the exit codes of the cluster's processes that have ended."""
        codes: dict[str, int] = json.loads(self.read("ended") or "{}")
        return codes
