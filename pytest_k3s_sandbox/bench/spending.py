"""Where the processor time of a sandbox went: by program and by layer, of ended processes too.

A process that has ended is counted by the one that waited for it (times(2), ``tms_cutime``). A shim waits for
the OCI runtime that it starts and for the containers; containerd for the CNI plugin and for the program that
starts a shim; the kubelet for mount(8); process 1 for everything whose parent has ended.

There are two totals. The machine's control group of the sandbox counts processor time, in gVisor that of its
kernel with all that runs on it. gVisor's own count (/proc/stat inside) has a task as long as it wants to run,
also while the machine runs something else: on busy cores it is a multiple of the time that was used, while
the sum over its live processes, with those that they waited for, is the same number. So inside gVisor the
programs' shares can be compared, and only the machine's total is processor time.

Each process has four numbers, cut to hundredths of a second. So thirty pods, with a shim and three processes
each, lose about a second between the total and the sum.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_k3s_sandbox.cluster.sandboxer import PROGRAM as SANDBOXER
from pytest_k3s_sandbox.sandbox.base import Usage

AGENT = 1
SHIM = "containerd-shim"
RUNNERS = (SHIM, SANDBOXER)
"""What runs containers: a shim for each pod, or one process for all; a name has 15 characters (proc(5))."""
RUNTIMES = ("crun", "runc", "k3s-sandbox-run", "k3s-sandbox-cru")
"""How names of the OCI runtimes and the scripts around them begin."""

ENDED = "ended children of "
CNI = "CNI plugin"
UNATTRIBUTED = "unattributed"
REST = "rest"

LAYERS = {
    "kubelet": ("kubelet", f"{ENDED}kubelet"),
    "API server": ("kube-apiserver",),
    "kine": ("kine",),
    "controller-manager": ("kube-controller-manager",),
    "scheduler": ("kube-scheduler",),
    "containerd": ("containerd",),
    "shim starts": (f"{ENDED}containerd",),
    "shims": RUNNERS,
    "OCI runtime": ("OCI runtime", f"{ENDED}OCI runtime", *(f"{ENDED}{name}" for name in RUNNERS)),
    CNI: (CNI,),
    "tracers": ("tracer of ",),
    "cgroupfs server": ("cgroupfs",),
    "pods": ("pod: ",),
}
"""The layers, and the programs of each; a name that ends with a space is the beginning of names."""


def programs(rows: Sequence[Usage], tracers: Collection[int]) -> dict[str, float]:
    """Return the seconds of processor time by program.

    Args:
        rows: Every process of the sandbox.
        tracers: The processes that trace another one.

    Returns:
        The time of live processes by their names. Those below a shim are ``pod: NAME``: what a runtime does
        before it becomes the container's program counts there. ``ended children of NAME`` is what the
        processes of that name have waited for.
    """
    table = {row.pid: row for row in rows}
    found: dict[str, float] = {}
    for row in rows:
        name = _program(row, table, tracers)
        found[name] = found.get(name, 0.0) + row.cpu_seconds
        waited = name if name.startswith("pod: ") else f"{ENDED}{name}"
        found[waited] = found.get(waited, 0.0) + row.waited_seconds
    return found


def _program(row: Usage, table: Mapping[int, Usage], tracers: Collection[int]) -> str:
    if row.pid in tracers:
        return f"tracer of {row.name}"
    if row.name in RUNNERS:
        return row.name
    above = table.get(row.parent)
    for _ in table:  # not for ever: the table is no picture of one moment
        if above is None or above.pid == AGENT:
            return row.name
        if above.name in RUNNERS:
            return "OCI runtime" if row.name.startswith(RUNTIMES) else f"pod: {row.name}"
        above = table.get(above.parent)
    return row.name


def layers(of: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds by layer, in the order of :data:`LAYERS`, and the rest.

    Args:
        of: The seconds by program, as :func:`programs` gives them.
    """
    found = dict.fromkeys((*LAYERS, REST), 0.0)
    for name, seconds in of.items():
        found[layer_of(name)] += seconds
    return found


def layer_of(program: str) -> str:
    """Return the layer of a program's name, as :func:`programs` gives it."""
    for layer, names in LAYERS.items():
        if any(program.startswith(name) if name.endswith(" ") else program == name for name in names):
            return layer
    return REST


@dataclass(frozen=True)
class Snapshot:
    """What a sandbox has used up to a moment, in seconds.

    Attributes:
        machine: The machine's count of the whole; None where it has none.
        inside: gVisor's count of the whole; None natively, where /proc/stat is the machine's.
        programs: The time by program.
    """

    machine: float | None
    inside: float | None
    programs: Mapping[str, float]


@dataclass(frozen=True)
class Spent:
    """What a sandbox used between two moments, in seconds of processor time.

    Attributes:
        machine: The machine's count of the whole; None where it has none.
        inside: gVisor's own count; None natively.
        programs: The time by program, by the count inside.
    """

    machine: float | None = None
    inside: float | None = None
    programs: Mapping[str, float] = field(default_factory=dict)

    @property
    def unattributed(self) -> float | None:
        """The total less the sum over the programs: of gVisor's count there, of the machine's natively."""
        total = self.machine if self.inside is None else self.inside
        return None if total is None else total - sum(self.programs.values())

    @property
    def scale(self) -> float:
        """Seconds of processor time for a second of the count inside; 1 natively."""
        if self.inside is None or self.machine is None:
            return 1.0
        return self.machine / self.inside if self.inside > 0 else 1.0

    @property
    def layers(self) -> dict[str, float]:
        """The machine's processor time by layer; in gVisor its whole is shared out by the count inside."""
        found = layers(self.programs)
        if self.unattributed is not None:
            found[UNATTRIBUTED] = self.unattributed
        return {name: seconds * self.scale for name, seconds in found.items()}


def between(before: Snapshot, after: Snapshot) -> Spent:
    """Return what was used from one moment to another."""
    names = dict.fromkeys((*before.programs, *after.programs))
    grown = {name: after.programs.get(name, 0.0) - before.programs.get(name, 0.0) for name in names}
    return Spent(
        _less(after.machine, before.machine),
        _less(after.inside, before.inside),
        {name: round(seconds, 3) for name, seconds in grown.items() if abs(seconds) >= SMALLEST},
    )


SMALLEST = 0.005
"""Less is nothing: times have the resolution of a tick, a hundredth of a second (proc(5))."""


def _less(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def with_cni(spent: Spent, seconds: float) -> Spent:
    """Return the same with the CNI plugin's part of what containerd waited for.

    In gVisor the part is rough, and the rest for shim starts with it: its count of a call depends on how busy
    the machine was, and the calls were made at another time. The sum of both is exact.

    Args:
        spent: What was used.
        seconds: What its calls took, by the count inside.
    """
    waited = f"{ENDED}containerd"
    most = spent.programs.get(waited, 0.0)
    part = min(max(seconds, 0.0), most)
    shared = {**spent.programs, waited: most - part, CNI: part}
    return Spent(spent.machine, spent.inside, shared)


def in_stat(line: str, tick: int = 100) -> float:
    """Return the seconds of processor time in the first line of /proc/stat (proc(5)).

    Args:
        line: The line: ``cpu``, user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice.
        tick: Ticks a second.

    Raises:
        ValueError: It is another line.
    """
    name, *words = line.split()
    if name != "cpu":
        raise ValueError(f"not the sum of all processors: {line!r}")
    numbers = [int(word) for word in words]
    return (sum(numbers[:3]) + sum(numbers[5:7])) / tick
