"""What the fixtures do around a run: its folder, its records, and what remains of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.errors import ClusterError, MissingCapability
from pytest_k3s_sandbox.pytestplugin import allure, cleanstart, openruns, results, workers
from pytest_k3s_sandbox.pytestplugin.claims import Claims
from pytest_k3s_sandbox.pytestplugin.stash import (
    FAILED,
    KEPT,
    LINES,
    PROCESS,
    REPORTS,
    RUNNING,
    SETTINGS,
)
from pytest_k3s_sandbox.support import forks

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_k3s_sandbox.node.session import NodeSession
    from pytest_k3s_sandbox.node.spec import NodeSpec
    from pytest_k3s_sandbox.pytestplugin.claims import OpenClaim
    from pytest_k3s_sandbox.report.records import RunWriter


Claim = Claims


@contextlib.contextmanager
def recorded(
    request: pytest.FixtureRequest, spec: NodeSpec, *words: str, uses: openruns.Uses | None = None
) -> Iterator[RunWriter]:
    """Record a run in a folder of its own; at the end its page is rendered, or the folder removed.

    That happens after the last report of the test whose end is the run's.

    Args:
        request: The fixture that starts the run.
        spec: What is brought up.
        words: Further words of the folder's name.
        uses: Tells whether a test uses the run; by default that is told from the fixture.
    """
    from pytest_k3s_sandbox.node.session import run_folder
    from pytest_k3s_sandbox.report.records import RunWriter

    config, session = request.config, request.session
    settings = config.stash[SETTINGS]
    worker = getattr(config, "workerinput", {}).get("workerid")
    words = (experiment_of(request), spec.sandbox, *words, *([worker] if worker else ()))
    folder = run_folder(settings.report, *words)
    failed_before = session.testsfailed
    writer = RunWriter(folder, around=allure.steps(config))
    results.begin(config, writer)
    lacking = False
    owner = forks.Owner()

    def close(why: str | None) -> None:
        if not owner.mine:
            return
        writer.close(why)
        failed = why is not None or session.testsfailed > failed_before or _failed_here(config)
        _keep(config, folder, failed=failed and not lacking)

    run = openruns.OpenRun(writer, uses or openruns.sharing(request), close)
    openruns.begin(config, run, openruns.upcoming(session))
    running = config.stash.get(RUNNING, None)
    if running is not None and openruns.wants_node(running) and run.uses(running):
        run.clean_start = cleanstart.announce(claims(writer))  # now: the start may not come to its node
    try:
        yield writer
    except MissingCapability:
        lacking = True  # nothing was run, nothing is to be kept
        raise
    except BaseException as error:
        run.why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise
    finally:
        run.why = run.why or _interruption(session)
        run.over = True
        if owner.mine and not config.stash[PROCESS].mine:  # the reports go to another process
            config.stash[openruns.OPEN_RUNS].remove(run)
            close(run.why)


def _failed_here(config: pytest.Config) -> bool:
    """Tell whether the running test has failed in a process of its own, whose session counts no failures."""
    running = config.stash.get(RUNNING, None)
    return not config.stash[PROCESS].mine and running is not None and FAILED in running.stash


def _keep(config: pytest.Config, folder: Path, *, failed: bool) -> None:
    """Render the page of a run whose records are closed, or remove its folder, as the options say."""
    from pytest_k3s_sandbox.report.finalize import finalize
    from pytest_k3s_sandbox.report.page import render

    results.end(config, folder)
    keep = config.stash[SETTINGS].keep
    if failed and keep != "never":
        page: Path | None = render([folder], folder)  # also of a node that never came up
    else:
        page = finalize(folder, keep=keep, failed=failed)
    if page is None:
        return
    if not config.stash[PROCESS].mine:  # only a report reaches the process with the terminal
        config.stash[LINES].append(f"k3s-sandbox report: {page}")
        return
    config.stash[REPORTS].append(page)
    workers.hand_over(config, workers.REPORTS, str(page))


def _interruption(session: pytest.Session) -> str | None:
    """Return why pytest ends before its tests have all been run; None when it does not."""
    stopped = session.shouldfail or session.shouldstop
    if stopped:
        return str(stopped)
    if session.exitstatus in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR):
        return f"pytest: {pytest.ExitCode(session.exitstatus).name.lower().replace('_', ' ')}"
    return None


def keep_running(config: pytest.Config, session: NodeSession) -> None:
    """Let the cluster of a test that failed go on when this process ends, if that was asked for."""
    from pytest_k3s_sandbox.sandbox.started import StartedSandbox

    wanted = config.stash[SETTINGS].keep == "running" and KEPT not in config.stash
    if not wanted or not isinstance(session.stack.sandbox, StartedSandbox) or not session.stack.sandbox.mine:
        return
    from pytest_k3s_sandbox.daemon.process import hand_over
    from pytest_k3s_sandbox.node.diagnostics import diagnose

    diagnose(session.cluster, session.folder)
    state = hand_over(session, "a test failed (--k3s-keep=running)")
    config.stash[KEPT] = True
    config.stash[LINES].append(goes_on(state.name))


def goes_on(name: str) -> str:
    """Return the lines about a cluster that was kept for a look: how to look, and how to end it."""
    return (
        "k3s-sandbox: a cluster goes on, for a look (k3s-sandbox ps lists it):\n"
        f"  k3s-sandbox kubectl --name {name} -- get pods,events -A\n"
        f"  k3s-sandbox shell --name {name}\n"
        f"  k3s-sandbox stop {name}"
    )


def clean_start(request: pytest.FixtureRequest, writer: RunWriter) -> OpenClaim | None:
    """Return the claim about the start of a run's node; None if no experiment's test uses it.

    Args:
        request: The fixture that starts the node.
        writer: The run's records.
    """
    config = request.config
    run = openruns.of_writer(config, writer)
    if run is None:  # a user's own fixture, or a cluster that other processes share
        return None if experiment_of(request) == "test" else cleanstart.announce(claims(writer))
    if run.clean_start is None and any(
        openruns.wants_node(item) and run.uses(item) for item in openruns.upcoming(request.session)
    ):
        run.clean_start = cleanstart.announce(claims(writer))
    return run.clean_start


def judge_shared_start(request: pytest.FixtureRequest, writer: RunWriter) -> None:
    """Judge how a shared cluster started, if an experiment's test can come to use it.

    A test of an experiment that asks for the cluster only when it runs is not refused before. After
    another test of its worker it finds the cluster there, so that the claim is made with the first test.
    It fails only an experiment's test.

    Args:
        request: The fixture that attaches to the cluster.
        writer: The run's records, which tell how the cluster started.

    Raises:
        ClusterError: The running test is an experiment's, and a program has ended during the start.
    """
    claim = clean_start(request, writer)
    refused: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if claim is None and any(openruns.experiment(item) is not None for item in request.session.items):
        claim, refused = cleanstart.announce(claims(writer)), contextlib.suppress(ClusterError)
    if claim is not None:
        with refused, cleanstart.judged(claim, writer):
            pass  # it is Ready, and its records tell how it started


def claims(writer: RunWriter) -> Claim:
    """Return what records whether claims hold, and then asserts them.

    Args:
        writer: The run's records.
    """
    return Claim(writer)


def experiment_of(request: pytest.FixtureRequest) -> str:
    """Return the experiment that the test which starts this run belongs to; ``test`` for a user's own."""
    item = request.config.stash.get(RUNNING, None)
    return "test" if item is None else openruns.experiment(item) or "test"
