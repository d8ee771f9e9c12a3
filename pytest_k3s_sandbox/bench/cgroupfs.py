"""The cost of the FUSE cgroupfs beside the kernel's and lxcfs', natively and in gVisor, in one run.

Every figure is measured by the same reader (``cgroupfs_reader.py``) in the same sandbox; the file
systems take turns, and ratios are those of neighbours. lxcfs runs natively only: gVisor has no
``/proc/PID/ns/cgroup`` and none of the system calls that it starts with.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
from collections.abc import Iterator
from typing import Any

from pytest_k3s_sandbox.bench import Result, Say, cgroupfs_reader
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import StartError
from pytest_k3s_sandbox.layers.cgroupfs.controllers import DEFAULT
from pytest_k3s_sandbox.layers.cgroupfs.layer import FuseCgroupfs
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.sandbox.host import HostSandbox
from pytest_k3s_sandbox.sandbox.started import StartedSandbox
from pytest_k3s_sandbox.toolchain import Toolchain, ensure_system_packages
from pytest_k3s_sandbox.toolchain.packages import CGROUP_READERS

OURS = "ours"
KERNEL = "kernel"
LXCFS = "lxcfs"
FILES = ("cpu/cpu.shares", "cpuacct/cpuacct.usage")
"""The controllers that all of them have, gVisor's own cgroups and lxcfs too."""

READS = 300
READERS = 4
SIZES = (1, 10, 50, 110)
"""How many groups are read in a pass; 110 is the kubelet's own limit of pods."""

GROUPS = 1000
SHARE, MEMORY, GROWTH = 15.0, 60.0, 1.5
"""The targets: percent of a core with 110 groups, MiB with 1,000, and how far from linear."""

INTERVALS = {"kubelet": 10.0, "cadvisor": 1.0}
"""Seconds between two passes: the kubelet's setting, and cAdvisor's own default."""

_AT = "/tmp/cgroupfs-bench"  # noqa: S108 - in a sandbox, where no other user is


def bench(count: int, say: Say) -> Result:
    """Measure in both kinds of sandbox, ``count`` times each; see the module."""
    toolchain = Toolchain()
    toolchain.provision()
    ensure_system_packages([one for one in CGROUP_READERS if one.name == LXCFS], progress=toolchain.progress)
    figures: dict[str, Any] = {}
    with HostSandbox() as here:
        figures["host"] = measure(here, count, say)
    with GvisorSandbox(toolchain.get("runsc").path) as gvisor:
        figures["gvisor"] = measure(gvisor, count, say)
    judged = {kind: verdicts(found) for kind, found in figures.items()}
    return Result({**figures, "verdicts": judged}, table(figures) + "\n" + judgement(judged), ok=True)


def verdicts(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each target, its value in one kind of sandbox, and whether it holds."""
    largest = found["housekeeping"][str(SIZES[-1])]
    measured = [
        ("growth", "a group of 110, times one of 10", linearity(found["housekeeping"]), GROWTH),
        *(
            (
                f"share-{name}",
                f"% of a core at 110 groups, every {seconds:g} s",
                largest[f"percent_{name}"],
                SHARE,
            )
            for name, seconds in INTERVALS.items()
        ),
        ("memory", f"MiB with {GROUPS} groups", found["memory"]["rss"], MEMORY),
    ]
    return [
        {"name": name, "text": text, "measured": value, "limit": limit, "held": value <= limit}
        for name, text, value, limit in measured
    ]


def judgement(judged: dict[str, list[dict[str, Any]]]) -> str:
    """Return the verdicts as lines."""
    lines = []
    for kind, targets in judged.items():
        for one in targets:
            word = "held" if one["held"] else "NOT HELD"
            lines.append(f"{word:8} {kind}: {one['text']}: {one['measured']:.2f} (at most {one['limit']:g})")
    return "\n".join(lines)


def measure(sandbox: StartedSandbox, count: int, say: Say) -> dict[str, Any]:
    """Return the figures of one kind of sandbox."""
    with contextlib.ExitStack() as stack:
        roots = stack.enter_context(neighbours(sandbox))
        layer = stack.enter_context(FuseCgroupfs(sandbox, at=f"{_AT}/{OURS}", real=False))
        roots = {OURS: f"{_AT}/{OURS}", **roots}
        latencies, rates = [], []
        for number in range(count):
            say(f"{sandbox.kind}: reads, {number + 1} of {count}")
            latencies.append(_ask(sandbox, "latency", roots=roots, files=FILES, count=READS))
            rates.append(
                _ask(sandbox, "throughput", roots=roots, file=FILES[1], readers=READERS, seconds=0.5)
            )
        served = {"root": roots[OURS], "controllers": DEFAULT, "pid": layer.pid}
        say(f"{sandbox.kind}: cAdvisor's passes over {', '.join(map(str, SIZES))} groups")
        passes = _ask(sandbox, "housekeeping", **served, sizes=SIZES, seconds=2.0)
        say(f"{sandbox.kind}: memory with {GROUPS} groups")
        memory = _ask(sandbox, "memory", **served, count=GROUPS)
    micros = {name: {file: [one[name][file] for one in latencies] for file in FILES} for name in roots}
    return {
        "n": count,
        "microseconds": micros,
        "ratios": {
            name: {file: _ratios(micros[OURS][file], micros[name][file]) for file in FILES}
            for name in roots
            if name != OURS
        },
        "reads_per_second": {name: statistics.median(rate[name] for rate in rates) for name in roots},
        "housekeeping": {size: {**found, **shares(found)} for size, found in passes.items()},
        "memory": memory,
    }


def shares(found: dict[str, float]) -> dict[str, float]:
    """Return the share of a core that a pass takes, in percent, at each interval."""
    return {f"percent_{name}": 100 * found["cpu"] / seconds for name, seconds in INTERVALS.items()}


def linearity(passes: dict[str, dict[str, float]]) -> float:
    """Return a group's cost in the largest pass, divided by its cost in the second smallest."""
    per_group = {int(size): found["cpu"] / int(size) for size, found in passes.items()}
    return per_group[SIZES[-1]] / per_group[SIZES[1]]


@contextlib.contextmanager
def neighbours(sandbox: StartedSandbox) -> Iterator[dict[str, str]]:
    """Bring up the other sides of the comparison: the kernel's own cgroups, and natively lxcfs.

    Yields:
        The folder with one folder for each controller, by name.
    """
    if sandbox.kind == "gvisor":
        for name in ("cpu", "cpuacct"):
            script = f"mkdir -p {_AT}/{KERNEL}/{name} && mount -t cgroup -o {name} none {_AT}/{KERNEL}/{name}"
            sandbox.run(["sh", "-c", script])
        yield {KERNEL: f"{_AT}/{KERNEL}"}
        return
    point = f"{_AT}/{LXCFS}"
    sandbox.run(["mkdir", "-p", point, "/var/lib/lxcfs"])
    server = sandbox.spawn(["lxcfs", "-f", "-p", "/run/lxcfs.pid", point], name=LXCFS)
    try:
        deadline = Deadline.after(10)
        while sandbox.run(["test", "-e", f"{point}/cgroup/{FILES[0]}"], check=False).returncode:
            if deadline.expired or server.poll() is not None:
                raise StartError("lxcfs does not serve", cause=server.log.tail(1000).decode(errors="replace"))
        yield {KERNEL: "/sys/fs/cgroup", LXCFS: f"{point}/cgroup"}
    finally:
        server.stop()


def table(figures: dict[str, Any]) -> str:
    """Return the figures as a text table."""
    lines = []
    for kind, found in figures.items():
        lines.append(f"{kind} (n = {found['n']}, medians)")
        for file in FILES:
            cells = [
                f"{name} {statistics.median(found['microseconds'][name][file]):.1f} us"
                for name in found["microseconds"]
            ]
            ratios = [f"{ratio[file]:.2f} x {name}" for name, ratio in found["ratios"].items()]
            lines.append(f"  read {file:24} {', '.join(cells)}; ours is {', '.join(ratios)}")
        rates = ", ".join(f"{name} {rate:.0f}/s" for name, rate in found["reads_per_second"].items())
        lines.append(f"  {READERS} readers at once: {rates}")
        for size, one in found["housekeeping"].items():
            lines.append(
                f"  a pass over {size:>3} groups ({one['files']} files): {1e3 * one['cpu']:.1f} ms of CPU, "
                f"{1e3 * one['wall']:.1f} ms; {one['percent_kubelet']:.2f} % of a core every 10 s, "
                f"{one['percent_cadvisor']:.1f} % every second"
            )
        lines.append(f"  a group of 110 costs {linearity(found['housekeeping']):.2f} times one of 10")
        memory = found["memory"]
        lines.append(
            f"  memory with {memory['groups']} groups in each of {len(DEFAULT)} hierarchies: "
            f"{memory['rss']:.1f} MiB"
        )
    return "\n".join(lines)


def _ratios(ours: list[float], other: list[float]) -> float:
    return statistics.median(mine / its for mine, its in zip(ours, other, strict=True))


def _ask(sandbox: StartedSandbox, step: str, **arguments: object) -> Any:  # noqa: ANN401 - JSON of the step
    argv = [sys.executable, "-I", "-S", cgroupfs_reader.__file__, step, json.dumps(arguments)]
    done = sandbox.run(argv, timeout=300)
    return json.loads(done.stdout)
