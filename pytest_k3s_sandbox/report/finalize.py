"""What happens with a run's folder when the run is over."""

from __future__ import annotations

import shutil
from pathlib import Path

from pytest_k3s_sandbox.report.headline import outcome
from pytest_k3s_sandbox.report.page import render
from pytest_k3s_sandbox.report.records import read_run


def finalize(folder: Path, *, keep: str, failed: bool) -> Path | None:
    """Render a run's page, or remove a folder that is not to be kept.

    Args:
        folder: The run's folder, its records closed.
        keep: ``never``, ``failed`` or ``always``.
        failed: Whether a test failed during the run; a verdict that did not hold counts, too.

    Returns:
        The page; None when the folder is removed, or holds no more than the records' frame.
    """
    run = read_run(folder)
    failed = failed or outcome(run) == "not held"
    if run.environment is None or keep == "never" or (keep == "failed" and not failed):
        shutil.rmtree(folder)
        return None
    return render([folder], folder)
