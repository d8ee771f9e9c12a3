"""An attached cluster has all that one of one's own has: it works, or is refused in words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from pytest_k3s_sandbox.cluster.cluster import Cluster
from pytest_k3s_sandbox.cluster.images import Image, ImageConfig, ImageFile, write_images
from pytest_k3s_sandbox.cluster.namespace import Namespace
from pytest_k3s_sandbox.cluster.sampler import Sampler
from pytest_k3s_sandbox.daemon.attached import (
    AttachedSandbox,
    AttachedStack,
    RecordedReadiness,
    attached_cluster,
    public_names,
)
from pytest_k3s_sandbox.daemon.clients import Clients
from pytest_k3s_sandbox.daemon.registry import State
from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.layers.stack import LayerStack
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR, Completed, Process, Sandbox
from pytest_k3s_sandbox.sandbox.beneath import Beneath
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.sandbox.host import HostSandbox


class FakeState:
    """As much of a state as is read."""

    kind, address, sandbox, node, api_port = "gvisor", "192.0.2.1", "abcd1234", "n", 6443
    kubeconfig, alive, shell, layers = "/none", True, ("env",), ("fake_cni",)
    distribution = "embedded"

    def __init__(self) -> None:
        """Have one process."""
        self.processes = {"kubelet": os.getpid()}


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return attached_cluster(cast("State", FakeState()), Clients(tmp_path / "users"), Path("/none"))


def answer(thing: object, name: str) -> str:
    """Look a name up; what is refused says why, and nothing else is raised."""
    try:
        getattr(thing, name)
    except ConfigError as error:
        return "refused" if "another process keeps this cluster" in str(error) else str(error)
    return "there"


@pytest.mark.parametrize(("distribution", "ctr"), [("embedded", f"{BIN_DIR}/ctr"), ("k3s", "bin/ctr")])
def test_images_are_loaded_as_in_a_cluster_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: str, ctr: str
) -> None:
    monkeypatch.setattr(FakeState, "distribution", distribution)
    cluster = attached_cluster(cast("State", FakeState()), Clients(tmp_path / "users"), Path("/none"))
    folder = tmp_path / "sandbox"
    (folder / STATE_DIR.removeprefix("/")).mkdir(parents=True)
    ran = []

    def run(argv: list[str], *, timeout: float) -> Completed:
        assert 0 < timeout <= 60
        ran.append(argv)
        return Completed.of(argv, 0, b"example.org/mine:1\n", b"")

    monkeypatch.setattr(AttachedSandbox, "files", Beneath(folder))
    monkeypatch.setattr(cluster.sandbox, "run", run)
    tar = write_images(
        tmp_path / "mine.tar", [Image("example.org/mine:1", [ImageFile("bin")], ImageConfig())]
    )
    assert Namespace("ns", cluster, [tmp_path]).load_image("mine.tar") == ("example.org/mine:1",)
    assert cluster.load_image(tar) == ("example.org/mine:1",)
    assert ["import" in argv for argv in ran] == [True, False, True, False]
    assert all(argv[0].endswith(ctr) for argv in ran)


@pytest.mark.parametrize("kind", [GvisorSandbox, HostSandbox, Sandbox])
def test_the_sandbox(cluster: Cluster, kind: type) -> None:
    found = {name: answer(cluster.sandbox, name) for name in public_names(kind)}
    assert found["run"] == found["statfs_magic" if kind is not Sandbox else "logs"] == "there"
    if kind is not Sandbox:
        assert found["hand_over"] == "refused"


def test_the_cluster_is_one_like_its_owners(cluster: Cluster) -> None:
    names = public_names(Cluster) - {"client", "core"}  # these read a file
    assert {answer(cluster, name) for name in names} == {"there"}


@pytest.mark.parametrize(
    "refused",
    [
        lambda cluster: cluster.sandbox.usage(),
        lambda cluster: cluster.sandbox.spawn(["true"], name="true"),
        lambda cluster: cluster.processes["kubelet"].signal(15),
        lambda cluster: cluster.processes["kubelet"].stop(),
        lambda cluster: AttachedStack(cast("Sandbox", cluster.sandbox), (), ("fake_cni",)).check(),
        lambda _cluster: cast("Any", RecordedReadiness(Path())).take(),
        lambda _cluster: cast("Any", RecordedReadiness(Path())).stop(),
    ],
)
def test_what_is_the_owners_is_refused_with_the_remedy(
    cluster: Cluster, refused: Callable[[Cluster], object]
) -> None:
    with pytest.raises(ConfigError, match="run this test without --k3s-share"):
        refused(cluster)


def test_nothing_is_missing_of_the_rest(cluster: Cluster) -> None:
    stack = AttachedStack(cast("Sandbox", cluster.sandbox), (), ("fake_cni",))
    readiness = RecordedReadiness(Path())
    for thing, owners in ((cluster.processes["kubelet"], Process), (stack, LayerStack), (readiness, Sampler)):
        found = {name: answer(thing, name) for name in public_names(owners) - {"samples", "error_lines"}}
        assert {name for name, how in found.items() if how != "there"} <= {
            *("forked", "lines_read", "stop", "take")
        }


def test_what_no_cluster_has_is_an_attribute_error(cluster: Cluster) -> None:
    for thing in (cluster, cluster.sandbox):
        assert not hasattr(thing, "no_such_thing")
