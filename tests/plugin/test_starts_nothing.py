"""Looking around starts nothing: no sandbox, no probe, no heavy import, no root, no programs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HEAVY = (
    "cryptography",
    "fuse",
    "jinja2",
    "kubernetes",
    "ptrace",
    "pydantic",
    "pyseccomp",
    "tenacity",
    "typer",
    "yaml",
)
NOBODY = 65534

CONFTEST = f"""
import subprocess, sys

def no_process(*args, **options):
    raise AssertionError(f"a process was started: {{args}}")

subprocess.Popen.__init__ = no_process

def pytest_unconfigure(config):
    print("LOADED:", *[name for name in {HEAVY!r} if name in sys.modules])
"""

TESTS = """
import pytest

@pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor")
def test_one(k3s, k3s_namespace, k3s_readiness):
    raise AssertionError("the test ran")

@pytest.mark.k3s_layers("fake_cni")
def test_two(k3s_node, k3s_sandbox, k3s_cgroupfs):
    raise AssertionError("the test ran")

@pytest.mark.parametrize("k3s_layers", ["fake_cni", "workarounds"], indirect=True)
def test_three(k3s_layers, k3s_claim):
    raise AssertionError("the test ran")
"""

LOOKS = {
    "help": (["--help"], "--k3s-sandbox="),
    "markers": (["--markers"], "@pytest.mark.k3s_layers(*names)"),
    "collect": (["--collect-only"], "4 tests collected"),
    "plan": (["--setup-plan"], "SETUP    F k3s_namespace"),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A project that everybody can read; pytest's own temporary folders are their user's."""
    with tempfile.TemporaryDirectory(prefix="k3s-sandbox-test-") as name:
        path = Path(name)
        path.chmod(0o755)
        (path / "conftest.py").write_text(CONFTEST)
        (path / "test_it.py").write_text(TESTS)
        for empty in ("home", "cache", "state"):
            (path / empty).mkdir(mode=0o777)
            (path / empty).chmod(0o777)
        yield path


def look(folder: Path, *options: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *before,
            sys.executable,
            "-mpytest",
            "-pno:cacheprovider",
            "--strict-markers",
            f"--rootdir={folder}",
            f"-c{os.devnull}",
            *options,
        ],
        cwd=folder,
        env={
            "PATH": os.defpath,
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "HOME": str(folder / "home"),
            "K3S_SANDBOX_CACHE": str(folder / "cache"),
            "K3S_SANDBOX_HOME": str(folder / "state"),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def left(folder: Path) -> list[str]:
    """What was written: all files and folders but the project's own."""
    own = {"conftest.py", "test_it.py", "home", "cache", "state"}
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name not in own]


@pytest.mark.parametrize("what", LOOKS)
def test_looking_around_starts_nothing(folder: Path, what: str) -> None:
    options, expected = LOOKS[what]
    done = look(folder, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert expected in done.stdout
    assert "the test ran" not in done.stdout
    assert "LOADED:\n" in done.stdout.replace("LOADED: \n", "LOADED:\n")
    assert left(folder) == []


@pytest.mark.parametrize("what", LOOKS)
def test_looking_around_needs_no_root(folder: Path, what: str) -> None:
    options, expected = LOOKS[what]
    done = look(folder, *options, before=as_nobody())
    assert done.returncode == 0, done.stdout + done.stderr
    assert expected in done.stdout
    assert left(folder) == []


def test_without_root_a_test_is_skipped_with_the_remedy_and_provisions_nothing(folder: Path) -> None:
    (folder / "conftest.py").unlink()
    (folder / "test_it.py").write_text("def test_it(k3s_namespace): pass\n")
    done = look(folder, "-rs", before=as_nobody())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout
    assert "not root" in done.stdout
    assert "Remedy: run as root, for example with sudo" in done.stdout
    assert left(folder) == []


def as_nobody() -> tuple[str, ...]:
    """Return what runs a command without root; skips where this Python can be used by root only."""
    if os.geteuid() != 0:
        return ()
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("there is no setpriv, with which root becomes nobody")
    words = (setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    probe = [*words, sys.executable, "-c", "import pytest, pytest_k3s_sandbox.pytestplugin.plugin"]
    if subprocess.run(probe, cwd="/", capture_output=True, check=False).returncode != 0:
        pytest.skip("not applicable: only root can read this Python environment")
    return words
