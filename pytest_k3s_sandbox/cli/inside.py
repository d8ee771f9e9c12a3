"""The commands that use a kept cluster as its administrator: load and kubectl."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pytest_k3s_sandbox.cli.options import (
    TAKES_WORDS,
    JsonOption,
    QuietOption,
    check_json,
    give,
    need_root,
    say,
)

if TYPE_CHECKING:
    from pytest_k3s_sandbox.daemon.registry import State

NameOption = Annotated[
    str | None, typer.Option("--name", help="The cluster's name; not needed while there is only one.")
]

LOAD_SECONDS = 300.0
"""How long an image may take; a large one is some GB."""


def load(
    image: Annotated[Path, typer.Argument(help="The archive, as `docker save` makes it.")],
    name: NameOption = None,
    quiet: QuietOption = False,
    json_file: JsonOption = None,
) -> None:
    """Load an image from an archive into a kept cluster; prints the names that a pod can use."""
    from pytest_k3s_sandbox.cluster.loading import load_archive
    from pytest_k3s_sandbox.daemon.attached import AttachedSandbox
    from pytest_k3s_sandbox.deadline import Deadline
    from pytest_k3s_sandbox.node.spec import FORMS

    check_json(json_file)
    state = kept(name)
    need_root()
    images = FORMS[state.distribution]()
    names = load_archive(images, AttachedSandbox(state), image, Deadline.after(LOAD_SECONDS))
    give("\n".join(names), list(names), json_file)
    if not quiet:
        say(f"loaded into {state.name}; a pod needs imagePullPolicy IfNotPresent or Never for a tag latest")


def kubectl(context: typer.Context, name: NameOption = None) -> None:
    """Run kubectl as the administrator of a kept cluster: [--name NAME] -- ARGS; its exit code is passed on.

    The user's settings do not change it: neither ~/.kube nor variables that begin with KUBE.
    """
    from pytest_k3s_sandbox.cluster.direct import kubectl_environment
    from pytest_k3s_sandbox.sandbox import machine
    from pytest_k3s_sandbox.toolchain import Toolchain

    state = kept(name)
    program = str(Toolchain().get("kubectl").path)
    folder = machine.home() / "sandboxes" / state.sandbox / "kubectl"
    argv = [program, f"--kubeconfig={state.kubeconfig}", *context.args]
    # In the place of this process: its input, output, terminal, signals and exit code are kubectl's.
    os.execve(program, argv, kubectl_environment(os.environ, state.address, folder))  # noqa: S606 - no shell


def kept(name: str | None) -> State:
    """Return a kept cluster that can be used.

    Args:
        name: Its name; None for the cluster of ``up``, or the only one.

    Raises:
        ConfigError: No kept cluster was found, or several fit.
        ClusterError: Its sandbox was ended before its time; says why.
    """
    from pytest_k3s_sandbox.daemon import endings, registry

    if name is not None:
        endings.check(registry.check_name(name))
    state = registry.find(name)
    endings.check(state.name)
    return state


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(load)
    app.command(context_settings=TAKES_WORDS)(kubectl)
