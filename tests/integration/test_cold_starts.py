"""Cold starts while every core is busy: each node becomes Ready at once, and no call of it is interrupted.

A call to the cgroup filesystem that a signal interrupts ends a kubelet during its start. It depends on when
the signal comes, so that it takes many starts on a busy machine to see it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from pytest_k3s_sandbox.errors import SandboxError
from pytest_k3s_sandbox.node.session import NodeSession, open_session
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.report.records import EventKind, read_run
from pytest_k3s_sandbox.toolchain import Toolchain
from support.stand_in_node import node, write_stand_in

pytestmark = [
    pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor"),
    pytest.mark.usefixtures("busy_cores"),
]

READY_SECONDS = 180.0
AFTER_SECONDS = 1.0
"""How long a Ready node is watched: the kubelet's first passes over the cgroups may not be done."""

INTERRUPTED = re.compile(rb"interrupted system call|\bEINTR\b")
SPIN = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""

Bring = Callable[[Path], AbstractContextManager[NodeSession]]


@pytest.fixture(scope="module")
def busy_cores() -> Iterator[None]:
    """Keep every core busy by a process of normal priority, which ends with its parent whatever happens."""
    with contextlib.ExitStack() as stack:
        for _ in os.sched_getaffinity(0):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", SPIN]))
            stack.callback(process.kill)
        yield


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bring]:
    """How a node is brought up, by its distribution; what ends by itself is not started again."""
    stand_in = write_stand_in(tmp_path_factory.mktemp("k3s"))
    return {
        "embedded": lambda folder: open_session(
            NodeSpec("gvisor"), toolchain=Toolchain(), folder=folder, experiment="cold-starts"
        ),
        "k3s": lambda folder: node(stand_in, folder),
    }


def interrupted(folder: Path) -> int:
    """Return how many lines of a run's copied logs are about an interrupted call."""
    logs = {path.name: path.read_bytes() for path in (folder / "logs").glob("*.log")}
    if "k3s.log" in logs:
        logs.pop("kubelet.log", None)  # the same log, copied once more
    return sum(len(INTERRUPTED.findall(line)) > 0 for text in logs.values() for line in text.splitlines())


def restarts(up: NodeSession) -> int:
    """Return how many of a node's processes ended by themselves, or were started again."""
    ended = [name for name, process in up.cluster.processes.items() if process.poll() is not None]
    events = [event for event in read_run(up.folder).events if event.kind == EventKind.RESTART]
    return len(ended) + len(events)


def cold_start(bring: Bring, folder: Path) -> dict[str, Any]:
    """Start a node and end it; return what became of it."""
    found: dict[str, Any] = {"seconds": None, "restarts": None, "failure": None}
    began = time.monotonic()
    try:
        with bring(folder) as up:
            up.cluster.node.wait_ready(READY_SECONDS)
            found["seconds"] = round(time.monotonic() - began, 2)
            time.sleep(AFTER_SECONDS)
            found["restarts"] = restarts(up)
    except (SandboxError, ApiException, HTTPError) as error:
        found["failure"] = " ".join(str(error).split())
    return {**found, "eintr": interrupted(folder)}


def clean(start: dict[str, Any]) -> bool:
    """Tell whether a node was Ready without a restart and without an interrupted call."""
    return start["failure"] is None and start["restarts"] == 0 and start["eintr"] == 0


def many(way: str, bring: Bring, count: int, record: Path, folder: Path) -> list[dict[str, Any]]:
    """Make so many cold starts, less those that a file already has, and add each to it as a line of JSON.

    Args:
        way: The distribution.
        bring: How a node of it is brought up.
        count: How many starts there are to be in the end.
        record: The file. The logs of a start that was not clean are kept beside it.
        folder: Where the others' go.
    """
    lines = record.read_text().splitlines() if record.exists() else []
    starts = [found for found in map(json.loads, lines) if found["way"] == way]
    for number in range(len(starts) + 1, count + 1):
        place = folder / f"{way}-{number}"
        start = {"way": way, "number": number, **cold_start(bring, place)}
        with record.open("a") as file:
            file.write(f"{json.dumps(start)}\n")
        sys.stdout.write(f"{json.dumps(start)}\n")
        if not clean(start) and place.exists():
            shutil.copytree(place, record.with_name(f"{record.name}-{way}-{number}"), symlinks=True)
        shutil.rmtree(place, ignore_errors=True)
        starts.append(start)
    return starts


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["embedded", "k3s"])
def test_a_cold_start_on_busy_cores(ways: dict[str, Bring], way: str, tmp_path: Path) -> None:
    (start,) = many(way, ways[way], 1, tmp_path / "starts", tmp_path)
    assert clean(start), start


@pytest.mark.nightly
@pytest.mark.timeout(8 * 3600)
@pytest.mark.parametrize(("way", "count", "variable"), [
    ("embedded", 300, "K3S_SANDBOX_STARTS"),
    ("k3s", 60, "K3S_SANDBOX_STARTS_K3S"),
])  # fmt: skip
def test_many_cold_starts_on_busy_cores(
    ways: dict[str, Bring], way: str, count: int, variable: str, tmp_path: Path
) -> None:
    """Go on with the starts of a file.

    ``K3S_SANDBOX_STARTS_FILE`` names the file; the two other variables set how many starts there are to be.
    """
    record = Path(os.environ.get("K3S_SANDBOX_STARTS_FILE", tmp_path / "starts"))
    starts = many(way, ways[way], int(os.environ.get(variable, count)), record, tmp_path)
    assert [start for start in starts if not clean(start)] == []
