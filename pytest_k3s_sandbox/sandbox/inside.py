"""Paths on the machine of files that a sandbox can write, safe to read: logs, above all."""

from __future__ import annotations

import io
import os
from pathlib import Path, PosixPath, PurePosixPath
from typing import IO, Any

from pytest_k3s_sandbox.sandbox.resolve import READ_LIMIT, open_regular, read_limited


class InsidePath(PosixPath):
    """A path on the machine of a file that a sandbox can write: a log, for example.

    It reads like any path, but only regular files with a single name, through no link, and at most
    :data:`READ_LIMIT` bytes at once. It cannot be written.
    """

    def open(  # type: ignore[override] # the base class overloads it for each mode
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open the file for reading.

        Raises:
            RefusedError: It is not a regular file of its own, or a link is on the way.
            OSError: It cannot be read.
        """
        if not set(mode) <= set("rbt"):
            raise ValueError(f"{self} belongs to a sandbox; it is opened for reading only, not with {mode!r}")
        root, relative = _split(self)
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            file = open_regular(descriptor, relative)
        finally:
            os.close(descriptor)
        if "b" in mode:
            return file
        del buffering
        return io.TextIOWrapper(file, encoding, errors, newline)

    def read_bytes(self) -> bytes:
        """Return the file's content; raises as :meth:`open`, and RefusedError if it is too large."""
        with self.open("rb") as file:
            return read_limited(file, str(self), READ_LIMIT)

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Return the file's content as text, in UTF-8 with replacement characters if not told otherwise."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "replace")

    def tail(self, limit: int) -> bytes:
        """Return the last bytes of the file, at most ``limit``.

        Raises:
            RefusedError: As :meth:`open`.
            OSError: It cannot be read.
        """
        with self.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
            return bytes(file.read(limit))

    def size(self) -> int:
        """Return the file's bytes; 0 where there is not a regular file."""
        try:
            with self.open("rb") as file:
                return os.fstat(file.fileno()).st_size
        except OSError:
            return 0


def _split(path: Path) -> tuple[Path, PurePosixPath]:
    """Return the folder that the inside cannot replace, and the path beneath it.

    A sandbox's folder is ``<home>/sandboxes/<name>``; outside of such a one (in tests) it is the file's own.
    """
    parts = path.parts
    if "sandboxes" in parts[:-2]:
        cut = parts.index("sandboxes") + 2
        return Path(*parts[:cut]), PurePosixPath(*parts[cut:])
    return path.parent, PurePosixPath(path.name)
