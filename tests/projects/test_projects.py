"""Three projects of others: one uses nothing of ours, one everything, one all the plugins that people use."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support.project import FAKE_NODE, Runs

NOTHING = """
import sys
import pytest

@pytest.mark.nightly
def test_night(): pass

@pytest.mark.requires("docker")
def test_docker(): pass

def test_loaded():
    assert "pytest_k3s_sandbox.pytestplugin.plugin" in sys.modules
    assert "pytest_k3s_sandbox.pytestplugin.hooks" not in sys.modules
"""

EVERYTHING = """
import pytest

@pytest.mark.k3s_requires()
def test_all(
    k3s, k3s_cgroupfs, k3s_claim, k3s_fake_cni, k3s_interceptor, k3s_layers, k3s_namespace, k3s_node,
    k3s_readiness, k3s_run, k3s_sandbox, k3s_toolchain, k3s_session, k3s_spec, k3s_workarounds,
):
    assert k3s_node.ready
    assert k3s_layers.names == ("workarounds", "fuse_cgroupfs", "ptrace_interceptor", "fake_cni")
    k3s_claim("it", "It is so", True)

@pytest.mark.k3s_layers("fake_cni")
def test_with_less(k3s_node, k3s_layers): assert k3s_layers.names == ("fake_cni",)

@pytest.mark.parametrize("k3s_layers", ["none"], indirect=True)
def test_with_none(k3s_layers): assert k3s_layers.names == ()
"""

WITH_NEIGHBOURS = """
import asyncio, datetime, time
import pytest
from freezegun import freeze_time
from pytest_k3s_sandbox.cluster.process_wait import until
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import WaitError

tries = []

@pytest.mark.flaky(reruns=2)
def test_flaky(k3s_node):
    tries.append(1)
    assert len(tries) > 1

@pytest.mark.asyncio
async def test_async(k3s_node):
    await asyncio.sleep(0)
    assert k3s_node.ready

@freeze_time("2012-01-14")
@pytest.mark.timeout(20)
def test_frozen(k3s_node):
    assert datetime.datetime.now().year == 2012
    with pytest.raises(WaitError):
        until(lambda: False, what="nothing", deadline=Deadline.after(0.2), alive={})

@pytest.mark.parametrize("number", range(3))
def test_more(k3s_namespace, number): pass
"""


def project(folder: Path, test: str, *, node: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "test_it.py").write_text(test)
    if node:
        (folder / "conftest.py").write_text(FAKE_NODE.read_text())
    return folder


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    last = done.stdout.strip().splitlines()[-1]
    found = {word.rstrip("s"): int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", last)}
    return {word: number for word, number in found.items() if word in {"passed", "failed", "error", "rerun"}}


def journal(folder: Path) -> list[str]:
    file = folder / "journal.txt"
    return file.read_text().splitlines() if file.exists() else []


def test_one_that_uses_nothing(run: Runs, tmp_path: Path) -> None:
    folder = project(tmp_path / "p", NOTHING, node=False)
    done = run(folder, K3S_VERSION="v1.29.3+k3s1")
    assert outcomes(done) == {"passed": 3}, done.stdout + done.stderr
    assert "k3s-sandbox: " not in done.stdout
    assert not (tmp_path / "state").exists()


def test_one_that_uses_everything(run: Runs, tmp_path: Path) -> None:
    folder = project(tmp_path / "p", EVERYTHING)
    done = run(folder, "--strict-markers")
    assert outcomes(done) == {"passed": 3}, done.stdout + done.stderr
    assert journal(folder).count("sandbox up") == journal(folder).count("sandbox down") == 3


def test_the_experiments_are_in_the_wheel(run: Runs, tmp_path: Path) -> None:
    folder = project(tmp_path / "p", "", node=False)
    words = ("--pyargs", "pytest_k3s_sandbox.experiments", "--co", "-q", "--strict-markers", "-m")
    day, night = (run(folder, *words, which) for which in ("exp08", "exp08 and nightly"))
    assert "test_exp08.py::test_root_is_9p" in day.stdout, day.stdout + day.stderr
    assert "test_ablation.py::test_without_one_layer" in day.stdout
    assert "::test_every_subset" not in day.stdout  # it is nightly
    assert "test_ablation.py::test_every_subset" in night.stdout, night.stdout + night.stderr
    assert "::test_root_is_9p" not in night.stdout
    assert day.returncode == night.returncode == 0


@pytest.mark.parametrize(
    "options", [(), ("-n2",), ("--forked",), ("--cov=test_it", "--cov-report="), ("-p", "no:randomly", "-x")]
)
def test_one_with_neighbours(run: Runs, tmp_path: Path, neighbours: Path, options: tuple[str, ...]) -> None:
    if "--forked" in options:
        control = project(tmp_path / "control", "def test_it(): pass", node=False)
        if run(control, "--forked", "-p", "no:k3s_sandbox", path=neighbours).returncode != 0:
            pytest.skip("not applicable: pytest-forked itself does not work with this pytest")
    folder = project(tmp_path / "p", WITH_NEIGHBOURS)
    test = folder / "test_it.py"
    if "--forked" in options:  # each try is in a process of its own, which forgets the others
        test.write_text(test.read_text().replace("tries.append(1)\n    assert len(tries) > 1", "pass"))
    done = run(folder, "--strict-markers", *options, path=neighbours)
    found = outcomes(done)
    assert found.pop("rerun", 0) == int("--forked" not in options), done.stdout
    assert found == {"passed": 6}, done.stdout + done.stderr
    assert done.returncode == 0


PLACES: dict[str, tuple[str, dict[str, str | None]]] = {
    "a folder with spaces and letters": ("my project \u00e4\u00f6\u65e5", {}),
    "no home": ("p", {"HOME": None}),
    "a home that cannot be written": ("p", {"HOME": "/proc/none"}),
    "temporary files elsewhere": ("p", {"TMPDIR": "elsewhere \u00fc"}),
    "a locale without letters": ("p \u00fc", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
}


@pytest.mark.parametrize("what", PLACES)
def test_wherever_it_is(run: Runs, tmp_path: Path, what: str) -> None:
    name, variables = PLACES[what]
    folder = project(tmp_path / name, EVERYTHING)
    given = dict(variables)
    if "TMPDIR" in given:
        (tmp_path / str(given["TMPDIR"])).mkdir()
        given["TMPDIR"] = str(tmp_path / str(given["TMPDIR"]))
    done = run(folder, **given)
    assert outcomes(done) == {"passed": 3}, done.stdout + done.stderr
    pages = list((folder / "reports").glob("*/index.html"))
    assert pages
    assert all("\ufffd" not in page.read_text(encoding="utf-8") for page in pages)


def test_the_debugger(run: Runs, tmp_path: Path) -> None:
    folder = project(tmp_path / "p", "def test_it(k3s_node): assert not k3s_node.ready\n")
    done = run(folder, "--pdb")  # its input has ended, as with `q`
    assert "entering PDB" in done.stdout
    assert journal(folder)[-1] == "sandbox down"


def test_ctrl_c_twice(environment: Path, tmp_path: Path) -> None:
    slow = (
        "import time\ndef test_it(k3s_node):\n"
        "    try:\n        print('begun', flush=True)\n        time.sleep(60)\n"
        "    finally:\n        print('ending', flush=True)\n        time.sleep(1)\n"
    )
    folder = project(tmp_path / "p", slow)
    with subprocess.Popen(
        [environment, "-m", "pytest", "-s", "-pno:cacheprovider"],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "begun" in line:
                process.send_signal(signal.SIGINT)
            if "ending" in line:
                time.sleep(0.2)
                process.send_signal(signal.SIGINT)
        assert process.wait(30) == pytest.ExitCode.INTERRUPTED
    assert journal(folder)[-1] == "sandbox down"
