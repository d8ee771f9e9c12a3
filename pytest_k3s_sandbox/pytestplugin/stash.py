"""The stash keys of the plugin's state, most of them in pytest's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_k3s_sandbox.cluster.namespace import Namespace
    from pytest_k3s_sandbox.node.spec import NodeSpec
    from pytest_k3s_sandbox.pytestplugin.sharing import Share
    from pytest_k3s_sandbox.report.records import RunWriter
    from pytest_k3s_sandbox.settings import Settings
    from pytest_k3s_sandbox.support.forks import Owner

SETTINGS: pytest.StashKey[Settings] = pytest.StashKey()
"""The resolved options; missing until the plugin is active."""

SPEC: pytest.StashKey[NodeSpec] = pytest.StashKey()
"""The specification that the options give; missing until a test uses a node."""

EXPERIMENT: pytest.StashKey[str] = pytest.StashKey()
"""In a test's own stash: the experiment of the test."""

PROCESS: pytest.StashKey[Owner] = pytest.StashKey()
"""The process of pytest itself, unlike a process that pytest-forked forks for one test."""

RUNNING = pytest.StashKey[pytest.Item]()
"""The running test."""

REPORTS = pytest.StashKey[list[Path]]()
"""The report pages of the runs, for the terminal's summary."""

LINES = pytest.StashKey[list[str]]()
"""Lines for the next test's report, for example that a node came up or a cluster still runs."""

SHARE: pytest.StashKey[Share] = pytest.StashKey()
"""A worker's part in the cluster that the workers of pytest-xdist share."""

SHARE_OF_WORKERS: pytest.StashKey[Share] = pytest.StashKey()
"""The controller's part in that cluster: it enters first and leaves last."""

FAILED = pytest.StashKey[bool]()
"""In a test's own stash: whether the test has failed."""

NAMESPACES: pytest.StashKey[list[tuple[pytest.Item | pytest.Collector | None, Namespace]]] = pytest.StashKey()
"""The existing namespaces of fixtures, each with the part of the collection that ends it."""

KEPT = pytest.StashKey[bool]()
"""Whether this process has kept a cluster running; it keeps at most one."""

RUN: pytest.StashKey[RunWriter] = pytest.StashKey()
"""The run of the current tests."""

STRAYS = pytest.StashKey[list[dict[str, str]]]()
"""The failed tests of experiments that used no run."""

HEADLINES = pytest.StashKey[list[dict[str, Any]]]()
"""The key figures of the runs, for the terminal's summary."""
