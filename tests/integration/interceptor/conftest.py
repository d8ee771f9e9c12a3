"""Fixtures of the tests with real programs under the interceptor."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.interceptor_tools import Popen, descendants


@pytest.fixture
def popen() -> Iterator[Popen]:
    """Start processes whose pipes are closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(subprocess.Popen(*args, **options))


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    before = descendants(os.getpid())
    yield
    assert descendants(os.getpid()) <= before
    if scratch.exists():
        assert list(scratch.iterdir()) == []
