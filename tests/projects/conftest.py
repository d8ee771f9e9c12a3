"""Projects of others, in an environment of their own: the built wheel, and other plugins beside it."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from support.project import Runs

ROOT = Path(__file__).parents[2]
NEIGHBOURS = (
    "coverage>=7",
    "freezegun>=1.5",
    "py>=1.11",
    "pytest-asyncio>=1",
    "pytest-cov>=6",
    "pytest-forked>=1.6",
    "pytest-randomly>=3.16",
    "pytest-rerunfailures>=15",
    "python-dateutil>=2.8",
    "six>=1.16",
)
"""What tests of others run with; not in this environment, where it would act on our own tests."""

UNREACHABLE = ("Could not find a version", "No matching distribution", "Failed to establish", "timed out")
"""What pip says where no registry has what is asked for, or none answers."""


def pip(*words: str, fetches: bool) -> None:
    """Run pip; where it cannot fetch what others publish, skip. A wheel of ours that does not build fails."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if fetches and done.returncode != 0 and any(word in done.stderr for word in UNREACHABLE):
        pytest.skip(f"pip cannot get what this test installs: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, which finds what the wheel depends on in ours; returns its Python."""
    folder = tmp_path_factory.mktemp("environment")
    pip("wheel", "--no-deps", f"--wheel-dir={folder}", str(ROOT), fetches=False)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    packages = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
    (wheel,) = folder.glob("*.whl")
    pip("install", "--no-deps", f"--target={packages}", str(wheel), fetches=False)
    # Without the .pth files in it, of which one makes this checkout importable.
    (packages / "ours.pth").write_text("\n".join(site.getsitepackages()))
    return python


@pytest.fixture(scope="session")
def neighbours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugins of others."""
    folder = tmp_path_factory.mktemp("neighbours")
    pip("install", "--no-deps", f"--target={folder}", *NEIGHBOURS, fetches=True)
    return folder


@pytest.fixture
def run(environment: Path, tmp_path: Path) -> Runs:
    """Run pytest in a project."""

    def call(folder: Path, *options: str, path: Path | None = None, **variables: str | None) -> object:
        given = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONPATH": "" if path is None else str(path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "K3S_SANDBOX_HOME": str(tmp_path / "state"),
            **variables,
        }
        return subprocess.run(
            [str(environment), "-m", "pytest", "-rA", "-pno:cacheprovider", *options],
            cwd=folder,
            env={name: value for name, value in given.items() if value is not None},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )

    return call  # type: ignore[return-value] # keywords are variables
