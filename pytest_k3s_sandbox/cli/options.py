"""The common part of the commands: their options, and checks before anything starts."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.models import OptionInfo

from pytest_k3s_sandbox.errors import ConfigError, MissingCapability
from pytest_k3s_sandbox.settings import BY_NAME, Given, Option, Place, Settings, resolve
from pytest_k3s_sandbox.support import escaping

if TYPE_CHECKING:
    from pytest_k3s_sandbox.cli.progress import Verbosity
    from pytest_k3s_sandbox.node.spec import NodeSpec
    from pytest_k3s_sandbox.toolchain.progress import Progress
    from pytest_k3s_sandbox.toolchain.resolve import Program

TAKES_WORDS = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
"""The settings of a command that hands the words after its own options to a program."""

STDOUT = Path("-")
"""``--json -``: the result as JSON on standard output, in the place of the text."""


def _option(name: str) -> OptionInfo:
    """Return the command line's form of one of :data:`~pytest_k3s_sandbox.settings.OPTIONS`."""
    option = BY_NAME[name]
    made: OptionInfo = typer.Option(
        f"--{name}",
        help=f"{option.help[0].upper()}{option.help[1:]} (environment: {option.variable}).",
        metavar="|".join(option.choices) or name.upper(),
        show_default=option.default,
    )
    return made


SandboxOption = Annotated[str | None, _option("sandbox")]
LayersOption = Annotated[str | None, _option("layers")]
OpenPortsOption = Annotated[str | None, _option("open-ports")]
MemoryOption = Annotated[str | None, _option("memory")]
DiskOption = Annotated[str | None, _option("disk")]
ProcessesOption = Annotated[str | None, _option("processes")]
PortOption = Annotated[str | None, _option("api-port")]
DistributionOption = Annotated[str | None, _option("distribution")]
RuntimeOption = Annotated[str | None, _option("runtime")]
VersionOption = Annotated[str | None, _option("version")]
DurationOption = Annotated[str | None, _option("duration")]
ReportOption = Annotated[str | None, _option("report")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the result and errors.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Say more about the progress.")]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", help="A file for the result as JSON; '-' for standard output instead of text."),
]


def say(line: str) -> None:
    """Write a line about the progress to standard error."""
    typer.echo(escaping.visible(line), err=True)


def verbosity(*, quiet: bool, verbose: bool) -> Verbosity:
    """Return how much is to be said.

    Raises:
        ConfigError: Both were asked for.
    """
    from pytest_k3s_sandbox.cli.progress import Verbosity

    if quiet and verbose:
        raise ConfigError("--quiet and --verbose", cause="they exclude each other", remedy="drop one")
    return Verbosity.QUIET if quiet else Verbosity.VERBOSE if verbose else Verbosity.NORMAL


def give(text: str, result: object, json_file: Path | None) -> None:
    """Print a command's result, and write it as JSON where ``--json`` says.

    Args:
        text: The result for people.
        result: The same as a JSON value.
        json_file: The file; ``-`` for standard output instead of the text.
    """
    if text and json_file != STDOUT:
        typer.echo(escaping.visible(text))
    if json_file is None:
        return
    dumped = json.dumps(result, indent=2)
    if json_file == STDOUT:
        typer.echo(dumped)
    else:
        json_file.write_text(f"{dumped}\n")


def provisioned(
    programs: Sequence[str] | None = None,
    *,
    quiet: bool,
    version: str | None = None,
    for_tests: bool = False,
    unpinned: bool = False,
) -> list[Program]:
    """Put programs in place and return them; shows the progress of long steps.

    Args:
        programs: Their names; by default all that the embedded parts need, and those that a node can do
            without and that can be had; a line names each that cannot.
        quiet: Whether to show nothing.
        version: The version of Kubernetes; None for the default.
        for_tests: Whether to get also the programs that only the project's own tests need.
        unpinned: Whether to take releases whose digest is not pinned.
    """
    from pytest_k3s_sandbox.node.runtime import WELCOME
    from pytest_k3s_sandbox.toolchain import Toolchain

    environ = {**os.environ, **({"K3S_SANDBOX_RELEASES": "unpinned"} if unpinned else {})}
    toolchain = Toolchain(environ=environ, progress=_progress(quiet=quiet), kubernetes=version)
    found = toolchain.provision(programs, for_tests=for_tests)
    for name in WELCOME if programs is None else ():
        program = toolchain.get_or_why(name, again=True)
        if not isinstance(program, str):
            found.append(program)
        elif not quiet:
            say(f"k3s-sandbox: {name}, which a cluster can do without, is not available ({program})")
    return found


def provisioned_for(spec: NodeSpec, *, quiet: bool) -> None:
    """Put the programs of a node in place; shows the progress of long steps.

    Args:
        spec: The specification of the node.
        quiet: Whether to show nothing.
    """
    from pytest_k3s_sandbox.node.runtime import provision
    from pytest_k3s_sandbox.toolchain import Toolchain

    provision(spec, Toolchain(progress=_progress(quiet=quiet), kubernetes=spec.version))


def _progress(*, quiet: bool) -> Progress:
    """Return the display of long steps."""
    from pytest_k3s_sandbox.toolchain.progress import SilentProgress, for_terminal

    return SilentProgress() if quiet else for_terminal()


def pinned(
    programs: Sequence[str] | None, target: Path | None, *, quiet: bool, json_file: Path | None
) -> None:
    """Fetch releases, and write their digests as lines for ``programs.toml``.

    Args:
        programs: Their names; by default all that have a release.
        target: The file for the lines; by default they are printed.
        quiet: Whether to show nothing meanwhile.
        json_file: Where the digests go as JSON, if anywhere.

    Raises:
        ConfigError: The file cannot be written.
    """
    from pytest_k3s_sandbox.toolchain import Toolchain, pinning

    toolchain = Toolchain(progress=_progress(quiet=quiet))
    digests = pinning.pin(toolchain, programs)
    lines = pinning.as_toml(digests, pinning.unstated(toolchain))
    if target is not None:
        try:
            target.write_text(lines, encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"--pin-to {target}",
                cause=error.strerror or str(error),
                remedy="name a file that can be written",
            ) from error
    text = lines.rstrip() if target is None else f"written for review: {target}"
    give(text, digests, json_file)


def settings_of(**given: str | None) -> Settings:
    """Return the settings that a command has: its own options, then the environment, then the defaults.

    Args:
        given: The texts of the command's options by their names, with ``_`` for ``-``; None for one that
            was not given.

    Raises:
        ConfigError: One has a value that it cannot have.
    """
    found: dict[str, Given] = {}
    for name, text in given.items():
        option = BY_NAME[name.replace("_", "-")]
        before = None if option.before is None else _variable(option.before)
        places = [((f"--{option.name}", text), None), (_variable(option), before)]
        found[option.name] = resolve(option, places, prefix="--")
    settings = Settings.of(found, Path.cwd())
    for note in settings.notes:
        say(f"k3s-sandbox: {note}")
    return settings


def _variable(option: Option) -> Place:
    return f"environment variable {option.variable}", os.environ.get(option.variable)


def need_root() -> None:
    """Refuse to start a node without root.

    Raises:
        MissingCapability: This is not root.
    """
    if os.geteuid() != 0:
        raise MissingCapability(
            "a node cannot be started",
            cause=f"uid {os.geteuid()} is not root, and sandboxes need namespaces and mounts",
            remedy="run it as root, for example with sudo -E",
        )


def check_json(path: Path | None) -> None:
    """Refuse a file that cannot be written while nothing was measured for it; leave it as it was."""
    if path is None or path == STDOUT:
        return
    new = not path.exists()
    try:
        with path.open("a"):
            pass
    except OSError as error:
        raise ConfigError(
            f"--json {path}",
            cause=error.strerror,
            remedy="name a file in a folder that exists and is writable",
        ) from error
    if new:
        path.unlink()


def check_report(folder: Path) -> None:
    """Refuse a folder of runs in which nothing can be made; one that does not exist is made later."""
    nearest = folder.absolute()
    try:
        while not nearest.exists():
            nearest = nearest.parent
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise ConfigError(
            f"--report {folder}",
            cause=f"{nearest}: {error.strerror}",
            remedy="name a folder that can be written",
        ) from error
