"""The hooks of an active plugin; :mod:`.activation` registers them."""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_k3s_sandbox.errors import ConfigError, MissingCapability, SandboxError
from pytest_k3s_sandbox.pytestplugin import afterfailure, markers, options, workers
from pytest_k3s_sandbox.pytestplugin.children import Children
from pytest_k3s_sandbox.pytestplugin.recording import goes_on
from pytest_k3s_sandbox.pytestplugin.results import Outcomes
from pytest_k3s_sandbox.pytestplugin.sharing import Share, wait_ended
from pytest_k3s_sandbox.pytestplugin.stash import (
    FAILED,
    HEADLINES,
    LINES,
    REPORTS,
    SETTINGS,
    SHARE,
    SHARE_OF_WORKERS,
    STRAYS,
)


def register(config: pytest.Config) -> Hooks:
    """Resolve the options and register the hooks.

    Raises:
        UsageError: An option has an invalid value.
    """
    try:
        settings = options.settings(config)
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[SETTINGS] = settings
    config.stash[REPORTS] = []
    config.stash[LINES] = [f"k3s-sandbox: {note}" for note in settings.notes]
    config.pluginmanager.register(Outcomes(config), "k3s_sandbox_outcomes")
    found = Hooks(config)
    config.pluginmanager.register(found, "k3s_sandbox_hooks")
    config.pluginmanager.register(Children(), "k3s_sandbox_children")
    if settings.share and workers.is_worker(config):
        config.stash[SHARE] = _share(config, config.workerinput)  # type: ignore[attr-defined] # pytest-xdist's
    return found


def _ended_sandboxes(share: Share | None) -> list[str]:
    """Return a line for each sandbox of this process that exceeded a limit, and for the shared one.

    Then the test's own error often does not show the cause.
    """
    started = sys.modules.get("pytest_k3s_sandbox.sandbox.started")
    own = list(started.ENDED) if started is not None else []
    shared = None if share is None else share.ended
    return own if shared is None else [*own, shared]


def _share(config: pytest.Config, workerinput: Mapping[str, Any]) -> Share:
    settings = config.stash[SETTINGS]
    return Share(workerinput["testrunuid"], settings.report, settings.keep)


class Hooks:
    """The hooks of an active plugin.

    Args:
        config: pytest's configuration.
    """

    def __init__(self, config: pytest.Config) -> None:
        """Start with the configuration."""
        self._config = config

    def configure_node(self, node: Any) -> None:  # noqa: ANN401 - pytest-xdist need not be there
        """Make the controller a client of the shared cluster: the cluster survives the crash of a worker."""
        if self._config.stash[SETTINGS].share and SHARE_OF_WORKERS not in self._config.stash:
            self._config.stash[SHARE_OF_WORKERS] = _share(self._config, node.workerinput)

    def modify_items(self, items: list[pytest.Item]) -> None:
        """Refuse invalid markers before a node starts; group the tests that share a node."""
        for item in items if not workers.is_worker(self._config) else ():
            markers.check(item)
        items[:] = markers.group(items, self._config.stash[SETTINGS].scope)

    def pytest_report_collectionfinish(self) -> str:
        """Return the line with the settings of a node, once the collection has found a test that uses one."""
        settings = self._config.stash[SETTINGS]
        layers = "default" if settings.layers is None else ",".join(settings.layers) or "none"
        return f"k3s-sandbox: {settings.sandbox}, layers {layers}, hold {settings.duration:g} s"

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skip a test if the machine lacks a capability; other reasons to skip come first."""
        if workers.is_worker(item.config):
            markers.check(item)
        if item.config.getoption("setupplan", default=False):
            return
        if SHARE in item.config.stash:
            markers.check_shareable(item)
        for mark in item.iter_markers("k3s_requires"):
            from pytest_k3s_sandbox.toolchain.capabilities import missing

            for name in mark.args:
                lack = missing(name)
                if lack is not None:
                    raise lack

    def explain(self, error: Exception) -> None:
        """Skip the test if a capability is missing, or if an earlier test has reported the same error.

        With ``--k3s-require``, a missing capability fails the test.

        A failed fixture raises the same error in every test that uses it. Only the first test reports it.

        Args:
            error: The exception of the test's setup or call.
        """
        if isinstance(error, MissingCapability):
            if not self._config.stash[SETTINGS].require:
                pytest.skip(str(error))
        elif isinstance(error, SandboxError):
            if error.reported:
                pytest.skip(f"depends on what broke before: {error}")
            error.reported = True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add the plugin's lines to the report, which pytest-xdist sends to the controller."""
        report = yield
        if report.failed:
            item.stash[FAILED] = True
            report.sections += [
                ("k3s-sandbox", line) for line in _ended_sandboxes(item.config.stash.get(SHARE, None))
            ]
            report.sections += afterfailure.sections(item)
        lines = item.config.stash[LINES]
        report.k3s_sandbox_lines = list(lines)  # type: ignore[attr-defined] # reports accept new attributes
        lines.clear()
        return report

    def take_over(self, output: Mapping[str, Any]) -> None:
        """Store the report pages, key figures and stray tests of a worker of pytest-xdist.

        Args:
            output: The worker's ``workeroutput``.
        """
        self._config.stash[REPORTS].extend(Path(page) for page in output.get(workers.REPORTS, ()))
        self._config.stash[HEADLINES].extend(output.get(workers.HEADLINES, ()))
        self._config.stash[STRAYS].extend(output.get(workers.STRAYS, ()))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Leave the shared cluster after the teardown of all fixtures; the controller waits for its end."""
        stash = self._config.stash
        if SHARE in stash:
            stash[SHARE].leave(failed=session.testsfailed > 0)
        if SHARE_OF_WORKERS in stash:
            launched = stash[SHARE_OF_WORKERS].leave(failed=False)
            if launched is None:
                return
            if not wait_ended(launched):
                stash[LINES].append(goes_on(launched["name"]))
            page = Path(launched["folder"]) / "index.html"
            if page.exists():
                stash[REPORTS].append(page)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the report pages of the runs, and the clusters that still run."""
        for page in self._config.stash[REPORTS]:
            terminalreporter.write_line(f"k3s-sandbox report: {page}")
        for line in self._config.stash[LINES]:
            terminalreporter.write_line(line)
