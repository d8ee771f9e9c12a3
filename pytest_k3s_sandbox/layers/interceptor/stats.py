"""The statistics of a tracer, as JSON."""

from __future__ import annotations

import time
from collections import Counter, defaultdict

from pytest_k3s_sandbox.support import files


class Stats:
    """Counts of one run.

    Attributes:
        trapped: The calls that stop.
        entry_first: The order of stops, as probed.
        stops: How often a tracee stopped, by kind.
        calls: How often each trapped call stopped.
        applied: How often each rule changed something, by its label.
        restarted: How often the tracer repeated a call after EINTR.
        unchanged: Calls with a matching rule that the tracer did not change, by reason.
        filters: Filters loaded into programs with rules.
        seconds: Time from a stop until its tracee runs again, by kind of stop.
        rule_seconds: The part of that time that a rule took, by its label.
        started: When counting began, on the monotonic clock.
    """

    def __init__(self, trapped: tuple[str, ...] = (), *, entry_first: bool = False) -> None:
        """Begin to count."""
        self.trapped = trapped
        self.entry_first = entry_first
        self.stops: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.applied: Counter[str] = Counter()
        self.restarted = 0
        self.unchanged: Counter[str] = Counter()
        self.filters = 0
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.rule_seconds: defaultdict[str, float] = defaultdict(float)
        self.started = time.monotonic()

    def as_json(self) -> str:
        """Return the counts, with the tracer's own cost so far: seconds of CPU, KiB of memory."""
        # Not at the top: the start of the program must not wait for these.
        import json
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        return json.dumps(
            {
                "trapped": self.trapped,
                "entry_first": self.entry_first,
                "stops": self.stops,
                "calls": self.calls,
                "applied": self.applied,
                "restarted": self.restarted,
                "unchanged": self.unchanged,
                "filters": self.filters,
                "stop_seconds": {kind: round(seconds, 6) for kind, seconds in self.seconds.items()},
                "rule_seconds": {label: round(seconds, 6) for label, seconds in self.rule_seconds.items()},
                "seconds": round(time.monotonic() - self.started, 6),
                "tracer_cpu_seconds": round(usage.ru_utime + usage.ru_stime, 6),
                "tracer_max_rss_kib": _memory(),
            },
            indent=2,
        )

    def write(self, path: str) -> None:
        """Replace the file at ``path`` atomically.

        Raises:
            OSError: It cannot be written.
        """
        files.write_text(path, self.as_json() + "\n")


def _memory() -> int:
    """Return the peak of resident memory in KiB; in gVisor, which lacks VmHWM, the current value.

    getrusage(2) includes the memory of the process before its execve.
    """
    found = {}
    with open("/proc/self/status", "rb") as file:
        for line in file:
            name, _, value = line.partition(b":")
            if name in {b"VmHWM", b"VmRSS"}:
                found[name] = int(value.split()[0])
    return found.get(b"VmHWM") or found.get(b"VmRSS", 0)
