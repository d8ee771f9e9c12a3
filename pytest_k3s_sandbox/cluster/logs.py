"""Where a cluster's programs log, and copies of these logs.

Whatever runs inside can write the logs and put anything in their place, so they are read as
:class:`~pytest_k3s_sandbox.sandbox.inside.InsidePath` does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from pytest_k3s_sandbox.sandbox.base import STATE_DIR, Reachable
from pytest_k3s_sandbox.sandbox.inside import InsidePath
from pytest_k3s_sandbox.sandbox.resolve import RefusedError
from pytest_k3s_sandbox.support import escaping

COPY_BYTES = 32 << 20
"""The last bytes of each log that are copied."""

COPIES = 200
"""How many logs are copied at most: the inside can make any number."""

IN_K3S = {
    "kubelet": ("logs/k3s.log",),
    "containerd": (
        "k3s/agent/containerd/containerd.log",
        "k3s-agent/agent/containerd/containerd.log",
    ),
}
"""Where components log that run in the k3s process or below its data folder, relative to ours."""


def log_of(sandbox: Reachable, component: str) -> InsidePath:
    """Return where a component logs, a file on the machine that may not exist yet.

    Args:
        sandbox: Where it runs.
        component: Its name, as ``kubelet``.
    """
    own = f"logs/{component}.log"
    for name in (own, *IN_K3S.get(component, ())):
        if sandbox.files.exists(f"{STATE_DIR}/{name}"):
            return sandbox.logs.parent / name
    return sandbox.logs.parent / own


def written_since(log: InsidePath, seen: int) -> bytes:
    """Return the bytes of a log after the first ``seen`` ones; empty while there are no more."""
    try:
        with log.open("rb") as file:
            # One that has become shorter was rotated.
            file.seek(seen if os.fstat(file.fileno()).st_size >= seen else 0)
            return bytes(file.read(COPY_BYTES))
    except FileNotFoundError:
        return b""


def copy_logs(sandbox: Reachable, folder: Path) -> None:
    """Copy every process' log to the ``logs`` of a run's folder.

    If a log is not a regular file, the copy says so. Of a long log the copy has the end.

    Args:
        sandbox: Whose logs.
        folder: The run's folder, on the machine.
    """
    target = folder / "logs"
    target.mkdir(exist_ok=True)
    found = {}
    with contextlib.suppress(OSError):
        names = [name for name in sandbox.files.names(f"{STATE_DIR}/logs") if name.endswith(".log")]
        found = {name: sandbox.logs / name for name in names[:COPIES]}
    for component in IN_K3S:
        found.setdefault(f"{component}.log", log_of(sandbox, component))
    for name, log in found.items():
        try:
            content = log.tail(COPY_BYTES)
            if len(content) < COPY_BYTES:
                with contextlib.suppress(OSError):  # most logs were never rotated
                    content = (log.parent / f"{log.name}.1").tail(COPY_BYTES - len(content)) + content
        except RefusedError as error:
            content = f"[not copied: {error}]\n".encode()
        except OSError:
            continue  # it is not there
        with contextlib.suppress(OSError):
            (target / escaping.file_name(name)).write_bytes(content)
    with contextlib.suppress(OSError):  # last, so that a log of that name made inside does not replace it
        shutil.copyfile(sandbox.control / "sandbox.log", target / "sandbox.log")
