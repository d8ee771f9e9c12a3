"""The policy of restarts: when a program that has ended is started again, and when no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """Restart with a pause that grows, and give up on a program that ends again and again.

    The first end within the window is answered at once, so that a single crash costs little.

    Attributes:
        pause: Seconds before the second restart within the window; each further one waits twice as long.
        longest: The longest pause, in seconds.
        window: Seconds after which an end is forgotten.
        limit: The most ends within a window that are answered by a restart.
    """

    pause: float = 0.5
    longest: float = 8.0
    window: float = 60.0
    limit: int = 5

    def wait(self, ends: Sequence[float]) -> float | None:
        """Return how many seconds after the last end the next start is due; None to give up.

        Args:
            ends: When it ended, in ascending order; the last one is the end that is to be answered.
        """
        recent = sum(ends[-1] - end < self.window for end in ends)
        if recent > self.limit:
            return None
        return 0.0 if recent == 1 else min(self.pause * 2 ** (recent - 2), self.longest)
