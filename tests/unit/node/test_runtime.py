"""The choice of the OCI runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from pytest_k3s_sandbox.cluster.sandboxer import PROGRAM
from pytest_k3s_sandbox.errors import ConfigError, MissingCapability
from pytest_k3s_sandbox.node.runtime import has_dns, provision, runtime_of
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.sandbox.base import BIN_DIR
from pytest_k3s_sandbox.toolchain import Toolchain
from pytest_k3s_sandbox.toolchain.resolve import Program

LAYERS = ("workarounds", "fuse_cgroupfs", "fake_cni")


class Machine:
    """A toolchain that has crun or not, the sandboxer or not, and CoreDNS or not."""

    def __init__(self, *, crun: bool, sandboxer: bool = True, dns: bool = True) -> None:
        """Note what is asked for."""
        self._has = {"crun": crun, PROGRAM: sandboxer, "coredns": dns}
        self.asked: list[str] = []
        self.notes: list[str] = []
        self.progress = cast("Any", self)

    def find(self, name: str) -> Program | None:
        """Look for one of them."""
        return Program(name, Path(f"/usr/bin/{name}"), "1.8.1", "path") if self._has[name] else None

    def get_or_why(self, name: str) -> Program | str:
        """Try to get one of them."""
        self.asked.append(name)
        return self.find(name) or "; ".join(self.why(name))

    def why(self, name: str) -> list[str]:
        """Say why there is none."""
        assert not self._has[name]
        return ["not on PATH", "no apt-get"]

    def provision(self, names: Sequence[str]) -> None:
        """Note the names."""
        self.asked += names

    def note(self, text: str) -> None:
        """Note a line of progress."""
        self.notes.append(text)


def machine(*, crun: bool, sandboxer: bool = True, dns: bool = True) -> tuple[Machine, Toolchain]:
    made = Machine(crun=crun, sandboxer=sandboxer, dns=dns)
    return made, cast("Toolchain", made)


def test_crun_is_the_default_and_runc_can_be_chosen_by_a_pod() -> None:
    _, toolchain = machine(crun=True)
    found = runtime_of(NodeSpec(), toolchain)
    assert (found.name, found.words, found.programs) == ("crun", f"crun with {PROGRAM}", ("crun", PROGRAM))
    assert list(found.paths.items()) == [("crun", f"{BIN_DIR}/crun"), ("runc", f"{BIN_DIR}/runc")]


def test_k3s_has_its_own_runc_by_default() -> None:
    made, toolchain = machine(crun=True)
    assert runtime_of(NodeSpec(distribution="k3s"), toolchain).paths == {"runc": "runc"}
    found = runtime_of(NodeSpec("host", distribution="k3s"), toolchain)
    assert (found.name, list(found.paths)) == ("runc", ["runc", "crun"])
    provision(NodeSpec(distribution="k3s"), toolchain)
    assert "crun" not in made.asked
    assert made.notes == []


def test_without_a_sandboxer_each_pod_has_a_shim_and_one_line_says_so() -> None:
    made, toolchain = machine(crun=True, sandboxer=False)
    found = runtime_of(NodeSpec(), toolchain)
    assert (found.words, found.programs) == ("crun", ("crun",))
    said = provision(NodeSpec(), toolchain)
    (line,) = said
    assert made.notes == [line]
    assert line == "each pod has a shim and a pause container, which cost more: not on PATH; no apt-get"


@pytest.mark.parametrize(
    "spec",
    [
        NodeSpec("host", distribution="k3s", runtime="crun"),
        NodeSpec(sandboxer=False),
    ],
)
def test_these_nodes_have_no_sandboxer(spec: NodeSpec) -> None:
    made, toolchain = machine(crun=True)
    assert runtime_of(spec, toolchain).words == "crun"
    provision(spec, toolchain)
    assert PROGRAM not in made.asked
    assert made.notes == []


@pytest.mark.parametrize("crun", [True, False])
def test_runc_that_is_asked_for_is_alone(crun: bool) -> None:
    made, toolchain = machine(crun=crun)
    found = runtime_of(NodeSpec(runtime="runc"), toolchain)
    assert (found.name, found.programs, list(found.paths)) == ("runc", (), ["runc"])
    provision(NodeSpec(runtime="runc"), toolchain)
    assert "crun" not in made.asked
    assert made.notes == []


def test_a_machine_without_crun_uses_runc_and_says_so_in_one_line() -> None:
    made, toolchain = machine(crun=False)
    found = runtime_of(NodeSpec(), toolchain)
    assert (found.name, found.programs, list(found.paths)) == ("runc", (), ["runc"])
    assert found.words == "runc (no crun: not on PATH; no apt-get)"
    said = provision(NodeSpec(), toolchain)
    assert "crun" in made.asked
    (line,) = said
    assert made.notes == [line]
    assert line.startswith("containers start with runc, ")
    assert line.endswith("not on PATH; no apt-get")


def test_crun_that_is_asked_for_must_be_there() -> None:
    _, toolchain = machine(crun=False)
    with pytest.raises(MissingCapability, match="not on PATH; no apt-get"):
        provision(NodeSpec(runtime="crun"), toolchain)


def test_in_gvisor_crun_needs_the_interceptor() -> None:
    made, toolchain = machine(crun=True)
    found = runtime_of(NodeSpec(layers=LAYERS), toolchain)
    assert found.words == "runc (no crun: it needs the layer ptrace_interceptor)"
    said = provision(NodeSpec(layers=LAYERS), toolchain)
    assert "crun" not in made.asked
    (line,) = said
    assert made.notes == [line]
    assert line.endswith(": it needs the layer ptrace_interceptor")
    assert runtime_of(NodeSpec("host", layers=LAYERS), toolchain).name == "crun"
    assert runtime_of(NodeSpec(layers=(*LAYERS, "ptrace_interceptor:exp08")), toolchain).name == "crun"


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (NodeSpec(layers=LAYERS, runtime="crun"), "needs the layer ptrace_interceptor"),
        (NodeSpec(distribution="k3s", runtime="crun"), "needs a containerd"),
    ],
)
def test_crun_that_cannot_work_is_refused(spec: NodeSpec, why: str) -> None:
    _, toolchain = machine(crun=True)
    for refuse in (provision, runtime_of):
        with pytest.raises(MissingCapability, match=rf"(?s){why}.*ask for runc"):
            refuse(spec, toolchain)


def test_an_experiment_has_runc_unless_one_is_named() -> None:
    assert NodeSpec().of_experiment.runtime == "runc"
    assert NodeSpec(runtime="crun").of_experiment == NodeSpec(runtime="crun")


@pytest.mark.parametrize(
    ("spec", "groups"),
    [
        (NodeSpec(), False),
        (NodeSpec(pod_groups=True), True),
        (NodeSpec(pod_groups=True, layers=("workarounds", "fuse_cgroupfs:v1")), True),
        # gVisor's own files lack what the kubelet writes.
        (NodeSpec(pod_groups=True, layers=("workarounds",)), False),
        (NodeSpec("host", pod_groups=True, layers=()), True),
    ],
)
def test_pods_have_groups_if_asked_for_where_there_are_cgroups(spec: NodeSpec, groups: bool) -> None:
    assert spec.makes_pod_groups is groups


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(ConfigError, match="known are default, crun, runc"):
        NodeSpec(runtime="youki")


SERVED = NodeSpec(layers=(*LAYERS[:2], "ptrace_interceptor", "pod_network", "services"))


def test_a_cluster_with_services_has_a_dns() -> None:
    made, toolchain = machine(crun=True)
    assert has_dns(SERVED, toolchain)
    assert provision(SERVED, toolchain) == ()
    assert "coredns" in made.asked
    assert not has_dns(NodeSpec(), toolchain)


def test_without_coredns_a_cluster_with_services_has_no_dns_and_one_line_says_so() -> None:
    made, toolchain = machine(crun=True, dns=False)
    assert not has_dns(SERVED, toolchain)
    assert provision(SERVED, toolchain) == ("the cluster has no DNS: not on PATH; no apt-get",)
    assert made.notes == ["the cluster has no DNS: not on PATH; no apt-get"]


def test_services_are_refused_with_k3s() -> None:
    with pytest.raises(ConfigError, match="layer 'services' with the distribution 'k3s'"):
        NodeSpec(distribution="k3s", layers=("services",))
