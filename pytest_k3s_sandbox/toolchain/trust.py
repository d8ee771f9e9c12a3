"""Checks of owners and modes: the cache's programs run as root, so only trusted users may change them."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

OTHERS = stat.S_IWGRP | stat.S_IWOTH

MOST_LINKS = 40
"""The most symbolic links on the way to a folder, as in the kernel (path_resolution(7))."""


def owners(environ: Mapping[str, str] = os.environ) -> frozenset[int]:
    """Return the users whose files are trusted: root, this user, and the user of sudo(8)."""
    found = {0, os.geteuid()}
    sudo = environ.get("SUDO_UID", "")
    if os.geteuid() == 0 and sudo.isascii() and sudo.isdecimal():
        found.add(int(sudo))
    return frozenset(found)


def problem(status: os.stat_result, trusted: frozenset[int], *, sticky: bool = False) -> str | None:
    """Return why an untrusted user can change a file or folder; None if none can.

    Args:
        status: The status of the file itself; of a link, not of its target.
        trusted: The users that may change it.
        sticky: Whether a folder with S_ISVTX is fine (inode(7)), such as /tmp on the way to the file: users
            cannot remove each other's files in it.
    """
    if status.st_uid not in trusted:
        return f"it belongs to the user {status.st_uid}"
    if stat.S_ISLNK(status.st_mode) or (sticky and status.st_mode & stat.S_ISVTX):
        return None
    if status.st_mode & OTHERS:
        return f"other users can write it (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


def folder_problem(folder: Path, trusted: frozenset[int]) -> tuple[Path, str] | None:
    """Return the first path on the way to a folder that an untrusted user can change, and why.

    None if there is no such path. Both the resolved way and each symbolic link in the given path count.

    Args:
        folder: The folder; it need not exist.
        trusted: The users that may change it.
    """
    found = _link_problem(folder, trusted)
    if found is not None:
        return found
    real = folder.resolve()
    for path in (real, *real.parents):
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):  # making the folder fails later, with the reason
            continue
        why = problem(status, trusted, sticky=path != real)
        if why is not None:
            return path, why
    return None


def remedy(path: Path, folder: Path) -> str:
    """Return the remedy for a path that :func:`folder_problem` found on the way to a folder."""
    if path.is_symlink():
        return f"remove the link {path}, or give the folder that it should lead to by a path without links"
    if not folder.resolve().is_relative_to(path):
        return f"chown root {path}; chmod go-w {path}. Or give the folder by a path without links"
    return f"if it was not changed: chown -R root {path}; chmod -R go-w {path}"


def _link_problem(folder: Path, trusted: frozenset[int]) -> tuple[Path, str] | None:
    """Return the first symbolic link on the way to a folder that an untrusted user can change, and why."""
    here, left, links = Path("/"), list(reversed(folder.absolute().parts[1:])), 0
    while left:
        part = left.pop()
        if part == "..":
            here = here.parent
            continue
        try:
            status = (here / part).lstat()
        except (FileNotFoundError, NotADirectoryError):  # the rest of the path does not exist
            return None
        if not stat.S_ISLNK(status.st_mode):
            here /= part
            continue
        link, links = here / part, links + 1
        if links > MOST_LINKS:
            return link, "too many symbolic links lead there"
        if (why := problem(status, trusted)) is not None:
            return link, f"it is a symbolic link, and {why}"
        for holder in (here, *here.parents):
            if (why := problem(holder.lstat(), trusted, sticky=True)) is not None:
                return holder, f"the symbolic link {link} lies in it, and {why}"
        target = link.readlink()
        here = Path("/") if target.is_absolute() else here
        left += reversed(target.parts[1:] if target.is_absolute() else target.parts)
    return None
