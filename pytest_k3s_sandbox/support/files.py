"""Writing a file atomically: a reader sees the old content or the new one, and never a part."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import IO

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags of open(2) that create a file, and fail when the name exists."""

MODE = 0o666
"""The mode of a new file; the umask takes bits from it, as from that of :func:`open`."""


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str], *, temporary: str | None = None, mode: int = MODE, sync: bool = False
) -> Iterator[IO[bytes]]:
    """Give a new file that replaces another one when the block succeeds, by rename(2).

    When the block fails, the new file is removed and the old one stays.

    Args:
        path: The file to replace; it need not exist.
        temporary: The name of the new file until then, in the same folder. Without one the name is random:
            in a folder such as /tmp, another user may have created a link under a name that can be guessed.
        mode: The mode of the new file, before the umask.
        sync: Whether the content is on disk before the rename (fsync(2)).

    Raises:
        OSError: The file cannot be written.
    """
    folder, name = os.path.split(path)
    partial = os.path.join(folder, temporary or f".{name[:40]}.{os.urandom(8).hex()}.partial")
    descriptor = os.open(partial, NEW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(descriptor)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def write_text(path: str | os.PathLike[str], text: str, *, temporary: str | None = None) -> None:
    """Replace a file by one with this text, in UTF-8; see :func:`replacing`.

    Raises:
        OSError: The file cannot be written.
    """
    data = text.encode()
    with replacing(path, temporary=temporary) as file:
        file.write(data)
