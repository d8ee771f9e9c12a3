"""Claims: each is recorded, whatever ends it, and only then asserted.

A claim that waits for something is a context (:meth:`Claims.of`): when the wait raises, the test fails or
Ctrl-C ends it, the verdict has the limit and how far it got. A claim without a wait is one call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pytest_k3s_sandbox.errors import WaitError
from pytest_k3s_sandbox.support import clock, escaping

if TYPE_CHECKING:
    from pytest_k3s_sandbox.report.records import RunWriter

Value = float | str | None

MAX_ENDED = 500
"""Characters of the error that are recorded with a claim that it has ended."""


class NotHeld(AssertionError):
    """A claim was judged, and did not hold; the verdict is in the records."""


class Claims:
    """Records whether claims hold, then asserts them: what the fixture ``k3s_claim`` gives.

    Args:
        writer: The run's records.
        suffix: Put behind the name of each claim.
        prefix: Put before the text of each claim.
    """

    def __init__(self, writer: RunWriter, *, suffix: str = "", prefix: str = "") -> None:
        """Keep the arguments; nothing is claimed yet."""
        self._writer = writer
        self._suffix = suffix
        self._prefix = prefix
        self._lost: list[str] | None = None

    def __call__(
        self, name: str, text: str, held: bool, measured: Value = None, limit: Value = None, unit: str = ""
    ) -> None:
        """Record a verdict, then assert it.

        Args:
            name: A short name, like ``node-ready``.
            text: The claim as a sentence.
            held: Whether it holds.
            measured: What was seen.
            limit: What it is held against.
            unit: The unit of both.

        Raises:
            NotHeld: It does not hold.
        """
        self.verdict(name, text, held, measured, limit, unit)
        self.fail_unless(held, f"{text}: measured {measured} {unit}, the limit is {limit} {unit}")

    def of(self, name: str, text: str, *, limit: Value = None, unit: str = "") -> OpenClaim:
        """Announce a claim, and return the context in which it is judged.

        The claim is in the records from now on: if its context is never entered, it counts as not reached.

        Args:
            name: A short name, like ``node-ready``.
            text: The claim as a sentence.
            limit: What it is held against.
            unit: The unit of what is measured, and of the limit.
        """
        from pytest_k3s_sandbox.report.records import Announced

        made = OpenClaim(self, name, text, limit, unit)
        self._writer.append(
            Announced(name=name + self._suffix, text=self._prefix + text, limit=limit, unit=unit)
        )
        return made

    @contextlib.contextmanager
    def together(self) -> Iterator[Claims]:
        """Give claims that are all recorded before the first that does not hold ends the test.

        Raises:
            NotHeld: At the end of the block: one claim or more does not hold.
        """
        made = Claims(self._writer, suffix=self._suffix, prefix=self._prefix)
        lost: list[str] = []
        made._lost = lost
        try:
            yield made
        except BaseException as error:
            for line in lost:
                error.add_note(f"a claim did not hold before: {line}")
            raise
        if lost:
            raise NotHeld("\n".join(lost))

    def verdict(
        self,
        name: str,
        text: str,
        held: bool,
        measured: Value,
        limit: Value,
        unit: str,
        *,
        judged: bool = True,
        ended: str | None = None,
    ) -> None:
        """Record a verdict; see :class:`~pytest_k3s_sandbox.report.outcomes.Verdict` for the arguments."""
        from pytest_k3s_sandbox.report.records import Verdict

        self._writer.append(
            Verdict(
                name=name + self._suffix,
                text=self._prefix + text,
                held=held,
                measured=measured,
                limit=limit,
                unit=unit,
                judged=judged,
                ended=ended,
            )
        )

    def fail_unless(self, held: bool, message: str) -> None:
        """Assert a claim that is recorded: at once, or at the end of :meth:`together`.

        Raises:
            NotHeld: It does not hold.
        """
        if held:
            return
        message = escaping.visible(message)
        if self._lost is None:
            raise NotHeld(message)
        self._lost.append(message)


class OpenClaim:
    """A claim that is being looked into; made by :meth:`Claims.of`.

    Leaving the block records the claim, if :meth:`judge` or :meth:`within` has not done so. Then it did not
    hold when an assertion has ended it, or a wait for the cluster in which nothing came of it; and it was not
    judged when anything else has: trouble with the machine, a time limit of pytest's, Ctrl-C.

    Args:
        claims: Where it is recorded.
        name: See :meth:`Claims.of`, as for the others.
        text: The claim as a sentence.
        limit: What it is held against.
        unit: The unit of what is measured, and of the limit.

    Attributes:
        so_far: How far it got, or what tells: recorded when something else than a judgement ends the claim.
            Without it a claim in seconds records those since its block began.
    """

    def __init__(self, claims: Claims, name: str, text: str, limit: Value, unit: str) -> None:
        """Keep the arguments; time counts from the block's begin."""
        self._claims = claims
        self._name = name
        self._text = text
        self._limit = limit
        self._unit = unit
        self._began = clock.monotonic()
        self._judged = False
        self.so_far: Value | Callable[[], Value] = None

    @property
    def seconds(self) -> float:
        """The seconds since the block began."""
        return clock.monotonic() - self._began

    def judge(self, held: bool, measured: Value = None) -> None:
        """Record the verdict, then assert it.

        Args:
            held: Whether the claim holds.
            measured: What was seen.

        Raises:
            NotHeld: It does not hold.
            ValueError: It has been judged before.
        """
        if self._judged:
            message = f"the claim {self._name} has been judged before"
            raise ValueError(message)
        self._judged = True
        self._claims.verdict(self._name, self._text, held, measured, self._limit, self._unit)
        unit = self._unit
        self._claims.fail_unless(
            held, f"{self._text}: measured {measured} {unit}, the limit is {self._limit} {unit}"
        )

    def within(self, measured: float) -> None:
        """Judge a claim whose limit is the most that may be measured.

        Raises:
            NotHeld: It is more.
            TypeError: The limit is not a number.
        """
        if not isinstance(self._limit, (int, float)):
            message = f"the limit of the claim {self._name} is not a number: {self._limit!r}"
            raise TypeError(message)
        self.judge(measured <= self._limit, measured)

    def begin(self) -> None:
        """Begin to count the time, as entering the block does."""
        self._began = clock.monotonic()

    def give_up(self, error: BaseException) -> None:
        """Record that the claim could not be judged, because an error came in between.

        Args:
            error: The error.
        """
        self._judged = True
        self._record(judged=False, ended=_words(error))

    def __enter__(self) -> Self:
        """Begin to count the time."""
        self.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Record the claim if nothing has judged it.

        Raises:
            NotHeld: A wait for the cluster has ended it; that error is the cause.
            ValueError: The block came to its end without a judgement.
        """
        if self._judged:
            return
        self._judged = True
        if error is None:
            self._record(judged=False, ended="the test did not judge it")
            message = f"the claim {self._name} was not judged in its block"
            raise ValueError(message)
        found = isinstance(error, (AssertionError, WaitError)) and not isinstance(error, NotHeld)
        self._record(judged=found, ended=_words(error))
        if isinstance(error, WaitError):
            message = f"{self._text}: {error}"
            raise NotHeld(message) from error

    def _record(self, *, judged: bool, ended: str) -> None:
        self._claims.verdict(
            self._name,
            self._text,
            False,
            self._got(),
            self._limit,
            self._unit,
            judged=judged,
            ended=ended,
        )

    def _got(self) -> Value:
        if self.so_far is None:
            return round(self.seconds, 2) if self._unit == "s" else None
        if not callable(self.so_far):
            return self.so_far
        try:
            return self.so_far()
        except Exception as error:  # noqa: BLE001 - the claim is to be recorded, whatever went wrong
            return f"not known: {type(error).__name__}: {error}"[:MAX_ENDED]


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")[:MAX_ENDED]
