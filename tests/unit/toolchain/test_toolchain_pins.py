"""The pins agree with the Go modules that are kept beside them."""

from __future__ import annotations

import re

import pytest

from pytest_k3s_sandbox.toolchain import golang
from pytest_k3s_sandbox.toolchain.pins import Pin, load

PINS = load()


@pytest.mark.parametrize("pin", PINS.programs.values(), ids=lambda pin: pin.name)
def test_pin_is_complete(pin: Pin) -> None:
    assert pin.build or pin.release
    assert pin.name in pin.siblings
    assert re.fullmatch(r"K3S_SANDBOX_[A-Z0-9_]+", pin.variable)
    if pin.release:
        assert pin.release.url.startswith("https://")
        assert pin.release.checksum_url.startswith("https://")
        assert "{" not in pin.release.url + pin.release.checksum_url
        assert not pin.release.archive or set(pin.release.archive) == set(pin.siblings)
    if pin.build:
        assert (pin.build.module / "go.sum").is_file()
        assert "{" not in pin.build.ldflags


@pytest.mark.parametrize(
    "pin", [pin for pin in PINS.programs.values() if pin.build], ids=lambda pin: pin.name
)
def test_pinned_version_is_the_modules(pin: Pin) -> None:
    assert pin.build is not None
    module = (pin.build.module / "go.mod").read_text()
    assert re.search(rf"\bv{re.escape(pin.version)}\b|-{re.escape(pin.version)}\d{{6}}-", module)
    assert golang.required(pin.build.module) <= golang.parse_version(PINS.go.version)
    sources = "".join(path.read_text() for path in pin.build.module.glob("*.go"))
    assert all(package == "." or f'"{package}"' in sources for package in pin.build.packages)


@pytest.mark.parametrize(
    ("name", "output", "version", "accepted"),
    [
        ("runsc", "runsc version release-20240729.0\nspec: 1.1.0-rc.1\n", "20240729", True),
        ("runsc", "runsc version go-20260905035102-160fafc42237\nspec: 1.2.0\n", "20260905", True),
        ("runsc", "runsc version release-20230101.0\n", "20230101", False),
        ("runsc", "runsc version VERSION_MISSING\n", None, False),
        ("kubelet", "Kubernetes v1.34.4\n", "1.34.4", True),
        ("kubelet", "Kubernetes v1.34.4-rc.1\n", "1.34.4-rc.1", False),
        ("kubectl", "Client Version: v1.34.4\nKustomize Version: v5.7.1\n", "1.34.4", True),
        ("kine", "kine version v0.16.4 (HEAD)\n", "0.16.4", True),
        ("containerd", "containerd github.com/containerd/containerd/v2 v2.1.8 \n", "2.1.8", True),
        ("containerd", "containerd github.com/containerd/containerd 1.6.20~ds1\n", None, False),
        ("containerd-shim-runc-v2", "containerd-shim-runc-v2:\n  Version:  v2.1.8\n", "2.1.8", True),
        ("runc", "runc version 1.3.4\nspec: 1.2.1\n", "1.3.4", True),
        ("bridge", "CNI bridge plugin v1.9.1\nCNI protocol versions supported: 0.1.0\n", "1.9.1", True),
        ("bridge", "Usage: bridge [ OPTIONS ] OBJECT\n", None, False),
        ("k3s", "k3s version v1.34.1+k3s1 (24fc436e)\n", "1.34.1+k3s1", True),
    ],
)
def test_versions_as_the_programs_state_them(
    name: str, output: str, version: str | None, *, accepted: bool
) -> None:
    pin = PINS.programs[name]
    found = pin.version_in(output)
    assert found == version
    assert bool(found and pin.accepts(found)) is accepted


def test_only_k3s_is_optional() -> None:
    assert [pin.name for pin in PINS.programs.values() if pin.optional] == ["k3s"]
