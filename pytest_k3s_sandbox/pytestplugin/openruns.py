"""The runs that a session has open, and what becomes of the tests that use them.

A run's records must say which test failed, and a session's fixtures end within the teardown of its last
test: whether that teardown failed is only known after the run's own fixture has ended. Therefore a run that
is over stays open until that test's last report, and is closed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pytest

from pytest_k3s_sandbox.pytestplugin import workers
from pytest_k3s_sandbox.pytestplugin.stash import EXPERIMENT, PROCESS, RUNNING, STRAYS
from pytest_k3s_sandbox.support import forks

if TYPE_CHECKING:
    from pytest_k3s_sandbox.pytestplugin.claims import OpenClaim
    from pytest_k3s_sandbox.report.records import RunWriter

Uses = Callable[[pytest.Item], bool]


@dataclass
class OpenRun:
    """A run that takes the outcomes of tests.

    Attributes:
        writer: Its records.
        uses: Tells whether a test uses the run.
        close: Closes the records and renders the page; called with why the run was interrupted.
        announced: The ids of the tests that it has announced.
        reached: The ids of the tests whose outcome it has.
        over: Whether its fixture has ended.
        why: Why the run was interrupted; None when it was not.
        clean_start: The claim about its node's start, once it is announced; see :mod:`.cleanstart`.
    """

    writer: RunWriter
    uses: Uses
    close: Callable[[str | None], None]
    announced: set[str] = field(default_factory=set)
    reached: set[str] = field(default_factory=set)
    over: bool = False
    why: str | None = None
    clean_start: OpenClaim | None = None


OPEN_RUNS: pytest.StashKey[list[OpenRun]] = pytest.StashKey()
"""The runs that take the outcomes of tests."""


def experiment(item: pytest.Item) -> str | None:
    """Return the name of the experiment that a test belongs to; None for a user's own test."""
    return item.stash.get(EXPERIMENT, None)


def sharing(request: pytest.FixtureRequest) -> Uses:
    """Return what tells the tests that share the run which a fixture begins.

    Args:
        request: The fixture's; its name is ``k3s_run``, ``k3s_layers`` with a parameter, or another one's.
    """
    own = getattr(request, "param", None)
    where, first = request.node, request.config.stash.get(RUNNING, None)
    short = request.scope == "function"

    def uses(item: pytest.Item) -> bool:
        if item is first:
            return True
        names = set(getattr(item, "fixturenames", ()))
        params = getattr(getattr(item, "callspec", None), "params", {})
        if short or where not in item.listchain():
            return False
        if "k3s_layers" in params or own is not None:
            return request.fixturename in names and params.get(request.fixturename) == own
        # A stack asks for the fixture of the run by itself, so that a test does not have its name.
        return bool({request.fixturename, "k3s_layers"} & names)

    return uses


def begin(config: pytest.Config, run: OpenRun, items: list[pytest.Item]) -> None:
    """Open a run, and announce the tests of experiments that will use it.

    Args:
        config: pytest's configuration.
        run: The run.
        items: The tests of the session that are still to come, the running one first.
    """
    config.stash.setdefault(OPEN_RUNS, []).append(run)
    if workers.is_worker(config):
        return  # a worker of pytest-xdist has collected the tests of all workers
    for item in items:
        if experiment(item) is not None and run.uses(item):
            run.announced.add(item.nodeid)
            _record(run.writer, item, "announced", None, None)


def of_writer(config: pytest.Config, writer: RunWriter) -> OpenRun | None:
    """Return the open run that a writer records; None if it is not one of the session's own.

    Args:
        config: pytest's configuration.
        writer: The writer.
    """
    return next((run for run in config.stash.get(OPEN_RUNS, []) if run.writer is writer), None)


def wants_node(item: pytest.Item) -> bool:
    """Tell whether a test is one of an experiment's that has a node of its run's."""
    return experiment(item) is not None and "k3s_session" in getattr(item, "fixturenames", ())


def upcoming(session: pytest.Session) -> list[pytest.Item]:
    """Return the tests from the running one on; all of them when none is running."""
    items = list(getattr(session, "items", ()))
    running = session.config.stash.get(RUNNING, None)
    return items[items.index(running) :] if running in items else items


class Recorder:
    """A plugin of pytest's that gives each test's outcome to the runs that the test uses.

    Args:
        config: pytest's configuration.
    """

    def __init__(self, config: pytest.Config) -> None:
        """Start without a run."""
        self._config = config
        self._items: Mapping[str, pytest.Item] = {}
        config.stash[OPEN_RUNS] = []
        config.stash[STRAYS] = []
        config.stash[PROCESS] = forks.Owner()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember the tests by their ids."""
        self._items = {item.nodeid: item for item in session.items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record an outcome; after the last one of a test, close the runs that are over."""
        item = self._items.get(report.nodeid)
        if item is None or hasattr(report, "node"):  # one of a worker's, which records it itself
            return
        outcome = _outcome(report)
        if outcome is not None:
            self._take(item, outcome, report)
        if report.when == "teardown":
            self._settle(stopping=False)

    def _take(
        self,
        item: pytest.Item,
        outcome: Literal["passed", "skipped", "broken", "failed"],
        report: pytest.TestReport,
    ) -> None:
        # Of a test whose own process ended, pytest-forked does not know the phase, and says "???".
        phase: Any = report.when if report.when in {"setup", "call", "teardown"} else None
        message = None if outcome == "passed" else _message(report)
        found = False
        for run in self._config.stash[OPEN_RUNS]:
            if run.uses(item):
                found = True
                run.reached.add(item.nodeid)
                _record(run.writer, item, outcome, phase, message)
        funcargs = getattr(item, "funcargs", None) or {}
        shared = getattr(funcargs.get("k3s_session"), "writer", None)
        if shared is not None and not found:
            found = True
            _record(shared, item, outcome, phase, message)
        name = experiment(item)
        if not found and name is not None and outcome in {"broken", "failed"}:
            stray = {"experiment": name, "test": item.nodeid, "outcome": outcome}
            if not workers.hand_over(self._config, workers.STRAYS, stray):
                self._config.stash[STRAYS].append(stray)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Close the runs that ended with the session, when all fixtures are down."""
        self._settle(stopping=True)

    def pytest_unconfigure(self) -> None:
        """Close what is open still: a fixture's end has raised an error."""
        self._settle(stopping=True)

    def _settle(self, *, stopping: bool) -> None:
        runs = self._config.stash[OPEN_RUNS]
        for run in [run for run in runs if run.over]:
            runs.remove(run)
            running = self._config.stash.get(RUNNING, None)
            left = run.announced - run.reached
            if run.why is not None and running is not None and running.nodeid in left:
                _record(run.writer, running, "broken", None, run.why)
            elif run.why is None and not stopping:
                for nodeid in sorted(left):
                    _record(run.writer, self._items[nodeid], "elsewhere", None, None)
            run.close(run.why)


def _outcome(report: pytest.TestReport) -> Literal["passed", "skipped", "broken", "failed"] | None:
    """Return what a report says of its test; None where it says nothing of interest."""
    if report.passed:
        return "passed" if report.when == "call" else None
    if report.skipped:
        return "skipped"
    # pytest-rerunfailures calls a failure "rerun"; it was one.
    broken = ("status", "broken") in report.user_properties or report.when != "call"
    return "broken" if broken else "failed"


def _message(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return str(crash.message)
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    return report.longreprtext


def _record(
    writer: RunWriter,
    item: pytest.Item,
    outcome: Literal["announced", "elsewhere", "passed", "skipped", "broken", "failed"],
    phase: Literal["setup", "call", "teardown"] | None,
    message: str | None,
) -> None:
    from pytest_k3s_sandbox.report.records import MAX_MESSAGE, Tested

    document = getattr(getattr(item, "obj", None), "__doc__", None) or ""
    writer.append(
        Tested(
            t=writer.now(),
            nodeid=item.nodeid,
            text=document.strip().partition("\n")[0],
            outcome=outcome,
            phase=phase,
            message=None if message is None else message[:MAX_MESSAGE],
        )
    )
