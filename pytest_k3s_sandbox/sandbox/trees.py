"""Copies of whole trees between the machine and a folder that a sandbox can write."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_k3s_sandbox.sandbox.beneath import Beneath, make_folder, new_file
from pytest_k3s_sandbox.sandbox.resolve import FOLDER, LOOK, Limited, RefusedError, open_beneath, private

MOST_DEPTH = 100
"""The most levels of a tree that comes out; each level holds a descriptor open."""

MOST_ENTRIES = 1_000_000
"""The most entries of a tree that comes out; the limit of bytes does not count empty files."""


@contextlib.contextmanager
def staged(files: Beneath, inside: str) -> Iterator[Path]:
    """Give an empty folder of the machine's own; after the block, its content is copied to a path inside.

    Args:
        files: The sandbox's files.
        inside: The absolute path inside.

    Raises:
        OSError: It cannot be written, or a link is on the way.
    """
    with tempfile.TemporaryDirectory(prefix="k3s-sandbox-") as folder:
        yield Path(folder)
        copy_tree_in(Path(folder), files, inside)


def copy_tree_in(source: Path, files: Beneath, inside: str) -> None:
    """Copy a tree of the machine's own to a path inside; links stay links, and existing files are replaced.

    Args:
        source: A folder that the inside cannot write.
        files: The sandbox's files.
        inside: The absolute path inside.

    Raises:
        OSError: It cannot be read or written, or a link is on the way.
    """
    files.mkdir(inside)
    with files.opened(files.relative(inside)) as folder:
        _copy(source, folder)


def _copy(source: Path, folder: int) -> None:
    for entry in os.scandir(source):
        if entry.is_dir(follow_symlinks=False):
            make_folder(entry.name, folder, entry.stat().st_mode & 0o1777)
            child = open_beneath(folder, entry.name, FOLDER)
            try:
                _copy(Path(entry.path), child)
                _like(child, entry.stat())
            finally:
                os.close(child)
        else:
            _replace(entry, folder)


def _replace(entry: os.DirEntry[str], folder: int) -> None:
    if not entry.is_symlink():
        with Path(entry.path).open("rb") as file, new_file(entry.name, folder) as out:
            shutil.copyfileobj(file, out)
            _like(out.fileno(), os.fstat(file.fileno()))
        return
    partial = f".{secrets.token_hex(8)}"
    os.symlink(Path(entry.path).readlink(), partial, dir_fd=folder)
    os.rename(partial, entry.name, src_dir_fd=folder, dst_dir_fd=folder)


def copy_tree_out(files: Beneath, inside: str, target: Path, limit: int) -> None:
    """Copy the folders, regular files and links of a tree to a new folder of the machine's own.

    Devices, FIFOs and sockets are left out. Links stay links, and the machine must not follow them.

    Args:
        files: The sandbox's files.
        inside: The absolute path inside.
        target: A path that the inside cannot write; it must not exist.
        limit: The bytes that all files may have together.

    Raises:
        RefusedError: It has more bytes, or too many entries or levels.
        OSError: It cannot be read or written.
    """
    with files.opened(files.relative(inside)) as folder:
        _copy_out(folder, target, _Left(limit, MOST_ENTRIES), inside)


@dataclass
class _Left:
    """The rest of the limits of a copy."""

    size: int
    entries: int

    def names(self, folder: int, shown: str) -> list[str]:
        with os.scandir(folder) as found:
            names = [entry.name for entry in itertools.islice(found, self.entries + 1)]
        self.entries -= len(names)
        if self.entries < 0:
            raise RefusedError(shown, f"the tree has more than {MOST_ENTRIES} entries")
        return sorted(names)


def _copy_out(folder: int, target: Path, left: _Left, shown: str, depth: int = 1) -> None:
    if depth > MOST_DEPTH:
        raise RefusedError(shown, f"the tree has more than {MOST_DEPTH} levels")
    target.mkdir(mode=0o700)
    for name in left.names(folder, shown):
        kind = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if stat.S_ISLNK(kind):
            (target / name).symlink_to(os.readlink(name, dir_fd=folder))
        elif stat.S_ISDIR(kind):
            child = open_beneath(folder, name, FOLDER)
            try:
                _copy_out(child, target / name, left, shown, depth + 1)
            finally:
                os.close(child)
        elif stat.S_ISREG(kind):
            with os.fdopen(open_beneath(folder, name, LOOK), "rb") as source:
                seen = os.fstat(source.fileno())
                left.size -= seen.st_size
                if not stat.S_ISREG(seen.st_mode) or left.size < 0:
                    raise RefusedError(f"{shown}/{name}", "it is not a regular file, or all are too large")
                with open(target / name, "xb", opener=private) as out:
                    shutil.copyfileobj(Limited(source, seen.st_size), out)
                    _like(out.fileno(), seen)
    descriptor = os.open(target, FOLDER)
    try:
        _like(descriptor, os.fstat(folder))
    finally:
        os.close(descriptor)


def _like(descriptor: int, found: os.stat_result) -> None:
    """Give an open file the owner and the permissions of another, but no set-id bits."""
    os.fchown(descriptor, found.st_uid, found.st_gid)
    os.fchmod(descriptor, found.st_mode & 0o1777)
