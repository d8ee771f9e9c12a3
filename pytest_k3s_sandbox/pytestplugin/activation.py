"""Activate the plugin with the first test that uses a fixture or a marker of it."""

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
"""The hooks of an active plugin; missing until then."""


def is_active(config: pytest.Config) -> bool:
    """Return whether the plugin is active in this run."""
    return HOOKS in config.stash


def is_user(item: pytest.Item) -> bool:
    """Return whether a test uses a fixture or a marker of this plugin.

    A project may override a fixture by its name, such as ``k3s``. Only the definition that pytest would call
    counts. This function does not see fixtures that a running test requests (``request.getfixturevalue``).
    Those activate the plugin when the test requests them.

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
    """Return the hooks of the active plugin; the first call registers them.

    Raises:
        UsageError: An option has an invalid value.
    """
    if HOOKS not in config.stash:
        from pytest_k3s_sandbox.pytestplugin import hooks as module

        config.stash[HOOKS] = module.register(config)
    return config.stash[HOOKS]


def activate(config: pytest.Config) -> Settings:
    """Activate the plugin, and return the resolved options.

    Raises:
        UsageError: An option has an invalid value.
    """
    hooks(config)
    return config.stash[SETTINGS]
