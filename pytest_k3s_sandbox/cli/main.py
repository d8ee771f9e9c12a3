"""The command ``k3s-sandbox``: thin; every command is a few lines around the package."""

from __future__ import annotations

import errno
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pytest_k3s_sandbox import bench as benchmarks
from pytest_k3s_sandbox.cli import clusters, inside
from pytest_k3s_sandbox.cli.options import (
    DiskOption,
    DistributionOption,
    DurationOption,
    JsonOption,
    LayersOption,
    MemoryOption,
    OpenPortsOption,
    PortOption,
    ProcessesOption,
    QuietOption,
    ReportOption,
    RuntimeOption,
    SandboxOption,
    VerboseOption,
    VersionOption,
    check_json,
    check_report,
    give,
    need_root,
    pinned,
    provisioned,
    provisioned_for,
    say,
    settings_of,
    verbosity,
)
from pytest_k3s_sandbox.errors import SandboxError
from pytest_k3s_sandbox.support.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Kubernetes nodes in gVisor sandboxes with a 9p root.",
)

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


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
def doctor(json_file: JsonOption = None) -> None:
    """Check this machine, a line for each check with its remedy; exit 1 if the main job cannot run."""
    from pytest_k3s_sandbox.cli import doctor as checkup

    check_json(json_file)
    checks = checkup.checks()
    give(checkup.render(checks), [asdict(check) for check in checks], json_file)
    if checkup.failed(checks):
        raise typer.Exit(1)


@app.command()
def provision(
    programs: Annotated[list[str] | None, typer.Argument(help="Only these programs.")] = None,
    for_tests: Annotated[
        bool, typer.Option("--for-tests", help="System packages of the project's own tests, too.")
    ] = False,
    pin: Annotated[
        bool, typer.Option("--pin", help="Only fetch releases, and write their digests for review.")
    ] = False,
    pin_to: Annotated[
        Path | None,
        typer.Option("--pin-to", help="The file for the digests of --pin, instead of the output."),
    ] = None,
    unpinned: Annotated[
        bool,
        typer.Option(
            "--unpinned-releases",
            help="Also take releases whose digest is not pinned, by their publishers' checksums.",
        ),
    ] = False,
    quiet: QuietOption = False,
    json_file: JsonOption = None,
) -> None:
    """Get every program and system package: cached, checksummed, resumable."""
    check_json(json_file)
    if pin or pin_to is not None:
        pinned(programs, pin_to, quiet=quiet, json_file=json_file)
        return
    found = provisioned(programs, quiet=quiet, for_tests=for_tests, unpinned=unpinned)
    text = "\n".join(f"{one.name} {one.version} ({one.origin}): {one.path}" for one in found)
    result = [
        {"name": one.name, "version": one.version, "origin": one.origin, "path": str(one.path)}
        for one in found
    ]
    give(text, result, json_file)


clusters.register(app)
inside.register(app)


@app.command("run")
def run_experiment(
    experiment: Annotated[str, typer.Argument(help="For example exp08.")],
    sandbox: SandboxOption = None,
    layers: LayersOption = None,
    duration: DurationOption = None,
    distribution: DistributionOption = None,
    runtime: RuntimeOption = None,
    version: VersionOption = None,
    api_port: PortOption = None,
    open_ports: OpenPortsOption = None,
    memory: MemoryOption = None,
    disk: DiskOption = None,
    processes: ProcessesOption = None,
    report: ReportOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    json_file: JsonOption = None,
) -> None:
    """Run an experiment and print its claims; exit 0 only if all of them held."""
    from pytest_k3s_sandbox.cli import experiments
    from pytest_k3s_sandbox.cli.progress import for_terminal, shown
    from pytest_k3s_sandbox.node.spec import NodeSpec
    from pytest_k3s_sandbox.report.headline import sentence, summarize
    from pytest_k3s_sandbox.report.records import read_run

    experiments.require(experiment)
    given = {
        "sandbox": sandbox,
        "layers": layers,
        "duration": duration,
        "distribution": distribution,
        "runtime": runtime,
        "version": version,
        "api_port": api_port,
        "open_ports": open_ports,
        "memory": memory,
        "disk": disk,
        "processes": processes,
    }
    settings = settings_of(**given, report=report)
    level = verbosity(quiet=quiet, verbose=verbose)
    check_json(json_file)
    need_root()
    check_report(settings.report)
    provisioned_for(NodeSpec.of(settings).of_experiment, quiet=quiet)
    # pytest reads the environment itself.
    options = [f"--k3s-{name.replace('_', '-')}={text}" for name, text in given.items() if text is not None]
    display = for_terminal(level)
    with shown(display, experiments.new_runs(settings.report), settings.duration):
        outcome = experiments.run(experiment, options, settings.report, display.line)
    runs = [read_run(page.parent) for page in outcome.pages]
    summaries = [experiments.judged(summarize(run), outcome.code) for run in runs]
    lines = [f"{sentence(run)}\nreport: {page}" for run, page in zip(runs, outcome.pages, strict=True)]
    give("\n".join(lines), summaries[0] if len(summaries) == 1 else summaries, json_file)
    if outcome.code != 0 or not summaries or not all(summary["ok"] for summary in summaries):
        say(f"not everything held; pytest's own words: {outcome.log}")
        raise typer.Exit(1)


@app.command(context_settings=PASS_ON, add_help_option=False)
def intercept(context: typer.Context) -> None:
    """Run a command under the ptrace interceptor alone: [--preset|--rules] [--stats FILE] -- CMD."""
    from pytest_k3s_sandbox.layers.interceptor.__main__ import main as entry

    raise typer.Exit(entry(context.args))


@app.command(context_settings=PASS_ON, add_help_option=False)
def cgroupfs(context: typer.Context) -> None:
    """Serve the FUSE cgroup filesystem alone: [MOUNTPOINT] [--controllers a,b] [--stack-on PATH]."""
    from pytest_k3s_sandbox.layers.cgroupfs.__main__ import main as entry

    raise typer.Exit(entry(context.args, prog="k3s-sandbox cgroupfs"))


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
    quiet: QuietOption = False,
    json_file: JsonOption = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="The folder that gets a folder with a page of the figures."),
    ] = None,
) -> None:
    """Measure side by side, in gVisor and natively; prints a table with ratios."""
    entry = benchmarks.require(name)
    check_json(json_file)
    need_root()
    if report is not None:
        check_report(report)
    result = benchmarks.load(name)(count or entry.count, (lambda _line: None) if quiet else say)
    give(result.table, result.figures, json_file)
    if report is not None and result.records:
        from pytest_k3s_sandbox.node.session import run_folder

        say(f"report: {benchmarks.record(result, run_folder(report, 'bench', name))}")
    if not result.ok:
        raise typer.Exit(1)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs; several are shown side by side.")],
    out: Annotated[
        Path | None, typer.Option(help="The page's folder; a single run's own by default.")
    ] = None,
    width: Annotated[
        list[float] | None,
        typer.Option(min=20, max=1000, help="A figure's width in mm, repeatable; 84 and 174 by default."),
    ] = None,
    figures: Annotated[
        bool, typer.Option(help="Write figures, CSV, tables and the citation beside the page, too.")
    ] = True,
) -> None:
    """Make the page of recorded runs, and figures (SVG, PDF), data (CSV), tables and a citation beside it."""
    from pytest_k3s_sandbox.report.page import page_of, render

    target = out or (runs[0] if len(runs) == 1 else Path("reports/comparison"))
    if out is None and target.is_file():
        target = target.parent  # a run may be named by its records
    exports: list[Path] = []
    if figures:
        from pytest_k3s_sandbox.report.export import export
        from pytest_k3s_sandbox.report.figures import COLUMN_MM, PAGE_MM

        exports = export(runs, page_of(target).parent, width or (COLUMN_MM, PAGE_MM))
    typer.echo(render(runs, target, exports))


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
