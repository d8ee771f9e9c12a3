"""Why the sandboxes of kept clusters were ended before their time.

Only the process that keeps a cluster sees that its sandbox has reached a limit. It writes the reason to a
file beside the cluster's state, for the clients. That file can stay longer than the state.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pytest_k3s_sandbox.daemon import registry
from pytest_k3s_sandbox.daemon.registry import State
from pytest_k3s_sandbox.errors import ClusterError
from pytest_k3s_sandbox.support import clock, escaping

TOLD_SECONDS = 86400.0
"""How long the end of a cluster is shown after its state file is gone."""


@dataclass(frozen=True)
class Ending:
    """The end of a cluster's sandbox.

    Attributes:
        name: The cluster's name.
        why: The sandbox, the limit and the option that raises it.
        folder: The run's folder.
        pid: The process that kept the cluster.
        start: That process' start time.
    """

    name: str
    why: str
    folder: str
    pid: int
    start: int

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """Return the end of fields that come from JSON.

        Raises:
            TypeError: A field is missing, unknown or of another type.
        """
        found = cls(**fields)
        words, numbers = (found.name, found.why, found.folder), (found.pid, found.start)
        if not all(isinstance(word, str) for word in words) or not all(type(n) is int for n in numbers):
            raise TypeError("a field has a value of another type")
        return found


def file(name: str) -> Path:
    """Return the file for the end of a cluster of that name."""
    return registry.folder() / f"{name}.ended"


def note(state: State, why: str) -> None:
    """Write the end of a cluster's sandbox, atomically; an OSError, as of a full disk, is ignored.

    Args:
        state: The cluster.
        why: See :class:`Ending`.
    """
    ending = Ending(state.name, why, state.folder, state.pid, state.start)
    with contextlib.suppress(OSError):
        registry.put(file(state.name), asdict(ending))


def forget(name: str) -> None:
    """Remove the file of a cluster's end."""
    file(name).unlink(missing_ok=True)


def read(name: str) -> Ending | None:
    """Return the end of the last cluster of that name; None when it was not ended before its time."""
    try:
        found = Ending.of(json.loads(file(name).read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return found if found.name == name else None


def why(state: State) -> str | None:
    """Return why the sandbox of a cluster was ended before its time; None when it was not."""
    found = read(state.name)
    return found.why if found is not None and (found.pid, found.start) == (state.pid, state.start) else None


def check(name: str) -> None:
    """Refuse a cluster whose sandbox was ended before its time.

    Raises:
        ClusterError: Its sandbox was ended.
    """
    found = read(name)
    if found is None:
        return
    state = registry.read_state(name)
    remedy = None if state is None else f"end what is left of it with `{registry.end_command(state)}`"
    raise ClusterError(
        f"the cluster {name!r} has ended", cause=found.why, remedy=remedy, log=Path(found.folder)
    )


def lines() -> list[str]:
    """Return a line for each cluster whose sandbox was ended before its time."""
    names = [path.stem for path in sorted(registry.folder().glob("*.ended"))]
    found = [ending for name in names if (ending := read(name)) is not None]
    return [escaping.line(f"ended: {each.name}: {each.why}; records: {each.folder}") for each in found]


def remove_old() -> None:
    """Remove the ends of clusters without a state file that are more than a day old."""
    for path in registry.folder().glob("*.ended"):
        with contextlib.suppress(OSError):
            old = clock.wall() - path.stat().st_mtime > TOLD_SECONDS
            if old and read(path.stem) is not None and registry.read_state(path.stem) is None:
                path.unlink()
