"""The suite's own rules: nothing of ours remains on the machine, and CI skips nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

from pytest_k3s_sandbox.pytestplugin import experiment_markers
from pytest_k3s_sandbox.pytestplugin.activation import activate
from pytest_k3s_sandbox.pytestplugin.stash import SETTINGS
from pytest_k3s_sandbox.sandbox import reaper

pytest_plugins = ["pytester"]  # for tests/plugin; pytest takes it from the top folder's conftest only

FOUND = pytest.StashKey[set[str]]()

# A run in the background of a script inherits these as ignored, and every program under test would, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A shared CI machine stalls now and then; a slow example is not a wrong one.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.load_profile("default")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that skips under ``--k3s-require``: CI's machine has all that any of them needs.

    A skip whose reason begins with ``not applicable`` stays: it is about the test, not the machine.
    """
    report = yield
    if report.skipped and item.config.stash[SETTINGS].require and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith("not applicable"):
            report.outcome = "failed"
            report.longrepr = f"skipped, which --k3s-require does not allow: {reason}"
    return report


def pytest_configure(config: pytest.Config) -> None:
    """Wake the plugin, and register markers that only this repository's tests have."""
    activate(config)
    experiment_markers.register(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give experiments their names, and leave nightly tests to the night."""
    experiment_markers.apply(config, items, Path(__file__).parent)


def _asserts_leftovers(config: pytest.Config) -> bool:
    """Return whether this run can leave something, and may look for it (xdist's controller does, once)."""
    return not hasattr(config, "workerinput") and not config.option.collectonly and os.geteuid() == 0


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember what killed runs have left: the next sandbox reaps it, and this run is not to blame."""
    session.config.stash[FOUND] = set(reaper.leftovers()) if _asserts_leftovers(session.config) else set()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when a process, mount, namespace, interface or cgroup of a sandbox of its own is left."""
    if not _asserts_leftovers(session.config):
        return
    found = session.config.stash[FOUND]
    left = sorted(set(reaper.leftovers()) - found)
    if left:  # what is on its way out, or just coming up in another run, is no finding
        time.sleep(3)
        left = sorted(set(left) & set(reaper.leftovers()))
    if left:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        lines = "\n".join(left)
        if reporter is not None:
            reporter.write_line(f"\nleft behind by this run:\n{lines}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
