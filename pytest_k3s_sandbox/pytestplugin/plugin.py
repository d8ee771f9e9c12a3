"""The entry point of the plugin: pytest loads it in every project, so it contains only declarations.

A run without a test for the plugin imports the declarations only: fixtures, markers and options. The first
test with a fixture or a marker of the plugin activates the rest: see
:mod:`~pytest_k3s_sandbox.pytestplugin.activation`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pytest_k3s_sandbox.pytestplugin import activation, markers, options, workers
from pytest_k3s_sandbox.pytestplugin.fixtures import *  # noqa: F403 - pytest finds fixtures by name
from pytest_k3s_sandbox.pytestplugin.stash import RUNNING


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    options.add(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers; activate the plugin if the command line has an option of it."""
    for line in markers.MARKERS.values():
        config.addinivalue_line("markers", line)
    if not workers.is_worker(config):
        config.pluginmanager.register(Lines(config), "k3s_sandbox_lines")
        if options.on_command_line(config):
            activation.activate(config)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # noqa: ANN401 - pytest-xdist need not be there
    """Make the controller of pytest-xdist a client of the shared cluster."""
    if options.wants_share(node.config):
        activation.hooks(node.config).configure_node(node)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize tests with the marker ``k3s_layers``."""
    if metafunc.definition.get_closest_marker("k3s_layers") is not None:
        markers.parametrize(metafunc)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Activate the plugin if a test uses a fixture or a marker of it."""
    if not any(activation.is_user(item) for item in items):
        return
    try:
        hooks = activation.hooks(config)
    except pytest.UsageError:
        # An error at collection would crash a worker of pytest-xdist. There, each test raises it later.
        if workers.is_worker(config):
            return
        raise
    hooks.modify_items(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Skip the test if an error of a fixture is not its own; see :meth:`.Hooks.explain`."""
    item.config.stash[RUNNING] = item
    return (yield from _explained(item.config))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Do the same for fixtures that the test requests by ``request.getfixturevalue``."""
    return (yield from _explained(item.config))


def _explained(config: pytest.Config) -> Generator[None, None, None]:
    try:
        return (yield)
    except Exception as error:
        if activation.is_active(config):
            activation.hooks(config).explain(error)
        raise


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:  # noqa: ANN401 - pytest-xdist need not be there
    """Store the results that a worker of pytest-xdist sends at its end."""
    output = getattr(node, "workeroutput", {})
    if {workers.REPORTS, workers.HEADLINES, workers.STRAYS} & set(output):
        activation.hooks(node.config).take_over(output)


class Lines:
    """Prints the plugin's lines of test reports, in the controller.

    Args:
        config: pytest's configuration.
    """

    def __init__(self, config: pytest.Config) -> None:
        """Start with the configuration."""
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print the lines of a report, with the name of its worker."""
        lines: list[str] | None = getattr(report, "k3s_sandbox_lines", None)
        if lines is None:
            return
        activation.activate(self._config)  # for a worker's report: the controller collects no tests
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        node = getattr(report, "node", None)
        where = "" if node is None else f"[{node.gateway.id}] "
        for line in lines:
            if reporter is not None and self._config.get_verbosity() >= 0:
                reporter.ensure_newline()
                reporter.write_line(f"{where}{line}")
