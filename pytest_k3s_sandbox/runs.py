"""What the fixtures do around a run: its folder, its records, and what remains of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox import allure, outcomes
from pytest_k3s_sandbox.errors import MissingCapability
from pytest_k3s_sandbox.keys import KEPT, LINES, REPORTS, RUNNING, SETTINGS, WORKER_REPORTS

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_k3s_sandbox.bringup import Up, Wish
    from pytest_k3s_sandbox.report.records import RunWriter

Claim = Callable[..., None]
Value = float | str | None


@contextlib.contextmanager
def recorded(request: pytest.FixtureRequest, wish: Wish, *words: str) -> Iterator[RunWriter]:
    """Record a run in a folder of its own; at the end its page is rendered, or the folder removed.

    Args:
        request: The fixture that starts the run.
        wish: What is brought up.
        words: Further words of the folder's name.
    """
    from pytest_k3s_sandbox.bringup import run_folder  # noqa: PLC0415 - the plugin imports little
    from pytest_k3s_sandbox.report.finish import finish  # noqa: PLC0415 - likewise
    from pytest_k3s_sandbox.report.page import render  # noqa: PLC0415 - likewise
    from pytest_k3s_sandbox.report.records import RunWriter  # noqa: PLC0415 - likewise

    config, session = request.config, request.session
    settings = config.stash[SETTINGS]
    worker = getattr(config, "workerinput", {}).get("workerid")
    words = (experiment_of(request), wish.sandbox, *words, *([worker] if worker else ()))
    folder = run_folder(settings.report, *words)
    failed_before = session.testsfailed
    writer = RunWriter(folder, around=allure.steps(config))
    outcomes.begin(config, writer)
    why: str | None = None
    try:
        yield writer
    except MissingCapability:
        raise  # nothing was run, nothing is to be kept
    except BaseException as error:
        why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise
    finally:
        why = why or _interruption(session)
        writer.close(why)
        outcomes.end(config, folder)
        failed = why is not None or session.testsfailed > failed_before
        if failed and settings.keep != "never":
            page: Path | None = render([folder], folder)  # also of a node that never came up
        else:
            page = finish(folder, keep=settings.keep, failed=failed)
        if page is not None:
            config.stash[REPORTS].append(page)
            if worker is not None:
                config.workeroutput.setdefault(WORKER_REPORTS, []).append(str(page))  # type: ignore[attr-defined] # pytest-xdist's


def _interruption(session: pytest.Session) -> str | None:
    """Return why pytest ends before its tests have all been run; None when it does not."""
    stopped = session.shouldfail or session.shouldstop
    if stopped:
        return str(stopped)
    if session.exitstatus in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR):
        return f"pytest: {pytest.ExitCode(session.exitstatus).name.lower().replace('_', ' ')}"
    return None


def keep_running(config: pytest.Config, up: Up) -> None:
    """Let the cluster of a test that failed go on when this process ends, if that was asked for."""
    from pytest_k3s_sandbox.sandbox.started import StartedSandbox  # noqa: PLC0415 - the plugin imports little

    wanted = config.stash[SETTINGS].keep == "running" and KEPT not in config.stash
    if not wanted or not isinstance(up.stack.sandbox, StartedSandbox):
        return
    from pytest_k3s_sandbox.bringup import diagnose  # noqa: PLC0415 - only after a failure
    from pytest_k3s_sandbox.keeper import hand_over  # noqa: PLC0415 - likewise

    diagnose(up.cluster, up.folder)
    state = hand_over(up, "a test failed (--k3s-keep=running)")
    config.stash[KEPT] = True
    config.stash[LINES].append(goes_on(state.name))


def goes_on(name: str) -> str:
    """Return the line about a cluster that was kept for a look."""
    return (
        f"k3s-sandbox: a cluster goes on, for a look: k3s-sandbox shell --name {name}    "
        f"its end: k3s-sandbox stop {name}"
    )


def claims(writer: RunWriter) -> Claim:
    """Return what records whether a claim held, and then asserts it.

    Args:
        writer: The run's records.
    """

    def claim(
        name: str, text: str, held: bool, measured: Value = None, limit: Value = None, unit: str = ""
    ) -> None:
        from pytest_k3s_sandbox.report.records import Verdict  # noqa: PLC0415 - the plugin imports little

        writer.append(Verdict(name=name, text=text, held=held, measured=measured, limit=limit, unit=unit))
        assert held, f"{text}: measured {measured} {unit}, the limit is {limit} {unit}"  # noqa: S101 - for tests

    return claim


def experiment_of(request: pytest.FixtureRequest) -> str:
    """Return the experiment that the test which starts this run belongs to; ``test`` for a user's own."""
    item = request.config.stash.get(RUNNING, None)
    for mark in item.iter_markers() if item is not None else ():
        if mark.name.startswith("exp") and mark.name[3:].isdigit():
            return mark.name
    return "test"
