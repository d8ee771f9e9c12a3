"""Sandboxes that a process of their own holds, so that a test can kill it, and what stands beside them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOLDER = """
import sys
from pathlib import Path
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.sandbox.host import HostSandbox
kind, runsc = sys.argv[1:]
with (GvisorSandbox(Path(runsc)) if kind == "gvisor" else HostSandbox()) as sandbox:
    sandbox.spawn(["sleep", "1000"], name="sleep")
    print(sandbox.workdir.name, flush=True)
    for line in sys.stdin:
        print(sandbox.run(["echo", line.strip()]).stdout.strip(), flush=True)
"""

NEXT = "from pytest_k3s_sandbox.sandbox.host import HostSandbox; HostSandbox().close()"
"""The next command of ours: it starts a sandbox, and so removes what killed ones left."""


@dataclass(frozen=True)
class Held:
    """A sandbox that another process holds.

    Attributes:
        process: That process.
        folder: The sandbox's folder.
    """

    process: subprocess.Popen[str]
    folder: Path

    @property
    def key(self) -> str:
        """What tells it from other sandboxes."""
        return self.folder.name

    @property
    def record(self) -> dict[str, Any]:
        """The content of its owner file."""
        found: dict[str, Any] = json.loads((self.folder / "owner.json").read_text())
        return found

    def rewrite(self, **changes: object) -> None:
        """Change its owner file, as another boot or an attacker would have written it."""
        (self.folder / "owner.json").write_text(json.dumps({**self.record, **changes}))

    def says(self, word: str) -> str:
        """Run ``echo`` in it, by the process that holds it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def members(self) -> set[int]:
        """Return its processes but the one that holds it; see :func:`members`."""
        return members(self.key) - {self.process.pid}

    def kill(self) -> None:
        """Kill the process that holds it, and wait until the sandbox has noticed."""
        self.process.kill()
        self.process.wait()
        assert wait_until(lambda: not self.members(), 10), self.members()

    def freeze_and_kill(self) -> set[int]:
        """Kill the process that holds it, while the sandbox can notice nothing; return what runs on."""
        frozen = freeze(self.members)
        self.process.kill()
        self.process.wait()
        return frozen


@contextlib.contextmanager
def held(kind: str, runsc: Path, home: Path) -> Iterator[Held]:
    """Start a sandbox in a process of its own.

    Args:
        kind: ``gvisor`` or ``host``.
        runsc: The runsc program.
        home: The folder of sandboxes.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, kind, str(runsc)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "K3S_SANDBOX_HOME": str(home)},
    )
    sandbox = None
    with process:
        try:
            assert process.stdout is not None
            key = process.stdout.readline().strip()
            assert key
            sandbox = Held(process, home / "sandboxes" / key)
            yield sandbox
        finally:
            process.kill()
            process.wait()
            for pid in sandbox.members() if sandbox is not None else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def next_command(home: Path, *prefix: str) -> float:
    """Run the next command of ours; return how many seconds it took.

    Args:
        home: The folder of sandboxes.
        prefix: Words before it, like ``unshare --pid --fork``.
    """
    began = time.monotonic()
    done = subprocess.run(
        [*prefix, sys.executable, "-c", NEXT],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "K3S_SANDBOX_HOME": str(home)},
    )
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


def members(key: str) -> set[int]:
    """Return the processes of a sandbox: in its network namespace, or naming its folder."""
    found = subprocess.run(
        ["ip", "netns", "pids", f"k3ssb-{key}"], capture_output=True, text=True, check=False
    )
    return {int(word) for word in found.stdout.split()} | naming(key)


def naming(key: str) -> set[int]:
    """Return the processes whose command line names a sandbox, without this one."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if key.encode() in (process / "cmdline").read_bytes():
                found.add(int(process.name))
    return found - {os.getpid()}


def freeze(members: Callable[[], set[int]]) -> set[int]:
    """Stop all members of a group of processes, and return those that are stopped.

    A signal takes effect later, and what was about to end when it came ends all the same.

    Args:
        members: Returns the ids of those that there are now. One that is not stopped yet may start another.
    """
    frozen: set[int] = set()
    while fresh := members() - frozen:
        for pid in fresh:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        frozen |= fresh
    assert wait_until(lambda: all(state(pid) in "TtZ" for pid in frozen), 10)
    return {pid for pid in frozen if running(pid)}


def running(pid: int) -> bool:
    """Return whether a process runs, be it stopped."""
    return state(pid) != "Z"


def state(pid: int) -> str:
    """Return the letter of a process' state (proc(5)); that of a zombie for one that is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "Z"


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition; return whether it came to hold."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True
