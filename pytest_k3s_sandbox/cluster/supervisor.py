"""Supervision: what ends by itself on a node that has been Ready is started again, and reported.

A part that never worked is left as it is, so that its first error stays in sight; so is what is ended on
purpose, by a test or by the teardown.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pytest_k3s_sandbox import clock, forks
from pytest_k3s_sandbox.cluster.restarts import Policy
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import SandboxError
from pytest_k3s_sandbox.layers.base import Layer, Restorable
from pytest_k3s_sandbox.report.records import Event, EventKind, RunWriter
from pytest_k3s_sandbox.sandbox.base import Process, Usage, described

if TYPE_CHECKING:
    from pytest_k3s_sandbox.cluster.cluster import Cluster

POLL_SECONDS = 0.25
LOOK_SECONDS = 1.0
"""Between two looks at the table of processes, which is read from /proc inside."""
RESTART_SECONDS = 20.0


@dataclass(frozen=True)
class Fault:
    """Something that does not work any more.

    Attributes:
        name: The process or layer.
        why: What is wrong with it.
        mend: Makes it work again.
    """

    name: str
    why: str
    mend: Callable[[], None]


@dataclass
class Case:
    """What is known about one part's faults.

    Attributes:
        ends: When it was found to have one, in seconds.
        due: When it is to be mended; None while it works.
        lost: Why it is not mended any more; None as long as it is.
    """

    ends: list[float] = field(default_factory=list)
    due: float | None = None
    lost: str | None = None


class Supervisor:
    """Watches a cluster's processes and layers from a thread, and mends them; a context manager.

    Args:
        cluster: The cluster, whose node is started.
        writer: Where faults and restarts are recorded.
        ready: Tells whether the node has been Ready; nothing is mended before.
        policy: When to start again.

    Attributes:
        failure: The error that ended the supervision; None while there is none.
    """

    def __init__(
        self, cluster: Cluster, writer: RunWriter, ready: Callable[[], bool], policy: Policy | None = None
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
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End; what is being mended is waited for. A forked process has no such thread."""
        if not self._owner.mine:
            return
        self._halt.set()
        self._thread.join(timeout=2 * RESTART_SECONDS)

    @property
    def unattended(self) -> Mapping[str, Process]:
        """The processes whose end is final: all as long as nothing is mended, then those given up."""
        processes = self._cluster.processes
        if not (self._thread.is_alive() and self._ready()):
            return processes
        return {
            name: process
            for name, process in processes.items()
            if (case := self._cases.get(name)) is not None and case.lost is not None
        }

    def lost(self) -> str | None:
        """Return which parts were given up and why; None if none was."""
        return "; ".join(f"{name}: {case.lost}" for name, case in self._cases.items() if case.lost) or None

    def step(self, now: float) -> None:
        """Look once, and do what is due.

        Args:
            now: The time, on the clock of :func:`time.monotonic`.
        """
        with self._cluster.changing:
            faults = {fault.name: fault for fault in self._faults(now)}
            for name, case in self._cases.items():
                if name not in faults:
                    case.due = None
            for fault in faults.values():
                self._answer(fault, self._cases.setdefault(fault.name, Case()), now)

    def _loop(self) -> None:
        try:
            while not self._halt.wait(POLL_SECONDS):
                if getattr(self._cluster.sandbox, "handed_over", False):
                    return  # another process owns it, and everything looks as if it had ended
                if self._ready():
                    self.step(clock.monotonic())
        except BaseException as error:  # noqa: BLE001 - a thread's error must not be lost; users see it in `failure`
            self.failure = error

    def _answer(self, fault: Fault, case: Case, now: float) -> None:
        if case.lost is not None:
            return
        if case.due is None:
            case.ends.append(now)
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
        with suppress(SandboxError):  # then it has a fault still, which the next step answers
            fault.mend()
            seconds = round(clock.monotonic() - began, 3)
            self._note(EventKind.RESTART, fault.name, f"{fault.name} started again", seconds)

    def _faults(self, now: float) -> Iterable[Fault]:
        """Yield what does not work, layers first, and then the processes in their order."""
        cluster = self._cluster
        for layer in cluster.layers:
            if isinstance(layer, Restorable) and (why := layer.fault()) is not None:
                yield Fault(layer.name, why, lambda layer=layer: self._restore(layer))  # type: ignore[misc]
        self._look(now)
        for name, process in list(cluster.processes.items()):
            code = process.poll()
            if code is not None:
                yield Fault(name, described(code), lambda name=name: self._restart(name))  # type: ignore[misc]
            elif process.pid in self._empty:
                why = "ended under its tracer, which goes on with what descends from it"
                yield Fault(name, why, lambda name=name: self._restart(name, leave=True))  # type: ignore[misc]

    def _look(self, now: float) -> None:
        """Find tracers whose program has ended: they had a child, and have none any more."""
        traced = {
            process.pid
            for name, process in self._cluster.processes.items()
            if name in self._cluster.distribution.traced
        }
        self._empty &= traced
        if not traced or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        with suppress(SandboxError):  # the sandbox has ended, and with it all processes
            parents = parents_of(self._cluster.sandbox.usage())
            self._empty = (self._parents & traced) - parents
            self._parents = (self._parents | parents) & traced

    def _restart(self, name: str, *, leave: bool = False) -> None:
        cluster, deadline = self._cluster, Deadline.after(RESTART_SECONDS)
        cluster.distribution.restart(cluster.sandbox, cluster.settings, name, deadline, leave=leave)

    def _restore(self, layer: Layer) -> None:
        """Bring a layer up again, and the kubelet after it: cAdvisor holds files of layers open."""
        if isinstance(layer, Restorable):
            layer.restore()
        agent = self._cluster.distribution.agent
        if agent in self._cluster.processes:
            self._restart(agent)

    def _note(self, kind: str, name: str, what: str, seconds: float | None = None) -> None:
        event = Event(t=self._writer.now(), kind=kind, what=what, component=name, seconds=seconds)
        with suppress(SandboxError):  # a full disk does not end the supervision
            self._writer.append(event)


def parents_of(table: Iterable[Usage]) -> set[int]:
    """Return the ids of the processes that have children."""
    return {row.parent for row in table}
