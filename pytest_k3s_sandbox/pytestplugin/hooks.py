"""The hooks of a run that uses a node: registered when a test asks for one, see :mod:`.activation`."""

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
    DIGESTS,
    FAILED,
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
        UsageError: An option has a value that it cannot have.
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
    """Return which sandboxes of this process were ended for a limit, and why; also the one that it shares.

    A test fails of that by whatever it did just then, often with a message that does not tell.
    """
    started = sys.modules.get("pytest_k3s_sandbox.sandbox.started")
    own = list(started.ENDED) if started is not None else []
    shared = None if share is None else share.ended
    return own if shared is None else [*own, shared]


def _share(config: pytest.Config, workerinput: Mapping[str, Any]) -> Share:
    settings = config.stash[SETTINGS]
    return Share(workerinput["testrunuid"], settings.report, settings.keep)


class Hooks:
    """What the plugin does in a run that uses a node.

    Args:
        config: pytest's configuration.
    """

    def __init__(self, config: pytest.Config) -> None:
        """Keep the configuration."""
        self._config = config

    def configure_node(self, node: Any) -> None:  # noqa: ANN401 - pytest-xdist need not be there
        """Count the process that has the workers as a user, too: one that is replaced finds the cluster."""
        if self._config.stash[SETTINGS].share and SHARE_OF_WORKERS not in self._config.stash:
            self._config.stash[SHARE_OF_WORKERS] = _share(self._config, node.workerinput)

    def modify_items(self, items: list[pytest.Item]) -> None:
        """Refuse markers with unknown arguments before anything starts; keep shared nodes together."""
        for item in items if not workers.is_worker(self._config) else ():
            markers.check(item)
        items[:] = markers.group(items, self._config.stash[SETTINGS].scope)

    def pytest_report_collectionfinish(self) -> str:
        """Say what a node would be; after the collection, which shows that a test wants one."""
        settings = self._config.stash[SETTINGS]
        layers = "default" if settings.layers is None else ",".join(settings.layers) or "none"
        return f"k3s-sandbox: {settings.sandbox}, layers {layers}, hold {settings.duration:g} s"

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skip what the machine cannot do; after other reasons to skip, as such a test needs nothing."""
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
        """Skip on errors that say nothing about this test; return on others.

        A fixture that failed raises the same error for every test that needs it.

        Args:
            error: What a test's setup or call has raised.
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
        """Give what is to be said to the report, which also comes from a worker of pytest-xdist."""
        report = yield
        if report.failed:
            item.stash[FAILED] = True
            report.sections += [
                ("k3s-sandbox", line) for line in _ended_sandboxes(item.config.stash.get(SHARE, None))
            ]
            report.sections += afterfailure.sections(item)
        lines = item.config.stash[LINES]
        report.k3s_sandbox_lines = list(lines)  # type: ignore[attr-defined] # reports take what others add
        lines.clear()
        return report

    def take_over(self, output: Mapping[str, Any]) -> None:
        """Take over the names of the pages that a worker of pytest-xdist wrote, and its runs' key figures.

        Args:
            output: What the worker has handed over.
        """
        self._config.stash[REPORTS].extend(Path(page) for page in output.get(workers.REPORTS, ()))
        self._config.stash[DIGESTS].extend(output.get(workers.DIGESTS, ()))
        self._config.stash[STRAYS].extend(output.get(workers.STRAYS, ()))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Let go of the shared cluster, when all fixtures are down; the controller waits for its end."""
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
        """Name the pages of the runs, and clusters that go on."""
        for page in self._config.stash[REPORTS]:
            terminalreporter.write_line(f"k3s-sandbox report: {page}")
        for line in self._config.stash[LINES]:
            terminalreporter.write_line(line)
