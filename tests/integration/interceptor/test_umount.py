"""gVisor unmounts the mount above a folder that is a mount point only elsewhere; a rule keeps it."""

from __future__ import annotations

import os
import sys

import pytest
from interceptor_tools import MODULE

from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.toolchain import Toolchain

pytestmark = [
    pytest.mark.requires("ptrace"),
    pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes need root"),
    pytest.mark.timeout(120),
]

PRESET = "exp08-containerd"
PROGRAM = "containerd-shim-runc-v2"
ELSEWHERE = """
mkdir -p /run/outer && mount -t tmpfs outer /run/outer && mkdir -p /run/outer/inner
mount -t tmpfs inner /run/outer/inner
unshare --mount sleep 60 & sleep 1
umount /run/outer/inner
"""
UNMOUNT = f"""
ln -sf {sys.executable} /tmp/{PROGRAM}
%s/tmp/{PROGRAM} -c '
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
MNT_DETACH = 2
print(libc.umount2(b"/run/outer/inner", MNT_DETACH), ctypes.get_errno())
print(libc.umount2(b"/run/outer/missing", MNT_DETACH), ctypes.get_errno())
'
grep -c " /run/outer " /proc/self/mountinfo
"""


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Replace the check after each test: the sandbox ends with it."""


@pytest.mark.parametrize("intercepted", [False, True])
def test_only_what_is_mounted_is_unmounted(intercepted: bool) -> None:
    found = Toolchain().find("runsc")
    if found is None:
        pytest.skip("no runsc on this machine: run `k3s-sandbox provision`")
    with GvisorSandbox(found.path) as sandbox:
        wrap = f"{sys.executable} -m {MODULE} --preset {PRESET} -- " if intercepted else ""
        done = sandbox.run(["sh", "-c", ELSEWHERE + UNMOUNT % wrap], check=False)
    first, second, mounted = done.stdout.splitlines()
    if intercepted:
        assert (first, second, mounted) == ("-1 22", "-1 2", "1"), done.stderr
    else:  # a newer gVisor may answer as Linux does: the rule can go then
        assert (first, second, mounted) == ("0 0", "-1 2", "0"), done.stderr
