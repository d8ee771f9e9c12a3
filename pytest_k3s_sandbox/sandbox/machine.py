"""What a start leaves on the machine, who owns it, and how the next start removes it.

Every sandbox has a folder below :func:`home`, whose ``owner.json`` says which process
started it and what it made outside the folder. A sandbox whose owner is gone is reaped.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
import platformdirs

from pytest_k3s_sandbox.errors import StartError
from pytest_k3s_sandbox.sandbox import network
from pytest_k3s_sandbox.sandbox.network import Network

OWNER_FILE = "owner.json"

LOCK = Path("/run/k3s-sandbox.lock")
"""One lock for the machine, whatever the home: addresses are taken from one pool."""

LOCK_SECONDS = 60.0


@dataclass(frozen=True)
class Owner:
    """Who answers for a sandbox and what belongs to it.

    Attributes:
        pid: The process that started it.
        start: That process' start time in clock ticks since boot (proc(5), stat field 22).
        kind: The kind of sandbox.
        network: Its namespace and interface.
        cgroups: Folders in the machine's cgroup trees that were made for it.
        runsc: The runsc program, for a gVisor sandbox.
    """

    pid: int
    start: int
    kind: str
    network: Network
    cgroups: tuple[str, ...] = ()
    runsc: str | None = None


def home() -> Path:
    """Return the folder that holds every sandbox's folder (``K3S_SANDBOX_HOME`` overrides it)."""
    override = os.environ.get("K3S_SANDBOX_HOME")
    # Resolved, because mountinfo gives resolved paths and mounts below are found by it.
    return (Path(override) if override else platformdirs.user_state_path("pytest-k3s-sandbox")).resolve()


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Hold the machine-wide lock under which networks are taken and orphans reaped.

    Raises:
        StartError: Another process held it for too long.
    """
    held = filelock.FileLock(LOCK)
    try:
        held.acquire(timeout=LOCK_SECONDS)
    except filelock.Timeout as error:
        raise StartError(
            f"the lock {LOCK}",
            cause=f"another process has held it for {LOCK_SECONDS:g} s",
            remedy=f"see who it is with `fuser {LOCK}`",
        ) from error
    try:
        yield
    finally:
        held.release()


def new_workdir() -> Path:
    """Create an empty folder with a name that is unique on this machine.

    Raises:
        OSError: The folder of the sandboxes cannot be written.
    """
    folder = home() / "sandboxes" / secrets.token_hex(4)
    folder.mkdir(parents=True)
    return folder


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None when there is none.

    proc(5): the fields after the command's closing parenthesis count from 3.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def claim(workdir: Path, owner: Owner) -> None:
    """Write the owner file, atomically."""
    partial = workdir / f"{OWNER_FILE}.partial"
    partial.write_text(json.dumps(asdict(owner)))
    partial.rename(workdir / OWNER_FILE)


def read_owner(workdir: Path) -> Owner | None:
    """Return the owner of a sandbox's folder; None when the file is missing or not ours."""
    try:
        data = json.loads((workdir / OWNER_FILE).read_text())
        data["network"] = Network(**data["network"])
        data["cgroups"] = tuple(data["cgroups"])
        return Owner(**data)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def orphans() -> list[tuple[Path, Owner | None]]:
    """Return the sandboxes whose owner is gone; the caller holds :func:`lock`.

    A folder is claimed under the lock, so one without an owner belongs to nobody.
    """
    found: list[tuple[Path, Owner | None]] = []
    for folder in sorted((home() / "sandboxes").glob("*")):
        owner = read_owner(folder)
        if owner is None or start_time(owner.pid) != owner.start:
            found.append((folder, owner))
    return found


def reap() -> list[str]:
    """Remove what runs that were killed left behind; the caller holds :func:`lock`.

    Returns:
        The names of the sandboxes that were removed.
    """
    reaped = []
    for folder, owner in orphans():
        if owner is not None and owner.runsc is not None:
            end_container(owner.runsc, folder)
        dispose(folder, owner)
        reaped.append(folder.name)
    return reaped


def end_container(runsc: str, workdir: Path) -> None:
    """Make runsc forget the container of a sandbox, ending it when it still runs."""
    if not (workdir / "runsc").is_dir():
        return
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [runsc, "--root", str(workdir / "runsc"), "delete", "--force", workdir.name],
            capture_output=True,
            check=False,
            timeout=20,
        )


def dispose(workdir: Path, owner: Owner | None) -> None:
    """End what still runs in a sandbox, and remove its network, cgroups and folder.

    Args:
        workdir: The sandbox's folder.
        owner: What :func:`read_owner` gives; without it, what follows from the folder's name is removed.
    """
    net = network.named(workdir.name) if owner is None else owner.network
    network.end_processes(net)
    network.remove(net)
    for group in () if owner is None else owner.cgroups:
        remove_cgroup(Path(group))
    unmount_below(workdir)
    shutil.rmtree(workdir, ignore_errors=True)


def unmount_below(folder: Path) -> None:
    """Unmount everything that is mounted below a folder of ours, the last mounted first.

    runsc leaves one such mount: a network namespace named ``null-netns`` in its root.
    """
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [unescape(line.split()[4]) for line in mounts]
    for point in reversed([point for point in points if Path(point).is_relative_to(folder)]):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False, timeout=20)


def unescape(field: str) -> str:
    """Return a field of mountinfo with its octal escapes undone (proc(5))."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def remove_cgroup(group: Path, seconds: float = 2.0) -> None:
    """Remove a cgroup and its descendants, whose tasks have been killed.

    Args:
        group: Its folder.
        seconds: How long to wait for tasks that are still on their way out (EBUSY).
    """
    until = time.monotonic() + seconds
    while group.exists():
        for folder, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
        if time.monotonic() > until:
            return
        time.sleep(0.01)


def leftovers() -> list[str]:
    """Return what is on the machine of sandboxes whose owner is gone or that have no folder any more.

    Returns:
        A line each for processes, mounts, network namespaces, interfaces, cgroups and folders.
    """
    found = [f"folder {folder}" for folder, _ in orphans()]
    found += [f"network namespace {path.name}" for path in Path("/run/netns").glob("k3ssb-*")]
    found += [f"interface {path.name}" for path in Path("/sys/class/net").glob("k3s????????")]
    found += [f"cgroup {path}" for path in Path("/sys/fs/cgroup").glob("**/k3ssb-*")]
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    found += [f"mount {point}" for point in points if Path(point).is_relative_to(home())]
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            argv = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(home() / "sandboxes") in argv:
                found.append(f"process {folder.name}: {argv}")
    # Asked last: a sandbox that started while this looked around is alive, too.
    alive = {folder.name for folder in (home() / "sandboxes").glob("*")} - {f.name for f, _ in orphans()}
    return [line[:200] for line in found if not any(name in line for name in alive)]
