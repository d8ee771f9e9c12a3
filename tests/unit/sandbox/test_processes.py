"""What /proc tells of processes whose names something hostile has chosen."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_k3s_sandbox.sandbox import processes

RENAMED = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, b"\\xff) Z\\xe2\\x80\\xa8")  # PR_SET_NAME
print("named", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def renamed() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a name that is not UTF-8, that looks like fields of its state, and that has U+2028."""
    with subprocess.Popen(
        [sys.executable, "-c", RENAMED], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"named\n"
        yield process
        process.kill()


def test_a_process_whose_name_is_no_text_has_a_start_time(renamed: subprocess.Popen[bytes]) -> None:
    started = processes.start_time(renamed.pid)
    assert started is not None
    assert started >= (processes.start_time(1) or 0)


def test_lines_of_proc_end_at_newlines_only(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_bytes(b"4:pids:/a\xff\xe2\x80\xa8b\rc\n2:memory:/d\n")
    assert processes.lines(tmp_path / "cgroup") == ["4:pids:/a\udcff\u2028b\rc", "2:memory:/d"]
