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
from pytest_k3s_sandbox.keys import REPORTS, RUNNING, SETTINGS, WORKER_REPORTS


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
    for line in markers.MARKERS.values():
        config.addinivalue_line("markers", line)


def pytest_report_header(config: pytest.Config) -> str:
    """Say what a node would be, without starting anything."""
    settings = config.stash[SETTINGS]
    layers = "default" if settings.layers is None else ",".join(settings.layers) or "none"
    return f"k3s-sandbox: {settings.sandbox}, layers {layers}, hold {settings.duration:g} s"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests with the marker ``layers`` the stack that it names."""
    markers.parametrize(metafunc)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse markers with unknown arguments before anything starts; keep shared nodes together."""
    for item in items if not _is_worker(config) else ():
        markers.check(item)
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
    for mark in item.iter_markers("requires"):
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the pages of the runs."""
    for page in config.stash[REPORTS]:
        terminalreporter.write_line(f"k3s-sandbox report: {page}")
