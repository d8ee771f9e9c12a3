"""Running a program in a sandbox without its agent: by the command that opens a shell inside.

That is the way for a process that does not own the sandbox.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence

from pytest_k3s_sandbox.errors import StartError
from pytest_k3s_sandbox.sandbox.base import Completed
from pytest_k3s_sandbox.sandbox.layout import SHELL_PATH
from pytest_k3s_sandbox.support import bounded, clock


def run(
    shell: Sequence[str],
    argv: Sequence[str],
    *,
    where: str,
    timeout: float = 30.0,
    check: bool = True,
    env: Mapping[str, str] | None = None,
) -> Completed:
    """Run a program inside to its end; see :meth:`.base.Sandbox.run`.

    Args:
        shell: The command on the machine that runs the words after it inside.
        argv: The program and its arguments.
        where: The sandbox's name, for messages.
        timeout: Seconds after which it is killed.
        check: Whether an exit code other than 0 is an error.
        env: Further variables.

    Raises:
        StartError: It ran too long, or failed.
    """
    words = [f"{key}={value}" for key, value in {"PATH": SHELL_PATH, **(env or {})}.items()]
    inside = ["/usr/bin/env", *words, "timeout", "--signal=KILL", f"{timeout}", *argv]
    began = clock.monotonic()
    ended = bounded.run([*shell, *inside], timeout + 30)
    done = Completed.of(argv, ended.returncode, ended.stdout, ended.stderr)
    killed = done.returncode in {-signal.SIGKILL, 128 + signal.SIGKILL}
    if killed and clock.monotonic() - began >= timeout:
        raise StartError(f"`{' '.join(argv)}` in {where} ran longer than {timeout:g} s and was killed")
    if check and done.returncode != 0:
        raise StartError(
            f"`{' '.join(argv)}` in {where} failed with exit code {done.returncode}",
            cause=(done.stderr or done.stdout)[-2000:].strip() or None,
        )
    return done
