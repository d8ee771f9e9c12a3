"""One point in time that a whole bring-up has to meet, handed down through its steps."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_k3s_sandbox.support import clock


@dataclass(frozen=True)
class Deadline:
    """A point on the monotonic clock.

    Attributes:
        at: The point, in seconds of :func:`time.monotonic`.
    """

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline that lies ``seconds`` from now."""
        return cls(clock.monotonic() + seconds)

    def remaining(self) -> float:
        """Return the seconds that are left, never less than 0."""
        return max(0.0, self.at - clock.monotonic())

    @property
    def expired(self) -> bool:
        """Tell whether the point has passed."""
        return clock.monotonic() >= self.at

    def at_most(self, seconds: float) -> Deadline:
        """Return this deadline or the one ``seconds`` from now, whichever is earlier."""
        return Deadline(min(self.at, clock.monotonic() + seconds))
