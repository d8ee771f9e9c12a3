"""The end of a run: its page, or the removal of its folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from pytest_k3s_sandbox.report.headline import outcome
from pytest_k3s_sandbox.report.page import render
from pytest_k3s_sandbox.report.records import read_run


def finalize(folder: Path, *, keep: str, failed: bool) -> Path | None:
    """Render the page of a run, or remove its folder.

    Args:
        folder: The run's folder, its records closed.
        keep: ``never``, ``failed`` or ``always``.
        failed: Whether a test failed during the run. A verdict that did not hold counts as a failure.

    Returns:
        The page; None where the folder was removed.
    """
    run = read_run(folder)
    failed = failed or outcome(run) == "not held"
    if run.environment is None or keep == "never" or (keep == "failed" and not failed):
        shutil.rmtree(folder)
        return None
    return render([folder], folder)
