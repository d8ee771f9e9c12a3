"""Answers of gVisor's that are not Linux's and end a pod or a node, and the rules that mend them.

Each test asks without the interceptor, too. When a newer gVisor answers there as Linux does, the rule can go.
"""

from __future__ import annotations

import os
import sys

import pytest

from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from support.installed import installed
from support.interceptor_tools import MODULE, redirect

pytestmark = [
    pytest.mark.k3s_requires("ptrace"),
    pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes need root"),
    pytest.mark.timeout(120),
]

PRESET = "exp08-containerd"

ELSEWHERE = """
mkdir -p /run/outer && mount -t tmpfs outer /run/outer && mkdir -p /run/outer/inner
mount -t tmpfs inner /run/outer/inner
unshare --mount sleep 60 & sleep 1
umount /run/outer/inner
"""
UNMOUNT = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
MNT_DETACH = 2
print(libc.umount2(b"/run/outer/inner", MNT_DETACH), ctypes.get_errno())
print(libc.umount2(b"/run/outer/missing", MNT_DETACH), ctypes.get_errno())
with open("/proc/self/mountinfo") as table:
    print(sum(" /run/outer " in line for line in table))
"""
OPEN_FIFO = """
import ctypes, os, signal, threading, time
signal.signal(signal.SIGURG, lambda *_: None)
signal.siginterrupt(signal.SIGURG, False)  # SA_RESTART, as Go has it
os.mkfifo("/run/fifo")
main = threading.get_ident()
def disturb():
    for _ in range(5):
        time.sleep(0.1)
        signal.pthread_kill(main, signal.SIGURG)
    other = os.open("/run/fifo", os.O_RDONLY | os.O_NONBLOCK)
    opened.wait()  # a side that goes at once is missed by an open that is just made again, on Linux too
    os.close(other)
opened = threading.Event()
threading.Thread(target=disturb).start()
libc = ctypes.CDLL(None, use_errno=True)
print(libc.open(b"/run/fifo", os.O_WRONLY) >= 0, ctypes.get_errno())
opened.set()
"""


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Replace the check after each test: the sandbox ends with it."""


def answers(name: str, code: str, *, intercepted: bool, before: str = ":") -> list[str]:
    """Return the lines that a Python program of a name prints in gVisor."""
    runsc = installed("runsc").path
    wrap = f"{sys.executable} -m {MODULE} --preset {PRESET} -- " if intercepted else ""
    script = f"{before}\nln -sf {sys.executable} /run/{name}\n{wrap}/run/{name} -c '{code}'"
    with GvisorSandbox(runsc) as sandbox:
        done = sandbox.run(["sh", "-c", script], check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("intercepted", "seen"), [(False, ["0 0", "-1 2", "0"]), (True, ["-1 22", "-1 2", "1"])]
)
def test_only_what_is_mounted_is_unmounted(intercepted: bool, seen: list[str]) -> None:
    """Without the rule gVisor unmounts the mount above a folder that is a mount point only elsewhere."""
    name = "containerd-shim-runc-v2"
    assert answers(name, UNMOUNT, intercepted=intercepted, before=ELSEWHERE) == seen


@pytest.mark.parametrize(("intercepted", "seen"), [(False, ["False 4"]), (True, ["True 0"])])
def test_a_signal_does_not_end_the_wait_for_a_fifos_other_side(intercepted: bool, seen: list[str]) -> None:
    """Without the rule a container's first process, which waits for `runc start` so, gives up with EINTR."""
    assert answers("runc", OPEN_FIFO, intercepted=intercepted) == seen


COUNT_UP = """
import ctypes, os
until = os.getppid()
assert ctypes.CDLL(None, use_errno=True).unshare(0x20000000) == 0  # CLONE_NEWPID
if os.fork() == 0:
    # This is the first process of the namespace. Its children count up to the number of the shell outside.
    for _ in range(until + 1):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        if child >= until:
            print(child == until, flush=True)
            break
    os._exit(0)
os.wait()
"""


def test_a_process_has_its_rules_whatever_number_a_container_counts_up_to() -> None:
    """A tracer in gVisor is told the numbers of a container's processes as the container sees them."""
    rules = redirect("/run/it", "/run/other") + 'programs = ["named"]'
    script = f"""
echo real > /run/it; echo other > /run/other; echo 'print(open("/run/it").read(), end="")' > /run/show
ln -s {sys.executable} /run/named
cat > /run/rules <<'END'
{rules}
END
cat > /run/count <<'END'
{COUNT_UP}
END
{sys.executable} -m {MODULE} --rules /run/rules -- sh -c \\
    '/run/named /run/show; /run/named /run/count; /run/named /run/show; cat /run/it'
"""
    with GvisorSandbox(installed("runsc").path) as sandbox:
        done = sandbox.run(["sh", "-c", script], check=False)
    assert (done.stdout.split(), done.stderr) == (["other", "True", "other", "real"], "")
