"""The errors of this project.

Every error names the thing that failed, its cause and a remedy, and where the log
is when there is one. The command line prints them as one message and exits with 2;
the plugin turns :class:`MissingCapability` into a skip and the others into a failure.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_k3s_sandbox.support import escaping

if TYPE_CHECKING:
    import pytest


class SandboxError(Exception):
    """Base of all errors that this project raises on purpose.

    Args:
        what: What failed, naming the input or the component.
        cause: Why, as precisely as is known.
        remedy: The next step for the reader.
        log: The file or folder that holds the details.

    Attributes:
        reported: Whether a test has failed with this very error already.
    """

    def __init__(
        self,
        what: str,
        *,
        cause: str | None = None,
        remedy: str | None = None,
        log: Path | None = None,
    ) -> None:
        """Keep the parts; see the class for their meaning."""
        super().__init__(what)
        self.what = what
        self.cause = cause
        self.remedy = remedy
        self.log = log
        self.reported = False

    def __str__(self) -> str:
        """Return the whole message, a sentence for each part, with invisible characters escaped."""
        parts = [self.what if self.cause is None else f"{self.what}: {self.cause}"]
        if self.remedy is not None:
            parts.append(f"Remedy: {self.remedy}")
        if self.log is not None:
            parts.append(f"Details: {self.log}")
        return escaping.visible("\n".join(parts))


class ConfigError(SandboxError):
    """An option, a file or an argument that the user gave is not valid."""


class MissingCapability(SandboxError):
    """The machine lacks something (root, /dev/fuse, a program); tests skip on it."""


class ProvisionError(SandboxError):
    """A program or a system package could not be obtained."""


class StartError(SandboxError):
    """A sandbox did not start, or failed the check of its kind."""


class LayerError(SandboxError):
    """A layer did not come up, or its health check failed."""


class ClusterError(SandboxError):
    """A component of Kubernetes did not start, or a wait ran out of time."""


class WaitError(ClusterError):
    """A condition did not come true: the deadline passed, or a process ended that it needs."""


def missing_extra(what: str, package: str, extra: str, *, otherwise: str | None = None) -> MissingCapability:
    """Return the error of a part that needs a package which an extra of this project installs.

    Args:
        what: The part.
        package: The package's name on PyPI.
        extra: The extra's name in ``pyproject.toml``.
        otherwise: A way without the package.
    """
    remedy = f"pip install 'pytest-k3s-sandbox[{extra}]'"
    return MissingCapability(
        what,
        cause=f"the package {package} is not installed",
        remedy=remedy if otherwise is None else f"{remedy}, or {otherwise}",
    )


def owners_only(what: str) -> ConfigError:
    """Return the error of an operation that only the owner of a shared cluster may do.

    Args:
        what: The operation.
    """
    return ConfigError(
        what,
        cause="another process keeps this cluster, and other tests use it, too",
        remedy="run this test without --k3s-share",
    )


def on_purpose(caught: pytest.ExceptionInfo[BaseException] | None) -> bool:
    """Tell pytest whether an error says all that there is to say, as the ``__tracebackhide__`` of a module.

    A reader of such an error wants to see the line of the test, and not how this package came to the error.

    Args:
        caught: What pytest has caught.
    """
    return caught is not None and isinstance(caught.value, SandboxError)


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return the remedy for an unknown word: the known one that was meant, if that can be told.

    Args:
        word: The word of the user.
        known: What could have been written; the only one that contains the word goes before those
            that resemble it.
    """
    import difflib  # nothing else of a run without an error needs it

    names = list(known)
    containing = [name for name in names if word and word in name]
    near = containing if len(containing) == 1 else difflib.get_close_matches(word, names, n=1)
    return f"did you mean {near[0]!r}?" if near else "use one of these"
