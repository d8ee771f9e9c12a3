"""Where processes run: the contract between the layers and a sandbox of any kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import Protocol, Self

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.sandbox.beneath import Beneath
from pytest_k3s_sandbox.sandbox.inside import InsidePath

STATE_DIR = "/var/lib/k3s-sandbox"
"""The folder inside every sandbox that is ours: writable, and shared with the machine (``files``)."""

BIN_DIR = "/opt/k3s-sandbox/bin"
"""The folder inside every sandbox that holds the programs under test, read-only."""


@dataclass(frozen=True)
class Bind:
    """A file or folder of the machine that a sandbox shows.

    Attributes:
        source: The path on the machine.
        target: The absolute path inside.
        writable: Whether processes inside may change it.
    """

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True)
class Completed:
    """The result of a process that ran to its end.

    Attributes:
        argv: The program and its arguments.
        returncode: The exit code, or minus the signal that ended it.
        stdout: Its standard output as text; invalid UTF-8 is replaced (U+FFFD).
        stderr: Everything it wrote to standard error, likewise.
        stdout_bytes: The bytes of its standard output.
        stderr_bytes: The bytes of its standard error.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    stdout_bytes: bytes = field(default=b"", repr=False)
    stderr_bytes: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, argv: Sequence[str], returncode: int, stdout: bytes, stderr: bytes) -> Self:
        """Return the result of a process, from its bytes; the text does not depend on the locale.

        Args:
            argv: The program and its arguments.
            returncode: The exit code, or minus the signal that ended it.
            stdout: Its standard output.
            stderr: Its standard error.
        """
        out, err = (output.decode("utf-8", "replace") for output in (stdout, stderr))
        return cls(tuple(argv), returncode, out, err, stdout, stderr)


@dataclass(frozen=True)
class Usage:
    """The resources that a process in a sandbox has used so far.

    Attributes:
        pid: Its process id inside.
        parent: Its parent's.
        name: The name that it was spawned by, or the program's for one that another process started.
        cpu_seconds: User and system time.
        rss_bytes: Resident memory at this moment.
        waited_seconds: User and system time of its children that have ended and were waited for, and of
            theirs.
    """

    pid: int
    parent: int
    name: str
    cpu_seconds: float
    rss_bytes: int
    waited_seconds: float = 0.0


class Process(Protocol):
    """A process in a sandbox that is still ours to end."""

    @property
    def name(self) -> str:
        """The name it was spawned by, which also names its log."""

    @property
    def pid(self) -> int:
        """The process id as seen inside the sandbox."""

    @property
    def log(self) -> InsidePath:
        """The file on the machine that receives its standard output and error."""

    def poll(self) -> int | None:
        """Return the exit code (minus the signal), or None while it runs."""

    def wait(self, deadline: Deadline) -> int | None:
        """Wait for its end; return the exit code, or None when the deadline passed first."""

    def signal(self, number: int) -> None:
        """Send a signal to it; does nothing when it has ended."""

    def stop(self, grace: float = 5.0) -> int:
        """End it: SIGTERM to its process group, SIGKILL after ``grace`` seconds; return the exit code."""


def described(code: int) -> str:
    """Return how a process ended, for a sentence with its name in front.

    Args:
        code: Its exit code, or minus the signal that ended it.
    """
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"was ended by signal {-code}"


class Reachable(Protocol):
    """A sandbox in which programs can be run to their end, whichever process owns it."""

    @property
    def kind(self) -> str:
        """``gvisor`` or ``host``."""

    @property
    def name(self) -> str:
        """The sandbox's own name, unique on the machine."""

    @property
    def workdir(self) -> Path:
        """The sandbox's folder on the machine."""

    @property
    def logs(self) -> InsidePath:
        """The folder on the machine with every process' log."""

    @property
    def files(self) -> Beneath:
        """The files that the inside can write, those below /var, as the machine may use them."""

    @property
    def control(self) -> Path:
        """The folder of files that only the machine uses; the inside can neither read nor write it."""

    @property
    def address(self) -> str:
        """The IPv4 address by which the machine reaches the sandbox."""

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a program inside to its end and return its result.

        Raises:
            StartError: It could not be started, ran longer than ``timeout`` seconds
                (it is killed then), or, with ``check``, exited with another code than 0.
        """


class Sandbox(Reachable, Protocol):
    """A place with a root, a network and processes of its own, ended as a whole."""

    def spawn(
        self,
        argv: Sequence[str],
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
    ) -> Process:
        """Start a program inside, in a session of its own, logging to ``logs/<name>.log``.

        Raises:
            StartError: The program does not exist or cannot be executed.
        """

    def usage(self) -> list[Usage]:
        """Return what every process inside has used so far.

        Raises:
            StartError: The sandbox has ended.
        """

    def processor_seconds(self) -> float | None:
        """Return the machine's processor time of the whole sandbox so far, of ended processes too.

        In gVisor that is the time of its kernel with everything that runs on it. None where the machine's
        control groups do not count it.
        """

    @property
    def handed_over(self) -> bool:
        """Whether another process owns the sandbox now; this one must leave everything in it as it is."""

    def close(self) -> None:
        """End the sandbox and everything in it; leaves no process, mount, netns or veth behind."""


def magic_argv(path: str) -> list[str]:
    """Return the command that prints ``f_type`` of a path's file system in hexadecimal (stat(1), statfs(2)).

    Python's os.statvfs does not have it, and in gVisor Python takes four times as long to start.
    """
    return ["stat", "--file-system", "--format=%t", path]


V9FS_MAGIC = 0x01021997
"""``f_type`` of a 9p file system: V9FS_MAGIC in linux/magic.h."""


def root_magic(sandbox: Sandbox) -> int:
    """Return what statfs(2) says inside about the type of the root's file system.

    Raises:
        StartError: It could not be asked.
    """
    return int(sandbox.run(magic_argv("/")).stdout, 16)
