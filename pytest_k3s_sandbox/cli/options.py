"""What the commands have in common: their options, and checks before anything starts."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pytest_k3s_sandbox.errors import ConfigError, MissingCapability
from pytest_k3s_sandbox.sandbox.limits import DISK, MEMORY, PROCESSES
from pytest_k3s_sandbox.support import escaping

if TYPE_CHECKING:
    from pytest_k3s_sandbox.cli.progress import Verbosity
    from pytest_k3s_sandbox.node.spec import NodeSpec
    from pytest_k3s_sandbox.toolchain.resolve import Program

STDOUT = Path("-")
"""``--json -``: the result as JSON on standard output, in the place of the text."""


class SandboxKind(StrEnum):
    """Where a node runs."""

    GVISOR = "gvisor"
    HOST = "host"


class DistributionName(StrEnum):
    """What Kubernetes comes as."""

    EMBEDDED = "embedded"
    K3S = "k3s"


SandboxOption = Annotated[SandboxKind, typer.Option("--sandbox", help="Where the node runs.")]
LayersOption = Annotated[str, typer.Option("--layers", help="Layers with commas; 'none'; or 'default'.")]
OpenPortsOption = Annotated[
    str,
    typer.Option(
        "--open-ports", help="TCP ports of the machine that programs inside may reach, like 5000,8080."
    ),
]
MemoryOption = Annotated[
    str, typer.Option("--memory", help="Memory that the sandbox may take: 2Gi, 75% of the machine's, none.")
]
DiskOption = Annotated[
    str, typer.Option("--disk", help="Disk that the sandbox may take: 20Gi, 50% of what is free, none.")
]
ProcessesOption = Annotated[
    str, typer.Option("--processes", help="Processes and threads that the sandbox may have; or none.")
]
PortOption = Annotated[str, typer.Option("--api-port", help="The API server's port inside.")]
DistributionOption = Annotated[
    DistributionName, typer.Option("--distribution", help="What Kubernetes comes as: parts, or official k3s.")
]
VersionOption = Annotated[
    str, typer.Option("--version", help="The version of Kubernetes, like 1.36; or 'default'.")
]
ReportOption = Annotated[Path, typer.Option("--report", help="The folder that gets a folder for each run.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the result and errors.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Say more about the progress.")]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", help="A file for the result as JSON; '-' for standard output instead of text."),
]


def say(line: str) -> None:
    """Write a line about the progress to standard error."""
    print(escaping.visible(line), file=sys.stderr, flush=True)  # noqa: T201 - a command line prints


def verbosity(*, quiet: bool, verbose: bool) -> Verbosity:
    """Return how much is to be said.

    Raises:
        ConfigError: Both were asked for.
    """
    from pytest_k3s_sandbox.cli.progress import Verbosity

    if quiet and verbose:
        raise ConfigError("--quiet and --verbose", cause="they exclude each other", remedy="drop one")
    return Verbosity.QUIET if quiet else Verbosity.VERBOSE if verbose else Verbosity.NORMAL


def give(text: str, result: Any, json_file: Path | None) -> None:  # noqa: ANN401 - any JSON value
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
    """Put programs in place and return them; shows what takes long.

    Args:
        programs: Their names; by default all that the embedded parts need.
        quiet: Whether to show nothing.
        version: The version of Kubernetes; None for the default.
        for_tests: Whether to get what only the project's own tests need, too.
        unpinned: Whether to take releases whose digest is not pinned.
    """
    from pytest_k3s_sandbox.toolchain import Toolchain
    from pytest_k3s_sandbox.toolchain.progress import SilentProgress, for_terminal

    progress = SilentProgress() if quiet else for_terminal()
    environ = {**os.environ, **({"K3S_SANDBOX_RELEASES": "unpinned"} if unpinned else {})}
    toolchain = Toolchain(environ=environ, progress=progress, kubernetes=version)
    return toolchain.provision(programs, for_tests=for_tests)


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
    from pytest_k3s_sandbox.toolchain.progress import SilentProgress, for_terminal

    digests = pinning.pin(Toolchain(progress=SilentProgress() if quiet else for_terminal()), programs)
    lines = pinning.as_toml(digests)
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


def wished(
    sandbox: SandboxKind,
    layers: str,
    api_port: str,
    distribution: DistributionName = DistributionName.EMBEDDED,
    open_ports: str = "none",
    limits: tuple[str, str, str] = (MEMORY, DISK, PROCESSES),
) -> NodeSpec:
    """Return the spec that options express.

    Raises:
        ConfigError: One has a value that it cannot have.
    """
    from pytest_k3s_sandbox.layers.stack import parse
    from pytest_k3s_sandbox.node.spec import NodeSpec

    names = None if layers == "default" else parse(layers)
    opened = ports(open_ports)
    return NodeSpec(
        sandbox.value,
        names,
        port(api_port),
        distribution=distribution.value,
        open_ports=opened,
        limits=limits,
    )


def picked(version: str) -> str | None:
    """Return the pinned version of Kubernetes that ``--version`` names; None for the default.

    Raises:
        ConfigError: None of the pinned ones is meant.
    """
    from pytest_k3s_sandbox.toolchain.pins import kubernetes_versions, pick

    return None if version == "default" else pick(version, kubernetes_versions())


def port(text: str) -> int:
    """Return the TCP port of ``--api-port``.

    Raises:
        ConfigError: It is none.
    """
    from pytest_k3s_sandbox.settings import Given, OptionError, parse_port

    try:
        return parse_port(Given(text, "--api-port"))
    except OptionError as error:
        raise ConfigError(str(error)) from error


def ports(text: str) -> tuple[int, ...]:
    """Return the TCP ports of ``--open-ports``.

    Raises:
        ConfigError: One is none.
    """
    from pytest_k3s_sandbox.settings import Given, OptionError, parse_ports

    try:
        return parse_ports(Given(text, "--open-ports"))
    except OptionError as error:
        raise ConfigError(str(error)) from error


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
