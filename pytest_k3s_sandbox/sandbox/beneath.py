"""The machine's access to files that a sandbox can write; no other module opens them.

A program inside can put a link, a FIFO or a device in the place of any file there, at any moment.
So no path is resolved by name alone: every step is taken beneath an open folder, and no link
is followed (openat2(2), ``RESOLVE_BENEATH`` and ``RESOLVE_NO_SYMLINKS``; openat(2) with ``O_NOFOLLOW``
step by step where the kernel lacks it, as gVisor's does). A file to read must be a regular file with one
name, and has a limit. A file to write is created under a new name and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from pytest_k3s_sandbox.sandbox.resolve import (
    FOLDER,
    READ_LIMIT,
    Limited,
    RefusedError,
    open_beneath,
    open_regular,
    private,
    read_limited,
)
from pytest_k3s_sandbox.support.files import NEW


class Beneath:
    """A folder of the machine that a sandbox can write, by paths as the inside has them.

    Attributes:
        root: The folder on the machine that is the sandbox's ``/``, as far as the machine can use it.

    Args:
        root: That folder, which the inside cannot replace.
        shown: The folder inside below which paths may lie, as ``/var``.
    """

    def __init__(self, root: Path, shown: str = "/var") -> None:
        """Keep the folder, and open nothing."""
        self.root = root
        self._shown = shown

    def read(self, inside: str, limit: int = READ_LIMIT) -> bytes:
        """Return the content of a regular file.

        Args:
            inside: The absolute path inside.
            limit: The bytes that it may have.

        Raises:
            RefusedError: It is a link, has several names, is not a regular file, or is larger.
            OSError: It is not there or cannot be read.
        """
        with self.open(inside) as file:
            return read_limited(file, inside, limit)

    def text(self, inside: str, limit: int = READ_LIMIT) -> str:
        """Return the content of a regular file as text, with replacement characters; see :meth:`read`."""
        return self.read(inside, limit).decode(errors="replace")

    def open(self, inside: str) -> IO[bytes]:
        """Open a regular file for reading; see :meth:`read`."""
        with self._folder() as root:
            return open_regular(root, self.relative(inside))

    def copy_out(self, inside: str, target: Path, limit: int = READ_LIMIT) -> None:
        """Copy a regular file to a new file of the machine's own, readable by its owner only.

        Args:
            inside: The absolute path inside.
            target: A path that the inside cannot write; it must not exist.
            limit: The bytes that are copied at most; a longer file is refused before.

        Raises:
            RefusedError: As :meth:`read`.
            OSError: It cannot be read, or the target cannot be written.
        """
        with self.open(inside) as source:
            if os.fstat(source.fileno()).st_size > limit:
                raise RefusedError(inside, f"it is larger than {limit} bytes")
            with open(target, "xb", opener=private) as out:
                shutil.copyfileobj(Limited(source, limit), out)

    def exists(self, inside: str) -> bool:
        """Return whether a path exists and is not a link."""
        with contextlib.suppress(OSError), self._folder() as root:
            descriptor = open_beneath(root, self.relative(inside), os.O_PATH)
            try:
                return not stat.S_ISLNK(os.fstat(descriptor).st_mode)
            finally:
                os.close(descriptor)
        return False

    def names(self, inside: str) -> list[str]:
        """Return the sorted names in a folder.

        Raises:
            OSError: It is not a folder, does not exist, or a link is on the way.
        """
        with self.opened(self.relative(inside)) as folder, os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries)

    def sizes(self, inside: str, suffix: str, most: int) -> tuple[dict[str, int], bool]:
        """Return the bytes of regular files in a folder, by their names; no file is opened.

        Args:
            inside: The absolute path inside of the folder.
            suffix: The end of the names that count.
            most: The names that are looked at; the inside can make any number.

        Returns:
            The sizes, and whether the folder has more names.

        Raises:
            OSError: It is not a folder, does not exist, or a link is on the way.
        """
        found: dict[str, int] = {}
        with self.opened(self.relative(inside)) as folder, os.scandir(folder) as entries:
            for entry in itertools.islice(entries, most):
                with contextlib.suppress(OSError):  # it is gone
                    if entry.name.endswith(suffix) and entry.is_file(follow_symlinks=False):
                        found[entry.name] = entry.stat(follow_symlinks=False).st_size
            return found, next(entries, None) is not None

    def size(self, inside: str) -> int:
        """Return the size of a regular file in bytes; 0 if it does not exist."""
        try:
            with self.open(inside) as file:
                return os.fstat(file.fileno()).st_size
        except OSError:
            return 0

    def write(self, inside: str, content: str | bytes, mode: int = 0o644) -> None:
        """Create or replace a file, as a whole and at once.

        Args:
            inside: The absolute path inside; its folder must exist.
            content: The new content.
            mode: The permissions, whatever the umask is.

        Raises:
            RefusedError: A link is on the way. One in the place of the file itself is replaced.
            OSError: The folder is not there, or cannot be written.
        """
        data = content.encode() if isinstance(content, str) else content
        with self._new_file(inside, mode) as file:
            file.write(data)

    def copy_in(self, source: Path, inside: str, mode: int = 0o644) -> None:
        """Copy a file of the machine's own to a path inside; see :meth:`write`.

        Args:
            source: A file that the inside cannot write.
            inside: The absolute path inside; its folder must exist.
            mode: The permissions of the copy.

        Raises:
            OSError: As :meth:`write`, or the source cannot be read.
        """
        with source.open("rb") as file, self._new_file(inside, mode) as out:
            shutil.copyfileobj(file, out)

    def move_in(self, source: Path, inside: str, mode: int = 0o644) -> None:
        """Move a file of the machine's own to a path inside, on the same file system; cheaper than a copy.

        Args:
            source: A file that the inside cannot write; it is gone afterwards.
            inside: The absolute path inside; its folder must exist.
            mode: The permissions that it gets.

        Raises:
            OSError: As :meth:`write`, or the source cannot be moved.
        """
        relative = self.relative(inside)
        source.chmod(mode)
        with self.opened(relative.parent) as folder:
            os.rename(source, relative.name, dst_dir_fd=folder)

    def rotate(self, inside: str, keep: int) -> None:
        """Copy the end of a regular file to ``<name>.1`` beside it, and make it empty.

        A program that has it open to append goes on at its new beginning.

        Args:
            inside: The absolute path inside.
            keep: The bytes that are copied at most.

        Raises:
            RefusedError: It is a link, has several names, or is not a regular file.
            OSError: It is not there, or cannot be written.
        """
        relative = self.relative(inside)
        with self.opened(relative.parent) as folder:
            file = open_regular(folder, PurePosixPath(relative.name), os.O_RDWR)
        with file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - keep))
            with self._new_file(f"{inside}.1", 0o644) as out:
                shutil.copyfileobj(Limited(file, keep), out)
            os.ftruncate(file.fileno(), 0)

    def mkdir(self, inside: str, mode: int = 0o755, *, exist_ok: bool = True) -> None:
        """Create a folder and those above it that are missing.

        Args:
            inside: The absolute path inside.
            mode: The permissions of the last one.
            exist_ok: Whether it may exist already.

        Raises:
            FileExistsError: It exists, and ``exist_ok`` is false.
            OSError: Something on the way is not a folder, or a link.
        """
        parts = self.relative(inside).parts
        with self._folder() as root:
            here = os.dup(root)
            try:
                for number, part in enumerate(parts, 1):
                    last = number == len(parts)
                    made = make_folder(part, here, mode if last else 0o755)
                    if last and not made and not exist_ok:
                        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), inside)
                    following = open_beneath(here, part, FOLDER)
                    os.close(here)
                    here = following
            finally:
                os.close(here)

    def symlink(self, target: str, inside: str) -> None:
        """Make a symbolic link for the inside to follow; the machine itself never does.

        Raises:
            OSError: The path exists, or its folder cannot be written.
        """
        relative = self.relative(inside)
        with self.opened(relative.parent) as folder:
            os.symlink(target, relative.name, dir_fd=folder)

    def rename(self, inside: str, new: str) -> None:
        """Rename a file or folder within its folder.

        Args:
            inside: The absolute path inside.
            new: Its new name, without a folder.

        Raises:
            OSError: It is not there, or a link is on the way.
        """
        relative = self.relative(inside)
        with self.opened(relative.parent) as folder:
            os.rename(relative.name, new, src_dir_fd=folder, dst_dir_fd=folder)

    def remove(self, inside: str) -> None:
        """Remove a file, a link, or a folder with its content; do nothing if it does not exist.

        Raises:
            OSError: Something cannot be removed, or a link is on the way.
        """
        relative = self.relative(inside)
        try:
            with self.opened(relative.parent) as folder:
                try:
                    os.unlink(relative.name, dir_fd=folder)
                except IsADirectoryError:
                    shutil.rmtree(relative.name, dir_fd=folder)  # it follows no link (shutil.rmtree's notes)
        except FileNotFoundError:
            return

    def relative(self, inside: str) -> PurePosixPath:
        """Return a path inside relative to the root.

        Raises:
            ValueError: It is not below the folder that is shown.
        """
        path = PurePosixPath(inside)
        if ".." in path.parts or not path.is_relative_to(self._shown):
            raise ValueError(
                f"{inside} is not below {self._shown}, the part of a sandbox that the machine can write"
            )
        return path.relative_to("/")

    @contextlib.contextmanager
    def _folder(self) -> Iterator[int]:
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def opened(self, relative: PurePosixPath) -> Iterator[int]:
        """Open a folder beneath the root."""
        with self._folder() as root:
            descriptor = open_beneath(root, relative, FOLDER)
            try:
                yield descriptor
            finally:
                os.close(descriptor)

    @contextlib.contextmanager
    def _new_file(self, inside: str, mode: int) -> Iterator[IO[bytes]]:
        """Give a new file that takes its name when the block has succeeded; nothing is left otherwise."""
        relative = self.relative(inside)
        with self.opened(relative.parent) as folder, new_file(relative.name, folder) as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)


@contextlib.contextmanager
def new_file(name: str, folder: int) -> Iterator[IO[bytes]]:
    """Give a new file that takes its name in an open folder when the block succeeds; else it is removed.

    Args:
        name: The name; the file that has it is replaced.
        folder: The folder's descriptor.
    """
    partial = f".{secrets.token_hex(8)}"
    descriptor = os.open(partial, NEW, 0o600, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial, dir_fd=folder)
        raise


def make_folder(name: str, folder: int, mode: int) -> bool:
    """Make a folder in an open one, with exactly this mode; return whether it was not there before."""
    try:
        os.mkdir(name, 0o700, dir_fd=folder)
    except FileExistsError:
        return False
    descriptor = open_beneath(folder, name, FOLDER)
    try:
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)
    return True
