"""``python -m pytest_k3s_sandbox.layers.cgroupfs MOUNTPOINT``: the filesystem alone, in the foreground."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pytest_k3s_sandbox.layers.cgroupfs.controllers import CONTROLLERS, DEFAULT
from pytest_k3s_sandbox.layers.cgroupfs.probe import render
from pytest_k3s_sandbox.layers.cgroupfs.server import DEFAULT_MOUNTPOINT, Server

READY = "ready, pid {}"
"""The line that the server writes when programs can use the mounts; the id tells it from earlier servers'
lines."""


def main(argv: Sequence[str] | None = None, prog: str = f"python -m {__package__}") -> int:
    """Serve until a signal comes.

    Args:
        argv: The arguments, by default the process' own.
        prog: The command's name in the help.

    Returns:
        0 after SIGTERM or SIGINT, 2 if it cannot serve.
    """
    options = _parser(prog).parse_args(argv)
    stacked = options.stack_on is not None
    server = Server(
        options.mountpoint,
        [name.replace("+", ",") for name in options.controllers.split(",") if name],
        at=options.stack_on if stacked else options.at,
        real=stacked,
        stats=options.stats,
        opens=options.opens,
        log=_say if options.verbose else None,
    )
    try:
        server.run(lambda seen: _say(render(seen) + READY.format(os.getpid())))
    except Exception as error:
        from pytest_k3s_sandbox.errors import SandboxError

        if not isinstance(error, SandboxError):
            raise
        _say(str(error))
        return 2
    _say("ended")
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serve a cgroup v1 filesystem in FUSE until SIGINT or SIGTERM. What it sees itself is "
        "logged, then a line that says `ready`.",
    )
    parser.add_argument(
        "mountpoint", nargs="?", default=DEFAULT_MOUNTPOINT, help=f"where (default: {DEFAULT_MOUNTPOINT})"
    )
    parser.add_argument(
        "--controllers",
        default=",".join(DEFAULT),
        help=f"names with commas, + between those that share a hierarchy; of {' '.join(CONTROLLERS)} "
        f"(default: {','.join(DEFAULT)})",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--at", metavar="PATH", help="show each controller below PATH as well, such as /sys/fs/cgroup"
    )
    where.add_argument(
        "--stack-on",
        metavar="PATH",
        help="the same, on top of the kernel's own cgroup mounts there, which are mounted first where the "
        "kernel has the hierarchy, so that mount tables keep their lines of type cgroup",
    )
    parser.add_argument(
        "--stats", metavar="FILE", help="a file for counts of operations, as JSON, written on SIGUSR1, too"
    )
    parser.add_argument(
        "--opens",
        action="store_true",
        help="let programs open files even where, as in gVisor, the kernel can do without",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log each change that a program makes")
    return parser


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
