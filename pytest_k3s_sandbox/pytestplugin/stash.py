"""Where the plugin keeps its state in pytest's configuration."""

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
"""The resolved options; there when the plugin is awake."""

SPEC: pytest.StashKey[NodeSpec] = pytest.StashKey()
"""What the options ask for; there when a test has asked for a node."""

EXPERIMENT: pytest.StashKey[str] = pytest.StashKey()
"""In a test's own stash: the experiment that it belongs to."""

PROCESS: pytest.StashKey[Owner] = pytest.StashKey()
"""The process that pytest runs in, as opposed to one that runs a single test for it (pytest-forked)."""

RUNNING = pytest.StashKey[pytest.Item]()
"""The test whose turn it is."""

REPORTS = pytest.StashKey[list[Path]]()
"""The pages that were written, for the terminal's summary."""

LINES = pytest.StashKey[list[str]]()
"""What is to be said with the next test's report: a node came up, a cluster is kept."""

SHARE: pytest.StashKey[Share] = pytest.StashKey()
"""A worker's part in the cluster that the workers of pytest-xdist share."""

SHARE_OF_WORKERS: pytest.StashKey[Share] = pytest.StashKey()
"""The part of the process that has the workers: it comes first and leaves last."""

FAILED = pytest.StashKey[bool]()
"""In a test's own stash: it has failed."""

NAMESPACES: pytest.StashKey[list[tuple[pytest.Item | pytest.Collector | None, Namespace]]] = pytest.StashKey()
"""The namespaces that fixtures have made and that live still, each with what it ends with."""

KEPT = pytest.StashKey[bool]()
"""Whether this process has kept a cluster running; one of them is enough."""

RUN: pytest.StashKey[RunWriter] = pytest.StashKey()
"""The run that the current tests belong to."""

STRAYS = pytest.StashKey[list[dict[str, str]]]()
"""The tests of experiments that failed and had no run to be recorded in."""

DIGESTS = pytest.StashKey[list[dict[str, Any]]]()
"""The key figures of the runs, for the terminal's summary."""
