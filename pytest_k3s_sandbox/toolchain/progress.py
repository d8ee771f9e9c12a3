"""The display of long work and its duration."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from pytest_k3s_sandbox.support import clock, escaping

if TYPE_CHECKING:
    from rich.status import Status


class Progress(Protocol):
    """An observer of the progress of work."""

    def start(self, what: str) -> None:
        """Work named ``what`` begins."""

    def update(self, text: str) -> None:
        """The work goes on; called about twice a second, with the state at that time."""

    def done(self, what: str, seconds: float) -> None:
        """The work has ended after ``seconds``; ``what`` says so if it failed."""

    def note(self, text: str) -> None:
        """Something is not as usual, and the work goes on."""


class SilentProgress:
    """Shows nothing."""

    def start(self, what: str) -> None:
        """Do nothing."""

    def update(self, text: str) -> None:
        """Do nothing."""

    def done(self, what: str, seconds: float) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


class PlainProgress:
    """Lines for logs: the start, one every ``interval`` seconds, and the end.

    Args:
        stream: Where they go; standard error by default, looked up at each line.
        interval: Seconds between two lines of the same work.
    """

    def __init__(self, stream: TextIO | None = None, interval: float = 10.0) -> None:
        """Keep the arguments; nothing is written yet."""
        self._stream = stream
        self._interval = interval
        self._what = ""
        self._began = self._last = 0.0

    def _line(self, text: str) -> None:
        print(f"k3s-sandbox: {escaping.visible(text)}", file=self._stream or sys.stderr, flush=True)

    def start(self, what: str) -> None:
        """Write what begins."""
        self._what = what
        self._began = self._last = clock.monotonic()
        self._line(f"{what} ...")

    def update(self, text: str) -> None:
        """Write the elapsed time and the text, if the last line is old enough."""
        now = clock.monotonic()
        if now - self._last >= self._interval:
            self._last = now
            self._line(f"{self._what}: {now - self._began:.0f} s" + (f", {text}" if text else ""))

    def done(self, what: str, seconds: float) -> None:
        """Write the work that has ended."""
        self._line(f"{what}: {seconds:.1f} s")

    def note(self, text: str) -> None:
        """Write it."""
        self._line(text)


class LiveProgress:
    """One live line on a terminal, with a spinner and the elapsed time."""

    def __init__(self) -> None:
        """Import rich, which only a terminal needs."""
        from rich.console import Console

        self._console = Console(stderr=True)
        self._status: Status | None = None
        self._what = ""
        self._began = 0.0

    def start(self, what: str) -> None:
        """Show the line."""
        self._stop()
        self._what, self._began = what, clock.monotonic()
        self._status = self._console.status(what)
        self._status.start()

    def update(self, text: str) -> None:
        """Change the line."""
        if self._status is not None:
            from rich.markup import escape

            elapsed = clock.monotonic() - self._began
            self._status.update(
                f"{escape(self._what)} [cyan]{elapsed:.0f} s[/] [dim]{escape(escaping.line(text[:60]))}[/]"
            )

    def done(self, what: str, seconds: float) -> None:
        """Replace the line by one that stays."""
        self._stop()
        self._console.print(f"{what}: {seconds:.1f} s", highlight=False, markup=False)

    def note(self, text: str) -> None:
        """Write a line that stays."""
        self._console.print(text, highlight=False, markup=False)

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def for_terminal() -> Progress:
    """Return live progress if standard error is a terminal, else plain lines."""
    return LiveProgress() if sys.stderr.isatty() else PlainProgress()


class Work:
    """One piece of work that is shown from its start to its end, however it ends.

    Args:
        progress: Who is told.
        what: The work's name.
    """

    def __init__(self, progress: Progress, what: str) -> None:
        """Keep the arguments; the work begins on entering."""
        self._progress = progress
        self._what = what
        self._began = 0.0

    def __enter__(self) -> Self:
        """Tell the start."""
        self._began = clock.monotonic()
        self._progress.start(self._what)
        return self

    def update(self, text: str) -> None:
        """Tell how it goes."""
        self._progress.update(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell the end."""
        ending = "" if kind is None else ", interrupted" if kind is KeyboardInterrupt else ", failed"
        self._progress.done(self._what + ending, clock.monotonic() - self._began)
