"""The progress of a run, from records that another process writes meanwhile."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.cli import progress
from pytest_k3s_sandbox.cli.progress import Course, Follower, LiveDisplay, PlainDisplay, Verbosity, shown
from pytest_k3s_sandbox.report.records import RECORDS_FILE, PodState, RunWriter, Sample


def phase(name: str, start: float, end: float | None = None) -> dict[str, Any]:
    return {"type": "phase", "name": name, "start": start, "end": end}


def sample(t: float, *, ready: bool | None = True, **changed: object) -> dict[str, Any]:
    pods = {"a/b": {"phase": "Running"}, "a/c": {"phase": "Pending"}}
    plain = {"type": "sample", "t": t, "node_ready": ready, "reason": "KubeletNotReady", "pods": pods}
    return {**plain, "api_reachable": True, "errors": {"cadvisor": 2, "other": 1}, **changed}


def course(*records: dict[str, Any], duration: float | None = None) -> Course:
    made = Course(duration)
    for record in records:
        made.take(record)
    return made


def plain(verbosity: Verbosity, *stages: Course) -> list[str]:
    stream = io.StringIO()
    shower = PlainDisplay(verbosity, stream)
    for stage in stages:
        shower.update(stage)
    return stream.getvalue().splitlines()


def test_phases_are_plain_lines_once_each() -> None:
    begun = course(phase("sandbox", 0.0))
    more = course(phase("sandbox", 0.0), phase("sandbox", 0.0, 0.4), phase("layer fake_cni", 0.5))
    assert plain(Verbosity.NORMAL, begun, more, more) == ["   0.0 s  sandbox", "   0.5 s  layer fake_cni"]
    assert plain(Verbosity.VERBOSE, begun, more) == [
        "   0.0 s  sandbox",
        "   0.4 s  sandbox: took 0.4 s",
        "   0.5 s  layer fake_cni",
    ]
    assert plain(Verbosity.QUIET, begun, more) == []


def test_a_phase_that_comes_again_is_another_one() -> None:
    again = course(phase("kubelet", 1.0, 2.0), phase("kubelet", 9.0))
    assert plain(Verbosity.NORMAL, again) == ["   1.0 s  kubelet", "   9.0 s  kubelet"]


def test_a_hold_is_told_with_what_is_left_and_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    held = course(sample(10.0, ready=False), sample(11.0), sample(31.0), duration=60)
    assert held.left == pytest.approx(40, abs=1)
    assert plain(Verbosity.NORMAL, held) == []  # not yet: a line every ten seconds
    monkeypatch.setattr(progress, "SOAK_SECONDS", 0)
    (line,) = plain(Verbosity.NORMAL, held)
    assert line == "  31.0 s  node Ready, 1 of 2 pods Running, 3 error lines; 40 s left"


def test_there_is_no_hold_before_the_node_is_ready_and_without_a_duration() -> None:
    assert course(sample(5.0, ready=False), duration=60).left is None
    assert course(sample(5.0, ready=False), duration=60).state == ""
    assert course(sample(5.0)).left is None
    assert course(sample(5.0), sample(500.0), duration=60).left == 0


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"ready": False}, "node NOT Ready (KubeletNotReady), "),
        ({"ready": None}, "node unknown, "),
        ({"api_reachable": False, "ready": None}, "node unknown: no answer, "),
    ],
)
def test_a_node_that_is_lost_is_told(changed: dict[str, Any], words: str) -> None:
    assert course(sample(1.0), sample(2.0, **changed)).state.startswith(words)


@given(st.lists(st.integers(1, 40), max_size=30))
def test_a_file_is_read_in_whole_records_however_it_grows(sizes: list[int]) -> None:
    import tempfile

    records = [phase(f"step {number}", float(number)) for number in range(10)]
    data = "".join(f"{json.dumps(record)}\n" for record in records).encode()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "records.jsonl"
        follower = Follower(file)
        found = follower.read()
        done = 0
        for size in [*sizes, len(data)]:
            with file.open("ab") as out:
                out.write(data[done : done + size])
            done = min(len(data), done + size)
            found += follower.read()
    assert found == records


def test_a_live_block_has_phases_then_the_hold() -> None:
    stream = io.StringIO()
    live = LiveDisplay(Verbosity.NORMAL, stream)
    live.update(course(phase("sandbox", 0.0, 0.4), phase("control plane", 0.5)))
    live.line("a [line] that stays")
    live.close()
    shown_text = stream.getvalue()
    assert "a [line] that stays" in shown_text
    assert "sandbox" in shown_text
    assert "control plane" in shown_text
    stream = io.StringIO()
    live = LiveDisplay(Verbosity.NORMAL, stream)
    live.update(course(phase("sandbox", 0.0, 0.4), sample(5.0), duration=60))
    live.close()
    assert "s left" in stream.getvalue()
    assert "node Ready, 1 of 2 pods Running" in stream.getvalue()
    assert "sandbox" not in stream.getvalue()


def test_a_run_is_shown_while_it_is_written(tmp_path: Path) -> None:
    stream = io.StringIO()
    shower = PlainDisplay(Verbosity.VERBOSE, stream)
    runs = tmp_path / "runs"
    with shown(shower, lambda: sorted(runs.glob("*")), 60):
        with RunWriter(runs / "1") as writer, writer.phase("sandbox"):
            until = time.monotonic() + 10
            while "sandbox" not in stream.getvalue() and time.monotonic() < until:
                time.sleep(0.02)
        with RunWriter(runs / "2") as writer:
            with writer.phase("second"):
                pass
            pod = PodState(phase="Running", ready=True)
            writer.append(Sample(t=1.0, node_ready=True, api_reachable=True, pods={"a/b": pod}))
    words = [line.split("s  ")[1] for line in stream.getvalue().splitlines()]
    assert words[0] == "sandbox"
    assert words[-2:] == ["second", "second: took 0.0 s"]
    assert (runs / "2" / RECORDS_FILE).exists()
