"""Where the plugin keeps its state in pytest's configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_k3s_sandbox.options import Settings

SETTINGS = pytest.StashKey[Settings]()
"""The resolved options."""

RUNNING = pytest.StashKey[pytest.Item]()
"""The test whose turn it is."""

REPORTS = pytest.StashKey[list[Path]]()
"""The pages that were written, for the terminal's summary."""

WORKER_REPORTS = "k3s_sandbox_reports"
"""The pages that a worker of pytest-xdist wrote, in what it hands over at its end."""
