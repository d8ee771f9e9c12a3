"""``up --kubeconfig`` copies a cluster's kubeconfig; ``up --merge`` adds it to the user's until it ends."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pytest_k3s_sandbox.cli.options import say
from pytest_k3s_sandbox.errors import ConfigError

if TYPE_CHECKING:
    from pytest_k3s_sandbox.daemon.registry import State

CopyOption = Annotated[
    Path | None, typer.Option("--kubeconfig", help="A file for a copy of the cluster's kubeconfig.")
]
MergeOption = Annotated[
    bool,
    typer.Option(
        "--merge",
        help="Put the cluster into ~/.kube/config, or the first file of KUBECONFIG, until it ends.",
    ),
]


def check(copy: Path | None, *, merge: bool) -> None:
    """Refuse an unwritable file before a cluster starts.

    Args:
        copy: The file of ``--kubeconfig``.
        merge: Whether ``--merge`` was given.

    Raises:
        ConfigError: The copy's folder is not writable, or the user's kubeconfig is invalid.
    """
    if copy is not None:
        folder = copy.absolute().parent
        cause = (
            "it is a folder"
            if copy.is_dir()
            else f"{folder} is not a folder that can be written"
            if not folder.is_dir() or not os.access(folder, os.W_OK)
            else None
        )
        if cause is not None:
            remedy = "name a file in a folder that exists and is writable"
            raise ConfigError(f"--kubeconfig {copy}", cause=cause, remedy=remedy)
    if merge:
        from pytest_k3s_sandbox.cluster import userfile

        userfile.check(userfile.user_file(os.environ))


def put(state: State, copy: Path | None, *, merge: bool) -> list[str]:
    """Write the copy, and merge the kubeconfig, as the options ask.

    Args:
        state: The cluster.
        copy: The file of ``--kubeconfig``.
        merge: Whether ``--merge`` was given.

    Returns:
        A line for each written file, for the terminal.

    Raises:
        ConfigError: The user's kubeconfig is invalid, or another program changes it.
        OSError: Writing a file fails.
    """
    from pytest_k3s_sandbox.cluster import userfile
    from pytest_k3s_sandbox.cluster.kubeconfigs import entry_name
    from pytest_k3s_sandbox.daemon import registry
    from pytest_k3s_sandbox.sandbox import machine

    lines = []
    if copy is not None:
        userfile.write(copy.absolute(), Path(state.kubeconfig).read_text(encoding="utf-8"))
        lines.append(f"kubeconfig: {copy}")
    if merge:
        name = entry_name(state.name)
        done = userfile.merge(userfile.user_file(os.environ), Path(state.kubeconfig), name)
        machine.private_folder(registry.folder())
        userfile.write(_file(state.name), done.dumped())
        how = "it is the current context" if done.current else f"use it: kubectl --context {name} ..."
        lines.append(f"merged into {done.file}; {how}")
    return lines


def take_back(name: str) -> None:
    """Remove an ended cluster from the user's kubeconfig, if it was merged.

    Args:
        name: The cluster's name.
    """
    file = _file(name)
    if not file.exists():
        return
    from pytest_k3s_sandbox.cluster import userfile

    try:
        done = userfile.Merge.of(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        say(f"k3s-sandbox: {file} cannot be read: {error}")
        return
    if (trouble := userfile.undo(done)) is not None:
        remedy = f"delete its context, cluster and user {done.name} by `kubectl config`"
        say(f"k3s-sandbox: {trouble}\nRemedy: {remedy}")
    file.unlink(missing_ok=True)


def remove_stale() -> None:
    """Remove clusters without a running daemon process from the user's kubeconfig."""
    from pytest_k3s_sandbox.daemon import registry

    for file in sorted(registry.folder().glob("*.merged")):
        if registry.read_state(file.stem) is None:
            take_back(file.stem)


def _file(name: str) -> Path:
    """Return the file that records the merge of a cluster."""
    from pytest_k3s_sandbox.daemon import registry

    return registry.folder() / f"{name}.merged"
