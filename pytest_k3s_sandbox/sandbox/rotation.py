"""Logs of a sandbox that stay small: what one has beyond a size goes to ``<name>.1``, and then away.

A log is copied and then truncated, because the program that writes it holds it open. All logs are opened to
append (:func:`.agent.open_log`), so that the next line comes first then. What is written between the copy
and the truncation is lost.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from pytest_k3s_sandbox.sandbox.base import STATE_DIR
from pytest_k3s_sandbox.sandbox.beneath import Beneath

LOG_BYTES = 64 << 20
"""A log that is longer is rotated. An hour's log of a kubelet has a tenth of it."""

LOGS = 200
"""The most logs of other names that are rotated at once; the inside can make any number."""

NAMES = 10_000
"""The most names in the folder that are looked at."""

KNOWN = (
    "k3s.log",
    "kine.log",
    "kube-apiserver.log",
    "kube-controller-manager.log",
    "kube-scheduler.log",
    "coredns.log",
    "containerd.log",
    "kubelet.log",
    "cgroupfs.log",
    "kmsg.log",
)
"""The logs of a node's programs, which come first: no number of other names hides them."""

FOLDER = f"{STATE_DIR}/logs"


def rotate(files: Beneath, most: int, note: Callable[[str], None] = lambda _text: None) -> list[str]:
    """Rotate the logs that are too long.

    Args:
        files: The files that the inside can write.
        most: The bytes that a log may have.
        note: Called with a sentence when a limit leaves logs out.

    Returns:
        The names of those that were rotated.
    """
    done = [name for name in KNOWN if files.size(f"{FOLDER}/{name}") > most and _rotated(files, name, most)]
    try:
        sizes, more = files.sizes(FOLDER, ".log", NAMES)
    except OSError:  # the inside may have removed the folder
        return done
    if more:
        note(f"{FOLDER} has more than {NAMES} names; logs beyond them are not rotated, remove files there")
    long = sorted(name for name, size in sizes.items() if size > most and name not in KNOWN)
    if len(long) > LOGS:
        note(f"{FOLDER} has more than {LOGS} logs of over {most} bytes; so many are rotated at once")
    return done + [name for name in long[:LOGS] if _rotated(files, name, most)]


def _rotated(files: Beneath, name: str, most: int) -> bool:
    # Truncate only a regular file with one name.
    with contextlib.suppress(OSError):
        files.rotate(f"{FOLDER}/{name}", most)
        return True
    return False


def noted(log: Path, text: str) -> None:
    """Append a line to a log of the machine's own."""
    with contextlib.suppress(OSError), log.open("a") as file:
        file.write(f"k3s-sandbox: {text}\n")


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
