"""The command ``k3s-sandbox``: thin; every command is a few lines around the package."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pytest_k3s_sandbox import __version__
from pytest_k3s_sandbox import bench as benchmarks
from pytest_k3s_sandbox.errors import ConfigError, MissingCapability, SandboxError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Kubernetes nodes in gVisor sandboxes with a 9p root.",
)

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


class Kind(StrEnum):
    """Where a node runs."""

    GVISOR = "gvisor"
    HERE = "here"


SandboxOption = Annotated[Kind, typer.Option("--sandbox", help="Where the node runs.")]
LayersOption = Annotated[str, typer.Option("--layers", help="Layers with commas; 'none'; or 'default'.")]
PortOption = Annotated[str, typer.Option("--api-port", help="The API server's port inside.")]
ReportOption = Annotated[Path, typer.Option("--report", help="The folder that gets a folder for each run.")]


def say(line: str) -> None:
    """Write a line about the progress to standard error."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - a command line prints


def _port(text: str) -> int:
    from pytest_k3s_sandbox.options import Given, OptionError, parse_port  # noqa: PLC0415 - only some commands

    try:
        return parse_port(Given(text, "--api-port"))
    except OptionError as error:
        raise ConfigError(str(error)) from error


def _need_root() -> None:
    if os.geteuid() != 0:
        raise MissingCapability(
            "a node cannot be started",
            cause=f"uid {os.geteuid()} is not root, and sandboxes need namespaces and mounts",
            remedy="run it as root, for example with sudo -E",
        )


def _check_json(path: Path | None) -> None:
    """Refuse a file that cannot be written while nothing was measured for it; leave it as it was."""
    if path is None:
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


def _check_report(folder: Path) -> None:
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


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it.")
    ] = False,
) -> None:
    """Take the options that come before a command."""


@app.command()
def doctor() -> None:
    """Say what this machine can do, a line each with its remedy; exit 1 if the main job cannot run."""
    from pytest_k3s_sandbox.toolchain import doctor as checkup  # noqa: PLC0415 - only this command

    checks = checkup.checks()
    typer.echo(checkup.render(checks))
    if checkup.failed(checks):
        raise typer.Exit(1)


@app.command()
def provision(
    programs: Annotated[list[str] | None, typer.Argument(help="Only these programs.")] = None,
) -> None:
    """Get every program and system package: cached, checksummed, resumable."""
    from pytest_k3s_sandbox.toolchain import Toolchain  # noqa: PLC0415 - only some commands
    from pytest_k3s_sandbox.toolchain.progress import for_terminal  # noqa: PLC0415 - likewise

    for program in Toolchain(progress=for_terminal()).provision(programs):
        typer.echo(f"{program.name} {program.version} ({program.origin}): {program.path}")


@app.command()
def up(
    sandbox: SandboxOption = Kind.GVISOR,
    layers: LayersOption = "default",
    api_port: PortOption = "6443",
    report: ReportOption = Path("reports"),
) -> None:
    """Start a cluster to play with; ``shell`` and ``down`` go with it."""
    from pytest_k3s_sandbox import keeper  # noqa: PLC0415 - only some commands
    from pytest_k3s_sandbox.bringup import run_folder  # noqa: PLC0415 - likewise
    from pytest_k3s_sandbox.layers.stack import parse  # noqa: PLC0415 - likewise
    from pytest_k3s_sandbox.toolchain import Toolchain  # noqa: PLC0415 - likewise
    from pytest_k3s_sandbox.toolchain.progress import for_terminal  # noqa: PLC0415 - likewise

    if layers != "default":
        parse(layers)
    port = _port(api_port)
    _need_root()
    keeper.refuse_another()
    _check_report(report)
    Toolchain(progress=for_terminal()).provision()
    folder = run_folder(report.absolute(), "up", sandbox)
    log = folder.with_suffix(".log")
    process = keeper.launch([sandbox, layers, str(port), str(folder)], log)
    began = time.monotonic()
    shown: set[str] = set()
    try:
        while (state := keeper.read_state()) is None:
            if process.poll() is not None:
                break
            _show_phases(folder, shown, began)
            time.sleep(0.1)
    except BaseException:
        process.terminate()
        process.wait()
        log.unlink(missing_ok=True)
        raise
    if state is None:
        said = log.read_text(errors="replace").strip()[-3000:]
        log.unlink()
        raise SandboxError(
            "the cluster did not come up",
            cause=said or f"its keeper ended with {process.returncode}",
            log=None if "\nDetails: " in said else folder,
        )
    log.unlink(missing_ok=True)
    say(f"{time.monotonic() - began:6.1f} s  node Ready")
    typer.echo(f"export KUBECONFIG={shlex.quote(state.kubeconfig)}")
    say(f"records: {state.folder}")
    say("a shell inside: k3s-sandbox shell    the end: k3s-sandbox down")


def _show_phases(folder: Path, shown: set[str], began: float) -> None:
    records = folder / "records.jsonl"
    for line in records.read_text().splitlines() if records.exists() else []:
        if '"type":"phase"' not in line:
            continue
        name = json.loads(line)["name"]
        if name not in shown:
            shown.add(name)
            say(f"{time.monotonic() - began:6.1f} s  {name}")


@app.command(context_settings=PASS_ON | {"help_option_names": ["--help"], "allow_interspersed_args": False})
def shell(context: typer.Context) -> None:
    """Open a shell in the sandbox of ``up``, or run the given command there."""
    from pytest_k3s_sandbox import keeper  # noqa: PLC0415 - only some commands
    from pytest_k3s_sandbox.cluster.components import PKI_DIR  # noqa: PLC0415 - likewise

    state = keeper.kept()
    config = f"KUBECONFIG={PKI_DIR}/admin.kubeconfig"
    argv = [*state.shell, "/usr/bin/env", config, *(context.args or ["/bin/bash"])]
    if sys.stdout.isatty() and sys.stderr.isatty():
        os.execvp(argv[0], argv)  # noqa: S606 - no shell is wanted on the way
    # runsc writes to a file at an offset of its own, over what is there; to a pipe it appends.
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as inside:
        copies = [
            threading.Thread(target=shutil.copyfileobj, args=streams)
            for streams in ((inside.stdout, sys.stdout.buffer), (inside.stderr, sys.stderr.buffer))
        ]
        for copy in copies:
            copy.start()
        for copy in copies:
            copy.join()
    raise typer.Exit(inside.returncode)


@app.command()
def down() -> None:
    """End the cluster of ``up``; nothing of it is left but its records."""
    from pytest_k3s_sandbox import keeper  # noqa: PLC0415 - only some commands

    say(f"ended; records: {keeper.end().folder}")


@app.command("run")
def run_experiment(
    experiment: Annotated[str, typer.Argument(help="For example exp08.")],
    sandbox: SandboxOption = Kind.GVISOR,
    layers: LayersOption = "default",
    duration: Annotated[
        str, typer.Option(help="How long the node is held Ready, like 120, 5m or 1h.")
    ] = "120",
    api_port: PortOption = "6443",
    report: ReportOption = Path("reports"),
    json_file: Annotated[Path | None, typer.Option("--json", help="A file for the summary.")] = None,
) -> None:
    """Run an experiment and say what held; exit 0 only if everything did."""
    from pytest_k3s_sandbox import experiment as experiments  # noqa: PLC0415 - only this command
    from pytest_k3s_sandbox.layers.stack import parse  # noqa: PLC0415 - likewise
    from pytest_k3s_sandbox.options import OptionError, parse_duration  # noqa: PLC0415 - likewise
    from pytest_k3s_sandbox.report.records import read_run  # noqa: PLC0415 - likewise
    from pytest_k3s_sandbox.report.summary import sentence, summarize  # noqa: PLC0415 - likewise
    from pytest_k3s_sandbox.toolchain import Toolchain  # noqa: PLC0415 - likewise
    from pytest_k3s_sandbox.toolchain.progress import for_terminal  # noqa: PLC0415 - likewise

    experiments.require(experiment)
    if layers != "default":
        parse(layers)
    try:
        parse_duration(duration, "--duration")
    except OptionError as error:
        raise ConfigError(str(error)) from error
    port = _port(api_port)
    _check_json(json_file)
    _need_root()
    _check_report(report)
    Toolchain(progress=for_terminal()).provision()
    options = [
        f"--k3s-sandbox={sandbox}",
        f"--k3s-layers={layers}",
        f"--k3s-duration={duration}",
        f"--k3s-api-port={port}",
    ]
    outcome = experiments.run(experiment, options, report, say)
    runs = [read_run(page.parent) for page in outcome.pages]
    summaries = [summarize(run) for run in runs]
    for run, page in zip(runs, outcome.pages, strict=True):
        typer.echo(f"{sentence(run)}\nreport: {page}")
    if json_file is not None:
        json_file.write_text(json.dumps(summaries[0] if len(summaries) == 1 else summaries, indent=2) + "\n")
    if outcome.code != 0 or not summaries or not all(summary["ok"] for summary in summaries):
        say(f"not everything held; pytest's own words: {outcome.log}")
        raise typer.Exit(1)


@app.command(context_settings=PASS_ON, add_help_option=False)
def intercept(context: typer.Context) -> None:
    """Run a command under the ptrace interceptor alone: [--preset|--rules] [--stats FILE] -- CMD."""
    from pytest_k3s_sandbox.layers.interceptor.__main__ import main as entry  # noqa: PLC0415 - only this command

    raise typer.Exit(entry(context.args))


@app.command(context_settings=PASS_ON, add_help_option=False)
def cgroupfs(context: typer.Context) -> None:
    """Serve the FUSE cgroup filesystem alone: MOUNTPOINT [--controllers a,b]."""
    from pytest_k3s_sandbox.layers.cgroupfs.__main__ import main as entry  # noqa: PLC0415 - only this command

    raise typer.Exit(entry(context.args))


@app.command()
def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="; ".join(f"{key}: {entry.about}" for key, entry in benchmarks.BENCHMARKS.items())
        ),
    ] = "coldstart",
    count: Annotated[
        int | None, typer.Option("-n", min=2, help="How often each is measured; each has its own default.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="A file for the figures.")] = None,
) -> None:
    """Measure side by side, in gVisor and natively; prints a table with ratios."""
    entry = benchmarks.require(name)
    _check_json(json_file)
    _need_root()
    result = benchmarks.load(name)(count or entry.count, say)
    typer.echo(result.table)
    if json_file is not None:
        json_file.write_text(json.dumps(result.figures, indent=2) + "\n")
    if not result.ok:
        raise typer.Exit(1)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[
        Path | None, typer.Option(help="The page's folder; a single run's own by default.")
    ] = None,
) -> None:
    """Make the page and the figures of recorded runs."""
    from pytest_k3s_sandbox.report.page import render  # noqa: PLC0415 - only this command

    typer.echo(render(runs, out or (runs[0] if len(runs) == 1 else Path("reports/comparison"))))


FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
NO_DEFECTS = FULL | {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR}
"""Refusals of files that the user named or that are on the user's disk; other errors of the system are
defects of ours, which a traceback helps to find."""


def main() -> None:
    """Run the command line; an error of ours is one message and exit code 2."""
    try:
        app()
    except SandboxError as error:
        say(f"k3s-sandbox: {error}")
        sys.exit(2)
    except OSError as error:
        if error.errno not in NO_DEFECTS:
            raise
        remedy = "make room there, or name another folder" if error.errno in FULL else "name another path"
        say(f"k3s-sandbox: {error.filename or 'writing'}: {error.strerror}\nRemedy: {remedy}")
        sys.exit(2)


if __name__ == "__main__":
    main()
