"""What tests do from outside with files of a sandbox that they trust: their own."""

from __future__ import annotations

from pathlib import Path

from pytest_k3s_sandbox.sandbox.base import Reachable
from pytest_k3s_sandbox.sandbox.layout import below_var


def outside(sandbox: Reachable, inside: str) -> Path:
    """Return where a path below /var inside is on the machine, as a path that can be written, too."""
    return Path(below_var(sandbox.workdir, inside))
