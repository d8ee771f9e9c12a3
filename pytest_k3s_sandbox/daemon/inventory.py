"""Which sandboxes run on this machine, whose they are, and how their nodes are."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_k3s_sandbox.cluster.certificates import ADMIN, pki
from pytest_k3s_sandbox.cluster.reading import is_ready
from pytest_k3s_sandbox.daemon import endings
from pytest_k3s_sandbox.daemon import registry as kept
from pytest_k3s_sandbox.daemon.registry import State
from pytest_k3s_sandbox.sandbox import machine
from pytest_k3s_sandbox.sandbox.layout import control
from pytest_k3s_sandbox.support import clock, escaping

ASK_SECONDS = 3.0
WORDS = 60
PROGRAMS = 2
"""How many words of a command line can be programs: an interpreter and its script."""

ELSEWHERE = "a process of another pid namespace"
MINUTE, HOUR, DAY = 60, 3600, 86400


@dataclass(frozen=True)
class Running:
    """A sandbox that runs.

    Attributes:
        name: Its cluster's name if a process keeps it for people, else its own.
        sandbox: The name of its folder, which is in all that belongs to it.
        kind: ``gvisor`` or ``host``.
        address: Its IPv4 address.
        pid: The process that owns it.
        owner: What that process is.
        kept: Whether it is kept for people: ``k3s-sandbox stop`` ends such a one.
        age: Seconds since it was started.
        node: ``Ready``, ``NotReady``, ``no node`` or ``no answer``; ``none`` if there is no
            cluster in it, ``ended`` if it was ended for a limit, ``?`` if the API was not asked.
        kubeconfig: The administrator's kubeconfig on the machine; None without a cluster.
        folder: The folder of its records, if it is known.
        ended: Why it was ended before its time; None if it was not.
    """

    name: str
    sandbox: str
    kind: str
    address: str
    pid: int
    owner: str
    kept: bool
    age: float
    node: str
    kubeconfig: str | None
    folder: str | None
    ended: str | None = None


def running(*, ask: bool = True) -> list[Running]:
    """Return the sandboxes whose owner lives, the oldest first.

    Args:
        ask: Whether to ask the clusters how their nodes are; otherwise ``node`` is ``?``.
    """
    states = {state.sandbox: state for state in kept.states()}
    folders = (machine.home() / "sandboxes").glob("*")
    found = [_running(folder, states.get(folder.name), ask=ask) for folder in folders]
    return sorted((row for row in found if row is not None), key=lambda row: -row.age)


def _running(folder: Path, state: State | None, *, ask: bool) -> Running | None:
    owner = machine.read_owner(folder)
    if owner is None or not owner.alive(folder):
        return None
    try:
        age = clock.wall() - (folder / machine.OWNER_FILE).stat().st_mtime
    except FileNotFoundError:
        return None
    ended = None if state is None else endings.why(state)
    config = Path(state.kubeconfig) if state is not None else kubeconfig(folder)
    return Running(
        name=folder.name if state is None else state.name,
        sandbox=folder.name,
        kind=owner.kind,
        address=owner.network.address,
        pid=owner.pid,
        owner=state.origin if state is not None else command(owner.pid) if owner.process.local else ELSEWHERE,
        kept=state is not None,
        age=age,
        node="ended" if ended is not None else node_of(config, ask=ask),
        kubeconfig=None if config is None else str(config),
        folder=None if state is None else state.folder,
        ended=ended,
    )


def node_of(config: Path | None, *, ask: bool) -> str:
    """Return the state of a cluster's node; ``none`` without a node, ``?`` if the API is not asked."""
    if config is None:
        return "none"
    return node_state(config) if ask else "?"


def kubeconfig(workdir: Path) -> Path | None:
    """Return the administrator's kubeconfig in a sandbox's folder, if a cluster was begun there."""
    found = pki(control(workdir)) / ADMIN
    return found if found.is_file() else None


def command(pid: int) -> str:
    """Return the command line of a process, shortened, its program without the folder."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
    except OSError:
        return "?"
    text = " ".join([*(Path(word).name for word in words[:PROGRAMS]), *words[PROGRAMS:]])
    return text if len(text) <= WORDS else text[: WORDS - 3] + "..."


def node_state(config: Path) -> str:
    """Return how the node of a cluster is, by its API server.

    Args:
        config: The administrator's kubeconfig.
    """
    import kubernetes
    from kubernetes.config import ConfigException
    from urllib3.exceptions import HTTPError

    from pytest_k3s_sandbox.cluster import direct

    try:
        with direct.client(config) as api:
            nodes = kubernetes.client.CoreV1Api(api).list_node(_request_timeout=ASK_SECONDS).items
    except (kubernetes.client.ApiException, ConfigException, HTTPError, OSError):
        return "no answer"
    return ready(nodes)


def ready(nodes: list[Any]) -> str:
    """Return ``Ready`` if every node is, ``NotReady`` if one is not, ``no node`` for an empty list."""
    if not nodes:
        return "no node"
    return "Ready" if all(is_ready(node.status.conditions) for node in nodes) else "NotReady"


def duration(seconds: float) -> str:
    """Return an age in its largest unit and the next one, like ``2h 5m``."""
    whole = int(seconds)
    if whole < MINUTE:
        return f"{whole}s"
    if whole < HOUR:
        return f"{whole // MINUTE}m {whole % MINUTE}s"
    if whole < DAY:
        return f"{whole // HOUR}h {whole % HOUR // MINUTE}m"
    return f"{whole // DAY}d {whole % DAY // HOUR}h"


def table(rows: list[Running]) -> str:
    """Return sandboxes as a text table."""
    cells = [["NAME", "SANDBOX", "NODE", "AGE", "PID", "OWNER"]]
    cells += [
        [row.name, f"{row.kind} {row.sandbox}", row.node, duration(row.age), str(row.pid), row.owner]
        for row in rows
    ]
    cells = [[escaping.line(cell) for cell in line] for line in cells]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def strange() -> list[str]:
    """Return a line for each file or folder among the sandboxes' folders that does not bear our mark."""
    return [
        escaping.line(
            f"not ours, and left alone: {path}: {reason} "
            f"(if it is not needed: rm -r {shlex.quote(str(path))})"
        )
        for path, reason in machine.strangers().items()
    ]
