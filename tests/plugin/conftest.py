"""Projects of users, in which the plugin is tried."""

from __future__ import annotations

import os

import pytest

from pytest_k3s_sandbox.node import session
from pytest_k3s_sandbox.report import finalize
from pytest_k3s_sandbox.settings import OPTIONS
from pytest_k3s_sandbox.toolchain import capabilities
from support.project import Project

IMPORTED_FIRST = (session, finalize, capabilities)
"""Modules that inner runs share with this one.

After an inner run pytester forgets the modules that this run has imported first, but their packages still
refer to them. So they are imported here, before any inner run.
"""


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the options of the outer run, which come by environment, too, out of the inner ones."""
    for option in OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)


@pytest.fixture
def project(pytester: pytest.Pytester) -> Project:
    """A user's project with a node made of nothing."""
    return Project(pytester)
