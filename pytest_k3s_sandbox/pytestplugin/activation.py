"""When the plugin wakes: with the first test that uses something of it, and not before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.pytestplugin.markers import MARKERS
from pytest_k3s_sandbox.pytestplugin.stash import SETTINGS

if TYPE_CHECKING:
    from pytest_k3s_sandbox.pytestplugin.hooks import Hooks
    from pytest_k3s_sandbox.settings import Settings

FIXTURES_MODULE = "pytest_k3s_sandbox.pytestplugin.fixtures"

HOOKS: pytest.StashKey[Hooks] = pytest.StashKey()
"""The hooks of a run that uses something of ours."""


def is_active(config: pytest.Config) -> bool:
    """Tell whether something of ours has been used in this run."""
    return HOOKS in config.stash


def is_user(item: pytest.Item) -> bool:
    """Tell whether a test uses a fixture or a marker of ours.

    A fixture that a project has under the same name, as ``k3s``, is its own: only the one that pytest would
    call counts. What a test asks for while it runs (``request.getfixturevalue``) cannot be seen here. It
    wakes the plugin when it is asked for.

    Args:
        item: The test.
    """
    if any(mark.name in MARKERS for mark in item.iter_markers()):
        return True
    found = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    return any(
        getattr(definitions[-1].func, "__module__", None) == FIXTURES_MODULE for definitions in found.values()
    )


def hooks(config: pytest.Config) -> Hooks:
    """Return the hooks of a run that uses something of ours; registered when they are wanted first.

    Raises:
        UsageError: An option has a value that it cannot have.
    """
    if HOOKS not in config.stash:
        from pytest_k3s_sandbox.pytestplugin import hooks as module

        config.stash[HOOKS] = module.register(config)
    return config.stash[HOOKS]


def activate(config: pytest.Config) -> Settings:
    """Return the resolved options; the plugin is awake from then on.

    Raises:
        UsageError: An option has a value that it cannot have.
    """
    hooks(config)
    return config.stash[SETTINGS]
