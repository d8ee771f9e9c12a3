"""The parts of the embedded distribution that need no cluster."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import cast

import pytest

from pytest_k3s_sandbox.cluster import components
from pytest_k3s_sandbox.cluster.components import ClusterSettings
from pytest_k3s_sandbox.cluster.embedded import LISTENERS, assert_ports_free, listening_ports, with_overrides
from pytest_k3s_sandbox.errors import ClusterError
from pytest_k3s_sandbox.layers.base import NodeOverrides
from pytest_k3s_sandbox.sandbox.base import Completed, Sandbox

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
REST = "00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n"
LISTEN = f"   0: 0100007F:192B 00000000:0000 0A {REST}"
ESTABLISHED = LISTEN.replace(" 0A ", " 01 ").replace("192B", "1F90")
V6 = f"   0: {'0' * 32}:280A {'0' * 32}:0000 0A {REST}"
ON_ETH0 = LISTEN.replace("0100007F:192B", "0200D50A:2811")


def test_listening_ports_are_those_in_state_listen() -> None:
    assert listening_ports(HEAD + LISTEN + ESTABLISHED + ON_ETH0 + HEAD + V6) == {6443, 10257, 10250}
    assert listening_ports(HEAD + HEAD) == set()
    assert listening_ports("") == set()


def test_a_real_listener_is_found() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        table = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        assert {server.getsockname()[1], six.getsockname()[1]} <= listening_ports(table)


@pytest.mark.parametrize("there", [True, False], ids=["with IPv6", "IPv6 switched off"])
def test_the_tables_are_read_with_and_without_ipv6(tmp_path: Path, *, there: bool) -> None:
    (tmp_path / "tcp").write_text(HEAD + LISTEN)
    if there:
        (tmp_path / "tcp6").write_text(HEAD + V6)
    script = LISTENERS.replace("/proc/net", str(tmp_path))
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == HEAD + LISTEN + (HEAD + V6 if there else "")


class Tables:
    """A sandbox of which only the tables of connections are asked."""

    name = "k3ssb-test"

    def __init__(self, *ports: int) -> None:
        """Listen on these ports."""
        self._text = HEAD + "".join(LISTEN.replace("192B", f"{port:04X}") for port in ports)

    def run(self, argv: list[str], **_options: object) -> Completed:
        """Give the tables."""
        assert argv[-1] == LISTENERS
        return Completed(tuple(argv), 0, self._text, "")


@pytest.mark.parametrize(
    ("port", "part", "remedy"),
    [
        (6443, "kube-apiserver", "--k3s-api-port"),
        (10250, "kubelet", "end that process"),
        (10257, "kube-controller-manager", "end that process"),
        (10259, "kube-scheduler", "end that process"),
    ],
)
def test_an_occupied_port_is_named_with_who_needs_it(port: int, part: str, remedy: str) -> None:
    settings = ClusterSettings(node="n", address="10.213.0.2")
    assert_ports_free(cast("Sandbox", Tables(22, 2379)), settings)
    with pytest.raises(ClusterError) as caught:
        assert_ports_free(cast("Sandbox", Tables(22, port)), settings)
    assert caught.value.what == f"port {port} in k3ssb-test is occupied"
    assert part in (caught.value.cause or "")
    assert remedy in (caught.value.remedy or "")


def test_another_api_port_is_the_one_that_is_looked_at() -> None:
    assert_ports_free(
        cast("Sandbox", Tables(6443)), ClusterSettings(node="n", address="1.2.3.4", api_port=7443)
    )


def test_an_effect_goes_into_the_settings_where_it_says_something() -> None:
    settings = ClusterSettings(node="n", address="1.2.3.4")
    assert with_overrides(settings, NodeOverrides()) == settings
    changed = with_overrides(
        settings, NodeOverrides(cni_bin_dir="/b", cni_conf_dir="/c", runtimes={"runc": "/r", "crun": "/c"})
    )
    assert (changed.cni_bin_dir, changed.cni_conf_dir) == ("/b", "/c")
    assert changed.runtimes == {"runc": "/r"}  # a runtime that the node does not have stays away
    assert "/b" in components.containerd_config(changed)
