"""A worker of pytest-xdist, and what it hands over to the process that has the terminal."""

from __future__ import annotations

import pytest

DIGESTS = "k3s_sandbox_digests"
"""The key figures of a worker's runs, in what it hands over at its end."""

STRAYS = "k3s_sandbox_strays"
"""A worker's tests of experiments that failed without a run."""

REPORTS = "k3s_sandbox_reports"
"""The pages that a worker wrote."""


def is_worker(config: pytest.Config) -> bool:
    """Tell whether this process is a worker of pytest-xdist."""
    return hasattr(config, "workerinput")


def hand_over(config: pytest.Config, kind: str, value: object) -> bool:
    """Add a value to what a worker hands over at its end; return whether this process is one that does.

    Args:
        config: pytest's configuration.
        kind: One of :data:`DIGESTS`, :data:`STRAYS` and :data:`REPORTS`.
        value: A value that pytest-xdist can send.
    """
    if not hasattr(config, "workeroutput"):
        return False
    config.workeroutput.setdefault(kind, []).append(value)
    return True
