"""Projects of users, in which the plugin is tried."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

# pytester forgets the modules that an inner run imported first, but not where packages refer to
# them: what inner runs share with this one has to be there before.
from pytest_k3s_sandbox.node import session  # noqa: F401 - see above
from pytest_k3s_sandbox.report import finalize  # noqa: F401 - see above
from pytest_k3s_sandbox.report.records import Run, read_run
from pytest_k3s_sandbox.settings import OPTIONS
from pytest_k3s_sandbox.toolchain import capabilities  # noqa: F401 - see above


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the options of the outer run, which come by environment, too, out of the inner ones."""
    for option in OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)


class Project:
    """A user's project with the fake node of ``fake_node.py``.

    Args:
        pytester: pytest's own helper.
    """

    def __init__(self, pytester: pytest.Pytester) -> None:
        """Write the conftest."""
        self.pytester = pytester
        pytester.makeconftest(Path(__file__).with_name("fake_node.py").read_text())

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


@pytest.fixture
def project(pytester: pytest.Pytester) -> Project:
    """A user's project with a node made of nothing."""
    return Project(pytester)
