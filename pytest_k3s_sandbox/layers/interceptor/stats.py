# ruff: noqa: PTH105, PTH123 - as in scratch.py: plain calls of os in a process that stays lean
"""What a tracer counted, as JSON."""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Stats:
    """Counts of one run.

    Attributes:
        trapped: The calls that stop.
        entry_first: The order of stops, as probed.
        stops: How often a tracee stopped, by kind.
        applied: How often each rule changed something, by its label.
        restarted: Calls that were run again after EINTR.
        unchanged: Calls that a rule fits but that were left alone, by reason.
        started: When counting began, on the monotonic clock.
    """

    trapped: tuple[str, ...] = ()
    entry_first: bool = False
    stops: Counter[str] = field(default_factory=Counter)
    applied: Counter[str] = field(default_factory=Counter)
    restarted: int = 0
    unchanged: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)

    def as_json(self) -> str:
        """Return the counts, with the tracer's own cost so far: seconds of CPU, KiB of memory."""
        import json  # noqa: PLC0415 - needed when the program has ended, not before it starts

        usage = resource.getrusage(resource.RUSAGE_SELF)
        return json.dumps(
            {
                "trapped": self.trapped,
                "entry_first": self.entry_first,
                "stops": dict(self.stops),
                "applied": dict(self.applied),
                "restarted": self.restarted,
                "unchanged": dict(self.unchanged),
                "seconds": round(time.monotonic() - self.started, 6),
                "tracer_cpu_seconds": round(usage.ru_utime + usage.ru_stime, 6),
                "tracer_max_rss_kib": usage.ru_maxrss,
            },
            indent=2,
        )

    def write(self, path: str) -> None:
        """Replace the file at ``path`` as a whole.

        Raises:
            OSError: It cannot be written.
        """
        temporary = f"{path}.{os.getpid()}.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(self.as_json() + "\n")
        os.replace(temporary, path)
