"""Whom the cache belongs to: what it holds runs as root, so nobody else may change it."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

OTHERS = stat.S_IWGRP | stat.S_IWOTH


def owners(environ: Mapping[str, str] = os.environ) -> frozenset[int]:
    """Return the users whose files are trusted: root, this user, and the one that became root by sudo(8)."""
    found = {0, os.geteuid()}
    sudo = environ.get("SUDO_UID", "")
    if os.geteuid() == 0 and sudo.isascii() and sudo.isdecimal():
        found.add(int(sudo))
    return frozenset(found)


def problem(status: os.stat_result, trusted: frozenset[int], *, sticky: bool = False) -> str | None:
    """Return why a file or folder may be changed by somebody else; None if it may not.

    Args:
        status: Of the file itself, not of what a link leads to.
        trusted: The users that may.
        sticky: Whether a folder in which nobody removes what is another's is fine (inode(7), S_ISVTX): one on
            the way to what is looked at, as /tmp.
    """
    if status.st_uid not in trusted:
        return f"it belongs to the user {status.st_uid}"
    if stat.S_ISLNK(status.st_mode) or (sticky and status.st_mode & stat.S_ISVTX):
        return None
    if status.st_mode & OTHERS:
        return f"other users can write it (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


def folder_problem(folder: Path, trusted: frozenset[int]) -> tuple[Path, str] | None:
    """Return what somebody else may change of a folder and the way to it, and why; None if there is nothing.

    Args:
        folder: The folder; what does not exist yet is fine.
        trusted: The users that may.
    """
    real = folder.resolve()
    for path in (real, *real.parents):
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):  # what makes folders there says so
            continue
        why = problem(status, trusted, sticky=path != real)
        if why is not None:
            return path, why
    return None
