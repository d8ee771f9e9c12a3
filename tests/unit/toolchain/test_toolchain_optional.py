"""A program that can be done without: the distribution's package, and the answer that it is nowhere."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from pytest_k3s_sandbox.cli import options
from pytest_k3s_sandbox.errors import ConfigError, ProvisionError
from pytest_k3s_sandbox.node import runtime
from pytest_k3s_sandbox.toolchain import Toolchain, golang, packages, pinning, pins
from pytest_k3s_sandbox.toolchain.attempts import AGAIN_SECONDS
from pytest_k3s_sandbox.toolchain.release import ChecksumError
from support.machines import TOOL, Machine, Server

VARIABLE = "K3S_SANDBOX_K3SFAKE_TOOL"
DATA = Machine.program().encode()


@pytest.fixture
def bare(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A root's machine whose program is optional, has a package and no build, and that has no apt."""
    monkeypatch.setattr(packages, "SYSTEM_FOLDERS", "/nonexistent")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    machine.environ["PATH"] = str(machine.home / "bin")
    machine.pin(optional=True, build=None, package="libtool-bin", minimum="1.2", version="1.9")
    return machine


def apt(machine: Machine, version: str = "1.2.3") -> None:
    """Put an apt-get on PATH that installs the program in a version."""
    (machine.home / "packed").write_text(machine.program(version))
    install = (
        f"/bin/cp {machine.home}/packed {machine.home}/bin/{TOOL}; /bin/chmod 755 {machine.home}/bin/{TOOL}"
    )
    machine.put(
        "apt-get",
        f'#!/bin/sh\necho "$*" >> {machine.home}/apt-runs\ncase "$*" in *install*) {install};; esac\n',
    )


def test_the_package_is_installed_and_its_program_is_on_path_then(bare: Machine) -> None:
    apt(bare)
    toolchain = bare.toolchain()
    first = toolchain.get(TOOL)
    assert (first.path, first.version, first.origin) == (bare.home / "bin" / TOOL, "1.2.3", "package")
    assert "install --no-install-recommends libtool-bin" in (bare.home / "apt-runs").read_text()
    assert toolchain.get(TOOL).origin == "path"


def test_find_never_installs(bare: Machine) -> None:
    apt(bare)
    assert bare.toolchain().find(TOOL) is None
    assert not (bare.home / "apt-runs").exists()


def test_a_pinned_release_goes_before_the_package_and_needs_no_stated_checksum(
    bare: Machine, server: Server
) -> None:
    apt(bare)
    bare.pin(release=replace(server.offer(TOOL, DATA, pinned=True), checksum_url=None))
    assert bare.toolchain().get(TOOL).origin == "release"
    assert server.asked(f"{TOOL}.sha256") == []
    assert not (bare.home / "apt-runs").exists()


def test_a_release_with_no_checksum_at_all_is_not_used(bare: Machine, server: Server) -> None:
    apt(bare)
    bare.pin(release=replace(server.offer(TOOL, DATA), checksum_url=None))
    toolchain = bare.toolchain()
    assert toolchain.environ["K3S_SANDBOX_RELEASES"] == "unpinned"
    assert toolchain.get(TOOL).origin == "package"
    assert any("publisher states none" in note for note in toolchain.why(TOOL))
    assert server.requests == []


def test_nowhere_is_none_with_each_attempt(bare: Machine) -> None:
    toolchain = bare.toolchain()
    assert toolchain.try_get(TOOL) is None
    why = "; ".join(toolchain.why(TOOL))
    for attempt in (
        "not on PATH",
        "not in the cache",
        "no official release",
        "no apt-get",
        "cannot be built",
    ):
        assert attempt in why
    with pytest.raises(ProvisionError, match=r"no apt-get(.|\n)*K3S_SANDBOX_K3SFAKE_TOOL"):
        toolchain.get(TOOL)


def test_who_is_not_root_installs_nothing(bare: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    apt(bare)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    toolchain = bare.toolchain()
    assert toolchain.try_get(TOOL) is None
    assert "package libtool-bin not installed: not root" in toolchain.why(TOOL)
    assert not (bare.home / "apt-runs").exists()


BROKEN = """#!/bin/sh
echo "$*" >> {home}/apt-runs
echo Ign:1; echo 'E: Unable to  locate'; echo 'E: more'; exit 100
"""


def package_note(toolchain: Toolchain) -> str:
    (note,) = [note for note in toolchain.why(TOOL) if note.startswith("package")]
    return note


def test_an_apt_that_fails_is_told_in_one_line(bare: Machine) -> None:
    bare.put("apt-get", BROKEN.format(home=bare.home))
    toolchain = bare.toolchain()
    assert toolchain.try_get(TOOL) is None
    assert package_note(toolchain) == "package libtool-bin not installed: Unable to locate"


def test_an_apt_that_failed_is_not_tried_again_for_an_hour_unless_it_is_asked_for(bare: Machine) -> None:
    bare.put("apt-get", BROKEN.format(home=bare.home))
    runs = bare.home / "apt-runs"
    assert bare.toolchain().try_get(TOOL) is None
    once = runs.read_text()
    toolchain = bare.toolchain()
    assert toolchain.try_get(TOOL) is None
    assert package_note(toolchain).endswith(": Unable to locate (not tried again within an hour)")
    assert runs.read_text() == once
    assert bare.toolchain().try_get(TOOL, again=True) is None
    assert runs.read_text() == 2 * once
    (kept,) = (bare.cache / "attempts").iterdir()
    os.utime(kept, (kept.stat().st_atime, kept.stat().st_mtime - AGAIN_SECONDS - 1))
    assert bare.toolchain().try_get(TOOL) is None
    assert runs.read_text() == 3 * once


def test_an_apt_that_failed_is_forgotten_when_it_succeeds(bare: Machine) -> None:
    bare.put("apt-get", BROKEN.format(home=bare.home))
    assert bare.toolchain().try_get(TOOL) is None
    apt(bare)
    assert bare.toolchain().get(TOOL).origin == "package"
    (bare.home / "bin" / TOOL).unlink()
    assert bare.toolchain().try_get(TOOL) is not None


@pytest.mark.parametrize("before", [True, False])
def test_a_package_that_is_too_old(bare: Machine, *, before: bool) -> None:
    apt(bare, version="1.1.9")
    if before:
        bare.put(TOOL, bare.program("1.1.9"))
    toolchain = bare.toolchain()
    assert toolchain.try_get(TOOL) is None
    assert any("is version 1.1.9, wanted 1.2 or later" in note for note in toolchain.why(TOOL))
    assert (bare.home / "apt-runs").exists() is not before


def test_a_wrong_variable_is_no_absence(bare: Machine) -> None:
    bare.environ[VARIABLE] = "/nonexistent"
    with pytest.raises(ConfigError, match=VARIABLE):
        bare.toolchain().try_get(TOOL)


def test_a_download_that_was_changed_is_no_absence(bare: Machine, server: Server) -> None:
    apt(bare)
    bare.pin(release=replace(server.offer(TOOL, DATA), checksum_url=None, sha256="0" * 64))
    for method in (bare.toolchain().try_get, bare.toolchain().get_or_why):
        with pytest.raises(ChecksumError, match="pinned in programs"):
            method(TOOL)
    assert not (bare.home / "apt-runs").exists()


def test_a_program_that_is_lacking_is_a_line(bare: Machine) -> None:
    why = bare.toolchain().get_or_why(TOOL)
    assert isinstance(why, str)
    assert why.startswith("not on PATH; ")
    apt(bare)
    found = bare.toolchain().get_or_why(TOOL, again=True)
    assert not isinstance(found, str)
    assert found.origin == "package"


def test_a_build_that_fails_is_a_line_too(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a network; a program that cannot be done without is still an error."""

    def fail(*_: object, **__: object) -> None:
        raise ProvisionError("building k3sfake", cause="go mod download failed", remedy="look at the log")

    monkeypatch.setattr(golang, "find_go", fail)
    machine.pin(release=None)
    why = machine.toolchain().get_or_why(TOOL)
    assert isinstance(why, str)
    assert why.startswith("building k3sfake: go mod download failed ")
    with pytest.raises(ProvisionError, match="go mod download failed"):
        machine.toolchain().get(TOOL)


def test_pinning_says_where_there_is_nothing_to_compare_with(bare: Machine, server: Server) -> None:
    offered = replace(server.offer(TOOL, DATA, pinned=True), checksum_url=None)
    assert offered.sha256 is not None
    bare.pin(release=replace(offered, sha256=None))
    toolchain = bare.toolchain()
    digests = pinning.pin(toolchain)
    assert digests == {offered.url: offered.sha256}
    lines = pinning.as_toml(digests, pinning.unstated(toolchain)).splitlines()
    assert lines == [pinning.UNSTATED.strip(), f'"{offered.url}" = "{offered.sha256}"']
    assert server.asked(f"{TOOL}.sha256") == []
    bare.pin(release=replace(offered, sha256="0" * 64))
    with pytest.raises(ChecksumError, match="changed since it was pinned"):
        pinning.pin(bare.toolchain())


@pytest.fixture
def command(bare: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The machine, for the command ``provision``: its optional program is one that is welcome."""
    monkeypatch.setattr(os, "environ", bare.environ)
    monkeypatch.setattr(pins, "load", lambda **_: bare.pins)
    monkeypatch.setattr(packages, "RUN", ())
    monkeypatch.setattr(runtime, "WELCOME", (TOOL,))
    return bare


def test_provision_takes_a_welcome_program_where_it_can(
    command: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    apt(command)
    assert [(one.name, one.origin) for one in options.provisioned(quiet=True)] == [(TOOL, "package")]
    assert [one.origin for one in options.provisioned(quiet=False)] == ["path"]
    assert options.provisioned([], quiet=False) == []
    assert capsys.readouterr().err == ""


def test_provision_goes_on_without_it_and_says_so_in_a_line(
    command: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.environ["PATH"]
    assert options.provisioned(quiet=False) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{TOOL}, which a cluster can do without, is not available (not on PATH; " in line
    assert options.provisioned(quiet=True) == []
    assert capsys.readouterr().err == ""


def test_what_is_welcome_is_optional() -> None:
    assert {pins.load().programs[name].optional for name in runtime.WELCOME} == {True}
