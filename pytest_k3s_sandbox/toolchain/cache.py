"""The cache of programs: locked, atomic, and for its owner alone.

``entries/KEY/`` holds the files of one entry and its manifest. An entry is made in a
folder beside it and renamed, so it is there completely or not at all. The manifest
records the sha256 of each file with its size, modification time and inode. A file that
differs in one of these is hashed again. One that does not is taken for the file that was hashed:
hashing all at each start would take seconds. A user who can write a file can forge them, so that
a folder, an entry or a file that another user owns or can write is not used. The time of the last
change of the inode is of no help: it changes with each hard link that a sandbox gets.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_k3s_sandbox.errors import ProvisionError
from pytest_k3s_sandbox.toolchain import trust

MANIFEST = "manifest.json"
POLL_SECONDS = 0.5


class CorruptEntryError(ProvisionError):
    """A cached file has changed."""


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def no_space(folder: Path, what: str) -> ProvisionError:
    """Return the error for a full disk.

    Args:
        folder: Where there was no room.
        what: What could not be completed.
    """
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return ProvisionError(
        f"{what} could not be completed",
        cause=f"no space left on the device of {folder} ({free / 1e6:.0f} MB free now)",
        remedy="make room (a cold build needs about 8 GB), or name another folder by K3S_SANDBOX_CACHE",
    )


@dataclass(frozen=True)
class CacheEntry:
    """The entry of one key in the cache.

    Attributes:
        folder: The entry's folder.
        version: The version of its programs.
        origin: ``release`` or ``build``.
    """

    folder: Path
    version: str
    origin: str


def _facts(path: Path) -> dict[str, int]:
    status = path.lstat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}


def _write_manifest(folder: Path, manifest: Mapping[str, object]) -> None:
    temporary = folder / f"{MANIFEST}.{os.getpid()}"
    temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    temporary.chmod(0o644)
    temporary.replace(folder / MANIFEST)


class Cache:
    """The folder where programs are kept.

    Args:
        root: The folder; it is made when something is put into it.
    """

    def __init__(self, root: Path) -> None:
        """Keep the folder, and touch nothing."""
        self.root = root
        self._trusted: frozenset[int] | None = None

    def trusted(self) -> frozenset[int]:
        """Check that only trusted users can change the folder, and return these users.

        Raises:
            ProvisionError: Somebody else can.
        """
        if self._trusted is None:
            users = trust.owners()
            for folder in (self.root, self.root / "entries"):
                found = trust.folder_problem(folder, users)
                if found is not None:
                    path, why = found
                    raise ProvisionError(
                        f"cache folder {self.root} is not used: its programs would run as root",
                        cause=f"{path}: {why}",
                        remedy=f"{trust.remedy(path, folder)}. Or name another folder by K3S_SANDBOX_CACHE",
                    )
            self._trusted = users
        return self._trusted

    def make(self, folder: Path) -> None:
        """Make a folder of the cache; other users can read it, whatever the umask says.

        Raises:
            ProvisionError: Somebody else can change the cache.
            OSError: It cannot be made.
        """
        self.trusted()
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(mode=0o755, exist_ok=True)
            path.chmod(0o755)

    def folder(self, key: str) -> Path:
        """Return the folder of an entry, whether it exists or not."""
        return self.root / "entries" / key

    def lookup(self, key: str, name: str) -> CacheEntry | None:
        """Return the entry that holds a file, if it is there and unchanged.

        Args:
            key: The entry.
            name: The file that is wanted from it.

        Raises:
            CorruptEntryError: The entry is there, but the file differs from its record, or another user
                can change it.
            ProvisionError: Somebody else can change the cache.
        """
        folder = self.folder(key)
        self.trusted()
        if not folder.is_dir():
            return None
        path = folder / name

        def corrupt(cause: str) -> CorruptEntryError:
            return CorruptEntryError(
                f"cached file {path}", cause=cause, remedy=f"it is obtained again; or delete {folder}"
            )

        why = self._changeable(folder, folder / MANIFEST, path)
        if why is not None:
            raise corrupt(why)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            recorded = manifest["files"][name]
            entry = CacheEntry(folder, str(manifest["version"]), str(manifest["origin"]))
            digest = str(recorded["sha256"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise corrupt(f"its manifest is unreadable ({type(error).__name__}: {error})") from error
        try:
            facts = _facts(path)
            if facts != {key: value for key, value in recorded.items() if key != "sha256"}:
                if sha256_of(path) != digest:
                    raise corrupt("its sha256 is not the recorded one")
                recorded.update(facts)
                with contextlib.suppress(OSError):  # a read-only cache works, too, but slower
                    _write_manifest(folder, manifest)
        except OSError as error:
            raise corrupt(f"it cannot be read ({error})") from error
        return entry

    def _changeable(self, folder: Path, *files: Path) -> str | None:
        """Return why another user may change an entry, or why it is malformed; None if it is fine."""
        for path in (folder, *files):
            try:
                status = path.lstat()
            except OSError as error:
                return f"it cannot be read ({error})"
            why = trust.problem(status, self.trusted())
            if why is None and path != folder and not stat.S_ISREG(status.st_mode):
                why = "it is not a regular file"
            if why is not None:
                return f"{path.name}: {why}"
        return None

    def create(
        self, key: str, fill: Callable[[Path, Path], None], *, version: str, origin: str, what: str
    ) -> CacheEntry:
        """Make an entry; the caller holds its lock.

        Args:
            key: The entry; one that is there already is replaced.
            fill: Called with the folder to fill and a folder for its temporary files.
            version: The version of the programs.
            origin: ``release`` or ``build``.
            what: The name of the program, for messages.

        Raises:
            ProvisionError: The disk is full, or what ``fill`` raises. Nothing is left then.
        """
        final = self.folder(key)
        entries = final.parent
        temporary = entries / f"{key}.tmp-{os.getpid()}"
        self._remove_leftovers(key)
        try:
            self.make(entries)
            content, scratch = temporary / "content", temporary / "scratch"
            content.mkdir(parents=True)
            content.chmod(0o755)
            scratch.mkdir()
            fill(content, scratch)
            files = {}
            hashes: dict[int, str] = {}  # hard links are hashed once
            for path in sorted(content.iterdir()):
                path.chmod(0o755)
                facts = _facts(path)
                digest = hashes.setdefault(facts["inode"], "") or sha256_of(path)
                hashes[facts["inode"]] = digest
                files[path.name] = {"sha256": digest, **facts}
            _write_manifest(content, {"version": version, "origin": origin, "files": files})
            if final.exists():
                final.rename(temporary / "replaced")
            content.rename(final)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise no_space(entries, what) from error
            raise ProvisionError(
                f"{what} could not be put into the cache",
                cause=str(error),
                remedy="name a folder that can be written by K3S_SANDBOX_CACHE",
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return CacheEntry(final, version, origin)

    @contextlib.contextmanager
    def lock(self, key: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the lock of a key; the kernel drops it when the process ends.

        Args:
            key: The key to lock.
            waiting: Called about twice a second while another process holds it.
        """
        folder = self.root / "locks"
        try:
            self.make(folder)
            lock = FileLock(folder / f"{key}.lock")
            while True:
                try:
                    lock.acquire(timeout=POLL_SECONDS)
                    break
                except Timeout:
                    waiting()
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise no_space(self.root, "locking the cache") from error
            raise ProvisionError(
                f"cache folder {self.root} cannot be used",
                cause=str(error),
                remedy="name a folder that can be written by K3S_SANDBOX_CACHE",
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _remove_leftovers(self, key: str) -> None:
        # The lock is held, so the processes that made these have ended.
        for stale in self.folder(key).parent.glob(f"{key}.tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)

    def reap(self) -> None:
        """Remove the leftovers of killed processes, for every key whose lock is free."""
        for stale in (self.root / "entries").glob("*.tmp-*"):
            lock = FileLock(self.root / "locks" / f"{stale.name.rpartition('.tmp-')[0]}.lock")
            with contextlib.suppress(Timeout, OSError), lock.acquire(timeout=0):
                shutil.rmtree(stale, ignore_errors=True)
