"""Programs that are run to their end, without the import of ``subprocess``, which takes a while in gVisor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, NamedTuple

_KEPT: Final = 2**20  # bytes of output

RESTORE: Final = ("iptables-legacy-restore", "iptables-restore")
SAVE: Final = ("iptables-legacy-save", "iptables-save")
"""The programs of iptables-legacy by preference; a distribution may have them under the second names."""


class Ran(NamedTuple):
    """The result of a program.

    Attributes:
        code: Its exit code, or minus the signal that ended it.
        output: The beginning of its standard output.
        errors: The beginning of what it wrote to standard error.
    """

    code: int
    output: str
    errors: str


def run(argv: Sequence[str], text: str = "") -> Ran:
    """Run a program to its end.

    Args:
        argv: The program, which is looked for in PATH, and its arguments.
        text: Its standard input.

    Raises:
        OSError: It cannot be executed.
    """
    files = [os.memfd_create(name) for name in ("in", "out", "err")]
    try:
        os.write(files[0], text.encode())
        os.lseek(files[0], 0, os.SEEK_SET)
        actions = [(os.POSIX_SPAWN_DUP2, file, number) for number, file in enumerate(files)]
        pid = os.posix_spawnp(argv[0], list(argv), os.environ, file_actions=actions)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        output, errors = (os.pread(file, _KEPT, 0).decode(errors="replace") for file in files[1:])
        return Ran(code, output, errors)
    finally:
        for file in files:
            os.close(file)


def found(names: Sequence[str]) -> str:
    """Return the first of these programs that there is.

    Args:
        names: Their names.

    Raises:
        FileNotFoundError: There is none.
    """
    folders = os.environ.get("PATH", os.defpath).split(":")
    for name in names:
        if any(os.access(os.path.join(folder, name), os.X_OK) for folder in folders):
            return name
    raise FileNotFoundError(f"none of {', '.join(names)} is installed")
