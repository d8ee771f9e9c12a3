"""Workers of pytest-xdist on the real thing: a cluster each, or one for all; nothing of either stays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pytest_k3s_sandbox.daemon.registry import wait_for
from pytest_k3s_sandbox.report.records import read_run
from pytest_k3s_sandbox.sandbox import machine, reaper
from pytest_k3s_sandbox.toolchain.resolve import cache_folder

pytest.importorskip("xdist")
pytestmark = [
    pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor"),
    pytest.mark.timeout(600),
    pytest.mark.nightly,
]

CACHE = cache_folder(os.environ)

TEST = """
import os, signal, time
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range(6))
def test_namespaces_are_apart(k3s, k3s_node, k3s_namespace, k3s_claim, number):
    same = {"metadata": {"name": "same"}, "data": {"n": str(number)}}
    k3s.core.create_namespaced_config_map(k3s_namespace, same)
    Path(f"seen-{number}").write_text(k3s.kubeconfig.read_text() + k3s_namespace)
    k3s_claim(f"claim-{number}", "It is Ready", k3s_node.ready)
    if KILL and number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's project with sandboxes of its own and the machine's programs."""
    monkeypatch.setenv("K3S_SANDBOX_CACHE", str(CACHE))
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(tmp_path / "state"))
    yield tmp_path
    with machine.lock():
        reaper.reap()


def run(folder: Path, *options: str, kill: bool) -> str:
    (folder / "test_mine.py").write_text(TEST.replace("KILL", repr(kill)))
    argv = [
        sys.executable,
        "-mpytest",
        "-pno:cacheprovider",
        "-rA",
        "--k3s-require",
        "--rootdir=.",
        "-n2",
        *options,
    ]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == int(kill), done.stdout + done.stderr
    return done.stdout


def assert_nothing_is_left(folder: Path) -> None:
    assert wait_for(lambda: not list((folder / "state" / "sandboxes").iterdir()), 10)
    assert [line for line in reaper.leftovers() if str(folder) in line] == []
    for place in ("kept", "shared"):
        assert not list((folder / "state").glob(f"{place}/*"))


def clusters(folder: Path) -> set[str]:
    """Return the API servers that tests saw, by their kubeconfigs."""
    seen = [yaml.safe_load(path.read_text()) for path in folder.glob("seen-*")]
    return {config["clusters"][0]["cluster"]["server"] for config in seen}


def test_every_worker_has_a_cluster_of_its_own(folder: Path) -> None:
    output = run(folder, kill=False)
    assert "6 passed" in output
    runs = [read_run(path) for path in (folder / "reports").iterdir()]
    assert {made.name.rsplit("-", 1)[1] for made in runs} == {"gw0", "gw1"}
    assert sum(len(made.verdicts) for made in runs) == 6
    assert len(clusters(folder)) == 2
    assert output.count("k3s-sandbox report: ") == 2
    assert_nothing_is_left(folder)


@pytest.mark.parametrize("kill", [False, True])
def test_all_workers_share_one_cluster(folder: Path, *, kill: bool) -> None:
    output = run(folder, "--k3s-share", kill=kill)
    assert ("1 failed, 5 passed" if kill else "6 passed") in output
    (made,) = [read_run(path) for path in (folder / "reports").iterdir()]
    assert made.complete
    assert {verdict.name for verdict in made.verdicts} == {f"claim-{number}" for number in range(6)}
    assert len(clusters(folder)) == 1
    assert output.count("k3s-sandbox report: ") == 1
    assert_nothing_is_left(folder)
