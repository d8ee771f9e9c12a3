"""``host`` where the machine itself is a gVisor sandbox: the user in a cloud IDE."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_k3s_sandbox.cli.experiments import experiments_folder
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.layers.stack import FULL
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR, V9FS_MAGIC, Bind
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.toolchain import Toolchain

pytestmark = [pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor"), pytest.mark.timeout(240)]

INNER = """
import json
from pathlib import Path
from pytest_k3s_sandbox.node.session import open_session
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.sandbox import reaper
from pytest_k3s_sandbox.toolchain import Toolchain

folder = Path("/var/lib/run")
with open_session(NodeSpec("host"), toolchain=Toolchain(), folder=folder, experiment="test") as up:
    up.cluster.node.wait_ready(90)
    seen = {
        "layers": up.stack.names,
        "root": up.stack.sandbox.root_magic(),
        "healthy": all(health.ok for health in up.stack.check().values()),
        "node": up.cluster.node.conditions()["Ready"].status,
        "cadvisor": [line.text for line in up.readiness.errors("cadvisor")],
    }
print(json.dumps(seen | {"left": reaper.leftovers()}))
"""


EXPERIMENTS = Path("/experiments")
TRIAL = "without_one_layer and workarounds"


def test_the_walls_of_a_9p_root_are_tried_here_inside_a_gvisor_sandbox() -> None:
    words = [str(EXPERIMENTS / "exp08" / "test_ablation.py"), f"-k{TRIAL}", "-rs", f"-c{os.devnull}"]
    folders = ["--rootdir=/var/lib", "--k3s-report=/var/lib/reports", "-pno:cacheprovider"]
    pytest_run = shlex.join([sys.executable, "-m", "pytest", *words, *folders, "--k3s-sandbox=host"])
    mine = "mkdir /run/cpu && mount -t cgroup -o cpu cgroup /run/cpu && mkdir /run/cpu/mine"
    script = f"{mine} && {pytest_run} && test -d /run/cpu/mine && echo the machine has its group still"
    status, output = inside(lambda _outer: ["sh", "-c", script])
    assert status == 0, output[-3000:]
    assert "1 passed" in output, output[-3000:]
    assert "exp08: held; 1 of 1 claims" in output, output[-3000:]
    assert "the machine has its group still" in output, output[-3000:]


def inside(command: Callable[[GvisorSandbox], list[str]]) -> tuple[int | None, str]:
    """Run a command in a gVisor sandbox that has the programs of a node; return its end and its output."""
    toolchain = Toolchain()
    programs = [toolchain.get(name).path for name in toolchain.needed]
    environment = {
        f"K3S_SANDBOX_{path.name.upper().replace('-', '_')}": f"{BIN_DIR}/{path.name}" for path in programs
    }
    environment |= {"K3S_SANDBOX_HOME": "/var/lib/inner", "K3S_SANDBOX_CACHE": "/var/lib/cache"}
    binds = [Bind(experiments_folder(), str(EXPERIMENTS))]
    with GvisorSandbox(toolchain.get("runsc").path, programs=programs, binds=binds) as outer:
        process = outer.spawn(command(outer), name="inner", env=environment)
        status = process.wait(Deadline.after(200))
        return status, process.log.read_text()


def test_a_node_becomes_ready_here_inside_a_gvisor_sandbox() -> None:
    def script(outer: GvisorSandbox) -> list[str]:
        path = f"{STATE_DIR}/inner.py"
        outer.files.write(path, INNER)
        return [sys.executable, path]

    status, output = inside(script)
    assert status == 0, output[-3000:]
    seen = json.loads(output.splitlines()[-1])
    assert seen == {
        "layers": list(FULL),
        "root": V9FS_MAGIC,
        "healthy": True,
        "node": "True",
        "cadvisor": [],
        "left": [],
    }
