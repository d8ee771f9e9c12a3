"""The agent: its half of the protocol, and what it does when its client is gone."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_k3s_sandbox.sandbox import agent
from pytest_k3s_sandbox.sandbox.started import agent_argv
from support.waiting import until

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
