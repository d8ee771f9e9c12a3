# ruff: noqa: T201 - a command writes its errors to standard error
"""Run a program under the interceptor: ``python -m pytest_k3s_sandbox.layers.interceptor -- CMD``."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from pytest_k3s_sandbox.layers.interceptor import messages
from pytest_k3s_sandbox.layers.interceptor.checks import checked
from pytest_k3s_sandbox.layers.interceptor.forward import Forwarder, ProgramEnded
from pytest_k3s_sandbox.layers.interceptor.launch import failure, launch
from pytest_k3s_sandbox.layers.interceptor.loading import load_preset, load_rules
from pytest_k3s_sandbox.layers.interceptor.profiles import Profiles, filter_of
from pytest_k3s_sandbox.layers.interceptor.rules import Rules, trapped_calls
from pytest_k3s_sandbox.layers.interceptor.scratch import Scratch
from pytest_k3s_sandbox.layers.interceptor.stats import Stats
from pytest_k3s_sandbox.layers.interceptor.tracer import Tracer

_NOT_EXECUTABLE: Final = 126
_NOT_FOUND: Final = 127


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments without the program's name; None: those of the process.

    Returns:
        The program's exit code; 126 or 127 if it could not be executed; 2 for wrong
        input. If a signal ended the program, this process ends by the same one.
    """
    options = _parser().parse_args(argv)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    try:
        if not command:
            _refuse("no program to run", remedy="name it after --")
        code = run(
            command,
            _rules(options),
            stats_file=options.stats,
            exit_with_root=options.exit_with_root,
            outlive=options.if_killed == "free",
            log_level=options.log_level,
        )
    except Exception as error:
        from pytest_k3s_sandbox.errors import SandboxError

        if not isinstance(error, SandboxError):
            raise
        print(f"interceptor: {error}", file=sys.stderr)
        return 2
    if code < 0:
        _end_by(-code)
    return code


def run(
    command: Sequence[str],
    rules: Rules,
    *,
    stats_file: str | None = None,
    exit_with_root: bool = False,
    outlive: bool = False,
    log_level: str = "warning",
) -> int:
    """Run a program and its descendants under ``rules``.

    Args:
        command: The program and its arguments.
        rules: The rule set, with its tree filled in.
        stats_file: The file that the counts are written to, at the end and on SIGUSR1.
        exit_with_root: End when the program ends, and kill its descendants.
        outlive: Let the program go on when this process is killed. Its trapped calls fail with ENOSYS then
            (seccomp(2)). Otherwise the kernel kills the program, too.
        log_level: The level of messages on standard error: debug, info, warning or error.

    Returns:
        The exit code, or minus the signal that ended the program.

    Raises:
        ConfigError: A rule has a wrong value.
        MissingCapability: ptrace or seccomp is not permitted, or not on this machine.
    """
    if os.uname().machine != "x86_64":
        from pytest_k3s_sandbox.errors import MissingCapability

        raise MissingCapability(
            "the interceptor", cause=f"architecture {os.uname().machine}", remedy="run it on x86-64 Linux"
        )
    messages.set_level(log_level)
    profiles = Profiles(checked(rules))
    everyones = filter_of(profiles.everyones, probing=True) if trapped_calls(profiles.everyones) else b""
    launched = launch(command, everyones, outlive=outlive)
    stats = Stats(tuple(sorted(trapped_calls(rules))), entry_first=launched.entry_first)
    forwarder = Forwarder(launched.pid)
    forwarder.install()
    scratch = Scratch()
    tracer = Tracer(profiles, stats, scratch)
    tracer.on_signal = forwarder.delivered
    tracer.on_end = forwarder.ended
    signal.signal(signal.SIGUSR1, lambda _number, _frame: _write(stats, stats_file))
    try:
        tracer.run(launched.pid, until_root_ends=exit_with_root)
        forwarder.remove()
    except ProgramEnded:
        pass
    finally:
        scratch.close()
        _write(stats, stats_file)
    error = failure(launched.report)
    if error is not None:
        print(f"interceptor: {command[0]}: {error.strerror}", file=sys.stderr)
        return _NOT_FOUND if error.errno == errno.ENOENT else _NOT_EXECUTABLE
    return os.waitstatus_to_exitcode(tracer.status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="k3s-sandbox intercept",
        description="Run a program whose system calls get the answers that rules say.",
        allow_abbrev=False,
        # Without a width argparse imports shutil, a tenth of a tracer's start.
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=100),
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--preset", metavar="NAME", help="rules that come with the package: exp04, exp06, exp08 ..."
    )
    which.add_argument("--rules", metavar="FILE", help="rules in a TOML or YAML file")
    parser.add_argument("--tree", metavar="DIR", help="the folder that {tree} means in redirects")
    parser.add_argument("--stats", metavar="FILE", help="write counts as JSON, at the end and on SIGUSR1")
    parser.add_argument(
        "--log-level",
        choices=messages.LEVELS,
        default="warning",
        help="debug: every path, what was decided and why",
    )
    parser.add_argument(
        "--exit-with-root",
        action="store_true",
        help="do not wait for descendants of the program, end them with it",
    )
    parser.add_argument(
        "--if-killed",
        choices=("kill", "free"),
        default="kill",
        help="what becomes of the program if the interceptor itself is killed; "
        "a freed program's trapped calls fail with ENOSYS (default: %(default)s)",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD ...", help="the program to run")
    return parser


def _rules(options: argparse.Namespace) -> Rules:
    tree = options.tree
    if tree is not None and not os.path.isdir(tree):
        _refuse(f"tree {tree}", "is not a folder", "name the folder that holds proc/sys")
    rules = load_rules(options.rules) if options.rules is not None else load_preset(options.preset or "exp08")
    return rules.with_tree(os.path.realpath(tree) if tree is not None else None)


def _refuse(what: str, cause: str | None = None, remedy: str | None = None) -> NoReturn:
    from pytest_k3s_sandbox.errors import ConfigError

    raise ConfigError(what, cause=cause, remedy=remedy)


def _write(stats: Stats, path: str | None) -> None:
    if path is None:
        return
    try:
        stats.write(path)
    except OSError as error:
        print(f"interceptor: stats file {path}: {error.strerror}", file=sys.stderr)


def _end_by(signum: int) -> None:
    """End this process as the program ended, without a second core dump."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if signum not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


if __name__ == "__main__":
    sys.exit(main())
