"""The first process of every sandbox: starts programs, reaps them, ends them all.

It speaks JSON lines: requests on standard input, answers and exits on standard
output. The end of its input is the end of the sandbox, so that a pytest that was
killed takes its sandbox with it. Standard library only, because it is on the way of
every start.

Requests: ``{"id", "op": "spawn", "argv", "env", "cwd", "stdout", "stderr"}``,
``{"op": "signal", "pid", "signal"}`` (to the process group), ``{"id", "op": "usage"}``,
``{"op": "end"}``. Answers: ``{"id", "pid"}`` or ``{"id", "error"}``; ``{"id", "usage"}``, see
:func:`usage`; ``{"exit": pid, "status": code}``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any


class Agent:
    """The loop of process 1.

    Args:
        requests: The file descriptor that requests are read from.
        answers: The file descriptor that answers are written to.
    """

    def __init__(self, requests: int, answers: int) -> None:
        """Keep the descriptors; nothing runs yet."""
        self._requests = requests
        self._answers = answers
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def serve(self) -> None:
        """Answer requests until the input ends or ``end`` is asked for, then end everything."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
        pending = b""
        self._say({"ready": os.getpid()})
        while True:
            readable, _, _ = select.select([self._requests, wake_read], [], [], 5.0)
            if wake_read in readable:
                os.read(wake_read, 4096)
            self._reap()
            if self._requests not in readable:
                continue
            chunk = os.read(self._requests, 65536)
            if not chunk:
                break
            *lines, pending = (pending + chunk).split(b"\n")
            if any(self._handle(json.loads(line)) for line in lines if line):
                break
        self._end_all()

    def _say(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._answers, data) :]

    def _handle(self, request: dict[str, Any]) -> bool:
        """Do one request; return whether it asked for the end."""
        match request["op"]:
            case "spawn":
                self._spawn(request)
            case "signal":
                self._signal(request["pid"], request["signal"])
            case "usage":
                self._say({"id": request["id"], "usage": usage()})
            case "end":
                return True
        return False

    def _spawn(self, request: dict[str, Any]) -> None:
        try:
            with open(request["stdout"], "ab", 0) as out, open(request["stderr"], "ab", 0) as err:  # noqa: PTH123 - pathlib is a slow import for process 1
                child = subprocess.Popen(
                    request["argv"],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=request["env"],
                    cwd=request["cwd"],
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:
            self._say({"id": request["id"], "error": str(error)})
            return
        self._children[child.pid] = child
        self._say({"id": request["id"], "pid": child.pid})

    def _signal(self, pid: int, number: int) -> None:
        if pid in self._children:
            try:
                os.killpg(pid, number)
            except ProcessLookupError:
                return

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is not None:
                child.returncode = os.waitstatus_to_exitcode(status)
                self._say({"exit": pid, "status": child.returncode})

    def _end_all(self) -> None:
        """End every process: politely first, so that containers and mounts can go."""
        for number, seconds in ((signal.SIGTERM, 1.0), (signal.SIGKILL, 1.0)):
            try:
                os.kill(-1, number)
            except ProcessLookupError:
                return
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                try:
                    if os.waitpid(-1, os.WNOHANG)[0] == 0:
                        time.sleep(0.01)
                except ChildProcessError:
                    return


def usage() -> list[tuple[int, int, str, float, int]]:
    """Return the pid, parent, name, CPU seconds and resident bytes of every process (proc_pid_stat(5))."""
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    rows = []
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib is a slow import for process 1
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", errors="replace") as file:  # noqa: PTH123 - likewise
                    head, _, rest = file.read().rpartition(")")
            except OSError:
                continue  # it has ended meanwhile
            words = rest.split()
            cpu = (int(words[11]) + int(words[12])) / tick
            rows.append((int(name), int(words[1]), head.partition("(")[2], cpu, int(words[21]) * page))
    return rows


def main() -> None:
    """Serve on standard input and output; refuses to be anything but process 1."""
    if os.getpid() != 1:  # kill(-1) in the machine's own pid namespace would end the machine
        sys.exit("the agent runs only as process 1 of a sandbox")
    Agent(0, 1).serve()


if __name__ == "__main__":
    main()
