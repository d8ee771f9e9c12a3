"""Steps, labels and attachments for allure-pytest, and errors that say nothing about a test.

allure-pytest need not be installed; nothing of it is imported unless ``--alluredir`` is given. The formats
are described on allurereport.org: test result file, categories file, environment file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from pytest_k3s_sandbox.support import escaping

if TYPE_CHECKING:
    import pytest

MAX_LOG = 256 * 1024
"""Bytes of a log, from its end, that are attached."""

TIMEOUT = "Failed: Timeout (>"
"""How the message of a test begins that pytest-timeout has ended."""

CATEGORIES = (
    {"name": "Disproved hypotheses", "matchedStatuses": ["failed"]},
    {"name": "Infrastructure trouble", "matchedStatuses": ["broken"]},
)
"""What allure's overview calls the two kinds of defects."""

_hookimpl = pluggy.HookimplMarker("allure")


def is_on(config: pytest.Config) -> bool:
    """Tell whether results for allure are written."""
    return bool(config.getoption("allure_report_dir", None))


def steps(config: pytest.Config) -> Callable[[str], AbstractContextManager[object]]:
    """Return what makes a step of each phase of the bring-up; without allure, it does nothing."""
    if not is_on(config):
        return nullcontext
    import allure

    def step(name: str) -> AbstractContextManager[object]:
        made: AbstractContextManager[object] = allure.step(name)
        return made

    return step


def label(values: Mapping[str, str]) -> None:
    """Give the running test labels, to search by, and parameters, which tell its histories apart."""
    import allure

    dynamic: Any = allure.dynamic
    for name, value in values.items():
        dynamic.label(name, value)
        if name != "experiment":  # the test's own name says which
            dynamic.parameter(name, value)


def attach_run(folder: Path, logs: Path) -> None:
    """Attach what a run has recorded so far: its samples, its timeline, its records and its logs.

    Args:
        folder: The run's folder.
        logs: The folder of its logs; while the node is up, that is not below the run's folder.
    """
    import allure

    from pytest_k3s_sandbox.errors import SandboxError
    from pytest_k3s_sandbox.report.drawing import standalone
    from pytest_k3s_sandbox.report.figures import PAGE_MM
    from pytest_k3s_sandbox.report.records import RECORDS_FILE, read_run
    from pytest_k3s_sandbox.report.tables import csv_tables
    from pytest_k3s_sandbox.report.timeline import timeline
    from pytest_k3s_sandbox.sandbox.inside import InsidePath

    kinds = allure.attachment_type
    # The records may be gone with --k3s-keep, and a log may end while it is read: what is there is attached.
    with suppress(SandboxError):
        run = read_run(folder)
        if run.samples:
            allure.attach(standalone(timeline(run), PAGE_MM), "readiness.svg", kinds.SVG)
            allure.attach(csv_tables(run)["samples"], "samples.csv", kinds.CSV)
    with suppress(OSError):
        allure.attach((folder / RECORDS_FILE).read_text(), RECORDS_FILE, kinds.TEXT)
    for path in sorted(logs.glob("*.log")):
        with suppress(OSError):
            data = path.tail(MAX_LOG) if isinstance(path, InsidePath) else path.read_bytes()[-MAX_LOG:]
            text = escaping.visible(data.decode(errors="replace"))
            if text:
                allure.attach(text, escaping.file_name(path.name), kinds.TEXT)


class Results:
    """A plugin of allure's, not of pytest's: it sees each result before it is written.

    Args:
        config: pytest's configuration; the plugin unregisters with its end.
    """

    def __init__(self, config: pytest.Config) -> None:
        """Register with allure, and write what all results share."""
        import allure_commons

        manager = allure_commons.plugin_manager
        manager.register(self)
        config.add_cleanup(lambda: manager.unregister(self))
        self._folder = Path(config.getoption("allure_report_dir"))

    @_hookimpl(tryfirst=True)
    def report_result(self, result: Any) -> None:  # noqa: ANN401 - allure publishes no types
        """Call a test broken that ran out of time: nothing was shown by that."""
        details = result.statusDetails
        if result.status == "failed" and details is not None and details.message.startswith(TIMEOUT):
            result.status = "broken"

    def write_frame(self, environment: Mapping[str, str]) -> None:
        """Write the categories of defects, and the environment that allure's overview shows.

        Args:
            environment: Names and values.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "categories.json").write_text(json.dumps(CATEGORIES, indent=2) + "\n")
        (self._folder / "environment.properties").write_text(escaping.properties(environment))
