"""Running an experiment outside pytest's output: the same test module, our own words."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pytest_k3s_sandbox
from pytest_k3s_sandbox.errors import ConfigError, suggestion
from pytest_k3s_sandbox.pytestplugin.stash import REPORTS


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run of an experiment.

    Attributes:
        code: pytest's exit code.
        pages: The runs' pages, each in its run's folder.
        log: pytest's own output.
    """

    code: int
    pages: tuple[Path, ...]
    log: Path


def experiments_folder() -> Path:
    """Return where the experiments are: in the installed package, or beside it in a checkout."""
    package = Path(pytest_k3s_sandbox.__file__).parent
    installed = package / "experiments"
    return installed if installed.is_dir() else package.parent / "experiments"


def names() -> list[str]:
    """Return the names of the experiments that can be run."""
    return sorted(path.name for path in experiments_folder().glob("exp[0-9][0-9]"))


def require(name: str) -> None:
    """Make sure that there is an experiment of that name.

    Raises:
        ConfigError: No report was found.
    """
    known = names()
    if name not in known:
        raise ConfigError(
            f"unknown experiment {name!r}",
            cause=f"known are {', '.join(known)}",
            remedy=suggestion(name, known),
        )


def new_runs(report: Path) -> Callable[[], list[Path]]:
    """Return a function that gives the folders of the runs that began after this call, the latest last.

    Their names begin with the time.

    Args:
        report: The folder of runs.
    """
    before = set(report.glob("*"))

    def look() -> list[Path]:
        return sorted(folder for folder in report.glob("*") if folder.is_dir() and folder not in before)

    return look


def judged(summary: dict[str, Any], code: int) -> dict[str, Any]:
    """Return a run's summary as the experiment allows: none of its runs is ``ok`` if pytest says otherwise.

    A test can fail that no run knows of, because the programs could not be had, for instance.

    Args:
        summary: The run's summary by :func:`~pytest_k3s_sandbox.report.headline.summarize`.
        code: pytest's exit code.
    """
    ok = summary["ok"] and code == 0
    outcome = "incomplete" if summary["outcome"] == "held" and not ok else summary["outcome"]
    return {**summary, "ok": ok, "outcome": outcome, "pytest_exit_code": code}


class Watcher:
    """A plugin that tells how an experiment goes, a line a test.

    Args:
        say: Called with each line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        """Nothing was said yet."""
        self._say = say
        self.pages: tuple[Path, ...] = ()

    def pytest_runtest_logstart(self, location: tuple[str, int | None, str]) -> None:
        """Show the current question."""
        self._say(f"... {location[2].removeprefix('test_').replace('_', ' ')}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Say how it went, once a test."""
        if report.when == "call" or report.outcome != "passed":
            words = {"passed": "held", "failed": "DID NOT HOLD" if report.when == "call" else "BROKEN"}
            name = report.location[2].removeprefix("test_").replace("_", " ")
            if report.when == "teardown":
                name += ": teardown"
            self._say(f"    {name}: {words.get(report.outcome, report.outcome)} ({report.duration:.1f} s)")
            if report.outcome != "passed":
                self._say(_reason(report))

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """Remember the pages."""
        pages: list[Path] = config.stash.get(REPORTS, [])
        self.pages = tuple(pages)


def _reason(report: pytest.TestReport) -> str:
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        return f"    {report.longrepr[2]}"
    crash = getattr(report.longrepr, "reprcrash", None)
    return f"    {crash.message}" if crash is not None else ""


def run(name: str, options: Sequence[str], report: Path, say: Callable[[str], None]) -> Outcome:
    """Run an experiment.

    Args:
        name: Its name, like ``exp08``.
        options: The plugin's options, as on pytest's command line.
        report: The folder that gets the run's folder.
        say: Called with lines about the progress.

    Raises:
        ConfigError: There is no such experiment, pytest refuses the options, or the report's
            folder cannot be written.
    """
    require(name)
    report = report.absolute()
    log = report / f"{name}.log"
    try:
        report.mkdir(parents=True, exist_ok=True)
        output = log.open("w")
    except OSError as error:
        raise ConfigError(
            f"report folder {report}", cause=error.strerror, remedy="name a folder that can be written"
        ) from error
    terminal = sys.stderr

    def aside(line: str) -> None:
        with contextlib.redirect_stderr(terminal):
            say(line)

    watcher = Watcher(aside)
    arguments = [
        str(experiments_folder() / name),
        f"-c{os.devnull}",
        f"--rootdir={report}",
        "-pno:cacheprovider",
        "--strict-markers",
        "--k3s-require",
        f"--k3s-report={report}",
        *options,
    ]
    with output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = int(pytest.main(arguments, plugins=[watcher]))
    if code == pytest.ExitCode.USAGE_ERROR:
        # argparse's own words come after the usage, those of plugins after "ERROR: " at once.
        said = re.findall(
            r"^(?:.*\berror|ERROR): (?!usage:)(.+)", log.read_text(errors="replace"), re.MULTILINE
        )
        raise ConfigError(
            f"pytest refused to run {name}",
            cause="; ".join(said) or "its log says why",
            remedy="check the options, and the environment variables PYTEST_ADDOPTS and K3S_*",
            log=log,
        )
    return Outcome(code, watcher.pages, log)
