"""What a process inside can read of the machine, and what is left of the machine in ``host``."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_k3s_sandbox.sandbox import layout
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, Bind
from pytest_k3s_sandbox.sandbox.enter import DROPPED
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.sandbox.host import HostSandbox
from pytest_k3s_sandbox.sandbox.started import StartedSandbox
from pytest_k3s_sandbox.toolchain import Toolchain

MARKER = "a-token-of-the-user"
REFUSED = {str(errno.EPERM), str(errno.ENOSYS)}  # a kernel may have no modules

pytestmark = [pytest.mark.k3s_requires("root", "gvisor"), pytest.mark.timeout(120)]

ASK = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
nothing = ctypes.c_long(0)
# With arguments that no kernel accepts, so that nothing happens where they are permitted.
libc.syscall(ctypes.c_long(175), nothing, nothing, nothing)  # init_module(2)
print(ctypes.get_errno())
libc.syscall(ctypes.c_long(169), nothing, nothing, nothing, nothing)  # reboot(2)
print(ctypes.get_errno())
"""


@pytest.fixture(scope="module")
def prefix() -> Iterator[Path]:
    """A Python environment with settings that hold tokens; not in /tmp, which is not shown."""
    folder = Path(tempfile.mkdtemp(prefix="k3s-sandbox-test-", dir="/srv"))
    for name in ("pip.conf", ".netrc", ".pypirc", ".env", "uv.toml", ".aws/credentials", ".ssh/id_ed25519"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(MARKER)
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "tokens").write_text(MARKER)
    (folder / ".npmrc").symlink_to("elsewhere/tokens")
    (folder / ".git-credentials").symlink_to("/etc/shadow")
    (folder / "module.py").write_text("seen = True\n")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=["gvisor", "host"])
def sandbox(request: pytest.FixtureRequest, prefix: Path) -> Iterator[StartedSandbox]:
    """A sandbox of each kind, started by a user whose environment holds tokens."""
    with pytest.MonkeyPatch.context() as patch:
        binds = [*layout.python_binds(), Bind(prefix, str(prefix))]
        patch.setattr(layout, "python_binds", lambda: binds)
        patch.setenv("PIP_INDEX_URL", f"https://user:{MARKER}@index.example")
        patch.setenv("GITHUB_TOKEN", MARKER)
        runsc = Toolchain().get("runsc").path
        made = HostSandbox() if request.param == "host" else GvisorSandbox(runsc)
    with made:
        yield made


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of the cache, with two names."""
    path = tmp_path_factory.mktemp("cache") / "one"
    path.write_text("#!/bin/sh\necho as it was\n")
    path.chmod(0o755)
    path.with_name("two").hardlink_to(path)
    return path


@pytest.fixture(scope="module")
def here(program: Path) -> Iterator[HostSandbox]:
    """A sandbox of kind ``host`` with a program."""
    with HostSandbox(programs=[program, program.with_name("two")]) as sandbox:
        yield sandbox


def test_settings_with_tokens_in_shown_folders_cannot_be_read(sandbox: StartedSandbox, prefix: Path) -> None:
    found = sandbox.run(["grep", "-r", MARKER, str(prefix)], check=False)
    assert found.stdout == ""
    assert sandbox.run(["cat", f"{prefix}/module.py"]).stdout == "seen = True\n"
    for name in ("pip.conf", ".netrc", ".npmrc"):
        assert sandbox.run(["cat", f"{prefix}/{name}"]).stdout == ""
    assert sandbox.run(["ls", "-A", f"{prefix}/.ssh"]).stdout == ""
    # Where this Python lies below /root, the way to it is there, and nothing else.
    there = set(sandbox.run(["ls", "-A", "/root"]).stdout.split())
    ways = {bind.target.split("/")[2] for bind in sandbox.layout.binds if bind.target.startswith("/root/")}
    assert there <= ways


def test_the_environment_of_who_started_it_cannot_be_read(sandbox: StartedSandbox) -> None:
    script = "cat /proc/[0-9]*/environ; cat /proc/[0-9]*/cmdline; env"
    said = sandbox.run(["sh", "-c", script], check=False).stdout
    assert "PATH=" in said
    assert MARKER not in said


def test_a_program_that_is_changed_inside_stays_as_it_is_in_the_cache(
    here: HostSandbox, program: Path
) -> None:
    before = program.stat().st_nlink
    script = f"mount -o remount,bind,rw {BIN_DIR} && echo 'echo evil' >> {BIN_DIR}/one && {BIN_DIR}/two"
    assert here.run(["sh", "-c", script]).stdout == "as it was\nevil\n"  # one inode, copied once
    assert program.read_text() == "#!/bin/sh\necho as it was\n"
    assert before == 2


def test_what_no_node_needs_is_not_permitted(here: HostSandbox) -> None:
    for done in (
        here.run(["grep", "^Cap", "/proc/self/status"]).stdout,
        subprocess.run(
            here.shell_argv(["grep", "^Cap", "/proc/self/status"]),
            capture_output=True,
            text=True,
            check=True,
        ).stdout,
    ):
        sets = {name: int(value, 16) for name, value in (line.split(":") for line in done.splitlines())}
        held = {name for name, number in DROPPED.items() for bits in sets.values() if bits >> number & 1}
        assert held == set()
        assert {"SYS_MODULE", "SYS_RAWIO", "SYS_BOOT", "SYS_TIME"} <= set(DROPPED)  # as docs/security.md says
        assert sets["CapEff"] >> 21 & 1  # SYS_ADMIN: a node mounts
    answers = here.run([sys.executable, "-c", ASK]).stdout.split()
    assert len(answers) == 2
    assert set(answers) <= REFUSED


def test_the_machine_cannot_be_reset_by_proc(here: HostSandbox) -> None:
    if not os.access("/proc/sysrq-trigger", os.W_OK):
        pytest.skip("not applicable: this machine has no /proc/sysrq-trigger")
    # "h" writes a help text to the kernel's log.
    assert here.run(["sh", "-c", "echo h > /proc/sysrq-trigger"], check=False).returncode != 0
