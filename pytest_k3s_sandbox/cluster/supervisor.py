"""The supervisor restarts parts of a cluster that end by themselves, and records that.

During a start it restarts only the kubelet or k3s, as systemd does. After the node was Ready, it
restarts every part. It does not restart other parts that end during a start, so that the first error stays
visible, and no parts that a test or the teardown ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Self

from pytest_k3s_sandbox.cluster.base import Supervised
from pytest_k3s_sandbox.cluster.process_wait import after_restarts, ended_at_start, lost_by
from pytest_k3s_sandbox.cluster.restarts import Policy
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import SandboxError
from pytest_k3s_sandbox.layers.base import Layer, Restorable
from pytest_k3s_sandbox.report.records import Event, EventKind, RunWriter
from pytest_k3s_sandbox.sandbox.base import Process, Usage, described
from pytest_k3s_sandbox.support import clock, forks

POLL_SECONDS = 0.25
LOOK_SECONDS = 1.0
"""Seconds between two reads of the process table, from /proc inside."""
START_LOOK_SECONDS = 5.0
"""The same before the node was Ready, because a read slows the start."""
RESTART_SECONDS = 20.0
UNDER_TRACER = "ended under its tracer, which goes on with its descendants"


@dataclass(frozen=True)
class Fault:
    """A part that has stopped working.

    Attributes:
        name: The process or layer.
        why: The error.
        mend: Starts the part again.
    """

    name: str
    why: str
    mend: Callable[[], None]


@dataclass
class Case:
    """The history of one part's faults.

    Attributes:
        ends: The times of its faults, in seconds.
        due: The time of the next restart; None while the part works.
        lost: Why it was given up; None otherwise.
        restarts: The number of restarts.
        why: The last error.
    """

    ends: list[float] = field(default_factory=list)
    due: float | None = None
    lost: str | None = None
    restarts: int = 0
    why: str = ""


class Supervisor:
    """Watches a cluster's processes and layers from a thread, and restarts them; a context manager.

    While the node starts, the starting thread holds the cluster's lock, and calls :meth:`attend` between two
    polls.

    Args:
        cluster: The cluster; its node need not have been started.
        writer: Records faults and restarts.
        ready: Returns whether the node was Ready; before, only the process of the kubelet is restarted.
        policy: The delays and the limit of restarts.

    Attributes:
        failure: The error that ended the supervision; None without one.
    """

    def __init__(
        self, cluster: Supervised, writer: RunWriter, ready: Callable[[], bool], policy: Policy | None = None
    ) -> None:
        """Prepare; the thread starts on entering."""
        self._cluster = cluster
        self._writer = writer
        self._ready = ready
        self._policy = policy or Policy()
        self._cases: dict[str, Case] = {}
        self._parents: set[int] = set()
        self._empty: set[int] = set()
        self._looked = 0.0
        self._owner = forks.Owner()
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="supervisor", daemon=True)
        self.failure: BaseException | None = None

    def __enter__(self) -> Self:
        """Begin."""
        self._cluster.distribution.attendant = self
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop, and wait for a restart in progress. In a forked process it does nothing."""
        if not self._owner.mine:
            return
        self._cluster.distribution.attendant = None
        self._halt.set()
        self._thread.join(timeout=2 * RESTART_SECONDS)

    @property
    def unsupervised(self) -> Mapping[str, Process]:
        """The processes whose end is final: those not supervised now, and those given up."""
        return self._final(starting=False)

    def attend(self) -> Mapping[str, Process]:
        """Restart the programs that are due while the node starts; see :class:`.process_wait.Attendant`."""
        self.step(clock.monotonic(), starting=True)
        return self._final(starting=True)

    def restarts(self, name: str) -> int:
        """Return how often a program was restarted."""
        case = self._cases.get(name)
        return 0 if case is None else case.restarts

    def trouble(self) -> str | None:
        """Return the recent faults with the number of restarts; None without faults."""
        since = clock.monotonic() - self._policy.window
        return (
            "; ".join(
                f"{name} {case.why}{after_restarts(case.restarts)}"
                for name, case in list(self._cases.items())
                if case.ends and case.ends[-1] > since
            )
            or None
        )

    def _final(self, *, starting: bool) -> Mapping[str, Process]:
        processes = self._cluster.processes
        if not self._thread.is_alive():
            return processes
        mended = (
            {self._cluster.distribution.kubelet_process} if starting or not self._ready() else set(processes)
        )
        lost = {name for name, case in list(self._cases.items()) if case.lost is not None}
        return {
            name: each
            for name, each in processes.items()
            if name not in mended or name in lost or lost_by(each) is not None
        }

    def lost(self) -> str | None:
        """Return the parts that were given up, with the reasons; None without such parts."""
        return "; ".join(f"{name}: {case.lost}" for name, case in self._cases.items() if case.lost) or None

    def step(self, now: float, *, starting: bool = False) -> None:
        """Look for faults once, and restart the programs that are due.

        Args:
            now: The time, on the clock of :func:`time.monotonic`.
            starting: Whether the node is starting: then only the process of the kubelet is checked.
        """
        with self._cluster.changing:
            if self._halt.is_set():
                return
            alone = starting or not self._ready()
            faults = {
                fault.name: fault for fault in (self._start_faults(now) if alone else self._faults(now))
            }
            for name, case in self._cases.items():
                if name not in faults:
                    case.due = None
            for fault in faults.values():
                self._answer(fault, self._cases.setdefault(fault.name, Case()), now)

    def _loop(self) -> None:
        try:
            while not self._halt.wait(POLL_SECONDS):
                if self._cluster.sandbox.handed_over:
                    return  # another process owns the sandbox, and all processes look ended
                self.step(clock.monotonic())
        except BaseException as error:  # noqa: BLE001 - users of the thread see it in `failure`
            self.failure = error

    def _answer(self, fault: Fault, case: Case, now: float) -> None:
        if case.lost is not None:
            return
        if case.due is None:
            case.ends.append(now)
            case.why = fault.why
            self._note(EventKind.FAULT, fault.name, fault.why)
            pause = self._policy.wait(case.ends)
            if pause is None:
                times = f"{self._policy.limit + 1} times within {self._policy.window:g} s"
                case.lost = f"{times}, last: {fault.why}"
                self._note("given-up", fault.name, case.lost)
                return
            case.due = now + pause
        if now < case.due or self._halt.is_set():
            return
        case.due = None
        began = clock.monotonic()
        with suppress(SandboxError):  # the part still has a fault, which the next step handles
            fault.mend()
            case.restarts += 1
            seconds = round(clock.monotonic() - began, 3)
            self._note(EventKind.RESTART, fault.name, f"{fault.name} started again", seconds)

    def _faults(self, now: float) -> Iterable[Fault]:
        """Yield the faults of layers, and then of processes in their order."""
        cluster = self._cluster
        for layer in cluster.layers:
            if isinstance(layer, Restorable) and (why := layer.fault()) is not None:
                yield Fault(layer.name, why, partial(self._restore, layer))
        self._look(now, LOOK_SECONDS)
        for name, process in list(cluster.processes.items()):
            code = process.poll()
            if code is not None:
                yield Fault(name, described(code), partial(self._restart, name))
            elif process.pid in self._empty:
                yield Fault(name, UNDER_TRACER, partial(self._restart, name, leave=True))

    def _start_faults(self, now: float) -> Iterable[Fault]:
        """Yield a fault of the process of the kubelet during a start."""
        name = self._cluster.distribution.kubelet_process
        process = self._cluster.processes.get(name)
        if process is None or lost_by(process) is not None:
            return
        self._look(now, START_LOOK_SECONDS)
        code = process.poll()
        if code is not None or process.pid in self._empty:
            case = self._cases.get(name)
            if case is not None and case.due is not None:
                why = case.why  # the log has been read already
            else:
                why = ended_at_start(process, UNDER_TRACER if code is None else described(code))
            yield Fault(name, why, lambda: self._restart(name, wait=False))

    def _look(self, now: float, pause: float) -> None:
        """Find tracers whose program has ended: they had a child, and have none now.

        Args:
            now: The time.
            pause: The least seconds since the last look.
        """
        traced = {
            process.pid
            for name, process in self._cluster.processes.items()
            if name in self._cluster.distribution.traced
        }
        self._empty &= traced
        if not traced or now - self._looked < pause:
            return
        self._looked = now
        with suppress(SandboxError):  # the sandbox has ended
            parents = parents_of(self._cluster.sandbox.usage())
            self._empty = (self._parents & traced) - parents
            self._parents = (self._parents | parents) & traced

    def _restart(self, name: str, *, leave: bool = False, wait: bool = True) -> None:
        cluster, deadline = self._cluster, Deadline.after(RESTART_SECONDS)
        cluster.distribution.restart(
            cluster.sandbox, cluster.settings, name, deadline, leave=leave, wait=wait
        )

    def _restore(self, layer: Layer) -> None:
        """Restore a layer, and restart the kubelet: cAdvisor holds files of layers open."""
        if isinstance(layer, Restorable):
            layer.restore()
        agent = self._cluster.distribution.kubelet_process
        if agent in self._cluster.processes:
            self._restart(agent)

    def _note(self, kind: str, name: str, what: str, seconds: float | None = None) -> None:
        event = Event(t=self._writer.now(), kind=kind, what=what, component=name, seconds=seconds)
        with suppress(SandboxError):  # a full disk does not end the supervision
            self._writer.append(event)


def parents_of(table: Iterable[Usage]) -> set[int]:
    """Return the ids of the processes that have children."""
    return {row.parent for row in table}
