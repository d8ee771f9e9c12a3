"""The open runs of a session, and the outcomes of the tests that use them.

A run's records must contain the outcome of each test. pytest ends session fixtures in the teardown of the
last test, so the run's own fixture ends before that teardown has an outcome. Therefore a run stays open until
the last report of that test; then this module closes it.
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
    """A run that records the outcomes of tests.

    Attributes:
        writer: The run's records.
        uses: Returns whether a test uses the run.
        close: Closes the records and renders the page. Its argument is ``why``.
        announced: The ids of the announced tests.
        reached: The ids of the tests with a recorded outcome.
        over: Whether the run's fixture has ended.
        why: The reason of an interruption; None for a run without one.
        clean_start: The claim about the node's start; None until it is announced. See :mod:`.cleanstart`.
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
"""The runs that record the outcomes of tests."""


def experiment(item: pytest.Item) -> str | None:
    """Return the name of the experiment that a test belongs to; None for a user's own test."""
    return item.stash.get(EXPERIMENT, None)


def sharing(request: pytest.FixtureRequest) -> Uses:
    """Return a function that returns whether a test uses the run of a fixture.

    Args:
        request: The request of the fixture: ``k3s_run``, ``k3s_layers`` with a parameter, or another one.
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
        # `k3s_layers` requests the run's fixture at run time, so a test's `fixturenames` may lack it.
        return bool({request.fixturename, "k3s_layers"} & names)

    return uses


def begin(config: pytest.Config, run: OpenRun, items: list[pytest.Item]) -> None:
    """Open a run, and announce the tests of experiments that will use it.

    Args:
        config: pytest's configuration.
        run: The run.
        items: The rest of the session's tests, the running one first.
    """
    config.stash.setdefault(OPEN_RUNS, []).append(run)
    if workers.is_worker(config):
        return  # a worker collects the tests of all workers, but runs only some of them
    for item in items:
        if experiment(item) is not None and run.uses(item):
            run.announced.add(item.nodeid)
            _record(run.writer, item, "announced", None, None)


def of_writer(config: pytest.Config, writer: RunWriter) -> OpenRun | None:
    """Return the open run of a writer; None if this session did not begin the run.

    Args:
        config: pytest's configuration.
        writer: The writer.
    """
    return next((run for run in config.stash.get(OPEN_RUNS, []) if run.writer is writer), None)


def wants_node(item: pytest.Item) -> bool:
    """Return whether a test belongs to an experiment and uses a node."""
    return experiment(item) is not None and "k3s_session" in getattr(item, "fixturenames", ())


def upcoming(session: pytest.Session) -> list[pytest.Item]:
    """Return the running test and the tests after it; all tests if none runs."""
    items = list(getattr(session, "items", ()))
    running = session.config.stash.get(RUNNING, None)
    return items[items.index(running) :] if running in items else items


class Recorder:
    """A pytest plugin that records each test's outcome in the runs that the test uses.

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
        """Store the tests by their ids."""
        self._items = {item.nodeid: item for item in session.items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record an outcome; after a teardown, close the runs whose fixtures have ended."""
        item = self._items.get(report.nodeid)
        if item is None or hasattr(report, "node"):  # a worker's report: the worker records it
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
        # If a test's own process crashed, pytest-forked reports the phase "???".
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
        """Close the runs that ended with the session, after the teardown of all fixtures."""
        self._settle(stopping=True)

    def pytest_unconfigure(self) -> None:
        """Close the runs that an error in a teardown left open."""
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
    """Return the outcome in a report; None for a setup or a teardown that passed."""
    if report.passed:
        return "passed" if report.when == "call" else None
    if report.skipped:
        return "skipped"
    # pytest-rerunfailures changes the outcome of a failure to "rerun": record it as a failure.
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
