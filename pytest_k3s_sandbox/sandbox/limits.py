"""How much of the machine a sandbox may take: what an option says, and what that is on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_k3s_sandbox.errors import ConfigError

MEMORY, DISK, PROCESSES = "75%", "50%", "32768"
"""What applies when nothing else is said: of the machine's memory, of the free disk, and a number."""

NONE = "none"
UNITS = {
    "": 1,
    **{prefix: 1000**number for number, prefix in enumerate("kMGT", 1)},
    "K": 1000,
    **{f"{prefix}i": 1024**number for number, prefix in enumerate("KMGT", 1)},
}
AMOUNT = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,6}))?(%|[kKMGT]i?|)", re.ASCII)

KIBI = 1 << 10
LEAST_MEMORY = 64 << 20
"""A sandbox with nothing in it takes about half of it."""
LEAST_DISK = 1 << 20
LEAST_PROCESSES = 100
"""A gVisor sandbox with nothing in it has about 50 threads on the machine."""

WHOLE = 100.0
PART_OF_PIDS = 0.75
"""The largest share of the machine's process ids for one sandbox, whatever limit is set."""


@dataclass(frozen=True)
class Amount:
    """What an option says.

    Attributes:
        number: A number of bytes or of processes; None for a share, or for no limit.
        share: A share of what there is, from 0 to 1; None for a number, or for no limit.
    """

    number: int | None = None
    share: float | None = None

    def of(self, whole: int | None) -> int | None:
        """Return the number that it is of a whole; None for no limit, or for a share of an unknown whole."""
        if self.share is None:
            return self.number
        return None if whole is None else int(whole * self.share)


@dataclass(frozen=True)
class Limits:
    """How much a sandbox may take; None for as much as there is.

    Attributes:
        memory_bytes: Memory, with what its files in memory take (/tmp, /run).
        disk_bytes: Disk below the sandbox's folder.
        processes: Processes and threads that it has on the machine.
    """

    memory_bytes: int | None = None
    disk_bytes: int | None = None
    processes: int | None = None

    def __str__(self) -> str:
        """Return them in words."""
        return ", ".join(
            (
                f"memory {in_words(self.memory_bytes)}",
                f"disk {in_words(self.disk_bytes)}",
                f"processes {'no limit' if self.processes is None else self.processes}",
            )
        )


def in_words(size: int | None) -> str:
    """Return bytes as people read them, like ``600 MiB``."""
    if size is None:
        return "no limit"
    value, unit = float(size), "bytes"
    for bigger in ("KiB", "MiB", "GiB", "TiB"):
        if value < KIBI:
            break
        value, unit = value / KIBI, bigger
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def parse_size(text: str, what: str, least: int = 0) -> Amount:
    """Return the amount of a text like ``2Gi``, ``500M``, ``75%`` or ``none``.

    Args:
        text: The text.
        what: The option, for the message.
        least: The fewest bytes that make sense.

    Raises:
        ConfigError: It says nothing, or too little.
    """
    found = AMOUNT.fullmatch(text)
    if text == NONE:
        return Amount()
    if found is None:
        raise ConfigError(
            f"{what}: {text!r} is not an amount",
            remedy="give bytes like 2Gi or 500M, a share like 75%, or none for no limit",
        )
    value = float(f"{found[1]}.{found[2] or 0}")
    if found[3] == "%":
        if not 0 < value <= WHOLE:
            raise ConfigError(f"{what}: {text!r} is not a share", remedy="give 1% to 100%")
        return Amount(share=value / WHOLE)
    size = int(value * UNITS[found[3]])
    if size < least:
        raise ConfigError(
            f"{what}: {text!r} is less than a sandbox itself needs", remedy=f"give {in_words(least)} or more"
        )
    return Amount(size)


def parse_processes(text: str, what: str) -> Amount:
    """Return the number of a text like ``32768`` or ``none``.

    Raises:
        ConfigError: It says nothing, or too little.
    """
    if text == NONE:
        return Amount()
    if not re.fullmatch("[0-9]{1,9}", text, re.ASCII):
        raise ConfigError(
            f"{what}: {text!r} is not a number of processes",
            remedy=f"give a number like {PROCESSES}, or none",
        )
    if int(text) < LEAST_PROCESSES:
        raise ConfigError(
            f"{what}: {text!r} is less than a sandbox itself needs", remedy=f"give {LEAST_PROCESSES} or more"
        )
    return Amount(int(text))


@dataclass(frozen=True)
class Wanted:
    """The values of the three options, as texts; the constructor checks them.

    Attributes:
        memory: Memory, like ``2Gi``, ``75%`` or ``none``.
        disk: Disk, likewise; a share is one of the free space when the sandbox starts.
        processes: A number of processes and threads, or ``none``.

    Raises:
        ConfigError: One says nothing that it could mean.
    """

    memory: str = MEMORY
    disk: str = DISK
    processes: str = PROCESSES

    def __post_init__(self) -> None:
        """Check them."""
        self.amounts()

    def amounts(self) -> tuple[Amount, Amount, Amount]:
        """Return the parsed values."""
        return (
            parse_size(self.memory, "the limit of memory", LEAST_MEMORY),
            parse_size(self.disk, "the limit of disk", LEAST_DISK),
            parse_processes(self.processes, "the limit of processes"),
        )

    def on(self, machine: Room) -> Limits:
        """Return the limits on a machine.

        Args:
            machine: The resources of the machine.
        """
        memory, disk, processes = self.amounts()
        number = processes.of(None)
        most = None if machine.pids is None else int(machine.pids * PART_OF_PIDS)
        return Limits(
            memory.of(machine.memory_bytes),
            disk.of(machine.free_bytes),
            number if number is None or most is None else min(number, most),
        )


@dataclass(frozen=True)
class Room:
    """The resources of a machine.

    Attributes:
        memory_bytes: Memory that this process may take.
        free_bytes: Free disk where the sandbox's folder is.
        pids: How many process ids there are; None where that is not told.
    """

    memory_bytes: int
    free_bytes: int
    pids: int | None

    @classmethod
    def found(cls, folder: Path, around: Sequence[int] = ()) -> Room:
        """Return what this machine has.

        Args:
            folder: A folder of the file system on which sandboxes are.
            around: Limits of memory in bytes that this process has itself.
        """
        there = os.statvfs(folder)
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(min((physical, *around)), there.f_bavail * there.f_frsize, _pids())


def _pids() -> int | None:
    """Return how many process ids there are (proc(5), /proc/sys/kernel/pid_max)."""
    try:
        return int(Path("/proc/sys/kernel/pid_max").read_text())
    except (OSError, ValueError):
        return None
