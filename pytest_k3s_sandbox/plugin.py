"""Hooks, options, markers and the header line: thin, and no work at import."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_k3s_sandbox import markers, options
from pytest_k3s_sandbox.errors import MissingCapability, SandboxError
from pytest_k3s_sandbox.fixtures import *  # noqa: F403 - fixtures register by being names of the plugin
from pytest_k3s_sandbox.keys import (
    FAILED,
    LINES,
    REPORTS,
    RUNNING,
    SETTINGS,
    SHARE,
    SHARE_OF_WORKERS,
    WORKER_REPORTS,
)
from pytest_k3s_sandbox.outcomes import Outcomes
from pytest_k3s_sandbox.runs import goes_on
from pytest_k3s_sandbox.share import Share, wait_ended


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    options.add(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Resolve the options and register the markers."""
    try:
        config.stash[SETTINGS] = options.settings(config)
    except options.OptionError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[REPORTS] = []
    config.stash[LINES] = []
    for line in markers.MARKERS.values():
        config.addinivalue_line("markers", line)
    config.pluginmanager.register(Outcomes(config), "k3s_sandbox_outcomes")
    if not _is_worker(config):
        config.pluginmanager.register(Lines(config), "k3s_sandbox_lines")


def pytest_report_header(config: pytest.Config) -> str:
    """Say what a node would be, without starting anything."""
    settings = config.stash[SETTINGS]
    layers = "default" if settings.layers is None else ",".join(settings.layers) or "none"
    return f"k3s-sandbox: {settings.sandbox}, layers {layers}, hold {settings.duration:g} s"


def pytest_sessionstart(session: pytest.Session) -> None:
    """Count this worker of pytest-xdist as a user of the shared cluster, from its start to its end."""
    config = session.config
    if config.stash[SETTINGS].share and _is_worker(config):
        config.stash[SHARE] = _share(config, config.workerinput)  # type: ignore[attr-defined] # pytest-xdist's


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # noqa: ANN401 - pytest-xdist need not be there
    """Count the process that has the workers as a user, too: one that is replaced finds the cluster."""
    config = node.config
    if config.stash[SETTINGS].share and SHARE_OF_WORKERS not in config.stash:
        config.stash[SHARE_OF_WORKERS] = _share(config, node.workerinput)


def _share(config: pytest.Config, workerinput: dict[str, Any]) -> Share:
    settings = config.stash[SETTINGS]
    return Share(workerinput["testrunuid"], settings.report, settings.keep)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let go of the shared cluster, when all fixtures are down; the process in charge waits for its end."""
    config = session.config
    if SHARE in config.stash:
        config.stash[SHARE].leave(failed=session.testsfailed > 0)
    if SHARE_OF_WORKERS in config.stash:
        launched = config.stash[SHARE_OF_WORKERS].leave(failed=False)
        if launched is None:
            return
        if not wait_ended(launched):
            config.stash[LINES].append(goes_on(launched["name"]))
        page = Path(launched["folder"]) / "index.html"
        if page.exists():
            config.stash[REPORTS].append(page)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests with the marker ``k3s_layers`` the stack that it names."""
    markers.parametrize(metafunc)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse markers with unknown arguments before anything starts; keep shared nodes together."""
    for item in items if not _is_worker(config) else ():
        markers.check(item)
    later = markers.nightly(items, config.option.markexpr, config.args)
    if later:
        config.hook.pytest_deselected(items=list(later))
        items[:] = [item for item in items if item not in later]
    items[:] = markers.group(items, config.stash[SETTINGS].scope)


def _is_worker(config: pytest.Config) -> bool:
    """Tell whether this is a worker of pytest-xdist, which a UsageError at collection would crash."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Explain what went wrong in a fixture."""
    item.config.stash[RUNNING] = item
    with _explained(item.config):
        return (yield)


@pytest.hookimpl(specname="pytest_runtest_setup")
def pytest_require_capabilities(item: pytest.Item) -> None:
    """Skip what the machine cannot do; a hook apart, because a test that is skipped anyway needs nothing."""
    if _is_worker(item.config):
        markers.check(item)
    if item.config.getoption("setupplan", default=False):
        return
    if SHARE in item.config.stash:
        markers.check_shareable(item)
    for mark in item.iter_markers("k3s_requires"):
        from pytest_k3s_sandbox.capabilities import missing  # noqa: PLC0415 - only tests that ask

        for name in mark.args:
            lack = missing(name)
            if lack is not None:
                raise lack


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Explain what went wrong in a fixture that the test asked for by ``request.getfixturevalue``."""
    with _explained(item.config):
        return (yield)


@contextlib.contextmanager
def _explained(config: pytest.Config) -> Iterator[None]:
    """Skip for an error that is no finding of this test; let one pass that is.

    A fixture that failed raises the same error for every test that needs it.
    """
    try:
        yield
    except MissingCapability as error:
        if not config.stash[SETTINGS].require:
            pytest.skip(str(error))
        raise
    except SandboxError as error:
        if error.reported:
            pytest.skip(f"depends on what broke before: {error}")
        error.reported = True
        raise


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:  # noqa: ANN401 - pytest-xdist need not be there
    """Take over the names of the pages that a worker of pytest-xdist wrote."""
    pages = getattr(node, "workeroutput", {}).get(WORKER_REPORTS, ())
    node.config.stash[REPORTS].extend(Path(page) for page in pages)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Give what is to be said to the report, which also comes from a worker of pytest-xdist."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    lines = item.config.stash[LINES]
    if lines:
        report.k3s_sandbox_lines = list(lines)  # type: ignore[attr-defined] # reports take what others add
        lines.clear()
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the pages of the runs, and clusters that go on."""
    for page in config.stash[REPORTS]:
        terminalreporter.write_line(f"k3s-sandbox report: {page}")
    for line in config.stash[LINES]:
        terminalreporter.write_line(line)


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
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        node = getattr(report, "node", None)
        where = "" if node is None else f"[{node.gateway.id}] "
        for line in getattr(report, "k3s_sandbox_lines", ()):
            if reporter is not None and self._config.get_verbosity() >= 0:
                reporter.ensure_newline()
                reporter.write_line(f"{where}{line}")
