"""Our time limits hold under clocks that a test has replaced."""

from __future__ import annotations

import ast
import datetime as dt
import subprocess
import time
from pathlib import Path

import pytest

import pytest_k3s_sandbox
from pytest_k3s_sandbox.cluster.process_wait import until
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import WaitError
from pytest_k3s_sandbox.sandbox import gateway, network
from pytest_k3s_sandbox.support import bounded, clock

REPLACED = ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "strftime")
"""What freezegun replaces of the module time (freezegun/api.py)."""


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop Python's clocks, as freezegun does."""
    for name in REPLACED:
        monkeypatch.setattr(time, name, lambda *_: 7)
    monkeypatch.setattr(subprocess, "_time", lambda: 7.0)


@pytest.mark.usefixtures("frozen")
@pytest.mark.timeout(20)
def test_a_deadline_passes() -> None:
    deadline = Deadline.after(0.1)
    assert not deadline.expired
    with pytest.raises(WaitError, match="timed out waiting for the end of the world"):
        until(lambda: False, what="the end of the world", deadline=deadline, alive={}, poll=0.02)
    assert deadline.remaining() == 0


@pytest.mark.usefixtures("frozen")
@pytest.mark.timeout(20)
def test_a_program_is_killed() -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        bounded.run(["sh", "-c", "echo so far; exec sleep 30"], 0.2)
    assert caught.value.stdout == b"so far\n"
    with subprocess.Popen(["sleep", "30"]) as process:
        assert bounded.wait(process, 0.1) == -9


def test_output_that_a_process_left_behind_holds_open_is_waited_for_within_the_limit() -> None:
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        bounded.run(["sh", "-c", "sleep 15 & echo so far"], 0.3)
    assert caught.value.stdout == b"so far\n"
    assert time.monotonic() - began < 10


def test_a_program_that_closes_its_output_is_killed_too() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        bounded.run(["sh", "-c", "exec sleep 30 >&- 2>&-"], 0.3)


def test_a_program_that_ends_is_not() -> None:
    done = bounded.run(["sh", "-c", "echo $A; echo b >&2; exit 3"], 20, env={"A": "1"})
    assert (done.returncode, done.stdout, done.stderr) == (3, b"1\n", b"b\n")


@pytest.mark.usefixtures("frozen")
@pytest.mark.timeout(20)
def test_the_programs_of_a_network_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ip", "nsenter"):
        (tmp_path / name).write_text("#!/bin/sh\nexec sleep 30\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(gateway, "SECONDS", 0.2)
    with pytest.raises(gateway.TooSlow, match=r"`ip -batch -` failed: it did not end within 0.2 s\nRemedy: "):
        network._ip(batch=["link show"])
    with pytest.raises(gateway.TooSlow, match=r"`true` failed: it did not end within 0.2 s\nRemedy: "):
        gateway.run(tmp_path, ["true"], "its input")


def test_a_program_gets_its_input_whether_it_reads_it_or_not() -> None:
    long = "long \u00e4\n" * 100_000
    assert bounded.run(["cat"], 20, text=long).stdout.decode() == long
    assert bounded.run(["true"], 20, text=long).returncode == 0
    assert bounded.run(["cat"], 20, text="").stdout == b""


def test_they_are_the_clocks_of_the_kernel() -> None:
    assert clock.monotonic() == pytest.approx(time.monotonic(), abs=1)
    assert clock.wall() == pytest.approx(time.time(), abs=1)
    assert abs(clock.now() - dt.datetime.now(dt.UTC)) < dt.timedelta(seconds=1)


INSIDE = (
    "layers",
    "bench",
    "sandbox/agent.py",
    "lab/nodes.py",
    "lab/places.py",
    "lab/probes.py",
    "lab/reset.py",
    "lab/survival.py",
    "support/clock.py",
    "experiments/exp07/inside.py",
)
"""Programs that run by themselves, in which no test replaces a clock; layers and bench run in a test nowhere
but in their checks, which take a Deadline. Experiments are part of the package in its wheel only."""


def test_nothing_else_is_asked_for_the_time() -> None:
    folder = Path(pytest_k3s_sandbox.__file__).parent
    found = []
    for path in folder.rglob("*.py"):
        if str(path.relative_to(folder)).startswith(INSIDE):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                asks = (owner == "time" and node.func.attr in REPLACED) or (
                    owner.endswith("datetime") and node.func.attr in {"now", "utcnow", "today"}
                )
                if asks:
                    found.append(f"{path.name}:{node.lineno}")
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                found += [f"{path.name}:{node.lineno}" for name in node.names if name.name in REPLACED]
    assert found == []
