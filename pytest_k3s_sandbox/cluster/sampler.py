"""The ``readiness`` sampler: a time series of a cluster, taken beside a test."""

from __future__ import annotations

import functools
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pytest_k3s_sandbox.cluster.reading import ApiUnavailable, conditions, is_ready
from pytest_k3s_sandbox.cluster.runner import ClusterRunner
from pytest_k3s_sandbox.errors import SandboxError
from pytest_k3s_sandbox.layers.registry import LAYERS
from pytest_k3s_sandbox.layers.stack import split
from pytest_k3s_sandbox.report.errors import alike, shorten
from pytest_k3s_sandbox.report.log_classifier import classify
from pytest_k3s_sandbox.report.records import Cost, ErrorLine, PodState, RunWriter, Sample
from pytest_k3s_sandbox.sandbox.base import Usage
from pytest_k3s_sandbox.support import clock, forks

WATCHED_PROGRAMS = ("kubelet", "containerd")
"""The node's programs whose logs are read and whose use is recorded."""

REQUEST_SECONDS = 5
AT_ONCE = 16 << 20
"""The most bytes of a log to read for one sample; the next sample continues there."""

LINE_BYTES = 1 << 20
"""The most bytes of an incomplete line to keep."""

AGENT = 1  # the process id of the sandbox's agent, which spawns all programs


EACH = 200
"""The number of recorded lines among lines that differ only in numbers; further ones are counted."""

KINDS = 2000
"""The number of distinct lines that are counted each; others are counted by component and kind."""

COUNTED_SECONDS = 60.0
"""Seconds between two records of the counts."""

TEXT_CHARACTERS = 16384
"""The most characters of an error line to record."""


class Repeats:
    """Limits the recorded error lines, so that a repeated line does not fill the disk."""

    def __init__(self) -> None:
        """Start without lines."""
        self._seen: Counter[tuple[str, str, str]] = Counter()
        self._counted: dict[tuple[str, str, str], ErrorLine] = {}
        self._due = 0.0

    def taken(self, line: ErrorLine) -> ErrorLine | None:
        """Return a line to record now; None for a counted one."""
        key = alike(line)
        if key not in self._seen and len(self._seen) >= KINDS:
            key = (line.component, line.kind, "")
        self._seen[key] += 1
        if self._seen[key] <= EACH:
            return line
        before = self._counted[key].count if key in self._counted else 0
        self._counted[key] = line.model_copy(update={"count": before + 1})
        return None

    def counted(self, now: float, *, last: bool = False) -> list[ErrorLine]:
        """Return records of the counts since the last ones; none while it is too early.

        Args:
            now: The time in seconds since the run's zero.
            last: Whether these are the run's last records.
        """
        if not last and now < self._due:
            return []
        found = list(self._counted.values())
        self._counted.clear()
        if found:
            self._due = now + COUNTED_SECONDS
        return found


class LogFollower:
    """Reads new lines of a log, and classifies them.

    Args:
        component: The log's name without ``.log``.
        path: Returns the file, which may not exist yet.

    Attributes:
        lines: The number of complete lines so far.
    """

    def __init__(self, component: str, path: Callable[[], Path]) -> None:
        """Start at the beginning of the file."""
        self.component = component
        self._path = path
        self._offset = 0
        self._rest = b""
        self.lines = 0

    def errors(self) -> list[tuple[str, str, str | None]]:
        """Return the new error lines, each as (kind, text, errno)."""
        try:
            with self._path().open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:  # it was rotated
                    self._offset, self._rest = 0, b""
                file.seek(self._offset)
                data = file.read(AT_ONCE)
                self._offset = file.tell()
        except OSError:  # it does not exist yet, or a program inside has replaced it with a link
            return []
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-LINE_BYTES:]
        self.lines += len(lines)
        found = []
        for line in lines:
            text = line.decode(errors="replace")
            error = classify(text)
            if error is not None and error.severity != "warning":
                found.append((str(error.kind), text, error.errno))
        return found


class Sampler:
    """Samples a cluster from a thread; a context manager.

    It continues without an API server; its samples say so.

    Args:
        runner: The cluster; it may still be coming up.
        writer: Where the samples and error lines go.
        interval: Seconds between two samples after the node was Ready.
        rush: Seconds between two samples before that, for an exact time to Ready.
        cost_interval: Seconds between two samples with the use of the layers and the node.

    Attributes:
        samples: The samples so far.
        error_lines: The error lines so far; repeated lines are counted
            (:attr:`~pytest_k3s_sandbox.report.schema.ErrorLine.count`).
        failure: The error that ended the sampling; None without one.
        seen_ready: Whether the node was Ready in some sample.
    """

    def __init__(
        self,
        runner: ClusterRunner,
        writer: RunWriter,
        *,
        interval: float = 1.0,
        rush: float = 0.25,
        cost_interval: float = 10.0,
    ) -> None:
        """Prepare; the thread starts on entering."""
        self._cost_interval = cost_interval
        self._costed = -cost_interval
        self._runner = runner
        self._cluster = cluster = runner.cluster
        self._writer = writer
        self._interval = interval
        self._rush = rush
        self._api = cluster.reader(REQUEST_SECONDS)
        self._follow = [LogFollower(name, functools.partial(cluster.log, name)) for name in WATCHED_PROGRAMS]
        self._errors: Counter[str] = Counter()
        self._repeats = Repeats()
        self._halt = threading.Event()
        self._lock = threading.Lock()
        self._owner = forks.Owner()
        forks.watch(self)
        self._thread = threading.Thread(target=self._loop, name="readiness", daemon=True)
        self.samples: list[Sample] = []
        self.error_lines: list[ErrorLine] = []
        self.failure: BaseException | None = None
        self.seen_ready = False

    def forked(self) -> None:
        """Give a forked process its own lock: a thread of the parent may hold the other."""
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Start sampling."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the sampling, unless it was stopped before."""
        self.stop()

    def stop(self) -> None:
        """Take a last sample and stop, so that samples do not record the teardown.

        In a process that was forked from its owner it does nothing.
        """
        if not self._owner.mine:
            return
        self._halt.set()
        self._thread.join(timeout=4 * REQUEST_SECONDS)

    def errors(self, kind: str) -> list[ErrorLine]:
        """Return the error lines of one kind so far, including the newest.

        A forked process gets those from before the fork.
        """
        if self._owner.mine:
            with self._lock:
                self._read_logs()
        return [line for line in self.error_lines if line.kind == kind]

    def lines_read(self, component: str) -> int:
        """Return the number of lines read of a component's log; with 0, missing errors prove nothing."""
        return sum(follower.lines for follower in self._follow if follower.component == component)

    def take(self) -> Sample:
        """Take one sample now, and record it."""
        self._owner.check("taking a sample")
        with self._lock:
            self._read_logs()
            sample = self._sample()
            self._writer.append(sample)
            self.samples.append(sample)
            return sample

    def _loop(self) -> None:
        try:
            while True:
                last = self._halt.is_set()
                self.seen_ready = bool(self.take().node_ready) or self.seen_ready
                if last:
                    return
                self._halt.wait(self._interval if self.seen_ready else self._rush)
        except BaseException as error:  # noqa: BLE001 - users of the thread see it in `failure`
            self.failure = error

    def _read_logs(self) -> None:
        for follower in self._follow:
            for kind, text, errno in follower.errors():
                self._errors[kind] += 1
                line = ErrorLine(
                    t=self._writer.now(),
                    component=follower.component,
                    kind=kind,
                    text=shorten(text, TEXT_CHARACTERS),
                    errno=errno,
                )
                self._record(self._repeats.taken(line))
        for counted in self._repeats.counted(self._writer.now(), last=self._halt.is_set()):
            self._record(counted)

    def _record(self, line: ErrorLine | None) -> None:
        if line is not None:
            self._writer.append(line)
            self.error_lines.append(line)

    def _sample(self) -> Sample:
        nodes = self._list("/api/v1/nodes")
        pods = self._list("/api/v1/pods")
        known = {name: each for node in nodes or [] for name, each in conditions(node).items()}
        ready = known.get("Ready")
        return Sample(
            t=self._writer.now(),
            node_ready=None if ready is None or ready.status == "Unknown" else is_ready([ready]),
            reason=None if ready is None else ready.reason,
            conditions={name: condition.status for name, condition in known.items()},
            pods={f"{p['metadata']['namespace']}/{p['metadata']['name']}": pod_state(p) for p in pods or []},
            api_reachable=nodes is not None and pods is not None,
            errors=dict(self._errors),
            cost=self._cost(),
        )

    def _cost(self) -> dict[str, Cost]:
        """Return the use of the layers and the node, once in ``cost_interval``."""
        now = clock.monotonic()
        if now - self._costed < self._cost_interval or "kubelet" not in self._cluster.processes:
            return {}
        self._costed = now
        try:
            return costs(self._runner.sandbox.usage(), [layer.name for layer in self._runner.layers])
        except SandboxError:
            return {}  # the sandbox is ending

    def _list(self, path: str) -> list[dict[str, Any]] | None:
        if self._cluster.lost is not None:  # the sandbox is unreachable, and each attempt takes long
            return None
        try:
            return self._api.items(path)
        except ApiUnavailable:
            return None


def costs(table: Sequence[Usage], layers: Sequence[str]) -> dict[str, Cost]:
    """Return the use of layers and node programs.

    Args:
        table: Every process of the sandbox.
        layers: The names of the layers around the node.

    Returns:
        The use of ``kubelet`` and ``containerd``, and of each layer that declares processes of its own. A
        layer that wraps a program was spawned in its place, and has the program as a child.
    """
    spawned = {row.name: row for row in table if row.parent == AGENT}
    stack = [LAYERS[name] for name in (split(layer)[0] for layer in layers) if name in LAYERS]
    wrapper = {program: layer.name for layer in stack for program in layer.wraps}
    found: dict[str, list[Usage]] = {}
    for name in WATCHED_PROGRAMS:
        if name not in spawned:
            continue
        if name in wrapper:
            found.setdefault(wrapper[name], []).append(spawned[name])
            found[name] = [row for row in table if row.parent == spawned[name].pid and row.name == name]
        else:
            found[name] = [spawned[name]]
    for layer in LAYERS.values():
        for name in layer.processes:
            if name in spawned:
                found.setdefault(layer.name, []).append(spawned[name])
    return {
        name: Cost(
            cpu_seconds=round(sum(row.cpu_seconds for row in rows), 2),
            rss_bytes=sum(row.rss_bytes for row in rows),
        )
        for name, rows in found.items()
        if rows
    }


def pod_state(pod: dict[str, Any]) -> PodState:
    """Return a pod's phase and whether its condition Ready is True."""
    phase = pod.get("status", {}).get("phase")
    return PodState(phase=phase or "Unknown", ready=is_ready(conditions(pod).values()))
