"""A CNI plugin called as a runtime calls it (CNI specification 1.1.0, section 2)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

NETNS = "/run/netns/pod"


def variables(command: str, container: str, interface: str = "eth0") -> dict[str, str]:
    """Return the variables of a call."""
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": NETNS,
        "CNI_IFNAME": interface,
    }


def call(program: Path, text: str, environ: dict[str, str]) -> tuple[int, Any]:
    """Run a plugin, which must say nothing on standard error; return its exit code and its answer.

    Args:
        program: The plugin.
        text: The configuration on its standard input.
        environ: Its variables; PATH is added.
    """
    done = subprocess.run(
        [program],
        input=text,
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout) if done.stdout else None
