"""Send results from a worker of pytest-xdist to the controller."""

from __future__ import annotations

import pytest

HEADLINES = "k3s_sandbox_headlines"
"""The key figures of a worker's runs."""

STRAYS = "k3s_sandbox_strays"
"""A worker's failed tests of experiments that used no run."""

REPORTS = "k3s_sandbox_reports"
"""A worker's report pages."""


def is_worker(config: pytest.Config) -> bool:
    """Return whether this process is a worker of pytest-xdist."""
    return hasattr(config, "workerinput")


def hand_over(config: pytest.Config, kind: str, value: object) -> bool:
    """Add a value to the output that a worker sends at its end; return False outside a worker.

    Args:
        config: pytest's configuration.
        kind: One of :data:`HEADLINES`, :data:`STRAYS` and :data:`REPORTS`.
        value: A value that pytest-xdist can send.
    """
    if not hasattr(config, "workeroutput"):
        return False
    config.workeroutput.setdefault(kind, []).append(value)
    return True
