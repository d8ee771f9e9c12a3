"""crun runs where the project would use it: among the programs of a sandbox of each kind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_k3s_sandbox.sandbox.base import BIN_DIR, Bind
from pytest_k3s_sandbox.sandbox.started import StartedSandbox
from support import trixie
from support.installed import Make, installed, maker

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes need root")

AT = "/srv/crun"
"""Where a sandbox shows the copy of Debian 13's crun."""


@pytest.fixture(params=["gvisor", "host"])
def make(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(tmp_path / "home"))
    return maker(request.param)


def check(sandbox: StartedSandbox, version: str) -> None:
    """Check that crun says what it is, and that it reads its state: no containers."""
    crun = f"{BIN_DIR}/crun"
    assert sandbox.run([crun, "--version"]).stdout.startswith(f"crun version {version}\n")
    assert "create a container" in sandbox.run([crun, "--help"]).stdout
    listed = sandbox.run([crun, "--root", "/run/test", "list"]).stdout.splitlines()
    assert [line.split()[:2] for line in listed] == [["NAME", "PID"]]


def test_the_crun_of_this_machine(make: Make) -> None:
    """Debian's is linked to a handful of libraries, which are below the machine's /usr."""
    found = installed("crun")
    with make(programs=[found.path]) as sandbox:
        check(sandbox, found.version)


@pytest.fixture(scope="module")
def debian_13(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("debian")
    return trixie.relocated(trixie.debian_root(folder), folder / "crun", AT)


@pytest.mark.nightly  # its Debian is made in 40 s and takes 217 MB
@pytest.mark.timeout(trixie.SECONDS + 60)
def test_the_crun_of_debian_13(make: Make, debian_13: Path) -> None:
    with make(programs=[debian_13], binds=[Bind(debian_13.parent, AT)]) as sandbox:
        check(sandbox, "1.21")
