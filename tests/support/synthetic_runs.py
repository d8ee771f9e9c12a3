"""Runs made by rule, with everything that a page can show; no number in them was measured."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

from pytest_k3s_sandbox.report.records import (
    Ablation,
    Cost,
    Environment,
    ErrorLine,
    Event,
    EventKind,
    FirstError,
    LayerState,
    Machine,
    Measurement,
    Phase,
    PodState,
    ProgramRecord,
    Record,
    RunWriter,
    Sample,
    Stage,
    Verdict,
    Wall,
)

LAYERS = ("workarounds", "fuse_cgroupfs", "ptrace_interceptor", "fake_cni")
KLOG = "E1123 14:{:02}:{:02}.120417    4711 "
ENVIRONMENT = Environment(
    experiment="exp08",
    sandbox="gvisor",
    root_magic=0x01021997,
    kernel="4.19.0-gvisor",
    programs={"kubelet": ProgramRecord(version="1.34.4", origin="cache", sha256="ab" * 32)},
    pins={"kubernetes": "1.34.4", "runc": "1.3.4"},
    layers=LAYERS,
    python="3.11.7",
    project_version="0.1.0",
    started="2026-01-02T03:04:05+00:00",
    argv=("/venv/bin/k3s-sandbox", "run", "exp08", "--duration", "60m"),
    machine=Machine(cores=2, memory_bytes=2**33),
    distribution="embedded",
    kubernetes="1.34.4",
    variables={"K3S_SANDBOX_RELEASES": "0"},
)
FAULTS = ("kubelet", "containerd", "cgroupfs", "interceptor", "kine")


def bring_up() -> Iterator[Record]:
    """The environment and the phases."""
    yield ENVIRONMENT
    start = 0.0
    for name, length in (("sandbox", 0.4), *((f"layer {layer}", 0.6) for layer in LAYERS), ("kubelet", 4.0)):
        yield Phase(name=name, start=start, end=None)
        yield Phase(name=name, start=start, end=start + length)
        start += length
    for layer in LAYERS:
        yield LayerState(t=start, name=layer, ok=True, details={"seen": "as it should be"})


def churn(seconds: int) -> Iterator[Record]:
    """A sample a second; a pod that lives for eight of every ten seconds; a fault every ten minutes."""
    dice = random.Random(7)  # noqa: S311 - a fixed series, not a secret
    cpu = dict.fromkeys(LAYERS, 0.0)
    for t in range(seconds):
        fault = t % 600 == 300
        number, age = divmod(t - 20, 10)
        pods = {"default/steady": PodState(phase="Running", ready=True, restarts=0)} if t > 12 else {}
        if t >= 20 and age < 8:
            phase = "Pending" if age < 2 else "Running"
            pods[f"default/p{number:03}"] = PodState(phase=phase, ready=age > 2)
            if age == 0:
                yield Event(t=t - 0.4, kind=EventKind.POD_CREATED, what=f"default/p{number:03}")
            elif age == 6:
                yield Event(t=t + 0.2, kind=EventKind.POD_DELETED, what=f"default/p{number:03}")
        if fault:
            component = FAULTS[t // 600 % len(FAULTS)]
            yield Event(t=t + 0.1, kind=EventKind.FAULT, what="SIGKILL", component=component)
            yield Event(
                t=t + 3.1, kind=EventKind.RECOVERY, what="node Ready", component=component, seconds=3.0
            )
            for i in range(3):
                text = KLOG.format(t // 60, t % 60) + f"kubelet.go:{i}] runtime service failed: dial {t}"
                yield ErrorLine(t=t + 0.5, component="kubelet", kind="runtime", text=text)
        for i, layer in enumerate(LAYERS):
            cpu[layer] += max(0.0, (0.004 * (i + 1)) * (1 + 0.4 * math.sin(t / 90)) + dice.gauss(0, 0.001))
        yield Sample(
            t=float(t),
            node_ready=None if t < 6 else t >= 9 and not 301 <= t % 600 <= 302,
            reason="KubeletReady" if t >= 9 else None,
            conditions={"Ready": "True", "MemoryPressure": "False"} if t >= 9 else {},
            pods=pods,
            api_reachable=t >= 4,
            errors={"runtime": 3 * (t // 600)} if t >= 600 else {},
            cost={
                layer: Cost(cpu_seconds=cpu[layer], rss_bytes=(20 + 9 * i) * 2**20 + dice.randrange(2**18))
                for i, layer in enumerate(LAYERS)
            },
            heartbeat_age=t % 10,
        )


def outcomes() -> Iterator[Record]:
    """Walls, an ablation of two versions, benchmarks, other measurements and verdicts."""
    texts = {
        "cgroup": "failed to get mounted cgroup subsystems: failed to find cgroup mounts",
        "kmsg": "failed to create kubelet: open /dev/kmsg: no such device",
        "cadvisor": "failed to get rootfs info: unable to find data in memory cache",
        "cni": "Container runtime network not ready: cni plugin not initialized",
    }
    errors = [FirstError(component="kubelet", kind=kind, text=text, t=2.0) for kind, text in texts.items()]
    removers = ("fuse_cgroupfs", "workarounds", "fuse_cgroupfs", "fake_cni")
    for i, (error, remover) in enumerate(zip(errors, removers, strict=True)):
        yield Wall(error=error, layers=LAYERS[:i], version="1.34.4", removed_by=remover)
    for version, needed in (("1.34.4", LAYERS[:2]), ("1.36.3", LAYERS[:3])):
        for size in range(len(LAYERS) + 1):
            for layers in combinations(LAYERS, size):
                missing = [name for name in needed if name not in layers]
                ready = not missing
                reached = Stage.STARTED if missing[:1] == ["workarounds"] else Stage.REGISTERED
                yield Ablation(
                    layers=layers,
                    version=version,
                    reached=(Stage.POD if "fake_cni" in layers else Stage.READY) if ready else reached,
                    seconds_to_ready=2.0 + len(layers) / 4 if ready else None,
                    error=None if ready else errors[size % len(errors)],
                )
    dice = random.Random(11)  # noqa: S311 - likewise
    for case, factors in (
        ("untrapped call", {"ours": 1.01, "strace": 1.02, "ptrace": 9.8}),
        ("statfs", {"ours": 4.1, "strace": 11.0, "ptrace": 19.0}),
        ("fork and exec", {"ours": 1.6, "strace": 3.8, "ptrace": 7.7}),
    ):
        for variant, factor in factors.items():
            limit = 1.05 if (case, variant) == ("untrapped call", "ours") else None
            values = [factor * dice.lognormvariate(0, 0.06) for _ in range(20)]
            yield Measurement.of(
                f"interceptor {case} {variant}",
                values,
                "ratio",
                benchmark="interceptor",
                case=case,
                variant=variant,
                baseline="native",
                limit=limit,
            )
    for kind, middle in (("gvisor", 14.0), ("host", 6.0)):
        values = [middle * dice.lognormvariate(0, 0.15) for _ in range(20)]
        yield Measurement.of(f"to Ready, {kind}", values, "s", benchmark="coldstart", variant=kind)
    yield Measurement(name="images imported", value=2, unit="images")
    yield Verdict(
        name="node-ready", held=True, measured=9.0, limit=30.0, unit="s", text="The node is Ready within 30 s"
    )
    yield Verdict(
        name="stays-ready",
        held=False,
        measured="3579 of 3591 samples",
        limit="all",
        text="The node stays Ready",
    )


def everything(seconds: int) -> list[Record]:
    """A run with all kinds of records, ``seconds`` long."""
    return [*bring_up(), *churn(seconds), *outcomes()]


def write(folder: Path, records: Sequence[Record], *, close: bool = True) -> Path:
    """Write records as a run, with a log beside them, and return its folder."""
    writer = RunWriter(folder)
    for record in records:
        writer.append(record)
    if close:
        writer.close()
    (folder / "logs").mkdir()
    lines = [record.text for record in records if isinstance(record, ErrorLine)]
    (folder / "logs" / "kubelet.log").write_text("".join(f"{line}\n" for line in lines))
    return folder
