"""System packages: detected by what is needed, installed only when missing."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.errors import MissingCapability, ProvisionError
from pytest_k3s_sandbox.toolchain import packages
from pytest_k3s_sandbox.toolchain.packages import SystemPackage, ensure_system_packages, is_static
from pytest_k3s_sandbox.toolchain.progress import SilentProgress

if TYPE_CHECKING:
    from pathlib import Path

    from support.machines import Machine


@pytest.fixture
def thing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> SystemPackage:
    """A package that is there when a file is, on a machine whose system folders are empty."""
    monkeypatch.setattr(packages, "SYSTEM_FOLDERS", "/nonexistent")
    machine.environ["PATH"] = str(machine.home / "bin")
    return SystemPackage("thing", ("libthing2",), "tests", lambda _: (machine.home / "thing").exists())


def ensure(machine: Machine, thing: SystemPackage) -> list[SystemPackage]:
    log = machine.home / "apt.log"
    return ensure_system_packages([thing], environ=machine.environ, progress=SilentProgress(), log=log)


def fake_apt(machine: Machine, effect: str = "") -> None:
    machine.put("apt-get", f'#!/bin/sh\necho "$*" >> {machine.home}/apt-runs\n{effect}\n')


def as_root(monkeypatch: pytest.MonkeyPatch, uid: int = 0) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)


def test_nothing_is_done_when_all_is_there(machine: Machine, thing: SystemPackage) -> None:
    fake_apt(machine)
    (machine.home / "thing").touch()
    assert ensure(machine, thing) == []
    assert not (machine.home / "apt-runs").exists()


def test_missing_package_is_installed(
    machine: Machine, thing: SystemPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_root(monkeypatch)
    fake_apt(machine, f'case "$*" in *update*) exit 100;; esac; : > {machine.home}/thing')
    assert ensure(machine, thing) == [thing]
    update, install = (machine.home / "apt-runs").read_text().splitlines()
    assert update.endswith("update")  # though it failed, as with a repository that is gone
    assert install.endswith("install --no-install-recommends libthing2")


def test_not_root_names_the_command(
    machine: Machine, thing: SystemPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_root(monkeypatch, 1000)
    fake_apt(machine)
    with pytest.raises(MissingCapability, match=r"apt-get update && apt-get install -y libthing2"):
        ensure(machine, thing)
    assert not (machine.home / "apt-runs").exists()


def test_no_apt_names_the_packages(
    machine: Machine, thing: SystemPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_root(monkeypatch)
    with pytest.raises(MissingCapability, match=r"no apt-get(.|\n)*libthing2"):
        ensure(machine, thing)


@pytest.mark.parametrize(
    ("effect", "cause"), [("echo broken >&2; exit 100", "broken"), ("exit 0", "still missing")]
)
def test_apt_that_does_not_help(
    machine: Machine, thing: SystemPackage, monkeypatch: pytest.MonkeyPatch, effect: str, cause: str
) -> None:
    as_root(monkeypatch)
    fake_apt(machine, effect)
    with pytest.raises(ProvisionError, match=cause) as error:
        ensure(machine, thing)
    assert error.value.log == machine.home / "apt.log"


def elf(*kinds: int) -> bytes:
    """Return an ELF64 header with program headers of these types (elf(5))."""
    header = bytearray(64)
    header[:5] = b"\x7fELF\x02"
    struct.pack_into("<Q", header, 32, 64)
    struct.pack_into("<HH", header, 54, 56, len(kinds))
    return bytes(header) + b"".join(struct.pack("<I", kind).ljust(56, b"\0") for kind in kinds)


@pytest.mark.parametrize(
    ("data", "static"),
    [
        (elf(1, 1), True),
        (elf(6, 3, 1), False),
        (elf(1, 3)[:70], False),
        (b"#!/bin/sh\n", False),
        (b"", False),
    ],
)
def test_static_executables(tmp_path: Path, data: bytes, *, static: bool) -> None:
    path = tmp_path / "program"
    path.write_bytes(data)
    assert is_static(path) is static


def test_static_of_a_missing_file(tmp_path: Path) -> None:
    assert not is_static(tmp_path / "none")


def test_libraries() -> None:
    assert packages.has_library("c")
    assert not packages.has_library("k3sfake-library")


def test_no_compiler_on_an_empty_machine(machine: Machine, thing: SystemPackage) -> None:
    assert thing.name == "thing"  # the fixture has emptied the machine
    assert not packages.can_compile(machine.environ)
    machine.put("gcc", "#!/bin/sh\nexit 1\n")
    assert not packages.can_compile(machine.environ)
    machine.put("gcc", '#!/bin/sh\ncase "$*" in *-static*) exit 1;; esac\n')
    assert not packages.can_compile(machine.environ)
    machine.put("gcc", "#!/bin/sh\nexit 0\n")
    assert packages.can_compile(machine.environ)
