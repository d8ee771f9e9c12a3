"""The side of pytest: talks to the agent that is process 1 of a sandbox."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import StartError
from pytest_k3s_sandbox.sandbox.base import Usage

REPLY_SECONDS = 30.0


@dataclass
class _Child:
    name: str
    pid: int
    log: Path
    status: int | None = None


class AgentProcess:
    """A process that the agent started; implements :class:`~.base.Process`."""

    def __init__(self, client: AgentClient, child: _Child) -> None:
        """Bind the process to the client that reaches it."""
        self._client = client
        self._child = child

    @property
    def name(self) -> str:
        """The name it was spawned by."""
        return self._child.name

    @property
    def pid(self) -> int:
        """The process id inside."""
        return self._child.pid

    @property
    def log(self) -> Path:
        """The log on the machine."""
        return self._child.log

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._client.status(self._child)

    def wait(self, deadline: Deadline) -> int | None:
        """Wait for the end; None when the deadline passed first."""
        return self._client.wait(self._child, deadline)

    def signal(self, number: int) -> None:
        """Signal its process group."""
        self._client.signal(self._child, number)

    def stop(self, grace: float = 5.0) -> int:
        """End it politely, then by force.

        Raises:
            StartError: It survived SIGKILL.
        """
        for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
            self.signal(number)
            status = self.wait(Deadline.after(seconds))
            if status is not None:
                return status
        raise StartError(f"process {self.name} (pid {self.pid} inside) survived SIGKILL", log=self.log)


class AgentClient:
    """Requests to the agent, and the ends of its processes, over two pipes.

    Args:
        launcher: The program on the machine whose standard input and output reach the agent.
        what: What it launches, for messages.
        log: Where the launcher's standard error goes.
    """

    def __init__(self, launcher: subprocess.Popen[bytes], *, what: str, log: Path) -> None:
        """Start listening; the agent may not be up yet."""
        self._launcher = launcher
        self._what = what
        self._log = log
        self._ids = itertools.count(1)
        self._changed = threading.Condition()
        self._replies: dict[int, dict[str, Any]] = {}
        self._children: dict[int, _Child] = {}
        self._early: dict[int, int] = {}
        self._ready = False
        self._gone = False
        self._write = threading.Lock()
        self._thread = threading.Thread(target=self._listen, name=f"{what}-agent", daemon=True)
        self._thread.start()

    def wait_ready(self, deadline: Deadline) -> None:
        """Wait until the agent answers.

        Raises:
            StartError: The launcher ended, or the deadline passed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._gone, deadline.remaining())
            if self._ready and not self._gone:
                return
        tail = self._log.read_text(errors="replace")[-2000:] if self._log.exists() else ""
        raise StartError(
            f"the sandbox {self._what} did not start",
            # The whole log's end, because the log goes with the sandbox.
            cause=tail.strip() or "its first process did not answer",
        )

    def spawn(
        self,
        argv: Sequence[str],
        *,
        name: str,
        env: Mapping[str, str],
        cwd: str,
        outputs: tuple[str, str],
        log: Path,
    ) -> AgentProcess:
        """Start a program; ``outputs`` are the paths inside of its two output files."""
        number = next(self._ids)
        reply = self._ask(
            {
                "id": number,
                "op": "spawn",
                "argv": list(argv),
                "env": dict(env),
                "cwd": cwd,
                "stdout": outputs[0],
                "stderr": outputs[1],
            }
        )
        if "error" in reply:
            raise StartError(f"cannot start {argv[0]} in the sandbox {self._what}", cause=reply["error"])
        with self._changed:
            child = _Child(name, reply["pid"], log, self._early.pop(reply["pid"], None))
            if child.status is None:
                self._children[child.pid] = child
        return AgentProcess(self, child)

    def usage(self) -> list[Usage]:
        """Return what every process inside has used so far; the agent's own children by their spawn names."""
        reply = self._ask({"id": next(self._ids), "op": "usage"})
        with self._changed:
            names = {pid: child.name for pid, child in self._children.items()}
        return [
            Usage(pid, parent, names.get(pid, name), cpu, rss)
            for pid, parent, name, cpu, rss in reply["usage"]
        ]

    def status(self, child: _Child) -> int | None:
        """Return a child's exit code; a sandbox that is gone counts as SIGKILL."""
        with self._changed:
            if child.status is None and self._gone:
                return -signal.SIGKILL
            return child.status

    def wait(self, child: _Child, deadline: Deadline) -> int | None:
        """Wait for a child's end."""
        with self._changed:
            self._changed.wait_for(lambda: child.status is not None or self._gone, deadline.remaining())
        return self.status(child)

    def signal(self, child: _Child, number: int) -> None:
        """Signal a child's process group, if it still runs."""
        if self.status(child) is None:
            self._send({"op": "signal", "pid": child.pid, "signal": int(number)})

    def hand_over(self, receive: Callable[[int, int], None]) -> None:
        """Let another process hold the agent's pipes; to this one it is then as if the sandbox had ended.

        Args:
            receive: Called with the descriptors of the agent's input and output; when it returns, the
                other process has them.
        """
        stdin, stdout = self._launcher.stdin, self._launcher.stdout
        if stdin is None or stdout is None:
            raise TypeError("the launcher has no pipes")
        receive(stdin.fileno(), stdout.fileno())
        with self._changed:
            self._gone = True
            self._changed.notify_all()
        with self._write:
            stdin.close()

    def end(self, deadline: Deadline) -> None:
        """Ask the agent to end everything, and wait for the launcher; kill it at the deadline."""
        self._send({"op": "end"})
        if self._launcher.stdin is not None:
            with contextlib.suppress(OSError):  # the agent was gone before what we had to say
                self._launcher.stdin.close()
        try:
            self._launcher.wait(timeout=deadline.remaining())
        except subprocess.TimeoutExpired:
            self._launcher.kill()
            self._launcher.wait()
        self._thread.join(timeout=5)
        if self._launcher.stdout is not None:
            self._launcher.stdout.close()

    def _send(self, request: dict[str, Any]) -> bool:
        stdin: IO[bytes] | None = self._launcher.stdin
        if stdin is None or stdin.closed:
            return False
        try:
            with self._write:
                stdin.write(json.dumps(request).encode() + b"\n")
                stdin.flush()
        except (OSError, ValueError):  # ValueError: another thread has closed the pipe
            return False
        return True

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        number = request["id"]
        sent = self._send(request)
        until = time.monotonic() + REPLY_SECONDS
        with self._changed:
            if sent:
                self._changed.wait_for(
                    lambda: number in self._replies or self._gone, max(0.0, until - time.monotonic())
                )
            if number in self._replies:
                return self._replies.pop(number)
        raise StartError(f"the sandbox {self._what} does not answer", cause="it has ended", log=self._log)

    def _listen(self) -> None:
        stdout = self._launcher.stdout
        if stdout is None:
            raise TypeError("the launcher has no pipe for its standard output")
        for line in stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # a launcher's own words, not the agent's
            with self._changed:
                self._note(message)
                self._changed.notify_all()
        with self._changed:
            handed_over, self._gone = self._gone, True
            self._changed.notify_all()
        if handed_over:  # nobody here will call `end`
            stdout.close()
            self._launcher.wait()

    def _note(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self._ready = True
        elif "exit" in message:
            child = self._children.pop(message["exit"], None)
            if child is None:
                self._early[message["exit"]] = message["status"]
            else:
                child.status = message["status"]
        elif "id" in message:
            self._replies[message["id"]] = message
