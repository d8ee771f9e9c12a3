"""Logs of a sandbox that stay small: what one has beyond a size goes to ``<name>.1``, and then away.

A log is copied and then truncated, because the program that writes it holds it open. All logs are opened to
append (:func:`.agent.open_log`), so that the next line comes first then. What is written between the copy
and the truncation is lost.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pytest_k3s_sandbox.sandbox.base import STATE_DIR
from pytest_k3s_sandbox.sandbox.beneath import Beneath

LOG_BYTES = 64 << 20
"""A log that is longer is rotated. An hour's log of a kubelet has a tenth of it."""

LOGS = 200
"""So many logs are looked at at once; the inside can make any number, which the limit of the disk ends."""

FOLDER = f"{STATE_DIR}/logs"


def rotate(files: Beneath, most: int) -> list[str]:
    """Rotate the logs that are too long.

    Args:
        files: The files that the inside can write.
        most: The bytes that a log may have.

    Returns:
        The names of those that were rotated.
    """
    done: list[str] = []
    try:
        names = [name for name in files.names(FOLDER) if name.endswith(".log")]
    except OSError:  # the inside may have removed the folder
        return done
    for name in names[:LOGS]:
        # What is no regular file with one name is not ours to truncate.
        with contextlib.suppress(OSError):
            if files.size(f"{FOLDER}/{name}") > most:
                files.rotate(f"{FOLDER}/{name}", most)
                done.append(name)
    return done


def cut(log: Path, most: int) -> None:
    """Truncate a log of the machine's own that is too long; its last lines stay."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > most:
            with log.open("r+b") as file:
                file.seek(-most // 64, os.SEEK_END)
                rest = file.read(most // 64)
                file.truncate(0)
            with log.open("ab") as file:
                file.write(rest)
