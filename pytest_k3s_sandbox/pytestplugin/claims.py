"""Claims: the plugin records each claim, and then asserts it.

A claim with a wait is a context (:meth:`Claims.of`). Its verdict has the limit and the value so far, even if
the wait raises an exception, an assertion fails or the user presses Ctrl-C. A claim without a wait is one
call.
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
"""The most characters that are recorded of the error that ended a claim."""


class NotHeld(AssertionError):
    """A claim did not hold; the records have the verdict."""


class Claims:
    """Records whether claims hold, then asserts them: the value of the fixture ``k3s_claim``.

    Args:
        writer: The run's records.
        suffix: A suffix for the name of each claim.
        prefix: A prefix for the text of each claim.
    """

    def __init__(self, writer: RunWriter, *, suffix: str = "", prefix: str = "") -> None:
        """Start without a claim."""
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
            held: Whether the claim holds.
            measured: The measured value.
            limit: The limit of that value.
            unit: The unit of both.

        Raises:
            NotHeld: The claim does not hold.
        """
        self.verdict(name, text, held, measured, limit, unit)
        self.fail_unless(held, f"{text}: measured {measured} {unit}, the limit is {limit} {unit}")

    def of(self, name: str, text: str, *, limit: Value = None, unit: str = "") -> OpenClaim:
        """Announce a claim, and return the context that judges it.

        The records contain the claim from now on. If the test never enters the context, the claim counts as
        not reached.

        Args:
            name: A short name, like ``node-ready``.
            text: The claim as a sentence.
            limit: The limit of the measured value.
            unit: The unit of the measured value and of the limit.
        """
        from pytest_k3s_sandbox.report.records import Announced

        made = OpenClaim(self, name, text, limit, unit)
        self._writer.append(
            Announced(name=name + self._suffix, text=self._prefix + text, limit=limit, unit=unit)
        )
        return made

    @contextlib.contextmanager
    def together(self) -> Iterator[Claims]:
        """Record all claims of a block, and fail the test only at its end.

        Raises:
            NotHeld: A claim of the block does not hold.
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
        """Assert a recorded claim: at once, or at the end of :meth:`together`.

        Raises:
            NotHeld: The claim does not hold.
        """
        if held:
            return
        message = escaping.visible(message)
        if self._lost is None:
            raise NotHeld(message)
        self._lost.append(message)


class OpenClaim:
    """A claim without a verdict; :meth:`Claims.of` makes it.

    Leaving the block records the claim, unless :meth:`judge` or :meth:`within` has recorded it. The claim
    did not hold if an assertion failed or a wait for the cluster raised an error. It was not judged if
    another exception ended the block: an infrastructure error, a timeout of pytest, Ctrl-C.

    Args:
        claims: The claims that record it.
        name: A short name, like ``node-ready``.
        text: The claim as a sentence.
        limit: The limit of the measured value.
        unit: The unit of the measured value and of the limit.

    Attributes:
        so_far: The value so far, or a function that returns it. It is recorded when an exception ends the
            block. Without it, a claim in seconds records the seconds since the block began.
    """

    def __init__(self, claims: Claims, name: str, text: str, limit: Value, unit: str) -> None:
        """Start without a verdict; entering the block restarts the clock."""
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
            measured: The measured value.

        Raises:
            NotHeld: The claim does not hold.
            ValueError: The claim has been judged before.
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
        """Judge a claim whose limit is a maximum.

        Args:
            measured: The measured value.

        Raises:
            NotHeld: The value is greater than the limit.
            TypeError: The limit is not a number.
        """
        if not isinstance(self._limit, (int, float)):
            message = f"the limit of the claim {self._name} is not a number: {self._limit!r}"
            raise TypeError(message)
        self.judge(measured <= self._limit, measured)

    def begin(self) -> None:
        """Restart the clock, as entering the block does."""
        self._began = clock.monotonic()

    def give_up(self, error: BaseException) -> None:
        """Record that an error ended the claim before a verdict.

        Args:
            error: The error.
        """
        self._judged = True
        self._record(judged=False, ended=_words(error))

    def __enter__(self) -> Self:
        """Restart the clock."""
        self.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Record the claim if it has no verdict yet.

        Raises:
            NotHeld: A wait for the cluster raised an error, which is the cause of this one.
            ValueError: The block ended without a verdict.
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
        except Exception as error:  # noqa: BLE001 - the claim must be recorded in any case
            return f"not known: {type(error).__name__}: {error}"[:MAX_ENDED]


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")[:MAX_ENDED]
