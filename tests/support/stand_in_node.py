"""Nodes on the ``k3s`` distribution, whose program may be the tests' stand-in for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from pytest_k3s_sandbox.cluster import k3s
from pytest_k3s_sandbox.cluster.embedded import Embedded
from pytest_k3s_sandbox.layers.stack import FULL, NATIVE
from pytest_k3s_sandbox.node import session
from pytest_k3s_sandbox.node.session import NodeSession
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.report.records import RunWriter
from pytest_k3s_sandbox.sandbox.base import STATE_DIR
from pytest_k3s_sandbox.toolchain import Toolchain
from support.outside import outside

SOURCE = Path(__file__).with_name("stand_in_k3s.py")


def write_stand_in(folder: Path) -> Path:
    """Write the stand-in as a program that is run by the Python that the sandbox shows."""
    program = folder / "k3s"
    program.write_text(f"#!{sys.executable}\n{SOURCE.read_text()}")
    program.chmod(0o755)
    return program


def toolchain_with(program: Path) -> Toolchain:
    """Return a toolchain whose k3s is this program."""
    return Toolchain(environ={**os.environ, "K3S_SANDBOX_K3S": str(program)})


def put_parts(state: Path, toolchain: Toolchain, kubelet: Path | None = None) -> None:
    """Give a stand-in the parts that k3s has in itself, or another kubelet."""
    parts = state / "parts"
    parts.mkdir()
    for name in Embedded.programs:
        other = kubelet if name == "kubelet" else None
        source = other or toolchain.get(name).path.resolve()
        try:
            (parts / name).hardlink_to(source)
        except OSError:  # another file system
            shutil.copy(source, parts / name)


@contextlib.contextmanager
def node(
    program: Path,
    folder: Path,
    kind: str = "gvisor",
    *,
    apart: bool = False,
    supervised: bool = False,
    kubelet: Path | None = None,
) -> Iterator[NodeSession]:
    """Bring a node up on k3s, as :func:`.session.open_session` does it."""
    toolchain = toolchain_with(program)
    spec = NodeSpec(kind, distribution="k3s", supervised=supervised)
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(RunWriter(folder))
        sandbox = stack.enter_context(session.open_sandbox(spec, toolchain, writer))
        if "stand-in" in toolchain.get("k3s").version:
            put_parts(outside(sandbox, STATE_DIR), toolchain, kubelet)
        process = session.open_control_plane(sandbox, spec, toolchain, writer)
        if apart:
            process.distribution = k3s.K3s(apart=True)
        layers = FULL if kind == "gvisor" else NATIVE
        up = stack.enter_context(session.open_stack(sandbox, layers, writer, process))
        yield stack.enter_context(
            session.open_node(up, spec, toolchain, writer, experiment="test", runner=process)
        )
