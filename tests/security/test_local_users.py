"""Other local users: what they put into a shared /tmp leads a root of this machine nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="plays another user"), pytest.mark.timeout(60)]

SOMEBODY = 65534
INTERCEPT = [sys.executable, "-m", "pytest_k3s_sandbox.layers.interceptor"]
RULES = """
[[redirect]]
path = "/etc/hostname"
content = "another\\n"
"""


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder like /tmp."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.fixture
def home_of_victim(tmp_path: Path) -> Path:
    """What is to stay: a folder with a file that is called as the lock of a scratch folder."""
    folder = tmp_path / "victim"
    folder.mkdir()
    for name in ("lock", "1", "thesis.txt"):
        (folder / name).write_text("mine")
        os.chown(folder / name, SOMEBODY, SOMEBODY)
    os.chown(folder, SOMEBODY, SOMEBODY)
    return folder


def intercepted(shared: Path) -> str:
    """Run a program under rules that make a scratch file."""
    rules = shared.parent / "rules.toml"
    rules.write_text(RULES)
    done = subprocess.run(
        [*INTERCEPT, "--rules", str(rules), "--", "cat", "/etc/hostname"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={**os.environ, "TMPDIR": str(shared)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.k3s_requires("ptrace")
@pytest.mark.parametrize("owner", [SOMEBODY, 0])
@pytest.mark.parametrize("how", ["link", "folder"])
def test_what_is_called_as_a_scratch_folder(shared: Path, home_of_victim: Path, how: str, owner: int) -> None:
    squat = shared / "k3s-interceptor-1-17"
    if how == "link":
        squat.symlink_to(home_of_victim)
    else:
        home_of_victim.rename(squat)
    os.chown(squat, owner, owner, follow_symlinks=False)
    assert intercepted(shared) == "another\n"
    assert {path.name for path in squat.iterdir()} == {"lock", "1", "thesis.txt"}
    assert [path.name for path in shared.iterdir()] == [squat.name]


@pytest.mark.k3s_requires("ptrace")
def test_a_lock_of_a_scratch_folder_that_leads_elsewhere(shared: Path, home_of_victim: Path) -> None:
    squat = shared / "k3s-interceptor-1-17"
    squat.mkdir()
    (squat / "lock").symlink_to(home_of_victim / "thesis.txt")
    (squat / "1").write_text("x")
    assert intercepted(shared) == "another\n"
    assert (squat / "1").exists()


@pytest.mark.k3s_requires("fuse")
@pytest.mark.parametrize("how", ["link", "folder"])
def test_a_mount_point_of_another_user(shared: Path, home_of_victim: Path, how: str) -> None:
    """The cgroupfs is mounted on no place that another user chose."""
    point = shared / "fuse-cgroup"
    if how == "link":
        point.symlink_to(home_of_victim)
    else:
        point.mkdir()
    os.chown(point, SOMEBODY, SOMEBODY, follow_symlinks=False)
    served = subprocess.run(
        ["unshare", "--mount", "timeout", "--signal=INT", "5", sys.executable, "-m",
         "pytest_k3s_sandbox.layers.cgroupfs", str(point)],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert served.returncode == 2
    assert f"it belongs to the user {SOMEBODY}: '{point}'" in served.stderr
    assert "ready" not in served.stderr


@pytest.mark.k3s_requires("ptrace")
def test_statistics_beside_a_link_of_another_user(shared: Path, home_of_victim: Path) -> None:
    victim = home_of_victim / "thesis.txt"
    # Where process ids come in order, the names that the old code took can be had in advance.
    for pid in range(os.getpid(), os.getpid() + 300):
        (shared / f"stats.{pid}.tmp").symlink_to(victim)
    subprocess.run(
        [*INTERCEPT, "--preset", "exp08", "--stats", str(shared / "stats"), "--", "true"],
        check=True,
        timeout=30,
    )
    assert victim.read_text() == "mine"
    assert (shared / "stats").read_text().startswith("{")
    assert not (shared / "stats").is_symlink()


@pytest.mark.parametrize("how", ["a link", "another user's"])
def test_the_lock_of_the_machine(shared: Path, home_of_victim: Path, how: str) -> None:
    """/run belongs to root; where it does not, its lock leads to no other file."""
    victim = home_of_victim / "thesis.txt"
    lock = shared / "k3s-sandbox.lock"
    if how == "a link":
        lock.symlink_to(victim)
    else:
        lock.touch()
        os.chown(lock, SOMEBODY, SOMEBODY)
    code = (
        "from pathlib import Path; from pytest_k3s_sandbox.sandbox import machine;"
        f"machine.LOCK = Path({str(lock)!r}); machine.lock().__enter__()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"StartError: the lock {lock}" in done.stderr
    assert "Remedy: look at it" in done.stderr
    assert victim.read_text() == "mine"
