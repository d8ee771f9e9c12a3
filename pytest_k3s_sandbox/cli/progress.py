"""Showing how a run goes, by the records that it writes: phases, and then the node's state.

The writer of the records, another process or a test in this one, does not know of it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from pytest_k3s_sandbox.report.records import RECORDS_FILE
from pytest_k3s_sandbox.support import clock, escaping

if TYPE_CHECKING:
    from rich.console import RenderableType

POLL_SECONDS = 0.15
SOAK_SECONDS = 10.0
"""Seconds between two plain lines about a node that is held."""


class Verbosity(IntEnum):
    """How much is said."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


@dataclass
class Step:
    """A phase of the bring-up.

    Attributes:
        name: Its name.
        start: Seconds from the run's zero to its beginning.
        seconds: How long it took; None while it lasts.
        seen: When its beginning was read, on the clock of :func:`time.monotonic`.
    """

    name: str
    start: float
    seconds: float | None
    seen: float


@dataclass
class Course:
    """The known state of a run so far.

    Attributes:
        duration: Seconds for which the node is to be held; None if it is not held.
        steps: The phases, by name and beginning.
        sample: The last sample.
        since: When the node was seen Ready first, in seconds from the run's zero.
        seen: When the last sample was read, on the clock of :func:`time.monotonic`.
    """

    duration: float | None = None
    steps: dict[tuple[str, float], Step] = field(default_factory=dict)
    sample: dict[str, Any] | None = None
    since: float | None = None
    seen: float = 0.0

    def take(self, record: dict[str, Any]) -> None:
        """Take a record into account."""
        if record.get("type") == "phase":
            start, end = record["start"], record["end"]
            seconds = None if end is None else end - start
            step = self.steps.setdefault(
                (record["name"], start), Step(record["name"], start, seconds, clock.monotonic())
            )
            step.seconds = seconds
        elif record.get("type") == "sample":
            self.sample, self.seen = record, clock.monotonic()
            if self.since is None and record["node_ready"]:
                self.since = record["t"]

    @property
    def left(self) -> float | None:
        """Seconds until the hold is over, 0 when it is; None while there is no hold."""
        if self.since is None or self.duration is None or self.sample is None:
            return None
        t: float = self.sample["t"]
        return max(0.0, self.duration - (t - self.since) - (clock.monotonic() - self.seen))

    @property
    def state(self) -> str:
        """The last sample in words; empty before the node was Ready first."""
        if self.sample is None or self.since is None:
            return ""
        sample = self.sample
        node = {True: "Ready", False: f"NOT Ready ({sample['reason']})", None: "unknown"}[
            sample["node_ready"]
        ]
        if not sample["api_reachable"]:
            node = "unknown: no answer"
        running = sum(pod["phase"] == "Running" for pod in sample["pods"].values())
        errors = sum(sample["errors"].values())
        return f"node {node}, {running} of {len(sample['pods'])} pods Running, {errors} error lines"


class Follower:
    """Reads new records of a run while another process writes them.

    Args:
        file: The records' file; it may not exist yet.
    """

    def __init__(self, file: Path) -> None:
        """Begin at the beginning."""
        self._file = file
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """Return the records that are new, none that is only half written."""
        try:
            with self._file.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class Display(Protocol):
    """Shows the course of a run."""

    def line(self, text: str) -> None:
        """Show a line that stays."""

    def update(self, course: Course) -> None:
        """Show how it goes now; called several times a second."""

    def close(self) -> None:
        """Leave the last state on the screen, and show no more."""


class PlainDisplay:
    """Lines for logs: the beginning of every phase, then the node's state every ten seconds.

    Args:
        verbosity: With ``VERBOSE`` the ends of phases, too; with ``QUIET`` nothing.
        stream: Where they go; standard error by default.
    """

    def __init__(self, verbosity: Verbosity, stream: TextIO | None = None) -> None:
        """Nothing was said yet."""
        self._verbosity = verbosity
        self._stream = stream or sys.stderr
        self._begun: set[tuple[str, float]] = set()
        self._ended: set[tuple[str, float]] = set()
        self._said = clock.monotonic()

    def line(self, text: str) -> None:
        """Write a line."""
        if self._verbosity > Verbosity.QUIET:
            print(escaping.visible(text), file=self._stream, flush=True)

    def update(self, course: Course) -> None:
        """Write the changes."""
        for key, step in course.steps.items():
            if key not in self._begun:
                self._begun.add(key)
                self.line(f"{step.start:6.1f} s  {escaping.line(step.name)}")
            if step.seconds is not None and key not in self._ended:
                self._ended.add(key)
                if self._verbosity >= Verbosity.VERBOSE:
                    self.line(f"{step.start + step.seconds:6.1f} s  {step.name}: took {step.seconds:.1f} s")
        left = course.left
        if left and course.sample is not None and clock.monotonic() - self._said >= SOAK_SECONDS:
            self._said = clock.monotonic()
            self.line(f"{course.sample['t']:6.1f} s  {escaping.line(course.state)}; {left:.0f} s left")

    def close(self) -> None:
        """Do nothing."""


class LiveDisplay:
    """A block on a terminal that changes: the phases with their times, then the hold as a bar.

    Args:
        verbosity: With ``VERBOSE`` phases that are over stay in the block while the node is held.
        stream: The terminal; standard error by default.
    """

    def __init__(self, verbosity: Verbosity, stream: TextIO | None = None) -> None:
        """Show an empty block."""
        from rich.console import Console
        from rich.live import Live

        self._verbosity = verbosity
        self._console = Console(file=stream or sys.stderr)
        self._live = Live(
            console=self._console, refresh_per_second=8, redirect_stdout=False, redirect_stderr=False
        )
        self._live.start()

    def line(self, text: str) -> None:
        """Put a line above the block."""
        self._console.print(escaping.visible(text), highlight=False, markup=False)

    def update(self, course: Course) -> None:
        """Draw the block anew."""
        self._live.update(self._block(course))

    def close(self) -> None:
        """Leave the block as it is."""
        self._live.stop()

    def _block(self, course: Course) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        phases = Table.grid(padding=(0, 1))
        if course.since is None or self._verbosity >= Verbosity.VERBOSE:
            for step in course.steps.values():
                seconds = clock.monotonic() - step.seen if step.seconds is None else step.seconds
                mark = Text("...", "cyan") if step.seconds is None else Text("ok", "green")
                phases.add_row(mark, Text(escaping.line(step.name)), f"{seconds:5.1f} s")
        parts: list[RenderableType] = [phases]
        left = course.left
        if left is not None and course.duration is not None:
            bar = Table.grid(padding=(0, 1))
            bar.add_row(
                ProgressBar(
                    total=course.duration,
                    completed=course.duration - left,
                    width=30,
                    complete_style="green",
                ),
                f"{left:.0f} s left",
            )
            parts.append(bar)
        if course.state:
            parts.append(
                Text(escaping.line(course.state), "default" if "Ready," in course.state else "bold red")
            )
        return Group(*parts)


def for_terminal(verbosity: Verbosity) -> Display:
    """Return a live display if standard error is a terminal and may be used, else plain lines."""
    if verbosity > Verbosity.QUIET and sys.stderr.isatty():
        return LiveDisplay(verbosity)
    return PlainDisplay(verbosity)


@contextlib.contextmanager
def shown(
    display: Display, folders: Callable[[], list[Path]], duration: float | None = None
) -> Iterator[None]:
    """Show the latest of some runs while the enclosed code goes on.

    Args:
        display: The display that shows it.
        folders: Called again and again for the runs' folders, the latest last.
        duration: Seconds for which the node is to be held.
    """
    halt = threading.Event()

    def follow() -> None:
        known: Path | None = None
        follower, course = None, Course(duration)
        while True:
            last = halt.is_set()
            latest = next(reversed(folders()), known)
            if latest is not None and latest != known:
                known, course = latest, Course(duration)
                follower = Follower(latest / RECORDS_FILE)
            if follower is not None:
                for record in follower.read():
                    course.take(record)
                display.update(course)
            if last:
                return
            halt.wait(POLL_SECONDS)

    thread = threading.Thread(target=follow, name="display", daemon=True)
    thread.start()
    try:
        yield
    finally:
        halt.set()
        thread.join()
        display.close()
