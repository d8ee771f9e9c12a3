"""The pins agree with the Go modules that are kept beside them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.toolchain import golang
from pytest_k3s_sandbox.toolchain.pins import Pin, kubernetes_versions, load, minor_of, numbers, pick

PINS = load()
ALL = [*PINS.programs.values(), *(load(kubernetes=v).programs["kubelet"] for v in kubernetes_versions()[1:])]


@pytest.mark.parametrize("pin", ALL, ids=lambda pin: f"{pin.name}-{pin.version}")
def test_pin_is_complete(pin: Pin) -> None:
    assert pin.build or pin.release
    assert pin.name in pin.siblings
    assert re.fullmatch(r"K3S_SANDBOX_[A-Z0-9_]+", pin.variable)
    if pin.release:
        assert pin.release.url.startswith("https://")
        stated = pin.release.checksum_url
        assert re.fullmatch("[0-9a-f]{64}", pin.release.sha256 or "") if stated is None else stated
        assert (stated or pin.release.url).startswith("https://")
        assert "{" not in pin.release.url + (stated or "")
        assert not pin.release.archive or set(pin.release.archive) == set(pin.siblings)
    if pin.build:
        assert (pin.build.module / pin.build.modfile).with_suffix(".sum").is_file()
        assert "{" not in pin.build.ldflags


@pytest.mark.parametrize(
    "pin", [pin for pin in ALL if pin.build], ids=lambda pin: f"{pin.name}-{pin.version}"
)
def test_pinned_version_is_the_modules(pin: Pin) -> None:
    assert pin.build is not None
    module = (pin.build.module / pin.build.modfile).read_text()
    assert re.search(rf"\bv{re.escape(pin.version)}\b|-{re.escape(pin.version)}\d{{6}}-", module)
    assert golang.required(pin.build) <= golang.parse_version(PINS.go.version)
    assert pin.build.packages
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
        ("coredns", "CoreDNS-1.15.0\nlinux/amd64, go1.26.8, \n", "1.15.0", True),
        ("coredns", "CoreDNS-1.14.7\nlinux/amd64, go1.26.8, \n", "1.14.7", False),
        ("runc", "runc version 1.3.4\nspec: 1.2.1\n", "1.3.4", True),
        ("crun", "crun version 1.8.1\ncommit: 0\nrundir: /run/user/0/crun\n", "1.8.1", True),
        ("crun", "crun version 1.8\n", "1.8", False),
        ("crun", "crun version 0.17\n", "0.17", False),
        ("crun", "crun version 1.21\ncommit: 0\n", "1.21", True),
        ("crun", "crun version 1.17.0.0.0.23-9bf8\n", "1.17.0.0.0.23", True),
        ("crun", "crun version UNKNOWN\n", None, False),
        ("bridge", "CNI bridge plugin v1.9.1\nCNI protocol versions supported: 0.1.0\n", "1.9.1", True),
        ("bridge", "Usage: bridge [ OPTIONS ] OBJECT\n", None, False),
        ("k3s-sandbox-network", "CNI k3s-sandbox-network plugin v1.9.1\nCNI protocol\n", "1.9.1", True),
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


def test_a_cluster_needs_all_but_these() -> None:
    assert [pin.name for pin in PINS.programs.values() if pin.optional] == [
        "k3s-sandboxer",
        "coredns",
        "crun",
        "k3s-sandbox-network",
        "cadvisor",
        "k3s",
    ]


@pytest.mark.parametrize(
    ("version", "found"),
    [
        ("1.8.1", (1, 8, 1)),
        ("20240701", (20240701,)),
        ("1.21", (1, 21)),
        ("1.8-rc1", ()),
        ("", ()),
        ("1.", ()),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, found: tuple[int, ...]) -> None:
    assert numbers(version) == found


def test_every_version_of_kubernetes_is_a_minor_release_of_its_own_with_modules_of_its_own() -> None:
    known = kubernetes_versions()
    assert known[0] == PINS.kubernetes == PINS.programs["kubelet"].version
    assert len({minor_of(version) for version in known}) == len(known)
    kubelet = [load(kubernetes=version).programs["kubelet"] for version in known]
    builds = [pin.build for pin in kubelet if pin.build]
    assert len({build.modfile for build in builds}) == len(known)
    assert len({golang.recipe_digest(build, "amd64") for build in builds}) == len(known)
    for version, build in zip(known, builds, strict=True):
        text = (build.module / build.modfile).read_text()
        staging = set(re.findall(r"^\tk8s\.io/\S+ => k8s\.io/\S+ (v\S+)$", text, re.MULTILINE))
        assert staging == {f"v0.{version.partition('.')[2]}"}
        assert f"gitMinor={version.split('.')[1]}" in build.ldflags


def test_another_version_of_kubernetes_changes_kubernetes_alone() -> None:
    other = load(kubernetes="1.36")
    assert {pin.version for pin in other.programs.values() if pin.group == "kubernetes"} == {"1.36.3"}
    assert other.kubernetes == "1.36.3"
    assert {n: p for n, p in other.programs.items() if p.group != "kubernetes"} == {
        n: p for n, p in PINS.programs.items() if p.group != "kubernetes"
    }


@pytest.mark.parametrize("text", ["1.36", "v1.36", " 1.36.3 ", "v1.36.3"])
def test_a_version_is_asked_for_by_itself_or_its_minor_release(text: str) -> None:
    assert pick(text, ("1.34.4", "1.36.3")) == "1.36.3"


@pytest.mark.parametrize("text", [None, ""])
def test_who_asks_for_no_version_gets_the_first(text: str | None) -> None:
    assert pick(text, ("1.34.4", "1.36.3")) == "1.34.4"


@pytest.mark.parametrize("text", ["1.36.2", "1.3", "36", "latest", "v"])
def test_a_version_that_is_not_pinned_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(ConfigError, match=r"1\.34\.4, 1\.36\.3"):
        pick(text, ("1.34.4", "1.36.3"))


def test_a_build_with_other_modules_is_told_so(tmp_path: Path) -> None:
    build = load(kubernetes="1.37").programs["kubelet"].build
    assert build is not None
    assert build.modfile == "v1.37.mod"
    (tmp_path / "go.mod").write_text("module m\n\ngo 1.1\n")
    (tmp_path / "v1.37.mod").write_text("module m\n\ngo 1.99.9\n")
    elsewhere = type(build)(**{**vars(build), "module": tmp_path})
    assert golang.required(elsewhere) == (1, 99, 9)
