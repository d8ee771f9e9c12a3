"""The crun of Debian 13, with the libraries that it was linked to, for machines with an older C library."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SUITE = "trixie"
SECONDS = 300
"""How long the making of a root may take; it took 40 s."""

LOADER = "ld-linux-x86-64.so.2"
WRAPPER = f"""#!/bin/sh
exec {{at}}/lib/{LOADER} --library-path {{at}}/lib {{at}}/crun.real "$@"
"""


def debian_root(folder: Path) -> Path:
    """Return the root of a small Debian 13 with crun in it.

    Args:
        folder: Where it is made.
    """
    tool = shutil.which("debootstrap", path="/usr/sbin:/usr/bin")
    if tool is None:
        pytest.skip("no debootstrap on this machine: apt-get install debootstrap")
    root = folder / SUITE
    argv = [tool, "--variant=minbase", "--include=crun", SUITE, str(root), *_mirror()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode != 0:
        last = (done.stdout + done.stderr).strip().rpartition("\n")[2]
        pytest.skip(f"debootstrap makes no {SUITE} here: {last}")
    return root


def _mirror() -> list[str]:
    """Return the mirror of Debian that this machine uses, if it uses one."""
    argv = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Origin: Debian"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.split()[:1]


def relocated(root: Path, folder: Path, at: str) -> Path:
    """Copy crun and its libraries out of a root, so that they run wherever they are shown.

    crun executes a copy of /proc/self/exe with its command line, which is the loader's here; that works.

    Args:
        root: What :func:`debian_root` returned.
        folder: Where the copies go.
        at: The folder's path where crun will run.

    Returns:
        A program ``crun`` that runs the copy.
    """
    (folder / "lib").mkdir(parents=True)
    shutil.copy(root / "usr/bin/crun", folder / "crun.real")
    words = ["/usr/sbin/chroot", str(root), "ldd", "/usr/bin/crun"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    for path in re.findall(r"(/lib\S*) \(", said):
        shutil.copy(root / path.lstrip("/"), folder / "lib")
    wrapper = folder / "crun"
    wrapper.write_text(WRAPPER.format(at=at))
    wrapper.chmod(0o755)
    return wrapper
