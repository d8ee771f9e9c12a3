"""The first process of every sandbox: starts programs, reaps them, ends them all.

It speaks JSON lines over its standard input, a socket, in both directions: requests come in, answers and
exits go out. The sandbox ends at the end of this input, so also when pytest is killed. A malformed
request ends it, too. The agent imports little, and only from the standard library, because every start
waits for it.

Requests: ``{"id", "op": "spawn", "argv", "env", "cwd", "stdout", "stderr"}``,
``{"op": "signal", "pid", "signal"}`` (to the process group), ``{"id", "op": "usage"}``.
Answers: ``{"ready": pid}`` once; ``{"id", "pid"}`` or ``{"id", "error"}``; ``{"id", "usage"}``, see
:func:`usage`; ``{"exit": pid, "status": code}``. :mod:`.messages` reads them.
"""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import sys
import time

TYPE_CHECKING = False  # importing typing for it would cost 3 ms
if TYPE_CHECKING:
    from typing import Any

LINE_BYTES = 4 << 20
"""The longest line, in both directions; :mod:`.messages` has the same limit."""
ERROR_CHARACTERS = 4000
USAGE_ROWS = 16384
"""The most processes in an answer, so that the line stays within its limit: 200 bytes each."""
PR_SET_DUMPABLE = 4  # prctl(2)
BY_GROUP = "by-group"

FORMS: dict[str, dict[str, type]] = {
    "spawn": {"id": int, "op": str, "argv": list, "env": dict, "cwd": str, "stdout": str, "stderr": str},
    "signal": {"op": str, "pid": int, "signal": int},
    "usage": {"id": int, "op": str},
}
"""The keys of each request, and the types of their values."""


class BrokenError(Exception):
    """The other side sent something that is not a request."""


class Agent:
    """The loop of process 1.

    Args:
        channel: The file descriptor of the socket.
    """

    def __init__(self, channel: int) -> None:
        """Keep the descriptor; nothing runs yet."""
        self._channel = channel
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def serve(self) -> None:
        """Answer requests until the end of the input, then end everything."""
        try:
            self._serve()
        except (BrokenError, OSError) as error:
            sys.stderr.write(f"the agent ends: {error}\n")
        self._end_all()

    def _serve(self) -> None:
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
        pending = bytearray()
        self._say({"ready": os.getpid()})
        while True:
            readable, _, _ = select.select([self._channel, wake_read], [], [], 5.0)
            if wake_read in readable:
                os.read(wake_read, 4096)
            self._reap()
            if self._channel not in readable:
                continue
            chunk = os.read(self._channel, 65536)
            if not chunk:
                return
            for number, part in enumerate(chunk.split(b"\n")):
                if number:  # the part before this one ended a line
                    self._handle(parse(bytes(pending)))
                    pending.clear()
                pending += part
                if len(pending) > LINE_BYTES:
                    raise BrokenError(f"a line is longer than {LINE_BYTES} bytes")

    def _say(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._channel, data) :]

    def _handle(self, request: dict[str, Any]) -> None:
        """Do one request, which :func:`parse` returned."""
        match request["op"]:
            case "spawn":
                self._spawn(request)
            case "signal":
                self._signal(request["pid"], request["signal"])
            case "usage":
                self._say({"id": request["id"], "usage": usage()})

    def _spawn(self, request: dict[str, Any]) -> None:
        logs: list[int] = []
        try:
            logs += [open_log(request["stdout"])]
            logs += [open_log(request["stderr"])]
            child = subprocess.Popen(
                request["argv"],
                stdin=subprocess.DEVNULL,
                stdout=logs[0],
                stderr=logs[1],
                env=request["env"],
                cwd=request["cwd"],
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            self._say({"id": request["id"], "error": str(error)[:ERROR_CHARACTERS]})
            return
        finally:
            for fd in logs:
                os.close(fd)
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
        """End every process: by SIGTERM first, so that containers and mounts can go."""
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


def parse(line: bytes) -> dict[str, Any]:
    """Return the request that a line holds.

    Raises:
        BrokenError: The line is malformed.
    """
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BrokenError(f"a line is not JSON: {error}") from None
    op = request.get("op") if isinstance(request, dict) else None
    form = FORMS.get(op) if isinstance(op, str) else None
    if form is None or request.keys() != form.keys():
        raise BrokenError(f"a line is not a request: {line[:200]!r}")
    if any(type(request[key]) is not kind for key, kind in form.items()):
        raise BrokenError(f"a value of a request has the wrong type: {line[:200]!r}")
    if op == "spawn":
        words = [*request["argv"], *request["env"].values()]
        if not request["argv"] or any(type(word) is not str for word in words):
            raise BrokenError(f"a command is not made of texts: {line[:200]!r}")
    if op == "signal" and not 0 < request["signal"] < signal.NSIG:
        raise BrokenError(f"the signal {request['signal']} does not exist")
    return dict(request)


def open_log(path: str) -> int:
    """Return a descriptor that appends to a file.

    A program inside may have put something else in its place: a link is not followed, and a FIFO, which
    this would wait for until the end of the sandbox, is refused.

    Raises:
        OSError: It cannot be opened, or is not a regular file.
    """
    how = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, how, 0o644)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{path} is not a regular file")
    os.set_blocking(fd, True)
    return fd


Row = tuple[int, int, str, float, int, float]


def usage() -> list[Row]:
    """Return the pid, parent, name, CPU seconds, resident bytes and CPU seconds of waited-for children.

    Source: proc_pid_stat(5). At most ``USAGE_ROWS`` of them, the first ones in the order of /proc.
    """
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    rows: list[Row] = []
    for name in os.listdir("/proc"):
        if name.isdigit() and len(rows) < USAGE_ROWS:
            try:
                with open(f"/proc/{name}/stat", errors="replace") as file:
                    head, _, rest = file.read().rpartition(")")
            except OSError:
                continue  # it has ended meanwhile
            words = rest.split()
            own, waited = ((int(words[at]) + int(words[at + 1])) / tick for at in (11, 13))
            name_of = head.partition("(")[2]
            rows.append((int(name), int(words[1]), name_of, own, int(words[21]) * page, waited))
    return rows


def protect(how: list[str]) -> None:
    """Forbid programs without CAP_SYS_PTRACE to inspect this process (PR_SET_DUMPABLE, prctl(2)).

    Programs that it starts are not protected, because execve(2) sets the flag again.

    Args:
        how: ``[BY_GROUP]`` to have the flag cleared by another effective group for a moment. In gVisor
            that is quicker than the import of ctypes. It would undo ``unshare --kill-child``.
    """
    if how == [BY_GROUP]:
        os.setegid(1)
        os.setegid(0)
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def main() -> None:
    """Serve on standard input, as process 1 only."""
    if os.getpid() != 1:  # kill(-1) in the machine's own pid namespace would end the machine
        sys.exit("the agent runs only as process 1 of a sandbox")
    protect(sys.argv[1:])
    Agent(0).serve()


if __name__ == "__main__":
    main()
