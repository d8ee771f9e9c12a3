"""The commands around clusters that are kept for people: up, shell, ps, stop, down."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pytest_k3s_sandbox.cli import kubeconfigs
from pytest_k3s_sandbox.cli.inside import NameOption, kept
from pytest_k3s_sandbox.cli.options import (
    TAKES_WORDS,
    DiskOption,
    DistributionOption,
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
    provisioned_for,
    say,
    settings_of,
    verbosity,
)
from pytest_k3s_sandbox.errors import ConfigError, SandboxError
from pytest_k3s_sandbox.support import clock

if TYPE_CHECKING:
    from pytest_k3s_sandbox.daemon.registry import State


def up(
    name: Annotated[str, typer.Option("--name", help="The new cluster's name.")] = "up",
    sandbox: SandboxOption = None,
    layers: LayersOption = None,
    distribution: DistributionOption = None,
    runtime: RuntimeOption = None,
    version: VersionOption = None,
    api_port: PortOption = None,
    open_ports: OpenPortsOption = None,
    memory: MemoryOption = None,
    disk: DiskOption = None,
    processes: ProcessesOption = None,
    report: ReportOption = None,
    kubeconfig: kubeconfigs.CopyOption = None,
    merge: kubeconfigs.MergeOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    json_file: JsonOption = None,
) -> None:
    """Start a cluster to play with; ``shell``, ``ps`` and ``down`` go with it."""
    from pytest_k3s_sandbox.cli.progress import for_terminal, shown
    from pytest_k3s_sandbox.daemon import registry
    from pytest_k3s_sandbox.daemon.process import Keep, launch
    from pytest_k3s_sandbox.node.session import run_folder
    from pytest_k3s_sandbox.node.spec import NodeSpec
    from pytest_k3s_sandbox.report.headline import restarts_text
    from pytest_k3s_sandbox.report.records import read_run

    registry.check_name(name)
    settings = settings_of(
        sandbox=sandbox,
        layers=layers,
        distribution=distribution,
        runtime=runtime,
        version=version,
        api_port=api_port,
        open_ports=open_ports,
        memory=memory,
        disk=disk,
        processes=processes,
        report=report,
    )
    spec = NodeSpec.of(settings, supervised=True)
    level = verbosity(quiet=quiet, verbose=verbose)
    check_json(json_file)
    need_root()
    _remove_remains()
    registry.refuse_another(name)
    check_report(settings.report)
    kubeconfigs.check(kubeconfig, merge=merge)
    provisioned_for(spec, quiet=quiet)
    folder = run_folder(settings.report, "up", spec.sandbox)
    log = folder.with_suffix(".log")
    began = clock.monotonic()
    process = launch(Keep(name, registry.UP_ORIGIN, asdict(spec), "up", str(folder)), log)
    display = for_terminal(level)
    try:
        with shown(display, lambda: [folder]):
            # Another `up` of that name may have come first: its cluster is not the one of this command.
            while ((state := registry.read_state(name)) is None or state.pid != process.pid) and (
                process.poll() is None
            ):
                time.sleep(0.1)
    except BaseException:
        process.terminate()
        process.wait()
        log.unlink(missing_ok=True)
        raise
    said = log.read_text(errors="replace").strip()[-3000:]
    log.unlink()
    if state is None or state.pid != process.pid:
        raise SandboxError(
            "the cluster did not come up",
            cause=said or f"its daemon process ended with {process.returncode}",
            log=None if "\nDetails: " in said else folder,
        )
    restarts = restarts_text(read_run(folder))
    display.line(f"{clock.monotonic() - began:6.1f} s  node Ready{f'; {restarts}' if restarts else ''}")
    give(f"export KUBECONFIG={shlex.quote(state.kubeconfig)}", asdict(state), json_file)
    for line in kubeconfigs.put(state, kubeconfig, merge=merge):
        display.line(line)
    option = "" if name == registry.UP else f" --name {name}"
    display.line(f"records: {state.folder}")
    display.line(f"a shell inside: k3s-sandbox shell{option}    the end: {registry.end_command(state)}")


def shell(context: typer.Context, name: NameOption = None) -> None:
    """Open a shell in the sandbox of a kept cluster, or run the given command there."""
    from pytest_k3s_sandbox.cluster.components import PKI_DIR

    state = kept(name)
    config = f"KUBECONFIG={PKI_DIR}/admin.kubeconfig"
    argv = [*state.shell, "/usr/bin/env", config, *(context.args or ["/bin/bash"])]
    if sys.stdout.isatty() and sys.stderr.isatty():
        os.execvp(argv[0], argv)  # noqa: S606 - no shell
    # runsc writes to a file at an offset of its own, over the file's content; to a pipe it appends.
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


def ps(json_file: JsonOption = None) -> None:
    """List the sandboxes that run: whose they are, how old, and how their nodes are."""
    from pytest_k3s_sandbox.daemon import endings
    from pytest_k3s_sandbox.daemon.inventory import running, strange, table

    check_json(json_file)
    _remove_remains()
    rows = running()
    text = table(rows) if rows else "no sandbox runs"
    give("\n".join([text, *endings.lines(), *strange()]), [asdict(row) for row in rows], json_file)


def _remove_remains() -> None:
    """Remove the leftovers of runs that were killed."""
    from pytest_k3s_sandbox.daemon import endings, registry
    from pytest_k3s_sandbox.pytestplugin import sharing
    from pytest_k3s_sandbox.sandbox import reaper

    if os.geteuid() == 0:
        reaper.reap()
        registry.remove_stale_states()
        sharing.remove_stale_folders()
        endings.remove_old()
        kubeconfigs.remove_stale()


def stop(
    names: Annotated[list[str] | None, typer.Argument(help="The names of kept clusters; see `ps`.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All that are kept.")] = False,
    quiet: QuietOption = False,
) -> None:
    """End kept clusters; nothing of them is left but their records."""
    from pytest_k3s_sandbox.daemon import registry

    if every == bool(names):
        raise ConfigError(
            "which cluster is to end",
            cause="it takes either names or --all",
            remedy="see the names with `k3s-sandbox ps`",
        )
    _remove_remains()
    states = registry.states() if every else [_to_end(name) for name in names or []]
    for state in states:
        registry.end(state)
        kubeconfigs.take_back(state.name)
        if not quiet:
            say(f"ended {state.name}; records: {state.folder}")


def _to_end(name: str) -> State:
    from pytest_k3s_sandbox.daemon import registry
    from pytest_k3s_sandbox.daemon.inventory import running

    row = next((row for row in running(ask=False) if name in {row.name, row.sandbox}), None)
    if row is not None and not row.kept:
        raise ConfigError(
            f"the sandbox {name} is not kept for anybody",
            cause=f"it belongs to process {row.pid} ({row.owner}), and ends with it",
            remedy=f"end that one: kill -INT {row.pid}",
        )
    return registry.find(name if row is None else row.name)


def down(
    name: Annotated[str | None, typer.Option("--name", help="The name that `up` was given, if any.")] = None,
    quiet: QuietOption = False,
) -> None:
    """End the cluster of ``up``; nothing of it is left but its records."""
    from pytest_k3s_sandbox.daemon import registry

    _remove_remains()
    state = registry.made_by_up(name)
    registry.end(state)
    kubeconfigs.take_back(state.name)
    if not quiet:
        say(f"ended; records: {state.folder}")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(up)
    app.command(context_settings=TAKES_WORDS)(shell)
    for command in (ps, stop, down):
        app.command()(command)
