"""README alone is enough: its example passes in a project of its own, with only the built wheel installed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_k3s_sandbox.cluster.images import Image, ImageConfig, ImageFile, write_images
from pytest_k3s_sandbox.sandbox import machine, reaper
from pytest_k3s_sandbox.toolchain.resolve import cache_folder
from support.blocks import ROOT, blocks

pytestmark = [
    pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor"),
    pytest.mark.timeout(600),
    pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="not applicable: this is not a checkout"),
]

CACHE = cache_folder(os.environ)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the built wheel."""
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(ROOT)]
    subprocess.run(pip, check=True, timeout=200)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the folder of a user's project, with sandboxes of its own and the machine's programs."""
    monkeypatch.setenv("K3S_SANDBOX_CACHE", str(CACHE))
    (tmp_path / "project").mkdir()
    yield tmp_path / "project"
    with machine.lock():
        reaper.reap()


def virtual_environment(folder: Path, wheel: Path, *, dependencies: bool) -> str:
    """Make a virtual environment with the wheel, and return its Python.

    Args:
        folder: Where.
        wheel: The wheel.
        dependencies: Whether to install what it depends on; otherwise that is taken from where these
            tests run, which saves half a minute.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=100)
    words = [] if dependencies else ["--no-deps"]
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *words, str(wheel)]
    subprocess.run(pip, check=True, timeout=400)
    if not dependencies:
        (site,) = (folder / "lib").glob("python3*/site-packages")
        (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pytest_command = folder / "bin" / "pytest"  # which pip would have made
        pytest_command.write_text(f'#!/bin/sh\nexec {python} -m pytest "$@"\n')
        pytest_command.chmod(0o755)
    return str(python)


def write_examples(folder: Path) -> int:
    """Write every example that is a module of tests, each page's in a folder of its own.

    Returns:
        How many there are.
    """
    files = [block for block in (*blocks("python"), *blocks("yaml")) if block.file and not block.reason]
    for block in files:
        place = folder if block.page == "README.md" else folder / Path(block.page).stem.replace("-", "_")
        place.mkdir(exist_ok=True)
        (place / str(block.file)).write_text(block.text)
    return len(files)


@pytest.mark.parametrize(
    "dependencies",
    [False, pytest.param(True, marks=pytest.mark.nightly)],
    ids=["wheel", "wheel+dependencies"],
)
def test_the_examples_pass_with_the_wheel_alone(
    tmp_path: Path, folder: Path, wheel: Path, *, dependencies: bool
) -> None:
    python = virtual_environment(tmp_path / "venv", wheel, dependencies=dependencies)
    where = "import pytest_k3s_sandbox as p; print(p.__file__)"
    done = subprocess.run([python, "-c", where], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path / "venv"))

    assert write_examples(folder) >= 4
    argv = [
        python,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--k3s-require",
        "-rA",
        "--tb=short",
    ]
    run = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False, timeout=500)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr
    for line in ("PASSED test_greeter.py::test_greeter", "PASSED own_test/test_service.py::test_it_serves"):
        assert line in run.stdout
    assert "skipped" not in run.stdout.splitlines()[-1]
    assert len(list((folder / "reports").glob("*/index.html"))) >= 1


def test_the_example_of_a_session_without_pytest(tmp_path: Path, folder: Path, wheel: Path) -> None:
    python = virtual_environment(tmp_path / "venv", wheel, dependencies=False)
    (example,) = [block for block in blocks("python") if block.file == "session.py"]
    (folder / "session.py").write_text(example.text)
    done = subprocess.run(
        [python, "session.py"], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "hi\n\n"), done.stderr


PAGES = sorted({block.page for block in blocks("sh") if not block.reason})


@pytest.mark.parametrize(
    "page",
    [
        page
        if page in {"README.md", "docs/how-to/own-tools.md"}
        else pytest.param(page, marks=pytest.mark.nightly)
        for page in PAGES
    ],
)
def test_the_commands_of_a_page_do_what_they_say(
    tmp_path: Path, folder: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    python = virtual_environment(tmp_path / "venv", wheel, dependencies=False)
    write_examples(folder)
    place = folder if page == "README.md" else folder / Path(page).stem.replace("-", "_")
    if not place.exists():  # a page without examples: its commands are for any test
        place.mkdir()
        for name in ("test_greeter.py", "greeter.yaml"):
            (place / name).write_text((folder / name).read_text())
    write_images(place / "mine.tar", [Image("example.org/mine:1", [ImageFile("bin")], ImageConfig())])
    for name in ("PYTEST_ADDOPTS", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{Path(python).parent}:{os.environ['PATH']}")
    (tmp_path / "sandboxes").mkdir(mode=0o700)
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(tmp_path / "sandboxes"))
    script = "set -ex\n" + "".join(
        each.text for each in blocks("sh") if each.page == page and not each.reason
    )
    try:
        done = subprocess.run(
            ["bash", "-c", script], cwd=place, capture_output=True, text=True, check=False, timeout=500
        )
    finally:
        subprocess.run(["k3s-sandbox", "stop", "--all"], capture_output=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
