"""Runs made by hand, so that every expected number is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.report.records import (
    Cost,
    Environment,
    Event,
    Header,
    Machine,
    Phase,
    PodState,
    ProgramRecord,
    Record,
    Run,
    RunWriter,
    Sample,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

ENVIRONMENT = Environment(
    experiment="exp08",
    sandbox="gvisor",
    root_magic=0x01021997,
    kernel="4.19.0-gvisor",
    programs={"kubelet": ProgramRecord(version="v1.34.4", origin="build")},
    layers=("fuse_cgroupfs", "fake_cni"),
    python="3.11.2",
    project_version="0.1.0",
    started="2026-01-02T03:04:05Z",
    argv=("pytest", "-m", "exp08", "--k3s-hold=10 s"),
    machine=Machine(cores=2, memory_bytes=2**33),
)


def make_sample(t: float, ready: bool | None = True, *, api: bool = True, pod: str | None = None) -> Sample:
    pods = {} if pod is None else {"default/hello": PodState(phase=pod, ready=pod == "Running")}
    return Sample(
        t=t,
        node_ready=ready,
        reason="KubeletReady" if ready else None,
        pods=pods,
        api_reachable=api,
        cost={"fuse_cgroupfs": Cost(cpu_seconds=t / 10, rss_bytes=2**20)},
    )


@pytest.fixture(scope="session")
def sample() -> Callable[..., Sample]:
    """Return a function that makes a sample from a time, the node's Ready, ``api`` and a ``pod``'s phase."""
    return make_sample


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """Return a function that makes a run in memory."""

    def make(*records: Record) -> Run:
        return Run(name="made", records=(Header(project_version="0.1.0"), *records))

    return make


@pytest.fixture
def good_records() -> tuple[Record, ...]:
    """Return the records of a run in which all held: Ready at 4 s, the pod Running 2 s after its creation."""
    return (
        ENVIRONMENT,
        Phase(name="kubelet", start=1.0, end=None),
        Phase(name="kubelet", start=1.0, end=4.0),
        make_sample(1, None, api=False),
        make_sample(2, False),
        make_sample(3, False),
        make_sample(4),
        Event(t=4.5, kind="pod-created", what="default/hello"),
        make_sample(5, pod="Pending"),
        make_sample(6.5, pod="Running"),
        make_sample(8, pod="Running"),
        Event(t=8.5, kind="pod-deleted", what="default/hello"),
        make_sample(9, pod="Running"),
        make_sample(10),
        Verdict(name="ready", held=True, measured=4.0, limit=30.0, unit="s", text="The node is Ready."),
    )


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a run's folder, closed unless told otherwise."""

    def write(records: Sequence[Record], name: str = "run", *, close: bool = True) -> Path:
        folder = tmp_path / name
        writer = RunWriter(folder)
        for record in records:
            writer.append(record)
        if close:
            writer.close()
        return folder

    return write
