"""Begin and end a run for the fixtures: its folder, its records, its page."""

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
    """Record a run in a folder of its own; at the end, render its page or remove the folder.

    The end comes after the last report of the test whose teardown ends the run.

    Args:
        request: The fixture that starts the run.
        spec: The specification of the node.
        words: Further words of the folder's name.
        uses: Returns whether a test uses the run; None to derive it from the fixture.
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
        run.clean_start = cleanstart.announce(claims(writer))  # now: the bring-up may fail before the node
    try:
        yield writer
    except MissingCapability:
        lacking = True  # no program ran: remove the folder
        raise
    except BaseException as error:
        run.why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise
    finally:
        run.why = run.why or _interruption(session)
        run.over = True
        if owner.mine and not config.stash[PROCESS].mine:  # another process gets the reports
            config.stash[openruns.OPEN_RUNS].remove(run)
            close(run.why)


def _failed_here(config: pytest.Config) -> bool:
    """Return whether the running test failed in a forked process, whose session does not count failures."""
    running = config.stash.get(RUNNING, None)
    return not config.stash[PROCESS].mine and running is not None and FAILED in running.stash


def _keep(config: pytest.Config, folder: Path, *, failed: bool) -> None:
    """Render the page of a closed run, or remove its folder, according to ``--k3s-keep``."""
    from pytest_k3s_sandbox.report.finalize import finalize
    from pytest_k3s_sandbox.report.page import render

    results.end(config, folder)
    keep = config.stash[SETTINGS].keep
    if failed and keep != "never":
        page: Path | None = render([folder], folder)  # also for a node that did not come up
    else:
        page = finalize(folder, keep=keep, failed=failed)
    if page is None:
        return
    if not config.stash[PROCESS].mine:  # only test reports reach the process with the terminal
        config.stash[LINES].append(f"k3s-sandbox report: {page}")
        return
    config.stash[REPORTS].append(page)
    workers.hand_over(config, workers.REPORTS, str(page))


def _interruption(session: pytest.Session) -> str | None:
    """Return the reason why pytest stops early; None if it does not."""
    stopped = session.shouldfail or session.shouldstop
    if stopped:
        return str(stopped)
    if session.exitstatus in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR):
        return f"pytest: {pytest.ExitCode(session.exitstatus).name.lower().replace('_', ' ')}"
    return None


def keep_running(config: pytest.Config, session: NodeSession) -> None:
    """With ``--k3s-keep=running``, keep the cluster of a failed test when this process ends."""
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
    """Return the message about a kept cluster: the commands to inspect it and to stop it."""
    return (
        "k3s-sandbox: a cluster goes on, for a look (k3s-sandbox ps lists it):\n"
        f"  k3s-sandbox kubectl --name {name} -- get pods,events -A\n"
        f"  k3s-sandbox shell --name {name}\n"
        f"  k3s-sandbox stop {name}"
    )


def clean_start(request: pytest.FixtureRequest, writer: RunWriter) -> OpenClaim | None:
    """Return the claim about the start of a run's node; None if no test of an experiment uses it.

    Args:
        request: The fixture that starts the node.
        writer: The run's records.
    """
    config = request.config
    run = openruns.of_writer(config, writer)
    if run is None:  # a project's own fixture, or a cluster that workers share
        return None if experiment_of(request) == "test" else cleanstart.announce(claims(writer))
    if run.clean_start is None and any(
        openruns.wants_node(item) and run.uses(item) for item in openruns.upcoming(request.session)
    ):
        run.clean_start = cleanstart.announce(claims(writer))
    return run.clean_start


def judge_shared_start(request: pytest.FixtureRequest, writer: RunWriter) -> None:
    """Judge the start of a shared cluster, if a test of an experiment can use the cluster.

    :func:`.check_shareable` does not see a test that requests the cluster while it runs. Another test of the
    worker may have attached before. Therefore the first test that attaches makes the claim. If the
    claim does not hold, only a test of an experiment fails.

    Args:
        request: The fixture that attaches to the cluster.
        writer: The run's records, with the events of the start.

    Raises:
        ClusterError: A program ended during the start, and the running test belongs to an experiment.
    """
    claim = clean_start(request, writer)
    refused: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if claim is None and any(openruns.experiment(item) is not None for item in request.session.items):
        claim, refused = cleanstart.announce(claims(writer)), contextlib.suppress(ClusterError)
    if claim is not None:
        with refused, cleanstart.judged(claim, writer):
            pass  # the start is over, and its events are in the records


def claims(writer: RunWriter) -> Claim:
    """Return the claims of a run.

    Args:
        writer: The run's records.
    """
    return Claim(writer)


def experiment_of(request: pytest.FixtureRequest) -> str:
    """Return the experiment of the running test; ``test`` for a test without one."""
    item = request.config.stash.get(RUNNING, None)
    return "test" if item is None else openruns.experiment(item) or "test"
