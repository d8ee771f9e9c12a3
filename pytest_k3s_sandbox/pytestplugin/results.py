"""Results for others: JUnit's XML, allure's folder, and the terminal's summary of each experiment.

An error of the infrastructure says nothing about a test: JUnit's XML has it as ``error``, allure as
``broken``.
A disproved hypothesis is a ``failure`` there, and ``failed``.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from pytest_k3s_sandbox.errors import SandboxError
from pytest_k3s_sandbox.pytestplugin import allure, openruns, workers
from pytest_k3s_sandbox.pytestplugin.stash import (
    DIGESTS,
    REPORTS,
    RUN,
    SETTINGS,
    STRAYS,
)
from pytest_k3s_sandbox.support import files

if TYPE_CHECKING:
    from pytest_k3s_sandbox.report.records import RunWriter

NODE = frozenset({"k3s_run", "k3s_sandbox", "k3s_layers", "k3s_session"})
"""A test with one of these fixtures has a node; an error of that node says nothing about the test."""


def is_broken(error: BaseException) -> bool:
    """Tell whether a test that ended with an error shows nothing about its hypothesis.

    Only an assertion does, or ``pytest.fail``; pytest-timeout fails a test, but of what it would have
    shown it tells nothing.
    """
    if isinstance(error, pytest.fail.Exception):
        return f"Failed: {error.msg}".startswith(allure.TIMEOUT)
    return not isinstance(error, AssertionError)


class Outcomes:
    """The plugin's part for results; registered when pytest is configured.

    Args:
        config: pytest's configuration.
    """

    def __init__(self, config: pytest.Config) -> None:
        """Start with no result."""
        self._config = config
        self._results = allure.Results(config) if allure.is_on(config) else None
        self._environment: dict[str, str] = {}
        config.stash[DIGESTS] = []
        recorder = openruns.Recorder(config)
        config.pluginmanager.register(recorder, "k3s_sandbox_recorder")
        session = config.pluginmanager.get_plugin("session")
        if session is not None:  # a test that runs already may be the first to want a node
            recorder.pytest_collection_finish(session)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Say of a test with a node where it ran, and whether its failure is one of the node's."""
        mine = bool(NODE & set(getattr(item, "fixturenames", ()))) or any(
            run.uses(item) for run in self._config.stash[openruns.OPEN_RUNS]
        )
        if mine and ((call.when == "setup" and call.excinfo is not None) or call.when == "call"):
            self._describe(item)
        trouble = call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception)
        if mine and trouble and call.excinfo is not None and is_broken(call.excinfo.value):
            item.user_properties.append(("status", "broken"))
        report = yield
        if mine and report.failed and self._results is not None:
            self._attach(item)
        return report

    def _describe(self, item: pytest.Item) -> None:
        names = dict(item.user_properties)
        found = labels(item)
        described = {**found, **({} if (folder := _folder(item)) is None else {"run": str(folder)})}
        item.user_properties += [(name, value) for name, value in described.items() if name not in names]
        if self._results is not None:
            # What a test says itself, in its user_properties, counts: it may have a sandbox beside its run's.
            allure.label({name: str(names.get(name, value)) for name, value in found.items()})
            self._environment.update(found)

    def _attach(self, item: pytest.Item) -> None:
        folder = _folder(item)
        if folder is None:
            return
        session = getattr(item, "funcargs", {}).get("k3s_session")
        logs = getattr(getattr(session, "cluster", None), "logs", None)
        allure.attach_run(folder, logs if isinstance(logs, Path) and logs.is_dir() else folder / "logs")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        """Mend JUnit's file when it is written, and write what allure's results share."""
        result = yield
        if self._results is not None and self._environment:
            self._results.write_frame(self._environment)
        path = self._config.getoption("xmlpath", None)
        if path and not workers.is_worker(self._config):
            mend_junit(Path(os.path.expandvars(path)).expanduser())
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write a line for each experiment."""
        found: list[dict[str, Any]] = self._config.stash[DIGESTS]
        known = {one["run"] for one in found}
        # A cluster that workers share is recorded by a process of its own.
        others = [page.parent for page in self._config.stash[REPORTS] if page.parent.name not in known]
        strays = self._config.stash[STRAYS]
        if not found and not others and not strays:
            return
        from pytest_k3s_sandbox.report.headline import Headline, headline, headline_lines
        from pytest_k3s_sandbox.report.records import read_run

        digests = [Headline(**one) for one in found]
        for folder in others:
            with suppress(SandboxError):  # a run whose records are gone has no key figures
                digests.append(headline(read_run(folder)))
        for line in headline_lines(digests, strays):
            terminalreporter.write_line(f"k3s-sandbox {line}")


def begin(config: pytest.Config, run: RunWriter) -> None:
    """Remember the run that the next tests belong to."""
    config.stash[RUN] = run


def end(config: pytest.Config, folder: Path) -> None:
    """Keep a run's key figures for the terminal's summary, whether its folder is kept or not."""
    from pytest_k3s_sandbox.report.headline import headline
    from pytest_k3s_sandbox.report.records import read_run

    run = read_run(folder)
    if run.environment is None and run.complete:
        return  # the machine lacks something: nothing was run
    found = headline(run).values()
    if not workers.hand_over(config, workers.DIGESTS, found):
        config.stash[DIGESTS].append(found)


def labels(item: pytest.Item) -> dict[str, str]:
    """Return where a test ran: the experiment, sandbox, layers and version, as far as they are known."""
    settings = item.config.stash[SETTINGS]
    experiment = openruns.experiment(item) or "test"
    run = _run(item)
    environment = getattr(run, "environment", None)
    if environment is None:
        layers = "default" if settings.layers is None else ",".join(settings.layers) or "none"
        return {"experiment": experiment, "sandbox": settings.sandbox, "layers": layers}
    version = environment.kubernetes or environment.pins.get("kubernetes")
    return {
        "experiment": experiment,
        "sandbox": environment.sandbox,
        "layers": ",".join(environment.layers) or "none",
        **({} if version is None else {"version": version}),
    }


def _run(item: pytest.Item) -> RunWriter | None:
    session = getattr(item, "funcargs", {}).get("k3s_session")
    run: RunWriter | None = getattr(session, "writer", None) or item.config.stash.get(RUN, None)
    return run


def _folder(item: pytest.Item) -> Path | None:
    run = _run(item)
    return None if run is None else run.path.parent


def mend_junit(path: Path) -> None:
    """Turn failures of tests that are broken into errors, in a JUnit file that pytest has written.

    pytest knows a test's failure by its phase alone: whatever is raised in a test is a ``failure``.
    """
    try:
        tree = ET.parse(path)  # noqa: S314 - pytest's own file
    except (OSError, ET.ParseError):
        return  # it was not written; pytest has said so
    changed = False
    for suite in tree.iter("testsuite"):
        mended = 0
        for case in suite.iter("testcase"):
            found = {(one.get("name"), one.get("value")) for one in case.iter("property")}
            for failure in case.findall("failure") if ("status", "broken") in found else ():
                failure.tag = "error"
                mended += 1
        for name, by in (("failures", -mended), ("errors", mended)):
            suite.set(name, str(int(suite.get(name, "0")) + by))
        changed = changed or mended > 0
    if changed:
        with suppress(OSError), files.replacing(path) as file:
            tree.write(file, encoding="utf-8", xml_declaration=True)
