"""Running a long program while its progress is shown."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_k3s_sandbox.errors import ProvisionError
from pytest_k3s_sandbox.toolchain.cache import no_space
from pytest_k3s_sandbox.toolchain.progress import Work

POLL_SECONDS = 0.5
TAIL_BYTES = 4096
FULL_BYTES = 1_000_000
"""A device with less room than this is taken as full when a program on it fails."""


def tail(log: Path, lines: int = 1) -> str:
    """Return the last lines of a file that are not empty."""
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    kept = [line for line in text.splitlines() if line.strip()]
    return "\n".join(kept[-lines:])


def run_shown(
    argv: Sequence[str],
    *,
    work: Work,
    log: Path,
    what: str,
    environ: Mapping[str, str],
    cwd: Path | None = None,
) -> None:
    """Run a program to its end and show the last line that it wrote.

    It ends with us: after SIGINT it is terminated, after our SIGKILL the kernel kills it
    (``setpriv --pdeathsig``, prctl(2) PR_SET_PDEATHSIG).

    Args:
        argv: The program and its arguments.
        work: Who is told.
        log: The file for its output.
        what: The purpose of the program, for messages.
        environ: Its environment.
        cwd: The folder it runs in.

    Raises:
        ProvisionError: It cannot be started, it fails, or the disk is full.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    setpriv = shutil.which("setpriv")
    guard = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                [*guard, *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environ),
                cwd=cwd,
            )
        except OSError as error:
            raise ProvisionError(what, cause=f"{argv[0]} cannot be started: {error}") from error
    try:
        while True:
            try:
                code = process.wait(POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                work.update(tail(log))
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    if code != 0:
        said = tail(log, 5)
        if "no space left on device" in said.lower() or shutil.disk_usage(log.parent).free < FULL_BYTES:
            raise no_space(log.parent, what)
        raise ProvisionError(
            what,
            cause=f"{Path(argv[0]).name} ended with {code}: {said}",
            remedy="see its whole output",
            log=log,
        )
