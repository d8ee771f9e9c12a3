"""``here`` where the machine itself is a gVisor sandbox: the user in a cloud IDE."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pytest_k3s_sandbox.cluster.embedded import Embedded
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.layers.stack import FULL
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR
from pytest_k3s_sandbox.sandbox.gvisor import V9FS_MAGIC, GvisorSandbox
from pytest_k3s_sandbox.toolchain import Toolchain

pytestmark = [pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor"), pytest.mark.timeout(240)]

INNER = """
import json
from pathlib import Path
from pytest_k3s_sandbox.bringup import Wish, everything
from pytest_k3s_sandbox.sandbox import reaper
from pytest_k3s_sandbox.toolchain import Toolchain

with everything(Wish("here"), Toolchain(), Path("/var/lib/run"), experiment="test") as up:
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


def test_a_node_becomes_ready_here_inside_a_gvisor_sandbox() -> None:
    toolchain = Toolchain()
    programs = [toolchain.get(name).path for name in (*Embedded.programs, "runsc")]
    environment = {
        f"K3S_SANDBOX_{path.name.upper().replace('-', '_')}": f"{BIN_DIR}/{path.name}" for path in programs
    }
    environment |= {"K3S_SANDBOX_HOME": "/var/lib/inner", "K3S_SANDBOX_CACHE": "/var/lib/cache"}
    with GvisorSandbox(toolchain.get("runsc").path, programs=programs) as outer:
        script = f"{STATE_DIR}/inner.py"
        outer.host_path(script).write_text(INNER)
        process = outer.spawn([sys.executable, script], name="inner", env=environment)
        status = process.wait(Deadline.after(200))
        output = Path(process.log).read_text()
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
