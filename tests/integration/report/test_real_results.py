"""The results of a real experiment: valid for others, and readable when the run was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_k3s_sandbox.cli.experiments import experiments_folder
from pytest_k3s_sandbox.report.records import read_run
from pytest_k3s_sandbox.sandbox import machine, reaper
from pytest_k3s_sandbox.toolchain.resolve import cache_folder
from support.result_formats import cases, documents, ends, properties, steps_of

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor"),
    pytest.mark.timeout(400),
]

CACHE = cache_folder(os.environ)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where an experiment runs with sandboxes of its own and the machine's programs."""
    monkeypatch.setenv("K3S_SANDBOX_CACHE", str(CACHE))
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    yield tmp_path
    with machine.lock():
        reaper.reap()


def argv(*options: str, experiment: str = "exp08") -> list[str]:
    """An experiment as ``k3s-sandbox run`` runs it."""
    pytest_itself = [sys.executable, "-mpytest", str(experiments_folder() / experiment), f"-c{os.devnull}"]
    ours = [
        "--rootdir=.",
        "-pno:cacheprovider",
        "--k3s-require",
        "--k3s-timeout-scale=4",
        "--k3s-report=reports",
    ]
    return [*pytest_itself, *ours, *options]


def test_a_real_experiment_gives_valid_results(folder: Path) -> None:
    options = ("--k3s-duration=10", "--alluredir=allure", "--junitxml=junit.xml")
    done = subprocess.run(argv(*options), cwd=folder, capture_output=True, text=True, check=False)
    found = cases(folder / "junit.xml")
    assert len(found) > 5, done.stdout
    version = properties(found["test_pod_runs"])["version"]
    assert version
    results = {one["name"]: one for one in documents(folder / "allure", "result")}
    wanted = {"passed": [], "failed": ["failure"], "broken": ["error"], "skipped": ["skipped"]}
    assert {name: ends(case) for name, case in found.items()} == {
        name: wanted[one["status"]] for name, one in results.items()
    }
    labels = {one["name"]: one["value"] for one in results["test_pod_runs"]["labels"]}
    assert (labels["experiment"], labels["sandbox"], labels["version"]) == ("exp08", "gvisor", version)
    steps = {name for _, name, _ in steps_of(folder / "allure")}
    assert {"sandbox", "layer fuse_cgroupfs", "layer ptrace_interceptor", "API server"} <= steps
    assert "\nk3s-sandbox exp08: " in done.stdout


def test_workers_of_xdist_give_valid_results_together(folder: Path) -> None:
    options = (
        "-mexp07",
        "-n2",
        "-kmagic or processes or follows",
        "--alluredir=allure",
        "--junitxml=junit.xml",
    )
    done = subprocess.run(
        argv(*options, experiment="exp07"), cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    found = cases(folder / "junit.xml")
    results = {one["name"]: one for one in documents(folder / "allure", "result")}
    assert len(found) == len(results) == 14
    assert {one["status"] for one in results.values()} == {"passed"}
    assert len({one["historyId"] for one in results.values()}) == 14
    labels = [{one["name"]: one["value"] for one in result["labels"]} for result in results.values()]
    assert len({one["thread"] for one in labels}) == 2
    for name, result in results.items():
        assert {"name": "sandbox", "value": "host" if "host" in name else "gvisor"} in result["labels"]
    assert {properties(case)["run"] for case in found.values()} == {
        str(path) for path in (folder / "reports").iterdir()
    }
    assert "\nk3s-sandbox exp07: 2 runs, 2 held; 14 of 14 claims, 0 error lines\n" in done.stdout


def test_a_real_experiment_that_is_killed_has_a_report_that_says_so(folder: Path) -> None:
    with subprocess.Popen(
        argv("--k3s-duration=300"), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            until = time.monotonic() + 200
            held = 0
            while held < 5:  # samples
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.5)
                for records in (folder / "reports").glob("*/records.jsonl"):
                    held = records.read_text().count('"node_ready":true')
        finally:
            process.kill()
    (run_folder,) = (folder / "reports").iterdir()
    cli = [sys.executable, "-m", "pytest_k3s_sandbox.cli", "report", str(run_folder)]
    done = subprocess.run(cli, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = read_run(run_folder)
    assert not run.complete
    assert sum(sample.node_ready is True for sample in run.samples) >= 5
    text = (run_folder / "index.html").read_text()
    assert "This run was cut off: its records stop at " in text
    assert "No log was kept with this run." in text
