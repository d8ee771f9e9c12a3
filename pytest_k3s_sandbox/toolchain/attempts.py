"""Attempts that failed lately: what can be done without is not tried again at every start."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from pytest_k3s_sandbox.errors import MissingCapability, ProvisionError, SandboxError
from pytest_k3s_sandbox.support import clock

AGAIN_SECONDS = 3600
"""How long a failure counts. Without a network apt takes 16 s to fail."""


class Attempts:
    """Attempts of one kind; their failures are kept in files, so that other processes know of them, too.

    Args:
        folder: The folder of the files; it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        """Keep the folder."""
        self._folder = folder

    def failure(self, name: str, attempt: Callable[[], object], *, again: bool) -> str | None:
        """Try something, unless it failed lately, and return in one line why it failed; None if it did not.

        Args:
            name: What is tried, as the name of a file.
            attempt: What to call.
            again: Whether to try it in any case.
        """
        file = self._folder / f"{name}.failed"
        before = None if again else _lately(file)
        if before is not None:
            return f"{before} (not tried again within an hour)"
        try:
            attempt()
        except MissingCapability as error:  # it takes no time
            return _in_a_line(error)
        except ProvisionError as error:
            cause = _in_a_line(error)
            with contextlib.suppress(OSError):  # it is tried again next time then
                self._folder.mkdir(parents=True, exist_ok=True)
                file.write_text(cause, encoding="utf-8")
            return cause
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        return None


def _lately(file: Path) -> str | None:
    try:
        age = clock.wall() - file.stat().st_mtime
        # A time in the future is of a clock that was set since; both clocks tick only now and then.
        return file.read_text(encoding="utf-8") if -1 < age < AGAIN_SECONDS else None
    except OSError:
        return None


def _in_a_line(error: SandboxError) -> str:
    """Return the cause of an error; of apt's words the first of those that tell it, which begin with E."""
    said = error.cause or error.what
    told = [line for line in said.splitlines() if line.startswith("E: ")]
    return " ".join((told[0].removeprefix("E: ") if told else said).split())
