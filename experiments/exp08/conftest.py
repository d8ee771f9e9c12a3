"""Time limits for tests that watch a node for as long as an option says."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_k3s_sandbox.pytestplugin.stash import SETTINGS

HOUR = 3600.0
TO_END = 900.0  # for the start and the end, so that the teardown and the report are never cut off


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let tests without a time limit of their own run as long as they have to; they have own deadlines."""
    here = Path(__file__).parent
    for item in items:
        if here not in item.path.parents or item.get_closest_marker("timeout") is not None:
            continue
        least = HOUR if item.get_closest_marker("nightly") is not None else 0.0
        seconds = max(config.stash[SETTINGS].duration, least)
        item.add_marker(pytest.mark.timeout(seconds + TO_END, method="signal"))


@pytest.fixture(scope="session")
def timeout_scale(request: pytest.FixtureRequest) -> float:
    """The factor of ``--k3s-timeout-scale``; the claims' texts and limits are not scaled."""
    return request.config.stash[SETTINGS].timeout_scale
