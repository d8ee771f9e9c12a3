"""Projects of users, in which the plugin is tried."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_k3s_sandbox.report.records import Run, read_run

FAKE_NODE = Path(__file__).with_name("fake_node.py")
"""A conftest file with a node made of nothing."""

Runs = Callable[..., subprocess.CompletedProcess[str]]
"""Runs pytest in a project."""


class Project:
    """A user's project with the fake node of ``fake_node.py``.

    Args:
        pytester: pytest's own helper.
    """

    def __init__(self, pytester: pytest.Pytester) -> None:
        """Write the conftest."""
        self.pytester = pytester
        pytester.makeconftest(FAKE_NODE.read_text())

    def run(self, test: str, *options: str, subprocess: bool = False) -> pytest.RunResult:
        """Write a test module and run it, in a process of its own where that matters."""
        self.pytester.makepyfile(test)
        run = self.pytester.runpytest_subprocess if subprocess else self.pytester.runpytest_inprocess
        return run("-rA", "--strict-markers", *options)

    @property
    def journal(self) -> list[str]:
        """What came up and went down, in its order."""
        file = self.pytester.path / "journal.txt"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def count(self) -> Counter[str]:
        """How often each line is in the journal."""
        return Counter(self.journal)

    @property
    def runs(self) -> list[Run]:
        """The runs that were kept, by their names."""
        return [read_run(folder) for folder in self.folders]

    @property
    def folders(self) -> list[Path]:
        """The folders of the runs that were kept, by their names."""
        return sorted((self.pytester.path / "reports").glob("*"))
