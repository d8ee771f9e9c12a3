"""The command as a user runs it: in a process of its own, with a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from pytest_k3s_sandbox.sandbox import machine, reaper
from pytest_k3s_sandbox.settings import OPTIONS

Done = subprocess.CompletedProcess[str]

SECONDS = 120.0
"""How long a command may take that starts nothing, on a machine that builds something meanwhile."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the folder of sandboxes, which is a test's own; nothing of it is left when the test is over."""
    folder = tmp_path / "home"
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(folder))
    for name in [*(option.variable for option in OPTIONS), "PYTEST_ADDOPTS"]:
        monkeypatch.delenv(name, raising=False)
    yield folder
    left = [line for line in reaper.leftovers() if str(folder) in line]
    if left and os.geteuid() == 0:
        with machine.lock():
            reaper.reap()
    assert left == []


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., Done]:
    """Give a function that runs the command in ``tmp_path`` and returns what it did."""

    def run(
        *arguments: str,
        wrap: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = SECONDS,
    ) -> Done:
        return subprocess.run(
            [*wrap, sys.executable, "-m", "pytest_k3s_sandbox.cli", *arguments],
            cwd=cwd or tmp_path,
            env={**os.environ, "TERM": "dumb", "COLUMNS": "200", **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def refused(cli: Callable[..., Done], tmp_path: Path) -> Callable[..., str]:
    """Give a function that runs a command, asserts that it is refused well, and returns its message.

    Well is: exit code 2 (or ``code``), every one of ``words`` in the message, no traceback, nothing on
    standard output, and not a file that was not there before.
    """

    def run(
        *arguments: str,
        words: Sequence[str],
        code: int = 2,
        wrap: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> str:
        before = sorted(tmp_path.rglob("*"))
        done = cli(*arguments, wrap=wrap, env=env, cwd=cwd)
        message = done.stderr
        assert done.returncode == code, f"exit code {done.returncode}: {message}{done.stdout}"
        assert "Traceback" not in message
        assert [word for word in words if word not in message] == [], message
        assert done.stdout == ""
        assert sorted(tmp_path.rglob("*")) == before
        return message

    return run
