"""A cluster that begins with a datastore from another run has nothing of that run in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_k3s_sandbox.cluster.components import PKI_DIR, ClusterSettings
from pytest_k3s_sandbox.cluster.embedded import Embedded
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.node.session import open_control_plane
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.node.start import start_sandbox
from pytest_k3s_sandbox.report.records import RunWriter
from pytest_k3s_sandbox.toolchain import Toolchain
from support.outside import outside

pytestmark = pytest.mark.k3s_requires("root")


@pytest.mark.parametrize("seeded", ["1", "0"])
def test_a_cluster_has_only_its_own_addresses_and_certificates(tmp_path: Path, seeded: str) -> None:
    toolchain = Toolchain(environ={**os.environ, "K3S_SANDBOX_SEED": seeded})
    spec, deadline = NodeSpec("host"), Deadline.after(90)
    with (
        RunWriter(tmp_path / "run") as writer,
        start_sandbox(spec, toolchain) as sandbox,
        open_control_plane(sandbox, spec, toolchain, writer) as process,
    ):
        cluster, distribution = process.cluster, process.distribution
        assert isinstance(distribution, Embedded)
        settings = ClusterSettings(node=spec.node, address=sandbox.address)
        distribution.wait_control_plane(sandbox, settings, deadline)
        for namespace in ("default", "kube-system"):
            cluster.wait_usable(namespace, deadline)
        ca = (outside(sandbox, PKI_DIR) / "ca.crt").read_text()
        for namespace in ("default", "kube-system"):
            bundle = cluster.core.read_namespaced_config_map("kube-root-ca.crt", namespace)
            assert bundle.data["ca.crt"] == ca
        authentication = cluster.core.read_namespaced_config_map(
            "extension-apiserver-authentication", "kube-system"
        )
        assert authentication.data["client-ca-file"] == ca

        def addresses() -> list[str]:
            subsets = cluster.core.read_namespaced_endpoints("kubernetes", "default").subsets or []
            return [address.ip for subset in subsets for address in subset.addresses]

        cluster.wait(lambda: bool(addresses()), "the endpoints of the API server", deadline)
        assert addresses() == [sandbox.address]
        assert cluster.core.list_node().items == []
