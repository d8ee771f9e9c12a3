"""The folders of sandboxes on the machine, their owners and our mark.

Every sandbox has a folder below :func:`home`. Its ``owner.json`` is our mark: it says which process
started the sandbox and which objects were made outside the folder. The owner holds a lock in the folder
for its life. A folder without the mark is not ours, whatever its name, and is never touched. The module
:mod:`.reaper` removes a folder whose owner is gone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shlex
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import platformdirs

from pytest_k3s_sandbox.errors import ConfigError, StartError
from pytest_k3s_sandbox.sandbox import locks, network
from pytest_k3s_sandbox.sandbox.network import Network
from pytest_k3s_sandbox.sandbox.processes import Identity
from pytest_k3s_sandbox.support import files

OWNER_FILE = "owner.json"

LIFE_FILE = "life.lock"
"""The file in a sandbox's folder that its owner has locked (:mod:`.locks`)."""

MADE_BY = "pytest-k3s-sandbox"
FORMAT = 2
"""The format of the owner file. Version 1 had neither this number nor a boot, a pid namespace and a lock."""

OWNER_BYTES = 65536
KEY = re.compile(r"[0-9a-f]{8}")

LOCK = Path("/run/k3s-sandbox.lock")
"""One lock for the machine, whatever the home: addresses are taken from one pool."""

LOCK_SECONDS = 60.0


@dataclass(frozen=True)
class Owner:
    """The owner of a sandbox, and the objects that belong to the sandbox.

    Fields of types other than those below need a line in :func:`_parsed`.

    Attributes:
        pid: The process that started it, or that took it over. It can be 1: pytest in a container.
        start: That process' start time in clock ticks since boot (proc(5), stat field 22).
        boot: The boot in which it was started (:func:`.processes.boot_id`).
        pid_namespace: The pid namespace in which ``pid`` means that process.
        kind: The kind of sandbox.
        network: Its namespace and interface.
        cgroups: Folders in the machine's cgroup trees that were made for it; each is called as the sandbox.
        runsc: The runsc program, for a gVisor sandbox.
    """

    pid: int
    start: int
    boot: str
    pid_namespace: str
    kind: str
    network: Network
    cgroups: tuple[str, ...] = ()
    runsc: str | None = None

    @property
    def process(self) -> Identity:
        """The process that owns it."""
        return Identity(self.pid, self.start, self.boot, self.pid_namespace)

    def owned_by(self, process: Identity) -> Owner:
        """Return the same for another process."""
        return replace(self, **asdict(process))

    def alive(self, workdir: Path) -> bool:
        """Return whether the sandbox has an owner: by its lock, which also works between containers."""
        return self.process.alive or locks.held(workdir / LIFE_FILE)


class NotOurs(Exception):
    """A folder does not bear our mark; the message says why."""


def home() -> Path:
    """Return the folder that holds every sandbox's folder (``K3S_SANDBOX_HOME`` overrides it)."""
    override = os.environ.get("K3S_SANDBOX_HOME")
    # Resolved, because mountinfo gives resolved paths and mounts below are found by it.
    return (Path(override) if override else platformdirs.user_state_path("pytest-k3s-sandbox")).resolve()


def private_folder(folder: Path) -> None:
    """Make a folder in :func:`home`, and the home itself, for this user alone.

    Args:
        folder: A folder directly in the home.

    Raises:
        ConfigError: The home or the folder is there, and another user owns it or can read or write it:
            keys lie there, and programs that the machine runs as root.
        OSError: It cannot be made.
    """
    for path in (home(), folder):
        if path == home():
            path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.stat()
        if found.st_uid != os.geteuid():
            raise ConfigError(
                f"the folder {path}",
                cause=f"it belongs to the user with id {found.st_uid}, and not to {os.geteuid()}",
                remedy="set K3S_SANDBOX_HOME to a folder of your own, or to one that does not exist yet",
            )
        if found.st_mode & 0o077:
            raise ConfigError(
                f"the folder {path}",
                cause=f"others may use it (mode {stat.S_IMODE(found.st_mode):04o}), and keys lie in it",
                remedy=f"chmod 700 {shlex.quote(str(path))}",
            )


def sandboxes() -> Path:
    """Return the folder of the sandboxes' folders."""
    return home() / "sandboxes"


def partial() -> Path:
    """Return the folder of half made and half removed sandboxes; they hold nothing but our mark."""
    return home() / "partial"


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Hold the machine-wide lock under which networks are taken.

    Raises:
        StartError: Another process held it for too long, or the file is not a lock of ours.
    """
    with _locked(LOCK):
        yield


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        held = locks.take(path, LOCK_SECONDS)
    except BlockingIOError as error:
        raise StartError(
            f"the lock {path}",
            cause=f"another process has held it for {LOCK_SECONDS:g} s",
            remedy=f"find the process with `fuser {path}`",
        ) from error
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.EACCES, errno.EPERM, errno.EISDIR}:
            raise
        raise StartError(
            f"the lock {path}",
            cause="it is a link" if error.errno == errno.ELOOP else str(error.strerror),
            remedy=f"look at it with `ls -l {path}`, and remove it",
        ) from error
    try:
        yield
    finally:
        held.release()


def new_workdir(kind: str, runsc: str | None = None) -> tuple[Path, locks.Lock, Owner]:
    """Create a folder with a name that is unique on this machine, owned by this process.

    It is moved to its place when it bears the mark and is locked.

    Args:
        kind: The kind of sandbox.
        runsc: The runsc program, for a gVisor sandbox.

    Returns:
        The folder, the lock to hold for the owner's life, and the record that is in the folder.

    Raises:
        OSError: The folder of the sandboxes cannot be written.
    """
    key = secrets.token_hex(4)
    folder = partial() / key
    for parent in (sandboxes(), partial()):
        private_folder(parent)
    with _locked(home() / "lock"):
        folder.mkdir(mode=0o700)
        life = locks.take(folder / LIFE_FILE)
        try:
            own = asdict(Identity.own())
            owner = Owner(**own, kind=kind, network=network.named(key), runsc=runsc)
            claim(folder, owner)
            workdir = sandboxes() / key
            folder.rename(workdir)
        except BaseException:
            life.release()
            forget(folder)
            raise
    life.path = workdir / LIFE_FILE
    return workdir, life, owner


def forget(folder: Path) -> None:
    """Remove our mark and the empty folder; with any other file in it the folder stays."""
    for name in (LIFE_FILE, OWNER_FILE, f"{OWNER_FILE}.partial"):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def remove_unfinished() -> None:
    """Remove the folders in :func:`partial` of starts and removals that were killed."""
    if not partial().is_dir() or not any(partial().iterdir()):
        return
    with _locked(home() / "lock"):
        for folder in partial().iterdir():
            with contextlib.suppress(OSError):
                if KEY.fullmatch(folder.name) and stat.S_ISDIR(folder.lstat().st_mode):
                    forget(folder)


def claim(workdir: Path, owner: Owner) -> None:
    """Write the owner file, atomically; it keeps the time of the first one, the sandbox's start."""
    unfinished, target = workdir / f"{OWNER_FILE}.partial", workdir / OWNER_FILE
    unfinished.unlink(missing_ok=True)
    with files.replacing(target, temporary=unfinished.name, mode=0o600) as file:
        os.fchmod(file.fileno(), 0o600)  # whatever the umask
        file.write(json.dumps({"made_by": MADE_BY, "format": FORMAT, **asdict(owner)}).encode())
        file.flush()  # a later write would set the time
        with contextlib.suppress(FileNotFoundError):
            began = target.stat().st_mtime_ns
            os.utime(file.fileno(), ns=(began, began))


def read_owner(workdir: Path) -> Owner | None:
    """Return the owner of a sandbox's folder; None when the folder does not bear our mark."""
    try:
        return verified_owner(workdir)
    except NotOurs:
        return None


def verified_owner(workdir: Path) -> Owner:
    """Return the owner of a sandbox's folder.

    Raises:
        NotOurs: The folder does not bear our mark. It is not a folder, it is another user's, its name is not
            one of ours, or its owner file is missing, broken, of another version or about another sandbox.
    """
    if not KEY.fullmatch(workdir.name):
        raise NotOurs("its name is not that of a sandbox's folder")
    try:
        found = workdir.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise NotOurs("it is not a folder")
        if found.st_uid != os.geteuid():
            raise NotOurs(f"it belongs to the user {found.st_uid}")
        text = _read_own(workdir / OWNER_FILE)
    except FileNotFoundError:
        raise NotOurs(f"it has no {OWNER_FILE}") from None
    except OSError as error:
        raise NotOurs(f"its {OWNER_FILE} cannot be read: {error.strerror}") from None
    try:
        return _parsed(json.loads(text), workdir.name)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NotOurs(f"its {OWNER_FILE} is broken or forged ({error})") from None


def _read_own(path: Path) -> str:
    """Read a small regular file of this user's that no other user can write.

    Raises:
        NotOurs: It is another one.
        OSError: It cannot be opened; ELOOP when it is a link.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise NotOurs(f"its {path.name} can be written by another user")
        return file.read(OWNER_BYTES).decode(errors="replace")


def _parsed(data: Mapping[str, Any], key: str) -> Owner:
    """Return the record of an owner file.

    Raises:
        NotOurs: Another version wrote it.
        ValueError: It does not belong to this folder.
        KeyError: A field is missing.
        TypeError: A field is not known, or a value is of another type.
    """
    if not isinstance(data, dict):
        raise TypeError("it is not an object")
    fields = dict(data)
    if fields.pop("made_by", None) != MADE_BY or fields.pop("format", None) != FORMAT:
        if {"pid", "start", "kind", "network"} <= set(fields):
            raise NotOurs("another version of this project made it, so that its owner cannot be verified")
        raise TypeError("it lacks our mark")
    net = Network(**fields.pop("network"))
    groups = fields.pop("cgroups")
    owner = Owner(network=net, cgroups=tuple(groups), **fields)
    words = (
        owner.boot,
        owner.pid_namespace,
        owner.kind,
        *groups,
        net.netns,
        net.veth,
        net.isolation,
        owner.runsc or "",
    )
    numbers = (owner.pid, owner.start, net.inode, net.index, net.gateway_inode)
    if not all(isinstance(word, str) for word in words) or not isinstance(groups, list):
        raise TypeError("a text is not a text")
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        raise TypeError("a number is not an integer")
    if owner.pid < 1 or min(numbers) < 0 or not owner.boot or not owner.pid_namespace:
        raise ValueError("a number, the boot or the pid namespace is impossible")
    ours = network.named(key)
    if (net.netns, net.veth) != (ours.netns, ours.veth) or any(
        Path(group).name != ours.netns for group in groups
    ):
        raise ValueError("it names objects of another sandbox")
    return owner


def strangers() -> dict[Path, str]:
    """Return the paths among the sandboxes' folders that do not bear our mark, each with the reason.

    This package never touches them.
    """
    found: dict[Path, str] = {}
    for folder in sorted(sandboxes().glob("*")) if sandboxes().is_dir() else ():
        try:
            verified_owner(folder)
        except NotOurs as reason:
            if os.path.lexists(folder):  # it has not ended meanwhile
                found[folder] = str(reason)
    return found
