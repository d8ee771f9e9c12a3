"""``python -m pytest_k3s_sandbox.layers.cgroupfs MOUNTPOINT``: the filesystem alone, in the foreground."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_k3s_sandbox.errors import SandboxError
from pytest_k3s_sandbox.layers.cgroupfs.controllers import CONTROLLERS
from pytest_k3s_sandbox.layers.cgroupfs.server import DEFAULT_MOUNTPOINT, Server


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes.

    Args:
        argv: The arguments, by default the process' own.

    Returns:
        0 after SIGTERM or SIGINT, 2 when it cannot serve.
    """
    parser = argparse.ArgumentParser(prog="cgroupfs", description="A cgroup v1 filesystem in FUSE.")
    parser.add_argument("mountpoint", nargs="?", type=Path, default=Path(DEFAULT_MOUNTPOINT))
    parser.add_argument("--controllers", default=",".join(CONTROLLERS), help="names, comma-separated (all)")
    parser.add_argument("--at", type=Path, help="a directory that gets each controller as a bind mount")
    parser.add_argument("--real", action="store_true", help="mount the kernel's own cgroups below those")
    parser.add_argument("--stats", type=Path, help="a file for counts of operations, as JSON")
    options = parser.parse_args(argv)
    names = [name for name in options.controllers.split(",") if name]
    server = Server(options.mountpoint.absolute(), names, options.at, options.real, options.stats)
    try:
        server.run(lambda: _say("ready"))
    except SandboxError as error:
        _say(str(error))
        return 2
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
