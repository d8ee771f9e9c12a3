"""What statx(2) answers about the cgroup filesystem: the kernel's own table, and ours under the interceptor.

``statx_probe.py`` makes the table, of masks, flags and kinds of files, and says which fields it compares.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pytest_k3s_sandbox.layers.cgroupfs.layer import FuseCgroupfs
from pytest_k3s_sandbox.layers.interceptor import loading
from pytest_k3s_sandbox.sandbox.base import STATE_DIR
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.sandbox.host import HostSandbox
from pytest_k3s_sandbox.sandbox.started import StartedSandbox
from support import statx_probe
from support.cgroup_sides import TOP, kernel_mount, kernel_side
from support.installed import installed
from support.interceptor_tools import MODULE

pytestmark = [
    pytest.mark.k3s_requires("fuse", "ptrace"),
    pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes need root"),
    pytest.mark.timeout(120),
]

Table = dict[str, dict[str, list[str]]]
Rows = dict[tuple[str, str], str]

CONTROLLER = "memory"
MOUNT, OWN_MOUNT = "/sys/fs/cgroup", "/tmp/fuse-cgroup"  # noqa: S108 - the server's default
"""Where the hierarchies are, and the one tree of all; the links in it are FUSE's own, and tmpfs' above."""
PROBE = f"{STATE_DIR}/statx_probe.py"
RULES = f"{STATE_DIR}/statx.toml"
FOR_CRUN = f"{STATE_DIR}/statx-crun.toml"
"""Rules for programs of crun's name alone."""
PYTHON = (sys.executable, "-I", "-S")
AS_CRUN = f"import os, sys; os.execv({sys.executable!r}, ['{sys.base_prefix}/bin/crun', *sys.argv[1:]])"
"""A program that goes on as one with crun's name; Python finds its library by the folder."""
TYPE_OF = """
import ctypes, sys
answer = ctypes.create_string_buffer(256)
# As crun 1.8.1: AT_STATX_DONT_SYNC, STATX_TYPE.
ctypes.CDLL(None).syscall(332, -100, sys.argv[1].encode(), 0x4000, 1, answer)
print(*[hex(int.from_bytes(answer[at:end], "little")) for at, end in ((0, 4), (28, 30))])
"""


def words(root: str, group: str, link: str, to: str) -> list[str]:
    """Return the probe's words for a hierarchy and a group in it."""
    files = ("memory.limit_in_bytes", "memory.stat", "cgroup.event_control")
    return [root, group, *(f"{group}/{name}" for name in files), link, to]


def rows(text: str) -> Rows:
    """Return the answer to each mask, by what was asked."""
    table: Table = json.loads(text)
    return {
        (key, mask): said
        for key, answers in table.items()
        for said, masks in answers.items()
        for mask in masks
    }


def kernfs_link() -> str:
    """Return a symbolic link on the file system that the kernel's cgroup v1 is made of."""
    return str(next(path for path in sorted(Path("/sys/class").glob("*/*")) if path.is_symlink()))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The probe's words for the kernel's own hierarchy."""
    scratch = tmp_path_factory.mktemp("kernel")
    root = kernel_mount(CONTROLLER)
    if root is None:
        pytest.skip(f"not applicable: the kernel's cgroup v1 of {CONTROLLER} is not mounted")
    (scratch / "to").symlink_to(root)
    with kernel_side(CONTROLLER, scratch) as side:
        yield words(str(root), str(side.base), kernfs_link(), str(scratch / "to"))


@pytest.fixture(scope="module")
def kernel(places: list[str]) -> Rows:
    """The kernel's own table."""
    argv = [*PYTHON, statx_probe.__file__, *places]
    return rows(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def served(sandbox: StartedSandbox) -> Iterator[StartedSandbox]:
    """Serve the cgroupfs in a sandbox, with a group, the probe, and rules for its other mount, too."""
    preset = Path(loading.__file__).with_name("presets") / "exp08.toml"
    # Without gVisor's own cgroups below, which make no hierarchy of two controllers.
    with sandbox, FuseCgroupfs(sandbox, controllers=("cpu,cpuacct", CONTROLLER), real=False):
        sandbox.files.write(PROBE, Path(statx_probe.__file__).read_text())
        sandbox.files.write(RULES, f'{preset.read_text()}\n[[statx]]\nunder = "{OWN_MOUNT}"\n')
        sandbox.files.write(FOR_CRUN, f'[[statx]]\nunder = "{MOUNT}"\nprograms = ["crun"]\n')
        sandbox.run(["mkdir", f"{MOUNT}/{CONTROLLER}/{TOP}"])
        yield sandbox


@pytest.fixture(scope="module")
def gvisor() -> Iterator[StartedSandbox]:
    """Our filesystem in gVisor."""
    yield from served(GvisorSandbox(installed("runsc").path))


@pytest.fixture(scope="module")
def natively() -> Iterator[StartedSandbox]:
    """Our filesystem on the machine itself."""
    yield from served(HostSandbox())


def seen(sandbox: StartedSandbox, wrap: Sequence[str] = ()) -> Rows:
    """Return the table of our filesystem in a sandbox."""
    root = f"{MOUNT}/{CONTROLLER}"
    # On the machine itself the kernel's own folder is there.
    to = f"{MOUNT if sandbox.kind == 'gvisor' else OWN_MOUNT}/cpu"
    paths = words(root, f"{root}/{TOP}", f"{OWN_MOUNT}/cpu", to)
    return rows(sandbox.run([*wrap, *PYTHON, PROBE, *paths], timeout=100).stdout)


def traced(*options: str) -> list[str]:
    """Return the words before a command that make it run under the interceptor."""
    return [sys.executable, "-m", MODULE, *options, "--"]


def equal(ours: Rows, kernel: Rows) -> None:
    """Check that two tables are the same."""
    assert ours.keys() == kernel.keys()
    unique = f"{statx_probe.UNIQUE:#x}"
    known = "0x47ff" in kernel["group absolute ", unique]  # since Linux 6.8
    wrong = {
        key: (said, kernel[key])
        for key, said in ours.items()
        if said != kernel[key] and (known or not _asks(key[1], statx_probe.UNIQUE))
    }
    assert not wrong, f"{len(wrong)} of {len(ours)} answers differ: {dict(list(wrong.items())[:5])}"


def _asks(mask: str, bit: int) -> bool:
    return mask.startswith("0x") and bool(int(mask, 16) & bit)


def test_the_table_has_every_combination(kernel: Rows) -> None:
    for kind, ways in {
        "group": ("absolute", "below", "missing"),
        "file": ("absolute", "below", "missing"),
    }.items():
        for way in ways:
            for flags in ("", "NOFOLLOW", "NO_AUTOMOUNT", "FORCE", "NOFOLLOW|NO_AUTOMOUNT|DONT", "BOTH"):
                for mask in statx_probe.MASKS:
                    assert (f"{kind} {way} {flags}", f"{mask:#x}") in kernel
    assert set(kernel.values()) >= {"EINVAL", "ENOENT", "ENOTDIR", "EBADF", "EFAULT"}
    assert not [said for said in kernel.values() if "wrong" in said or "wrote" in said]


def test_the_kernels_own_answers_stay(places: list[str], kernel: Rows) -> None:
    argv = [*traced("--preset", "exp08"), *PYTHON, statx_probe.__file__, *places]
    equal(rows(subprocess.run(argv, check=True, capture_output=True, text=True).stdout), kernel)


def test_ours_natively(natively: StartedSandbox, kernel: Rows) -> None:
    equal(seen(natively), kernel)
    equal(seen(natively, traced("--rules", RULES)), kernel)


def test_ours_in_gvisor(gvisor: StartedSandbox, kernel: Rows) -> None:
    equal(seen(gvisor, traced("--rules", RULES)), kernel)


def test_without_the_interceptor_gvisor_says_less(gvisor: StartedSandbox, kernel: Rows) -> None:
    """When a newer gVisor answers as Linux does, the rule can go."""
    raw = seen(gvisor)
    for flags in ("", "NOFOLLOW", "DONT"):
        assert raw[f"group absolute {flags}", "0x1"].startswith("mask 0x0 mode 0 ")
        assert raw[f"group absolute {flags}", "0x7ff"].startswith("mask 0x0 mode 40755 ")
    # Its errors are Linux' own, but that it writes 152 bytes of the 256, so that a shorter buffer is enough.
    errors = {key for key, said in kernel.items() if said.startswith("E") and "buffer of" not in key[1]}
    assert {key: raw[key] for key in errors} == {key: kernel[key] for key in errors}


@pytest.mark.parametrize(
    ("name", "wrap", "said"),
    [
        ("crun", lambda code: [*PYTHON, "-c", AS_CRUN, "-I", "-S", "-c", code], "0x17ff 0x416d"),
        ("another program", lambda code: [*PYTHON, "-c", code], "0x0 0x0"),
    ],
)
def test_only_the_programs_of_a_rule(
    gvisor: StartedSandbox, name: str, wrap: Callable[[str], list[str]], said: str
) -> None:
    argv = [*traced("--rules", FOR_CRUN), *wrap(TYPE_OF), f"{MOUNT}/{CONTROLLER}"]
    assert gvisor.run(argv).stdout.strip() == said, name


def test_the_rules_for_containerd_refuse_statx_to_crun(gvisor: StartedSandbox) -> None:
    """It calls fstatat then, and no call of its, nor of its containers, has to stop."""
    code = f"{TYPE_OF.replace('CDLL(None)', 'CDLL(None, use_errno=True)')}print(ctypes.get_errno())"
    argv = [*PYTHON, "-c", AS_CRUN, "-I", "-S", "-c", code, f"{MOUNT}/{CONTROLLER}"]
    said = gvisor.run([*traced("--preset", "exp08-containerd"), *argv]).stdout.split()
    assert said == ["0x0", "0x0", str(errno.ENOSYS)]
