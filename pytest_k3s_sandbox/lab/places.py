"""The sandboxes that experiments look at without a node: of either kind, and recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.layers.stack import LayerStack
from pytest_k3s_sandbox.report.wording import root_name
from pytest_k3s_sandbox.sandbox.base import V9FS_MAGIC, root_magic
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.sandbox.host import HostSandbox

if TYPE_CHECKING:
    from pytest_k3s_sandbox.node.spec import NodeSpec
    from pytest_k3s_sandbox.report.records import RunWriter
    from pytest_k3s_sandbox.sandbox.base import Sandbox
    from pytest_k3s_sandbox.sandbox.started import StartedSandbox
    from pytest_k3s_sandbox.toolchain import Toolchain


def need_9p(sandbox: Sandbox) -> None:
    """Skip the running test where the root is not a 9p mount.

    The answer of statfs(2) inside decides, not the sandbox's kind: a gvisor sandbox makes sure of its 9p root
    by itself, and on a machine that is a gVisor sandbox ``host`` has one, too.
    """
    magic = root_magic(sandbox)
    if magic != V9FS_MAGIC:
        pytest.skip(
            f"not applicable: this is about a 9p root, and statfs says {root_name(magic)} for this one"
        )


@contextlib.contextmanager
def placed(
    kind: str,
    experiment: str,
    programs: Sequence[Path],
    toolchain: Toolchain,
    spec: NodeSpec,
    writer: RunWriter,
) -> Iterator[StartedSandbox]:
    """Start a sandbox with nothing of Kubernetes in it, and record where that is.

    Args:
        kind: ``gvisor`` or ``host``. The run's environment describes the gvisor sandbox, if the run has one.
        experiment: The experiment's name.
        programs: The programs that appear inside.
        toolchain: Where runsc comes from.
        spec: The specification.
        writer: The run's records.
    """
    from pytest_k3s_sandbox.node.fingerprint import fingerprint

    with contextlib.ExitStack() as ending:
        with writer.phase(f"sandbox {kind}"):
            sandbox: StartedSandbox = ending.enter_context(
                HostSandbox(programs=programs)
                if kind == "host"
                else GvisorSandbox(toolchain.get("runsc").path, programs=programs)
            )
        if kind != "host" or writer.environment is None:
            writer.append(fingerprint(LayerStack(sandbox, ()), spec, toolchain, experiment))
        yield sandbox
