"""The channel to process 1, attacked by root inside: what does not reach it, and what taking it over gives.

What a program inside with CAP_SYS_PTRACE can do is what process 1 can do: tell ends and figures of its own
making, or end the sandbox. It gets no further, and errors say what broke.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import StartError
from pytest_k3s_sandbox.sandbox import agent, client, reaper
from pytest_k3s_sandbox.sandbox.base import STATE_DIR
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.sandbox.host import HostSandbox
from pytest_k3s_sandbox.sandbox.started import StartedSandbox
from pytest_k3s_sandbox.toolchain import Toolchain

pytestmark = [pytest.mark.k3s_requires("root"), pytest.mark.timeout(120)]

OPEN_AGAIN = """
import json, os, sys
forged = json.dumps({"exit": int(sys.argv[1]), "status": 0}).encode() + b"\\n"
for name in os.listdir("/proc/1/fd"):
    target = os.readlink(f"/proc/1/fd/{name}")
    for how in (os.O_WRONLY, os.O_RDWR):
        try:
            fd = os.open(f"/proc/1/fd/{name}", how | os.O_NONBLOCK)
        except OSError as error:
            print(name, target, error.errno)
        else:
            print(name, target, "opened")
            try:
                os.write(fd, forged)
            except OSError as error:
                print(error)
"""

TAKE_OVER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
pidfd = libc.syscall(434, 1, 0)          # pidfd_open(2)
fd = libc.syscall(438, pidfd, 0, 0)      # pidfd_getfd(2)
if fd < 0:
    sys.exit(f"errno {ctypes.get_errno()}")
word, times = bytes.fromhex(sys.argv[1]), int(sys.argv[2])
try:
    for _ in range(times):
        data = word
        while data:
            data = data[os.write(fd, data):]
except OSError:
    pass
"""
"""Says words on the channel of process 1, which root can get without a trace of it."""

PROTECTED = """
import ctypes, runpy, sys
runpy.run_path(sys.argv[1], run_name="agent")["protect"](sys.argv[2:])
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""
"""Does what process 1 does at its start, and prints what prctl(2) with PR_GET_DUMPABLE gives."""
DUMPABLE = "import ctypes; print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
NO_RIGHTS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]


@pytest.fixture(params=["host", pytest.param("gvisor", marks=pytest.mark.k3s_requires("gvisor"))])
def sandbox(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StartedSandbox]:
    """Give a sandbox that may be ended; nothing is left of it."""
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(tmp_path / "home"))
    made = HostSandbox() if request.param == "host" else GvisorSandbox(Toolchain().get("runsc").path)
    with made:
        yield made
    assert [line for line in reaper.leftovers() if made.workdir.name in line] == []


def attack(sandbox: StartedSandbox, code: str, *words: str) -> str:
    """Run a program of an attacker as root inside; by another way than the agent, which may not answer."""
    done = sandbox.run([sys.executable, "-I", "-S", "-c", code, *words], check=False)
    return done.stdout + done.stderr


def test_no_descriptor_of_process_1_leads_to_the_channel(sandbox: StartedSandbox) -> None:
    """``echo ... > /proc/1/fd/1`` forged ends and output when the channel was a pair of pipes."""
    sleeper = sandbox.spawn(["sleep", "1000"], name="sleeper")
    said = attack(sandbox, OPEN_AGAIN, str(sleeper.pid))
    # socket(7): "No such device or address".
    assert [line.split()[2] for line in said.splitlines() if line.startswith("0 ")] == ["6", "6"]
    assert sandbox.run(["echo", "still here"]).stdout == "still here\n"
    assert sleeper.poll() is None
    assert sleeper.stop() == -signal.SIGTERM


def test_a_program_without_the_right_to_trace_cannot_look_into_process_1(sandbox: StartedSandbox) -> None:
    for file in ("environ", "fd/0", "mem", "root/etc/passwd"):
        done = sandbox.run([*NO_RIGHTS, "cat", f"/proc/1/{file}"], check=False)
        assert done.returncode == 1, file
        assert "Permission denied" in done.stderr, file
    # Its capabilities alone would keep it out; the flag is the second reason, and asked for by itself.
    how = [agent.BY_GROUP] if sandbox.kind == "gvisor" else []
    assert attack(sandbox, PROTECTED, agent.__file__, *how) == "0\n"
    # Programs that it starts are as they always were.
    assert sandbox.run([sys.executable, "-I", "-S", "-c", DUMPABLE]).stdout == "1\n"


def test_who_takes_process_1_over_can_tell_a_false_end_and_no_more(sandbox: StartedSandbox) -> None:
    sleeper = sandbox.spawn(["sleep", "1000"], name="sleeper")
    forged = json.dumps({"exit": sleeper.pid, "status": 0}).encode() + b"\n"
    assert attack(sandbox, TAKE_OVER, forged.hex(), "1") == ""
    assert sleeper.wait(Deadline.after(5)) == 0
    assert sandbox.run(["echo", "still here"]).stdout == "still here\n"


@pytest.mark.parametrize(
    ("word", "times", "why"),
    [
        (b"[]\n", 1, "a line is not a message"),
        (b"\x1b]0;owned\x07\n", 1, "a line is not JSON"),
        (b'{"exit": 99999, "status": 0}\n', 1, "the end of process 99999, which it had not started"),
        (b'{"id": 9007199254740991, "usage": []}\n', 1, "it answers request 9007199254740991"),
        (b"x" * 1024, 1 << 20, f"a line is longer than {agent.LINE_BYTES} bytes"),
    ],
    ids=["json", "garbage", "exit", "answer", "endless"],
)
def test_what_is_no_message_ends_the_sandbox_and_is_named(
    sandbox: StartedSandbox, word: bytes, times: int, why: str
) -> None:
    """Each of these ended the listening thread, or filled memory, and the sandbox went on."""
    sleeper = sandbox.spawn(["sleep", "1000"], name="sleeper")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(StartError):  # it may be over before the answer
        sandbox.spawn([sys.executable, "-I", "-S", "-c", TAKE_OVER, word.hex(), str(times)], name="attack")
    assert sleeper.wait(Deadline.after(20)) == -signal.SIGKILL
    with pytest.raises(StartError) as caught:
        sandbox.run(["true"])
    assert why in str(caught.value)
    assert caught.value.log is not None
    assert caught.value.log.name == "sandbox.log"
    assert str(caught.value).replace("\n", "").isprintable()
    # kibibytes, getrusage(2); a few copies of the longest line
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000
    launcher = sandbox._client
    assert launcher is not None
    assert launcher._launcher.wait(client.GRACE_SECONDS + 5) is not None  # with it, everything inside
    sandbox.close()


@pytest.mark.parametrize(
    "make", [f"mkfifo {STATE_DIR}/logs/next.log", f"ln -s /dev/full {STATE_DIR}/logs/next.log"]
)
def test_a_log_that_is_no_file_does_not_stop_process_1(sandbox: StartedSandbox, make: str) -> None:
    """Process 1 waited for a reader of the FIFO for the rest of the sandbox's life."""
    sandbox.run(["sh", "-c", make])
    began = time.monotonic()
    with pytest.raises(StartError, match=r"cannot start true in the sandbox"):
        sandbox.spawn(["true"], name="next")
    assert time.monotonic() - began < 5
    assert sandbox.run(["echo", "still here"]).stdout == "still here\n"


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_process_1_that_was_stopped_or_killed_is_an_error_and_not_a_wait(
    sandbox: StartedSandbox, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux keeps both from process 1 of a pid namespace (pid_namespaces(7))."""
    monkeypatch.setattr(client, "REPLY_SECONDS", 1.0)
    sandbox.spawn(["sh", "-c", f"kill -{number} 1"], name="attack")
    time.sleep(0.5)
    began = time.monotonic()
    try:
        said = sandbox.run(["echo", "still here"]).stdout
    except StartError as error:
        said = str(error)
    assert said == "still here\n" or "does not answer: " in said
    assert sandbox.kind == "gvisor" or said == "still here\n"
    sandbox.close()
    assert time.monotonic() - began < 20
