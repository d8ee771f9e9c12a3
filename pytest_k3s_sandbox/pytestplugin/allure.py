"""Write steps, labels, attachments and statuses for allure-pytest.

allure-pytest is optional: this module imports it only with ``--alluredir``. allurereport.org describes the
formats: test result file, categories file, environment file.
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
"""The most bytes of a log that are attached, counted from its end."""

TIMEOUT = "Failed: Timeout (>"
"""The prefix of the message of a test that pytest-timeout ended."""

CATEGORIES = (
    {"name": "Disproved hypotheses", "matchedStatuses": ["failed"]},
    {"name": "Infrastructure trouble", "matchedStatuses": ["broken"]},
)
"""The names of the two kinds of defects in allure's overview."""

_hookimpl = pluggy.HookimplMarker("allure")


def is_on(config: pytest.Config) -> bool:
    """Return whether pytest writes results for allure."""
    return bool(config.getoption("allure_report_dir", None))


def steps(config: pytest.Config) -> Callable[[str], AbstractContextManager[object]]:
    """Return a function that records a phase of the bring-up as a step; without allure, it does nothing."""
    if not is_on(config):
        return nullcontext
    import allure

    def step(name: str) -> AbstractContextManager[object]:
        made: AbstractContextManager[object] = allure.step(name)
        return made

    return step


def label(values: Mapping[str, str]) -> None:
    """Add labels and parameters to the running test; allure keeps a history for each set of parameters."""
    import allure

    dynamic: Any = allure.dynamic
    for name, value in values.items():
        dynamic.label(name, value)
        if name != "experiment":  # the test's own name contains the experiment
            dynamic.parameter(name, value)


def attach_run(folder: Path, logs: Path) -> None:
    """Attach the samples, timeline, records and logs that a run has so far.

    Args:
        folder: The run's folder.
        logs: The folder of its logs. While the node is up, it is outside the run's folder.
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
    # --k3s-keep may have removed the records, and a log may vanish during the read. The rest is attached.
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
    """A plugin of allure, not of pytest: it sees each result before allure writes it.

    Args:
        config: pytest's configuration; its cleanup unregisters the plugin.
    """

    def __init__(self, config: pytest.Config) -> None:
        """Register with allure."""
        import allure_commons

        manager = allure_commons.plugin_manager
        manager.register(self)
        config.add_cleanup(lambda: manager.unregister(self))
        self._folder = Path(config.getoption("allure_report_dir"))

    @_hookimpl(tryfirst=True)
    def report_result(self, result: Any) -> None:  # noqa: ANN401 - allure publishes no types
        """Mark a test that timed out as broken: a timeout proves nothing about its hypothesis."""
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
