"""The wrapper in front of a runc that only writes down how it was called."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_k3s_sandbox.layers.workarounds.oci_runtime import adapt, script, write_crun_wrapper, write_wrapper

SPEC = {"linux": {"namespaces": [{"type": "cgroup"}, {"type": "pid"}], "seccomp": {}, "x": 1}}
NEEDS_NOTHING = {"linux": {"namespaces": [{"type": "pid"}], "x": 1}}
GLOBALS = ["--root", "/run/containerd/runc/k8s.io", "--log", "LOG", "--log-format", "json"]
SHELLS = [["sh"], ["busybox", "sh"], ["bash", "--posix"]]


class Setup:
    """A wrapper, a fake runc and a bundle in one folder."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        """Write them."""
        self.folder = folder
        runc = folder / "fake runc"
        runc.write_text('#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done > "${0%/*}/called"\nexit 7\n')
        runc.chmod(0o755)
        self.bundle = folder / "bundle dir"
        self.bundle.mkdir()
        self.config = self.bundle / "config.json"
        self.config.write_text(json.dumps(SPEC))
        self.log = folder / "log.json"
        self.wrapper = write_wrapper(folder / "wrap", str(folder / "wrap"), str(runc), python=python)

    def run(self, *argv: str, shell: list[str] | None = None, cwd: Path | None = None) -> int:
        """Call the wrapper as the shim calls runc; BUNDLE and LOG in its argv are filled in."""
        argv = tuple(each.replace("BUNDLE", str(self.bundle)).replace("LOG", str(self.log)) for each in argv)
        self.sent = list(argv)
        done = subprocess.run(
            [*(shell or []), self.wrapper, *argv], check=False, cwd=cwd, timeout=30, stderr=subprocess.PIPE
        )
        return done.returncode

    @property
    def called(self) -> list[str] | None:
        """The argv that runc got, or None when it was not called."""
        record = self.folder / "called"
        return record.read_text().splitlines() if record.exists() else None

    @property
    def adapted(self) -> bool:
        """Whether the specification was changed, and rightly."""
        spec = json.loads(self.config.read_text())
        assert spec in (SPEC, adapt(SPEC))
        return bool(spec != SPEC)


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
@pytest.mark.parametrize(
    "argv",
    [
        [*GLOBALS, "create", "--bundle", "BUNDLE", "--pid-file", "BUNDLE/init.pid", "id"],
        [*GLOBALS, "--systemd-cgroup", "create", "-b", "BUNDLE", "--no-pivot", "id"],
        ["--debug", "--root=/r", "create", "--bundle=BUNDLE", "--console-socket", "/s", "id"],
        ["--rootless", "auto", "run", "--detach", "id", "--bundle", "BUNDLE"],
        ["-log", "LOG", "create", "-bundle", "BUNDLE", "id"],
    ],
)
def test_creating_adapts_and_passes_every_word_on(setup: Setup, argv: list[str], shell: list[str]) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"there is no {shell[0]}")
    assert setup.run(*argv, shell=shell) == 7
    assert setup.called == setup.sent
    assert setup.adapted


@pytest.mark.parametrize(
    "argv",
    [
        [*GLOBALS, "start", "id"],
        [*GLOBALS, "state", "create"],
        [*GLOBALS, "kill", "--all", "id", "9"],
        [*GLOBALS, "delete", "--force", "run"],
        [*GLOBALS, "exec", "--process", "/p", "id", "create", "--bundle", "BUNDLE"],
        ["--root", "create", "list"],
        ["--version"],
        [],
        ["features"],
    ],
)
def test_all_else_goes_straight_to_runc(tmp_path: Path, argv: list[str]) -> None:
    setup = Setup(tmp_path, python="/nonexistent/python")
    assert setup.run(*argv) == 7
    assert setup.called == setup.sent
    assert not setup.adapted


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_what_needs_nothing_is_not_looked_at_by_python(tmp_path: Path, shell: list[str]) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"there is no {shell[0]}")
    setup = Setup(tmp_path, python="/nonexistent/python")
    mounts = [{"destination": "/sys/fs/cgroup", "type": "cgroup"}]
    setup.config.write_text(json.dumps({**NEEDS_NOTHING, "mounts": mounts}, separators=(",", ":")))
    assert setup.run("create", "--bundle", "BUNDLE", "id", shell=shell) == 7
    assert setup.called == setup.sent


@pytest.mark.parametrize("layout", [{"separators": (",", ":")}, {}, {"indent": 2}], ids=str)
@pytest.mark.parametrize(
    "needing",
    [{"seccomp": {}}, {"namespaces": [{"type": "pid"}, {"type": "cgroup"}]}, {"seccomp": None}],
    ids=str,
)
def test_what_needs_something_gets_it_however_it_is_written(
    setup: Setup, needing: dict[str, Any], layout: dict[str, Any]
) -> None:
    spec = {"linux": {**NEEDS_NOTHING["linux"], **needing}}
    setup.config.write_text(json.dumps(spec, **layout))
    assert setup.run("create", "--bundle", "BUNDLE", "id") == 7
    assert json.loads(setup.config.read_text()) == adapt(spec) != spec


def test_words_with_blanks_quotes_and_nothing_arrive_as_they_are(setup: Setup) -> None:
    assert setup.run("exec", "id", "sh", "-c", "echo \"$x\" 'y' *", "", "a b") == 7
    assert setup.called == setup.sent


def test_without_a_bundle_it_is_the_current_folder(setup: Setup) -> None:
    assert setup.run("create", "id", cwd=setup.bundle) == 7
    assert setup.adapted


def test_a_missing_specification_is_left_to_runc(setup: Setup) -> None:
    setup.config.unlink()
    assert setup.run(*GLOBALS, "create", "--bundle", "BUNDLE", "id") == 7
    assert setup.called == setup.sent


def test_a_broken_specification_stops_before_runc_and_is_logged(setup: Setup) -> None:
    setup.config.write_text('{"seccomp"')
    assert setup.run(*GLOBALS, "create", "--bundle", "BUNDLE", "id") == 1
    assert setup.called is None
    assert json.loads(setup.log.read_text())["level"] == "error"


def test_a_missing_python_stops_before_runc(tmp_path: Path) -> None:
    setup = Setup(tmp_path, python="/nonexistent/python")
    assert setup.run(*GLOBALS, "create", "--bundle", "BUNDLE", "id") == 1
    assert setup.called is None


def test_the_script_quotes_its_paths() -> None:
    text = script(runc="/a b/runc", python="/it's/python", adapter="/x")
    assert "exec '/a b/runc' \"$@\"" in text
    done = subprocess.run(["sh", "-n"], input=text, text=True, check=False, capture_output=True, timeout=10)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_crun_gets_a_version_that_it_reads_and_every_word(setup: Setup, shell: list[str]) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"there is no {shell[0]}")
    setup.wrapper = write_crun_wrapper(
        setup.folder / "wrap", str(setup.folder / "wrap"), str(setup.folder / "fake runc")
    )
    for version in ("1.2.1", "1.0.2"):
        setup.config.write_text(json.dumps({"ociVersion": version, **SPEC}, separators=(",", ":")))
        assert setup.run(*GLOBALS, "create", "--bundle", "BUNDLE", "id", shell=shell) == 7
        assert setup.called == setup.sent
        assert json.loads(setup.config.read_text()) == {"ociVersion": "1.0.2", **SPEC}
    setup.config.unlink()
    assert setup.run("state", "create", shell=shell) == 7
    assert setup.run("create", "--bundle", "BUNDLE", "id", shell=shell) == 7  # crun names the missing file
