"""The user's kubeconfig file: changed whole or not at all, under kubectl's lock, with a copy beside it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from pytest_k3s_sandbox.cluster import kubeconfigs
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.support import files

LOCK_SECONDS = 5.0
POLL_SECONDS = 0.05
PRIVATE = 0o600


@dataclass(frozen=True)
class Merge:
    """A change of a user's file, as its undo needs it.

    Attributes:
        file: The user's file, with no link in its path.
        name: The name of the entries.
        backup: The copy of the file as it was before; None if it is a new file.
        written: The content that was written.
        current: Whether the new context is the current one.
    """

    file: str
    name: str
    backup: str | None
    written: str
    current: bool

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Return it from its JSON.

        Raises:
            TypeError: The fields are others, or of other types.
        """
        found = cls(**fields)
        texts = (found.file, found.name, found.written, found.backup or "")
        if not all(isinstance(each, str) for each in texts) or not isinstance(found.current, bool):
            raise TypeError("a field has a value of another type")
        return found

    def dumped(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))


def user_file(environ: Mapping[str, str]) -> Path:
    """Return the kubeconfig that kubectl changes: the first of ``KUBECONFIG``, or ``~/.kube/config``.

    Args:
        environ: The user's variables.
    """
    first = next((word for word in environ.get("KUBECONFIG", "").split(os.pathsep) if word), None)
    path = Path(first) if first is not None else Path.home() / ".kube" / "config"
    return Path(os.path.realpath(path))  # a link stays one


def check(file: Path) -> None:
    """Refuse a file that is not a kubeconfig or cannot be changed, before anything starts.

    Args:
        file: The user's file, which need not exist.

    Raises:
        ConfigError: It is broken, or no file.
    """
    kubeconfigs.check(_read(file) or "", str(file))
    nearest = next(folder for folder in file.parents if folder.exists())
    if not os.access(nearest, os.W_OK):
        raise ConfigError(
            f"the kubeconfig {file}",
            cause=f"{nearest} cannot be written",
            remedy="name another in KUBECONFIG",
        )


def merge(file: Path, config: Path, name: str) -> Merge:
    """Put a cluster into a user's file.

    Args:
        file: The user's file, which need not exist.
        config: The cluster's own kubeconfig.
        name: The name of its entries there.

    Returns:
        The change, for :func:`undo`.

    Raises:
        ConfigError: The user's file is broken, or another program changes it; it is as it was.
    """
    with _locked(file):
        before = _read(file)
        merged = kubeconfigs.merge(before or "", yaml.safe_load(config.read_text()), name, str(file))
        backup = None
        if before is not None:
            backup = file.with_name(f"{file.name}.before-{name}")
            write(backup, before, like=file)
        write(file, merged.text, like=file)
    return Merge(str(file), name, None if backup is None else str(backup), merged.text, merged.current)


def undo(done: Merge) -> str | None:
    """Take a cluster out of a user's file. A file without other changes gets its former content.

    Args:
        done: The change by :func:`merge`.

    Returns:
        The failed part and its cause; None if all was undone.
    """
    file = Path(done.file)
    try:
        with _locked(file):
            _undo(file, done)
    except (ConfigError, OSError) as error:
        return f"{file} still names the cluster {done.name}: {error}"
    return None


def _undo(file: Path, done: Merge) -> None:
    now = _read(file)
    if now is None:
        return
    backup = None if done.backup is None else Path(done.backup)
    before = None if backup is None else _read(backup)
    rest = kubeconfigs.remove(now, done.name, str(file))
    if before is not None and (now == done.written or kubeconfigs.same(rest, before)):
        write(file, before, like=file)
    elif backup is None and kubeconfigs.is_empty(rest):
        file.unlink()
        return
    else:
        write(file, rest, like=file)
        if before is not None:  # it has changed meanwhile: the copy may be wanted
            return
    if backup is not None:
        backup.unlink(missing_ok=True)


def write(file: Path, text: str, *, like: Path | None = None) -> None:
    """Write a file that only its owner can read, whole or not at all.

    Args:
        file: The file; its folder is made if need be, for its owner alone.
        text: Its content.
        like: A file whose owner and mode it gets; without such a file it belongs to the owner of its folder.
    """
    if not file.parent.exists():
        above = next(folder for folder in file.parents if folder.exists()).stat()
        file.parent.mkdir(mode=0o700, parents=True)
        _give(file.parent, file.parent.stat(), above)
    try:
        pattern = None if like is None else like.stat()
    except FileNotFoundError:
        pattern = None
    with files.replacing(file, mode=PRIVATE, sync=True) as stream:
        stream.write(text.encode())
        # Never wider than private: the file holds a key.
        os.fchmod(stream.fileno(), PRIVATE if pattern is None else pattern.st_mode & PRIVATE or PRIVATE)
        _give(stream.fileno(), os.fstat(stream.fileno()), pattern or file.parent.stat())


def _give(file: Path | int, own: os.stat_result, pattern: os.stat_result) -> None:
    """Give a file to the owner of another one; under sudo this is root, and the folder is the user's.

    Args:
        file: The file, or its descriptor.
        own: Its status.
        pattern: The status of the other one.
    """
    if (own.st_uid, own.st_gid) != (pattern.st_uid, pattern.st_gid) and os.geteuid() == 0:
        os.chown(file, pattern.st_uid, pattern.st_gid, follow_symlinks=isinstance(file, int))


def _read(file: Path) -> str | None:
    """Return a file's content; None if the file does not exist.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the kubeconfig {file}",
            cause=f"it is not UTF-8: {error}",
            remedy="repair it; it was left as it is",
        ) from error
    except OSError as error:
        raise ConfigError(
            f"the kubeconfig {file}", cause=error.strerror, remedy="name another in KUBECONFIG"
        ) from error


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the lock that kubectl takes, too (client-go, tools/clientcmd: a file that has to be new)."""
    lock = file.with_name(f"{file.name}.lock")
    if not file.parent.exists():
        write(file, "")  # makes the folder
        file.unlink()
    deadline = Deadline.after(LOCK_SECONDS)
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE))
            break
        except FileExistsError:
            if not deadline.expired:
                time.sleep(POLL_SECONDS)
                continue
            raise ConfigError(
                f"the kubeconfig {file}",
                cause=f"another program has locked it by {lock}",
                remedy=f"wait for that program; if no program changes it, remove {lock}",
            ) from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
