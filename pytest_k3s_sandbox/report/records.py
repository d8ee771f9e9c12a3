"""The records of a run on disk: the one module through which they are written and read.

A run that was killed can be read. The models are defined in :mod:`~pytest_k3s_sandbox.report.schema` and
:mod:`~pytest_k3s_sandbox.report.outcomes`, and other modules import them from here.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Self

from pydantic import ValidationError

from pytest_k3s_sandbox.errors import ConfigError, SandboxError
from pytest_k3s_sandbox.report.base import FrozenModel
from pytest_k3s_sandbox.report.outcomes import (
    MAX_MESSAGE,
    Ablation,
    Announced,
    FirstError,
    Measurement,
    Spread,
    Stage,
    Tested,
    Verdict,
    Wall,
)
from pytest_k3s_sandbox.report.run import Run
from pytest_k3s_sandbox.report.schema import (
    RECORD,
    RECORDS_FILE,
    SCHEMA_VERSION,
    Cost,
    End,
    Environment,
    ErrorLine,
    Event,
    EventKind,
    Header,
    LayerState,
    Machine,
    Phase,
    PodState,
    ProgramRecord,
    Record,
    Sample,
)
from pytest_k3s_sandbox.support import clock, forks
from pytest_k3s_sandbox.support.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

__all__ = [
    "MAX_MESSAGE",
    "RECORD",
    "RECORDS_FILE",
    "SCHEMA_VERSION",
    "Ablation",
    "Announced",
    "Cost",
    "End",
    "Environment",
    "ErrorLine",
    "Event",
    "EventKind",
    "FirstError",
    "FrozenModel",
    "Header",
    "LayerState",
    "Machine",
    "Measurement",
    "Phase",
    "PodState",
    "ProgramRecord",
    "Record",
    "Run",
    "RunWriter",
    "Sample",
    "Spread",
    "Stage",
    "Tested",
    "Verdict",
    "Wall",
    "read_run",
]


class RunWriter:
    """Appends records to the folder of a run; several threads may use it.

    Every record reaches the kernel in one write(2), so that it survives SIGKILL of this process. It reaches
    the disk by fsync(2), with the first record after ``sync_every`` seconds and with :meth:`close`.

    Args:
        folder: The folder of the run, which is made if necessary.
        zero: The zero of the run on the clock of :func:`time.monotonic`; the present if None.
        sync_every: Seconds between two fsync.
        around: Called with the name of each phase; the phase runs in the context that it returns.
        joined: Whether another process writes the header and the end of this run.

    Attributes:
        environment: The last recorded environment.

    Raises:
        ConfigError: The folder holds a run already, or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        zero: float | None = None,
        sync_every: float = 1.0,
        around: Callable[[str], AbstractContextManager[object]] = nullcontext,
        joined: bool = False,
    ) -> None:
        """Open the file and write the header; see the class."""
        self.path = folder / RECORDS_FILE
        self.zero = clock.monotonic() if zero is None else zero
        self.environment: Environment | None = None
        self._sync_every = sync_every
        self._around = around
        self._synced = clock.monotonic()
        self._lock = threading.Lock()
        self._open = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            new = 0 if joined else os.O_CREAT | os.O_EXCL
            self._fd = os.open(self.path, os.O_WRONLY | new | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except FileExistsError as error:
            raise ConfigError(
                f"run folder {folder}",
                cause="it is a file" if not folder.is_dir() else "it holds the records of a run already",
                remedy="name another folder, or remove this one",
            ) from error
        except OSError as error:
            raise ConfigError(
                f"run folder {folder}",
                cause=error.strerror or str(error),
                remedy="name a folder that can be written",
            ) from error
        self._open = True
        self._joined = joined
        self._owner = forks.Owner()
        forks.watch(self)
        if not joined:
            self.append(Header(project_version=__version__))

    def forked(self) -> None:
        """Close the file in a forked process, which records nothing."""
        os.close(self._fd)

    def now(self) -> float:
        """Return the seconds since the run's zero."""
        return clock.monotonic() - self.zero

    def append(self, record: Record) -> None:
        """Write one record.

        Raises:
            SandboxError: It could not be written (a full disk, for instance), the writer is closed, or
                this process was forked from the one that records. The file ends with the last whole
                record then.
        """
        self._owner.check(f"recording to {self.path}")
        line = record.model_dump_json().encode() + b"\n"
        with self._lock:
            if not self._open:
                raise SandboxError(f"cannot record to {self.path}", cause="the run is closed")
            self._write(line)
            if clock.monotonic() - self._synced >= self._sync_every:
                os.fsync(self._fd)
                self._synced = clock.monotonic()
        if isinstance(record, Environment):
            self.environment = record

    def _write(self, line: bytes) -> None:
        before = os.fstat(self._fd).st_size
        try:
            written = os.write(self._fd, line)
            while written < len(line):
                written += os.write(self._fd, line[written:])
        except OSError as error:
            # A half line in the middle of the file would make it unreadable when the disk has room again.
            os.ftruncate(self._fd, before)
            raise SandboxError(
                f"cannot record to {self.path}",
                cause=error.strerror or str(error),
                remedy="make room on the disk, or name another folder for the report",
            ) from error

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record the enclosed work as a phase: once at its start, and again at its end."""
        start = self.now()
        self.append(Phase(name=name, start=start, end=None))
        try:
            with self._around(name):
                yield
        finally:
            if self._owner.mine:
                self.append(Phase(name=name, start=start, end=self.now()))

    def close(self, interrupted: str | None = None) -> None:
        """Write the end and sync; does nothing the second time, and in a forked process.

        Args:
            interrupted: The reason of an interruption; None for a run that finished.
        """
        if not self._open or not self._owner.mine:
            return
        forks.forget(self)
        t = self.now()
        try:
            if not self._joined:
                self.append(
                    End(t=t) if interrupted is None else End(t=t, outcome="interrupted", reason=interrupted)
                )
            os.fsync(self._fd)
        finally:
            with self._lock:
                self._open = False
                os.close(self._fd)

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the run, as interrupted when an exception ends the block."""
        del trace
        if kind is None:
            self.close()
        else:
            self.close(f"{kind.__name__}: {error}" if str(error) else kind.__name__)


def read_run(path: Path) -> Run:
    """Read a run, even if its writer was killed.

    Args:
        path: The run's folder, or its ``records.jsonl``.

    Raises:
        ConfigError: The path has no run, a newer version of the schema wrote it, or a line other than the
            last one is damaged.
    """
    file = path / RECORDS_FILE if path.is_dir() else path
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"run {path}",
            cause=f"{file.name}: {error.strerror or error}",
            remedy=f"name a folder that holds {RECORDS_FILE}, as experiments write it",
        ) from error
    lines = data.split(b"\n")
    rest = lines.pop()
    truncated = bool(rest)
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        if number == 1:
            _check_header(file, line)
        try:
            records.append(RECORD.validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            if number == len(lines) and not rest and first["type"] == "json_invalid":
                truncated = True
                break
            raise ConfigError(
                f"run {file}, line {number}",
                cause=f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}".lstrip(": "),
                remedy="the file was changed or damaged; repeat the run",
            ) from error
    if not records:
        raise ConfigError(
            f"run {file}",
            cause="it ends before its first record",
            remedy="the run was killed at its start; repeat it",
        )
    return Run(name=file.resolve().parent.name, records=tuple(records), truncated=truncated)


def _check_header(file: Path, line: bytes) -> None:
    """Refuse a file that is not a run, and a run of a newer version.

    The schema does not check this, because a newer header may have fields that this version forbids.
    """
    try:
        head = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, or nested deeper than Python goes
        head = None
    version = head.get("schema_version") if isinstance(head, dict) and head.get("type") == "header" else None
    if not isinstance(version, int):
        raise ConfigError(
            f"run {file}",
            cause="its first line is not the header of a run",
            remedy=f"name a {RECORDS_FILE} that an experiment wrote",
        )
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"run {file}",
            cause=f"its schema has version {version}, this program reads up to {SCHEMA_VERSION}",
            remedy="install the version of pytest-k3s-sandbox that wrote it "
            f"({head.get('project_version', 'unknown')}) or a later one",
        )
