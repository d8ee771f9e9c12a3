"""A lock lasts as long as its process, whatever that forks and however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pytest_k3s_sandbox.sandbox import locks

HOLDER = """
import os, sys, time
from pathlib import Path
from pytest_k3s_sandbox.sandbox import locks
held = locks.take(Path(sys.argv[1]))
if os.fork() == 0:
    os.close(1)
    time.sleep(100)
    os._exit(0)
print("has it", flush=True)
time.sleep(100)
"""


def test_it_is_one_processs(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    assert not locks.held(file)
    held = locks.take(file)
    assert locks.held(file)
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(BlockingIOError):
        locks.take(file)
    held.release()
    held.release()
    assert not locks.held(file)
    locks.take(file).release(remove=True)
    assert list(tmp_path.iterdir()) == []


def test_it_is_waited_for_also_when_its_file_goes(tmp_path: Path) -> None:
    held = locks.take(tmp_path / "lock")
    threading.Timer(0.2, lambda: held.release(remove=True)).start()
    second = locks.take(tmp_path / "lock", seconds=10)
    assert locks.held(tmp_path / "lock")
    second.release()


def test_the_end_of_its_process_is_its_end_whatever_that_has_forked(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, start_new_session=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"has it\n"
        assert locks.held(file)
        holder.kill()
        holder.wait()
        until = time.monotonic() + 10  # on a busy machine the child may not have run at all yet
        while locks.held(file) and time.monotonic() < until:
            time.sleep(0.02)
        assert not locks.held(file)
        os.killpg(holder.pid, signal.SIGKILL)  # the child, which had a copy


def test_a_program_that_is_given_it_has_it(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    held = locks.take(file)
    with subprocess.Popen(["sleep", "100"], pass_fds=(held.fd,)) as heir:
        held.release()
        assert locks.held(file)
        heir.kill()
        heir.wait()
    assert not locks.held(file)


@pytest.mark.parametrize("how", ["a link", "a pipe", "a folder"])
def test_a_file_that_is_no_lock_is_refused(tmp_path: Path, how: str) -> None:
    file = tmp_path / "lock"
    if how == "a link":
        file.symlink_to(tmp_path / "elsewhere")
    elif how == "a pipe":
        os.mkfifo(file)
    else:
        file.mkdir()
    with pytest.raises(OSError, match="lock"):
        locks.take(file)
    assert not locks.held(file)
    assert not (tmp_path / "elsewhere").exists()
