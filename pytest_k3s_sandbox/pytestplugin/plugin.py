"""What pytest loads in every project, whether it uses a node or not: declarations, and nothing else.

A run that uses nothing of ours imports this module, the fixtures' and the options', and no other. The first
test that has a fixture or a marker of ours wakes the rest: see
:mod:`~pytest_k3s_sandbox.pytestplugin.activation`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pytest_k3s_sandbox.pytestplugin import activation, markers, options, workers
from pytest_k3s_sandbox.pytestplugin.fixtures import *  # noqa: F403 - fixtures register by being names of the plugin
from pytest_k3s_sandbox.pytestplugin.stash import RUNNING


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    options.add(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers; what stands on the command line is checked at once."""
    for line in markers.MARKERS.values():
        config.addinivalue_line("markers", line)
    if not workers.is_worker(config):
        config.pluginmanager.register(Lines(config), "k3s_sandbox_lines")
        if options.on_command_line(config):
            activation.activate(config)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # noqa: ANN401 - pytest-xdist need not be there
    """Count the process that has the workers as a user of the cluster that they share."""
    if options.wants_share(node.config):
        activation.hooks(node.config).configure_node(node)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests with the marker ``k3s_layers`` the stack that it names."""
    if metafunc.definition.get_closest_marker("k3s_layers") is not None:
        markers.parametrize(metafunc)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Wake the rest if a test uses something of ours."""
    if not any(activation.is_user(item) for item in items):
        return
    try:
        hooks = activation.hooks(config)
    except pytest.UsageError:
        # At collection it would crash a worker of pytest-xdist: there, it is the error of each test.
        if workers.is_worker(config):
            return
        raise
    hooks.modify_items(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Explain what went wrong in a fixture."""
    item.config.stash[RUNNING] = item
    return (yield from _explained(item.config))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Explain what went wrong in a fixture that the test asked for by ``request.getfixturevalue``."""
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
    """Take over what a worker of pytest-xdist has to say of its runs."""
    output = getattr(node, "workeroutput", {})
    if {workers.REPORTS, workers.DIGESTS, workers.STRAYS} & set(output):
        activation.hooks(node.config).take_over(output)


class Lines:
    """Writes what reports have brought along, in the process that has the terminal.

    Args:
        config: pytest's configuration.
    """

    def __init__(self, config: pytest.Config) -> None:
        """Keep the configuration."""
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the lines of a report; those of a worker with its name."""
        lines: list[str] | None = getattr(report, "k3s_sandbox_lines", None)
        if lines is None:
            return
        activation.activate(self._config)  # a worker's report: this process has collected no test
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        node = getattr(report, "node", None)
        where = "" if node is None else f"[{node.gateway.id}] "
        for line in lines:
            if reporter is not None and self._config.get_verbosity() >= 0:
                reporter.ensure_newline()
                reporter.write_line(f"{where}{line}")
