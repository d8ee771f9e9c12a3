"""Results of tests: JUnit's XML, allure's folder, and the terminal's summary of each experiment.

An infrastructure error is an ``error`` in JUnit's XML and ``broken`` in allure. A disproved hypothesis is a
``failure`` in JUnit's XML and ``failed`` in allure.
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
    HEADLINES,
    REPORTS,
    RUN,
    SETTINGS,
    STRAYS,
)
from pytest_k3s_sandbox.support import files

if TYPE_CHECKING:
    from pytest_k3s_sandbox.report.records import RunWriter

NODE = frozenset({"k3s_run", "k3s_sandbox", "k3s_layers", "k3s_session"})
"""The fixtures of a node; an error of the node says nothing about the test."""


def is_broken(error: BaseException) -> bool:
    """Return whether an exception proves nothing about a test's hypothesis.

    A failed assertion and ``pytest.fail`` disprove the hypothesis. A timeout of pytest-timeout and every
    other exception prove nothing.
    """
    if isinstance(error, pytest.fail.Exception):
        return f"Failed: {error.msg}".startswith(allure.TIMEOUT)
    return not isinstance(error, AssertionError)


class Outcomes:
    """Hooks that write results; registered when the plugin becomes active.

    Args:
        config: pytest's configuration.
    """

    def __init__(self, config: pytest.Config) -> None:
        """Start with no result."""
        self._config = config
        self._results = allure.Results(config) if allure.is_on(config) else None
        self._environment: dict[str, str] = {}
        config.stash[HEADLINES] = []
        recorder = openruns.Recorder(config)
        config.pluginmanager.register(recorder, "k3s_sandbox_recorder")
        session = config.pluginmanager.get_plugin("session")
        if session is not None:  # a running test may activate the plugin, after the collection
            recorder.pytest_collection_finish(session)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add properties to a test with a node: its sandbox and layers, and whether it is broken."""
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
            # A test's own user_properties take precedence: it may start another sandbox than its run's.
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
        """Correct JUnit's file after pytest has written it, and write allure's common files."""
        result = yield
        if self._results is not None and self._environment:
            self._results.write_frame(self._environment)
        path = self._config.getoption("xmlpath", None)
        if path and not workers.is_worker(self._config):
            mend_junit(Path(os.path.expandvars(path)).expanduser())
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print a line for each experiment."""
        found: list[dict[str, Any]] = self._config.stash[HEADLINES]
        known = {one["run"] for one in found}
        # The daemon process of a shared cluster writes its records.
        others = [page.parent for page in self._config.stash[REPORTS] if page.parent.name not in known]
        strays = self._config.stash[STRAYS]
        if not found and not others and not strays:
            return
        from pytest_k3s_sandbox.report.headline import Headline, headline, headline_lines
        from pytest_k3s_sandbox.report.records import read_run

        headlines = [Headline(**one) for one in found]
        for folder in others:
            with suppress(SandboxError):  # a run whose records are gone has no key figures
                headlines.append(headline(read_run(folder)))
        for line in headline_lines(headlines, strays):
            terminalreporter.write_line(f"k3s-sandbox {line}")


def begin(config: pytest.Config, run: RunWriter) -> None:
    """Store the run of the next tests."""
    config.stash[RUN] = run


def end(config: pytest.Config, folder: Path) -> None:
    """Store a run's key figures for the terminal's summary; its folder may be removed afterwards."""
    from pytest_k3s_sandbox.report.headline import headline
    from pytest_k3s_sandbox.report.records import read_run

    run = read_run(folder)
    if run.environment is None and run.complete:
        return  # a capability is missing: no program ran
    found = headline(run).values()
    if not workers.hand_over(config, workers.HEADLINES, found):
        config.stash[HEADLINES].append(found)


def labels(item: pytest.Item) -> dict[str, str]:
    """Return the known labels of a test: experiment, sandbox, layers and version."""
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
    """Turn the failures of broken tests into errors, in a JUnit file that pytest has written.

    pytest writes a ``failure`` for every exception in the call phase of a test.
    """
    try:
        tree = ET.parse(path)  # noqa: S314 - pytest's own file
    except (OSError, ET.ParseError):
        return  # pytest did not write it, and has reported that
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
