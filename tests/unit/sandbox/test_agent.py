"""The agent and its client: the protocol between them, and what each does when the other is gone."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ConfigError, StartError
from pytest_k3s_sandbox.sandbox import agent, client
from pytest_k3s_sandbox.sandbox.client import AgentClient, AgentProcess
from pytest_k3s_sandbox.sandbox.inside import InsidePath
from pytest_k3s_sandbox.sandbox.started import agent_argv

ENV = {"PATH": "/usr/bin:/bin"}
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace needs root")


class Wires:
    """An agent in this process, and the other end of its channel."""

    def __init__(self) -> None:
        """Make the channel."""
        self.ours, self._theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.agent = agent.Agent(self._theirs.fileno())

    def answers(self) -> list[dict[str, Any]]:
        """Return what the agent has said since the last time."""
        try:
            return [json.loads(line) for line in self.ours.recv(65536).splitlines()]
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Close both ends."""
        self.ours.close()
        self._theirs.close()


@pytest.fixture
def wires() -> Iterator[Wires]:
    made = Wires()
    yield made
    made.close()


def spawn(number: int, argv: list[str], out: Path) -> dict[str, object]:
    return {
        "id": number,
        "op": "spawn",
        "argv": argv,
        "env": ENV,
        "cwd": "/",
        "stdout": str(out),
        "stderr": str(out),
    }


def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    deadline = Deadline.after(seconds)
    while not condition():
        assert not deadline.expired
        time.sleep(0.01)


def test_the_agent_refuses_to_be_anything_but_process_1() -> None:
    """Its last act is kill(-1), which outside a pid namespace of its own would end the machine."""
    done = subprocess.run(agent_argv(), input="", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "the agent runs only as process 1 of a sandbox\n"


def test_the_agents_file_imports_nothing_but_the_standard_library() -> None:
    code = (
        "import sys, runpy; runpy.run_path(sys.argv[1], run_name='agent'); "
        "known = sys.stdlib_module_names | {'__main__'}; "
        "print([name for name in sys.modules if name.partition('.')[0] not in known])"
    )
    argv = [sys.executable, "-I", "-S", "-c", code, str(Path(agent.__file__))]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_spawn_is_answered_with_a_pid_and_later_its_end(wires: Wires, tmp_path: Path) -> None:
    wires.agent._handle(spawn(7, ["sh", "-c", "echo out; echo err >&2; exit 3"], tmp_path / "log"))
    (answer,) = wires.answers()
    assert answer["id"] == 7
    heard: list[dict[str, Any]] = []

    def reaped() -> bool:
        wires.agent._reap()
        heard.extend(wires.answers())
        return bool(heard)

    until(reaped)
    assert heard == [{"exit": answer["pid"], "status": 3}]
    assert (tmp_path / "log").read_text() == "out\nerr\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"argv": ["/no/such/program"]}, "No such file or directory: '/no/such/program'"),
        ({"argv": ["/etc/passwd"]}, "Permission denied"),
        ({"argv": ["nul\0byte"]}, "null byte"),
        ({"cwd": "/no/such/folder"}, "No such file or directory: '/no/such/folder'"),
        ({"stdout": "/no/such/folder/log"}, "No such file or directory: '/no/such/folder/log'"),
    ],
)
def test_what_cannot_be_spawned_is_answered_with_the_cause(
    wires: Wires, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    wires.agent._handle({**spawn(1, ["true"], tmp_path / "log"), **change})
    (answer,) = wires.answers()
    assert words in answer["error"]
    assert answer["id"] == 1


def test_a_signal_reaches_the_whole_group_and_no_stranger(wires: Wires, tmp_path: Path) -> None:
    wires.agent._handle(spawn(1, ["sh", "-c", "sleep 1000 & echo $!; wait"], tmp_path / "log"))
    pid = wires.answers()[0]["pid"]
    until(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text())
    grandchild = int((tmp_path / "log").read_text())
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as stranger:
        wires.agent._handle({"op": "signal", "pid": stranger.pid, "signal": signal.SIGKILL})
        wires.agent._handle({"op": "signal", "pid": pid, "signal": signal.SIGKILL})
        until(lambda: "State:\tZ" in status(grandchild) or not status(grandchild))
        assert stranger.poll() is None
        stranger.kill()
    ends: list[dict[str, Any]] = []

    def reaped() -> bool:
        wires.agent._reap()
        ends.extend(wires.answers())
        return bool(ends)

    until(reaped)
    assert ends == [{"exit": pid, "status": -signal.SIGKILL}]


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""


SERVE = (
    "import sys, runpy; agent = runpy.run_path(sys.argv[1], run_name='agent')['Agent']; "
    "agent._end_all = lambda self: print('END', file=sys.stderr); agent(0).serve()"
)
"""As the agent's own program, but in a pid namespace of others it must not end everything."""


@contextlib.contextmanager
def serving() -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    ours, theirs = socket.socketpair()
    argv = [sys.executable, "-I", "-S", "-c", SERVE, str(Path(agent.__file__))]
    with ours, subprocess.Popen(argv, stdin=theirs.fileno(), stderr=subprocess.PIPE, text=True) as process:
        theirs.close()
        yield process, ours
        ours.close()


def last_words(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    assert process.wait(10) == 0
    return process.stderr.read()


def test_requests_may_arrive_in_pieces(tmp_path: Path) -> None:
    with serving() as (process, ours), ours.makefile("rb") as lines:
        assert "ready" in json.loads(lines.readline())
        data = b"".join(json.dumps(spawn(n, ["true"], tmp_path / f"{n}")).encode() + b"\n" for n in (1, 2))
        for at in range(0, len(data), 37):
            ours.sendall(data[at : at + 37])
            time.sleep(0.002)
        heard = [json.loads(lines.readline()) for _ in range(4)]
        assert {answer["id"] for answer in heard if "id" in answer} == {1, 2}
        assert [answer["status"] for answer in heard if "exit" in answer] == [0, 0]
        ours.shutdown(socket.SHUT_WR)
        assert last_words(process) == "END\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"hello", "a line is not JSON"),
        (b"\xff", "a line is not JSON"),
        (b"[" * 200_000, "a line is not JSON"),
        (b"7", "a line is not a request"),
        (b"{}", "a line is not a request"),
        (b'{"op": ["usage"], "id": 1}', "a line is not a request"),
        (b'{"op": "usage"}', "a line is not a request"),
        (b'{"op": "usage", "id": 1, "more": 1}', "a line is not a request"),
        (b'{"op": "usage", "id": true}', "a value of a request has the wrong type"),
        (b'{"op": "signal", "pid": 1, "signal": 0}', "the signal 0 does not exist"),
        (b'{"op": "signal", "pid": 1, "signal": 65}', "the signal 65 does not exist"),
        (
            json.dumps(
                {
                    **dict.fromkeys(("cwd", "stdout", "stderr"), "/"),
                    "id": 1,
                    "op": "spawn",
                    "argv": [],
                    "env": {},
                }
            ).encode(),
            "not made of texts",
        ),
        (
            json.dumps(
                {
                    **dict.fromkeys(("cwd", "stdout", "stderr"), "/"),
                    "id": 1,
                    "op": "spawn",
                    "argv": ["a", 1],
                    "env": {},
                }
            ).encode(),
            "not made of texts",
        ),
        (
            json.dumps(
                {
                    **dict.fromkeys(("cwd", "stdout", "stderr"), "/"),
                    "id": 1,
                    "op": "spawn",
                    "argv": ["a"],
                    "env": {"a": None},
                }
            ).encode(),
            "not made of texts",
        ),
        (b"x" * (agent.LINE_BYTES + 2), f"a line is longer than {agent.LINE_BYTES} bytes"),
    ],
    ids=range(15),
)
def test_what_is_no_request_is_the_end_and_its_log_says_why(line: bytes, words: str) -> None:
    with serving() as (process, ours):
        with contextlib.suppress(OSError):
            ours.sendall(line + b"\n")
        said = last_words(process)
    assert words in said
    assert said.endswith("\nEND\n")
    assert len(said) < 1000


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: Path(path).symlink_to("/etc/hostname"), os.mkdir])
def test_a_log_that_is_not_a_file_is_refused_at_once(
    wires: Wires, tmp_path: Path, make: Callable[[str], None]
) -> None:
    make(str(tmp_path / "log"))
    wires.agent._handle(spawn(1, ["true"], tmp_path / "log"))
    (answer,) = wires.answers()
    assert answer.keys() == {"id", "error"}


def test_a_second_log_that_is_no_file_leaves_no_descriptor(wires: Wires, tmp_path: Path) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    wires.agent._handle({**spawn(1, ["true"], tmp_path / "log"), "stderr": "/no/such/folder/log"})
    assert sorted(Path("/proc/self/fd").iterdir()) == before


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


def test_usage_says_what_every_process_has_used(wires: Wires) -> None:
    wires.agent._handle({"id": 5, "op": "usage"})
    (answer,) = wires.answers()
    assert answer["id"] == 5
    rows = {row[0]: row for row in answer["usage"]}
    _pid, parent, name, cpu, rss, waited = rows[os.getpid()]
    assert (parent, name) == (os.getppid(), Path("/proc/self/comm").read_text().strip())
    assert 0 < cpu <= time.process_time() + 0.1
    assert 2**20 < rss < 2**33
    of_children = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert waited == pytest.approx(of_children.ru_utime + of_children.ru_stime, abs=0.1)


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
