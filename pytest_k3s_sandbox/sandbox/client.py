"""The side of pytest: talks to the agent that is process 1 of a sandbox."""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import StartError
from pytest_k3s_sandbox.sandbox import messages
from pytest_k3s_sandbox.sandbox.agent import LINE_BYTES
from pytest_k3s_sandbox.sandbox.base import Usage
from pytest_k3s_sandbox.sandbox.inside import InsidePath
from pytest_k3s_sandbox.sandbox.messages import Exit, Message, ProtocolError, Ready, Refused, Spawned, Used
from pytest_k3s_sandbox.support import bounded, forks

REPLY_SECONDS = 30.0
GRACE_SECONDS = 4.0
"""How long process 1 may take to end everything inside: two seconds, and more on a busy machine."""
ENDED = "its first process has ended"
HANDED_OVER = "another process owns it"
PIECES = 16
"""The most pieces that a hand-over reads; the inside can send any number."""


@dataclass
class _Child:
    name: str
    pid: int
    log: InsidePath
    status: int | None = None


@dataclass
class _Asked:
    """A request and its answer."""

    child: _Child | None = None
    """The process that it starts, if it starts one."""
    answer: Message | None = None


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
    def log(self) -> InsidePath:
        """The log on the machine."""
        return self._child.log

    @property
    def lost(self) -> str | None:
        """Why its state is unknown; None while its sandbox answers."""
        return self._client.lost(self._child)

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
        """End it by SIGTERM, then by SIGKILL.

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
    """Requests to the agent, and the ends of its processes, over a socket.

    The agent's messages are not trusted (:mod:`.messages`). When the socket ends, for any reason, a thread
    ends the sandbox.

    Args:
        launcher: The program on the machine that becomes, or starts, process 1.
        channel: Our end of the socket; the other end is process 1's standard input.
        what: The name of the sandbox, for messages.
        log: Where the launcher's output goes.
        reason: Asked when process 1 has ended, or a process was killed: why, if that is known.
    """

    def __init__(
        self,
        launcher: subprocess.Popen[bytes],
        channel: socket.socket,
        *,
        what: str,
        log: Path,
        reason: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Start listening; the agent may not be up yet."""
        self._launcher = launcher
        self._channel = channel
        self._what = what
        self._log = log
        self._reason = reason
        self._owner = forks.Owner()
        self._ids = itertools.count(1)
        self._changed = threading.Condition()
        self._asked: dict[int, _Asked] = {}
        self._children: dict[int, _Child] = {}
        self._ready = False
        self._gone: str | None = None  # why, once it is
        self._write = threading.Lock()
        self._left = threading.Event()  # when the channel is closed
        self._wake, self._waker = socket.socketpair()
        # An agent that does not read must not keep us for ever (socket(7)).
        timeout = struct.pack("ll", int(REPLY_SECONDS), 0)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        forks.watch(self)
        self._thread = threading.Thread(target=self._listen, name=f"{what}-agent", daemon=True)
        self._thread.start()

    def forked(self) -> None:
        """Close the channel in a forked process: the sandbox must not outlive its owner by this copy."""
        for each in (self._channel, self._wake, self._waker):
            each.close()

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
        # The whole log's end, because the log goes with the sandbox.
        said = [why for why in (tail.strip(), self._gone) if why and why != ENDED]
        raise StartError(
            f"the sandbox {self._what} did not start",
            cause="\n".join(said) or self._gone or "its first process did not answer",
        )

    def spawn(
        self,
        argv: Sequence[str],
        *,
        name: str,
        env: Mapping[str, str],
        cwd: str,
        outputs: tuple[str, str],
        log: InsidePath,
    ) -> AgentProcess:
        """Start a program; ``outputs`` are the paths inside of its two output files."""
        request = {"op": "spawn", "argv": list(argv), "env": dict(env), "cwd": cwd}
        child = _Child(name, 0, log)
        answer = self._ask({**request, "stdout": outputs[0], "stderr": outputs[1]}, child)
        if isinstance(answer, Refused):
            raise StartError(f"cannot start {argv[0]} in the sandbox {self._what}", cause=answer.cause)
        return AgentProcess(self, child)

    def usage(self) -> list[Usage]:
        """Return what every process inside has used so far; the agent's own children by their spawn names."""
        answer = self._ask({"op": "usage"})
        rows = answer.rows if isinstance(answer, Used) else ()
        with self._changed:
            names = {pid: child.name for pid, child in self._children.items()}
        return [replace(row, name=names.get(row.pid, row.name)) for row in rows]

    def status(self, child: _Child) -> int | None:
        """Return a child's exit code; a sandbox that is gone counts as SIGKILL.

        In a forked process it is the code that was known at the fork.
        """
        if child.status is None and self._gone:
            return -signal.SIGKILL
        return child.status

    def lost(self, child: _Child) -> str | None:
        """Return why a child's exit code is not known, or means nothing.

        Where memory runs out, the kernel kills one process a moment before the whole sandbox is ended for it.
        """
        if child.status is None:
            return self._gone
        return self._reason() if child.status == -signal.SIGKILL else None

    def wait(self, child: _Child, deadline: Deadline) -> int | None:
        """Wait for a child's end."""
        self._owner.check(f"waiting for {child.name} in the sandbox {self._what}")
        with self._changed:
            self._changed.wait_for(lambda: child.status is not None or self._gone, deadline.remaining())
        return self.status(child)

    def signal(self, child: _Child, number: int) -> None:
        """Signal a child's process group, if it still runs."""
        self._owner.check(f"a signal for {child.name} in the sandbox {self._what}")
        if self.status(child) is None:
            self._send({"op": "signal", "pid": child.pid, "signal": int(number)})

    def hand_over(self, receive: Callable[[int], None]) -> None:
        """Give the channel to another process; for this one the sandbox has then ended.

        The ends of processes that have come by then are taken in.

        Args:
            receive: Called with the channel's descriptor; when it returns, the other process has it.
        """
        receive(self._channel.fileno())
        with contextlib.suppress(OSError):  # the thread has come to its end meanwhile
            self._waker.send(b"x")  # otherwise it would read messages for the other process
        self._left.wait(5)
        self._end_with(HANDED_OVER)  # the thread has said so, unless it hangs

    def end_because(self, why: str) -> None:
        """Mark the sandbox as ended, with a reason for errors, and begin to end it."""
        self._end_with(why)
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def end(self, deadline: Deadline) -> None:
        """Have the agent end everything, and wait for the launcher; kill it at the deadline."""
        self._owner.check(f"ending the sandbox {self._what}")
        forks.forget(self)
        with contextlib.suppress(OSError):  # the agent was gone before
            self._channel.shutdown(socket.SHUT_WR)
        bounded.wait(self._launcher, deadline.remaining())
        self._thread.join(timeout=5)

    def _send(self, request: dict[str, Any]) -> bool:
        line = json.dumps(request).encode() + b"\n"
        if len(line) > LINE_BYTES:
            raise StartError(
                f"a request to the sandbox {self._what}",
                cause=f"its arguments and variables have {len(line)} bytes, the limit is {LINE_BYTES}",
                remedy="pass them in a file",
            )
        try:
            with self._write:
                self._channel.sendall(line)
        except BlockingIOError:  # part of the line may have been sent, so that nothing can follow
            self._end_with(f"its first process has not read a request for {REPLY_SECONDS:g} s")
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)
            return False
        except OSError:
            return False
        return True

    def _ask(self, request: dict[str, Any], child: _Child | None = None) -> Message:
        self._owner.check(f"the child of a fork cannot use its parent's sandbox {self._what} in this way")
        asked = _Asked(child)
        with self._changed:
            number = next(self._ids)
            if self._gone is None:
                self._asked[number] = asked
        sent = self._gone is None and self._send({"id": number, **request})
        with self._changed:
            if sent:
                self._changed.wait_for(lambda: asked.answer is not None or self._gone, REPLY_SECONDS)
            if asked.answer is not None:
                return asked.answer
        raise StartError(
            f"the sandbox {self._what} does not answer",
            cause=self._gone or (f"no answer for {REPLY_SECONDS:g} s" if sent else ENDED),
            log=self._log,
        )

    def _listen(self) -> None:
        """Take messages until the channel ends; then the sandbox ends, too."""
        why = "the thread that listens to its first process broke"
        try:
            why = self._take_messages()
        except ProtocolError as error:
            why = f"its first process does not keep to the protocol: {error}"
        except ConnectionError:
            why = ENDED
        except OSError as error:
            why = f"the channel to its first process broke: {error.strerror}"
        finally:
            if why == ENDED and self._gone is None:
                why = self._reason() or why
            self._end_with(why)
            if why != HANDED_OVER:
                with contextlib.suppress(OSError):  # a launcher that has closed its end needs no word
                    self._channel.shutdown(socket.SHUT_RDWR)
            forks.forget(self)
            self.forked()
            self._left.set()
            self._take_in_launcher(kill=why != HANDED_OVER)

    def _take_messages(self) -> str:
        """Read until the end; return the reason for it."""
        lines = messages.Lines()
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            if self._wake.fileno() in {fd for fd, _ in poll.poll()}:
                self._take_rest(lines)
                return HANDED_OVER
            with contextlib.suppress(BlockingIOError):  # the process that takes over has read it
                piece = self._channel.recv(65536, socket.MSG_DONTWAIT)
                if not piece:
                    return ENDED
                self._take(lines, piece)

    def _take_rest(self, lines: messages.Lines) -> None:
        """Read the messages from before a hand-over; the other process may have read parts of them."""
        with contextlib.suppress(OSError, ProtocolError):  # the other process ends the sandbox
            for _ in range(PIECES):
                self._take(lines, self._channel.recv(65536, socket.MSG_DONTWAIT))

    def _take(self, lines: messages.Lines, piece: bytes) -> None:
        for line in lines.feed(piece):
            message = messages.parse(line)
            with self._changed:
                self._note(message)
                self._changed.notify_all()

    def _end_with(self, why: str) -> None:
        with self._changed:
            self._gone = self._gone or why
            self._changed.notify_all()

    def _take_in_launcher(self, *, kill: bool) -> None:
        """Wait for the launcher, with which everything inside ends, however process 1 takes it."""
        if kill:
            bounded.wait(self._launcher, GRACE_SECONDS)
        else:
            self._launcher.wait()

    def _note(self, message: Message) -> None:
        """Take a message in.

        Raises:
            ProtocolError: Nothing has led to it.
        """
        if isinstance(message, Ready):
            if self._ready:
                raise ProtocolError("it begins a second time")
            self._ready = True
        elif isinstance(message, Exit):
            child = self._children.pop(message.pid, None)
            if child is None:
                raise ProtocolError(f"it tells the end of process {message.pid}, which it had not started")
            child.status = message.status
        else:
            asked = self._asked.pop(message.number, None)
            if asked is None or isinstance(message, Used) == (asked.child is not None):
                raise ProtocolError(f"it answers request {message.number}, which does not wait for that")
            if isinstance(message, Spawned) and asked.child is not None:
                if message.pid in self._children:
                    raise ProtocolError(f"it starts process {message.pid} a second time")
                asked.child.pid = message.pid
                self._children[message.pid] = asked.child
            asked.answer = message
