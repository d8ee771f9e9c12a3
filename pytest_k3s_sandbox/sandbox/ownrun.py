"""Running a program in a sandbox to its end, by its agent: the way of the process that owns the sandbox."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import StartError
from pytest_k3s_sandbox.sandbox import layout
from pytest_k3s_sandbox.sandbox.base import Completed
from pytest_k3s_sandbox.sandbox.client import AgentClient
from pytest_k3s_sandbox.sandbox.inside import InsidePath
from pytest_k3s_sandbox.sandbox.resolve import RefusedError


def run(
    agent: AgentClient,
    argv: Sequence[str],
    *,
    where: str,
    workdir: Path,
    stem: str,
    timeout: float,
    check: bool,
    env: Mapping[str, str],
) -> Completed:
    """Run a program inside to its end; see :meth:`.base.Sandbox.run`.

    Args:
        agent: The sandbox's agent.
        argv: The program and its arguments.
        where: The sandbox's name, for messages.
        workdir: The sandbox's folder on the machine.
        stem: The path inside, without the suffix, of the files that the program writes its output to.
        timeout: Seconds after which it is killed.
        check: Whether an exit code other than 0 is an error.
        env: All its variables.

    Raises:
        StartError: It ran too long, or failed.
    """
    paths = (f"{stem}.out", f"{stem}.err")
    out, err = (layout.below_var(workdir, path) for path in paths)
    try:
        process = agent.spawn(argv, name=argv[0], env=env, cwd="/", outputs=paths, log=err)
        status = process.wait(Deadline.after(timeout))
        if status is None:
            process.signal(signal.SIGKILL)
            process.wait(Deadline.after(5))
            raise StartError(
                f"`{' '.join(argv)}` in {where} ran longer than {timeout:g} s and was killed",
                cause=_bytes(err)[-2000:].decode(errors="replace").strip() or None,
            )
        done = Completed.of(argv, status, _bytes(out), _bytes(err))
    finally:
        for path in paths:
            with contextlib.suppress(OSError):  # the inside may have removed the folder
                layout.shared(workdir).remove(path)
    if check and status != 0:
        raise StartError(
            f"`{' '.join(argv)}` in {where} failed with exit code {status}",
            cause=(done.stderr or done.stdout)[-2000:].strip() or None,
        )
    return done


def _bytes(path: InsidePath) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except RefusedError as error:
        return f"[{error}]".encode()
