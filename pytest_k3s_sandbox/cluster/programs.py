"""The programs that a distribution has started, and how each of them is started again."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from pytest_k3s_sandbox.cluster.certificates import pki
from pytest_k3s_sandbox.cluster.components import ClusterSettings
from pytest_k3s_sandbox.cluster.process_wait import POLL_SECONDS, Attendant, Condition, until
from pytest_k3s_sandbox.cluster.reading import ApiReader
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.layers.base import NodeOverrides
from pytest_k3s_sandbox.sandbox.base import Process, Sandbox

ASK_SECONDS = 2.0
STOP_SECONDS = 2.0
AGAIN_SECONDS = 0.25
"""After which SIGTERM is sent once more, to whatever is left. The API server and kine wait for their clients
at the first one, and end at the second; so does a tracer whose program has ended, instead of staying with
the shims of pods. Nothing needs longer for an orderly end: SQLite keeps acknowledged writes in any case."""
LOCALE = {"LC_ALL": "C"}
"""Of the node's programs. The kubelet runs mount(8) and umount(8) for each pod with a token. In another
locale each of them opens 25 files more (docs/findings.md)."""


class Programs:
    """Starts programs by name, ends them, and starts one again as it was started before.

    Attributes:
        processes: The processes that run or should run, by name, in the order of the first starts.
        traced: The names of the processes that were started as descendants of a layer's process.
        attendant: Starts programs again during a start; without one, each end is final.
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        self.processes: dict[str, Process] = {}
        self.traced: set[str] = set()
        self.attendant: Attendant | None = None
        self._commands: dict[str, tuple[list[str], dict[str, str]]] = {}
        self._left: list[Process] = []

    def restart(
        self,
        sandbox: Sandbox,
        settings: ClusterSettings,
        name: str,
        deadline: Deadline,
        *,
        leave: bool = False,
        wait: bool = True,
    ) -> None:
        """Start a program again; see :meth:`.base.Distribution.restart`."""
        old = self.processes[name]
        if leave and old.poll() is None:
            self._left.append(old)
        else:
            stop_all([old])
        seen = old.log.size()
        argv, environment = self._commands[name]
        self.processes[name] = sandbox.spawn(argv, name=name, env=environment)
        if not wait:
            return
        try:
            self._serves(sandbox, settings, name, seen, deadline)
        except BaseException:
            self.processes[name].stop(grace=0.0)  # so that a supervisor sees that it does not run
            raise

    def _serves(
        self, sandbox: Sandbox, settings: ClusterSettings, name: str, seen: int, deadline: Deadline
    ) -> None:
        """Return when a program that was started again does its work, where that can be told.

        Args:
            sandbox: Where it runs.
            settings: The node's name, ports and so on.
            name: The program.
            seen: The length of its log before.
            deadline: When to give up.

        Raises:
            ClusterError: It ended, or the deadline passed.
        """

    def _spawn(
        self, sandbox: Sandbox, name: str, argv: list[str], overrides: NodeOverrides | None = None
    ) -> None:
        """Start a program. The node's programs have overrides; their ``argv`` begins with the wrapper."""
        environment = {} if overrides is None else {**LOCALE, **overrides.environment}
        self.traced.discard(name)
        if overrides is not None and any(overrides.wrap.values()):
            self.traced.add(name)
        self._commands[name] = (argv, environment)
        self.processes[name] = sandbox.spawn(argv, name=name, env=environment)

    def _api(self, sandbox: Sandbox, settings: ClusterSettings) -> ApiReader:
        """Return a reader for an API server that is coming up, which is asked again before long."""
        return ApiReader(settings, pki(sandbox.control), ASK_SECONDS)

    def _stop(self, names: Sequence[str]) -> None:
        """End programs side by side, and the processes that earlier ones left."""
        stop_all([self.processes.pop(name) for name in names if name in self.processes])
        while self._left:
            self._left.pop().stop(grace=0.0)

    def _until(self, condition: Condition, what: str, deadline: Deadline, poll: float = POLL_SECONDS) -> None:
        attendant = self.attendant
        if attendant is None:
            until(condition, what=what, deadline=deadline, alive=self.processes, poll=poll)
            return
        until(
            condition,
            what=what,
            deadline=deadline,
            alive=attendant.attend,
            poll=poll,
            restarts=attendant.restarts,
            hint=attendant.trouble,
        )


def stop_all(processes: Sequence[Process], grace: float = STOP_SECONDS) -> None:
    """End processes side by side: SIGTERM, and once more, then SIGKILL after ``grace`` seconds."""
    deadline = Deadline.after(grace)
    for until_then in (Deadline.after(min(AGAIN_SECONDS, grace)), deadline):
        for process in processes:
            if process.poll() is None:
                process.signal(signal.SIGTERM)
        for process in processes:
            process.wait(until_then)
    for process in processes:
        process.stop(grace=0.0)
