"""Machines that lack something: each says what, and what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_k3s_sandbox.sandbox.host import cgroup_mounts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for namespaces")

START = "from pytest_k3s_sandbox.sandbox.host import HostSandbox; HostSandbox().close()"

WITHOUT_PTRACE = """
import errno, sys
import pyseccomp
rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
rules.add_rule(pyseccomp.ERRNO(errno.EPERM), "ptrace")
rules.load()
from pytest_k3s_sandbox.layers.interceptor.__main__ import main
sys.exit(main(["--preset", "exp08", "--", "true"]))
"""


def test_cgroups_that_are_read_only(tmp_path: Path) -> None:
    """As in a container without --privileged; the mount namespace is the test's own."""
    points = cgroup_mounts(Path("/proc/self/mountinfo").read_text())
    if not points:
        pytest.skip("not applicable: this machine has no cgroups")
    script = "".join(f"mount -o remount,bind,ro {point} && " for point in points) + 'exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", START],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "K3S_SANDBOX_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 1
    said = done.stderr.partition("StartError: ")[2]
    assert said.startswith("cannot start a sandbox of kind host: the machine's cgroups cannot be changed (")
    assert "Read-only file system" in said
    assert "Remedy: mount /sys/fs/cgroup writable" in said
    assert "--k3s-sandbox=gvisor" in said
    assert list((tmp_path / "home" / "sandboxes").iterdir()) == []


def test_ptrace_that_is_refused() -> None:
    """As by kernel.yama.ptrace_scope = 3, which cannot be taken back: a filter stands for it."""
    pytest.importorskip("pyseccomp")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PTRACE], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "ptrace: Operation not permitted" in done.stderr
    assert "kernel.yama.ptrace_scope below 3" in done.stderr
    assert "Traceback" not in done.stderr
