"""The agent's client: its half of the protocol, and what it does when the agent is gone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ConfigError, StartError
from pytest_k3s_sandbox.sandbox import agent, client
from pytest_k3s_sandbox.sandbox.client import AgentClient, AgentProcess
from pytest_k3s_sandbox.sandbox.inside import InsidePath
from pytest_k3s_sandbox.sandbox.started import agent_argv
from support.waiting import until

ENV = {"PATH": "/usr/bin:/bin"}
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace needs root")


# The client, with an agent that is process 1 of a pid namespace.


@pytest.fixture
def real(tmp_path: Path) -> Iterator[AgentClient]:
    namespaces = ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child=KILL"]
    made = launched([*namespaces, *agent_argv()], tmp_path / "launch.log")
    made.wait_ready(Deadline.after(10))
    yield made
    made.end(Deadline.after(10))
    assert made._launcher.poll() is not None


def start(of: AgentClient, argv: list[str], log: Path) -> AgentProcess:
    return of.spawn(argv, name=argv[0], env=ENV, cwd="/", outputs=(str(log), str(log)), log=InsidePath(log))


@root_only
def test_a_process_tells_its_end(real: AgentClient, tmp_path: Path) -> None:
    process = start(real, ["sh", "-c", "exit 4"], tmp_path / "log")
    assert process.wait(Deadline.after(10)) == 4
    assert process.poll() == 4
    assert process.pid > 1


@root_only
def test_a_process_that_the_kernel_killed_for_a_limit_is_lost_by_it(
    real: AgentClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = start(real, ["sh", "-c", "kill -KILL $$"], tmp_path / "log")
    ended = start(real, ["sh", "-c", "exit 4"], tmp_path / "other")
    assert (killed.wait(Deadline.after(10)), ended.wait(Deadline.after(10))) == (-9, 4)
    assert (killed.lost, ended.lost) == (None, None)
    monkeypatch.setattr(real, "_reason", lambda: "it took more than its memory")
    assert (killed.lost, ended.lost) == ("it took more than its memory", None)


@root_only
def test_stop_is_polite_first(real: AgentClient, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(real, ["sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done"], log)
    until(log.read_text)
    assert process.poll() is None
    assert process.stop() == 9


@root_only
def test_an_end_that_comes_before_the_answer_is_handled_is_not_lost(
    real: AgentClient, tmp_path: Path
) -> None:
    """The listener may hear of the exit before the spawning thread has taken its answer."""
    processes = [start(real, ["true"], tmp_path / "log") for _ in range(50)]
    assert [process.wait(Deadline.after(10)) for process in processes] == [0] * 50
    assert real._children == {}
    assert real._asked == {}


@root_only
def test_the_end_ends_everything_inside(tmp_path: Path, real: AgentClient) -> None:
    log = tmp_path / "log"
    process = start(real, ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"], log)
    until(log.read_text)
    began = time.monotonic()
    real.end(Deadline.after(10))
    assert time.monotonic() - began < 5
    assert process.poll() == -signal.SIGKILL
    with pytest.raises(StartError, match="does not answer"):
        start(real, ["true"], log)


@root_only
def test_the_end_of_the_input_is_the_end(real: AgentClient, tmp_path: Path) -> None:
    start(real, ["sleep", "1000"], tmp_path / "log")
    real._channel.shutdown(socket.SHUT_WR)
    assert real._launcher.wait(5) is not None


@root_only
def test_waiting_threads_wake_up_when_the_sandbox_is_gone(real: AgentClient, tmp_path: Path) -> None:
    process = start(real, ["sleep", "1000"], tmp_path / "log")
    ends: list[int | None] = []
    thread = threading.Thread(target=lambda: ends.append(process.wait(Deadline.after(30))))
    thread.start()
    real._launcher.kill()
    thread.join(5)
    assert ends == [-signal.SIGKILL]


# The client, with launchers in place of agents.


def launched(argv: list[str], log: Path) -> AgentClient:
    ours, theirs = socket.socketpair()
    with theirs, log.open("wb") as out:
        process = subprocess.Popen(argv, stdin=theirs.fileno(), stdout=out, stderr=out)
    return AgentClient(process, ours, what="test", log=log)


def speaking(word: bytes, log: Path, then: bytes = b"") -> AgentClient:
    """Launch what says a word in the agent's place, and more after the first request that it gets.

    Args:
        word: What it says first.
        log: Its log.
        then: What it says later, before it sleeps.
    """
    code = (
        "import os, sys, time\n"
        "def say(data):\n"
        "    while data: data = data[os.write(0, data):]\n"
        "say(sys.argv[1].encode())\n"
        "os.read(0, 9)\n"
        "say(open(sys.argv[2], 'rb').read())\n"
        "time.sleep(1000)\n"
    )
    more = log.with_name("more")
    more.write_bytes(then)
    return launched([sys.executable, "-I", "-S", "-c", code, word.decode(), str(more)], log)


READY = b'{"ready": 1}\n'


def test_a_launcher_that_fails_is_quoted(tmp_path: Path) -> None:
    made = launched(["sh", "-c", "echo no such runtime >&2; exit 1"], tmp_path / "log")
    with pytest.raises(StartError, match="the sandbox test did not start: no such runtime"):
        made.wait_ready(Deadline.after(10))
    made.end(Deadline.after(1))


def test_a_launcher_that_says_nothing_is_given_up_and_killed(tmp_path: Path) -> None:
    made = launched(["sleep", "1000"], tmp_path / "log")
    with pytest.raises(StartError, match="its first process did not answer"):
        made.wait_ready(Deadline.after(0.2))
    made.end(Deadline.after(0.2))
    assert made._launcher.returncode == -signal.SIGKILL


def test_a_launchers_own_words_go_to_its_log(tmp_path: Path) -> None:
    made = launched(
        ["sh", "-c", """echo hello; echo '{"ready": 1}' >&0; cat > /dev/null"""], tmp_path / "log"
    )
    made.wait_ready(Deadline.after(10))
    made.end(Deadline.after(10))
    assert (tmp_path / "log").read_text() == "hello\n"


def test_an_agent_that_does_not_answer_is_an_error_not_a_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "REPLY_SECONDS", 0.2)
    made = speaking(READY, tmp_path / "log")
    made.wait_ready(Deadline.after(10))
    with pytest.raises(StartError, match=r"the sandbox test does not answer: no answer for 0\.2 s"):
        start(made, ["true"], tmp_path / "out")
    made.end(Deadline.after(0.2))


def test_an_agent_that_does_not_read_is_an_error_not_a_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "REPLY_SECONDS", 1)
    monkeypatch.setattr(client, "GRACE_SECONDS", 0.2)
    made = speaking(READY, tmp_path / "log", then=b"")
    made.wait_ready(Deadline.after(10))
    with pytest.raises(StartError, match="has not read a request for 1 s"):
        made.spawn(
            ["true"], name="x", env={"A": "x" * 10**6}, cwd="/", outputs=("/", "/"), log=InsidePath(tmp_path)
        )
    assert made._launcher.wait(5) == -signal.SIGKILL
    made.end(Deadline.after(10))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (b"3\n", r"a line is not a message: '3'"),
        (b"[]\n", r"a line is not a message: '\[\]'"),
        (b'{"exit": 5}\n', "a line is not a message"),
        (b"\x1b[2J\n", r"a line is not JSON: '\\x1b\[2J'"),
        (b'{"exit": 5, "status": 0}\n', "it tells the end of process 5, which it had not started"),
        (b'{"id": 7, "pid": 5}\n', "it answers request 7, which does not wait for that"),
        (READY, "it begins a second time"),
        (b"x" * 5_000_000, f"a line is longer than {agent.LINE_BYTES} bytes"),
    ],
    ids=range(8),
)
def test_what_is_no_message_ends_the_sandbox_and_the_error_says_why(
    tmp_path: Path, words: bytes, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on all the same, as an agent may that a program inside has taken over."""
    monkeypatch.setattr(client, "GRACE_SECONDS", 0.2)
    made = speaking(READY, tmp_path / "log", then=words)
    made.wait_ready(Deadline.after(10))
    with pytest.raises(StartError, match=f"the sandbox test does not answer: .*{why}"):
        start(made, ["true"], tmp_path / "out")
    made._launcher.wait(5)
    with pytest.raises(StartError, match=why):
        made.usage()
    made.end(Deadline.after(10))


class LateListener(AgentClient):
    """A client whose thread gets no time on a busy machine until it is told to go on."""

    go_on = threading.Event()

    def _listen(self) -> None:
        self.go_on.wait(20)
        super()._listen()


def test_an_end_that_has_come_before_a_hand_over_is_known_after_it(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    launcher = subprocess.Popen(["sleep", "100"])
    with theirs:
        found = LateListener(launcher, ours, what="test", log=tmp_path / "log")
        child = client._Child("it", 5, InsidePath(tmp_path / "it.log"))
        other = client._Child("other", 6, InsidePath(tmp_path / "other.log"))
        found._children.update({5: child, 6: other})

        def receive(_channel: int) -> None:
            theirs.sendall(READY + b'{"exit": 5, "status": 3}\n{"exit": 6, ')
            threading.Timer(0.3, found.go_on.set).start()

        try:
            found.hand_over(receive)
            assert found.status(child) == 3
            assert (found.status(other), found.lost(other)) == (-signal.SIGKILL, client.HANDED_OVER)
            assert launcher.poll() is None
        finally:
            launcher.kill()
            found._thread.join(5)


def test_the_child_of_a_fork_is_told_that_the_sandbox_is_its_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = speaking(READY, tmp_path / "log")
    try:
        found.wait_ready(Deadline.after(10))
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: 7)
            with pytest.raises(
                ConfigError,
                match=r"the child of a fork cannot use its parent's sandbox test in this way: "
                r"this process \(7\) was forked from its owner, process \d+\nRemedy: do it in the process",
            ):
                found.usage()
    finally:
        found.end(Deadline.after(0))
