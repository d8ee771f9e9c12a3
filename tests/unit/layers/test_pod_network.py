"""The layer of the pod network in a sandbox that notes what runs in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest

from pytest_k3s_sandbox.errors import ConfigError, LayerError, StartError
from pytest_k3s_sandbox.layers.addresses import POD_RANGE
from pytest_k3s_sandbox.layers.pod_network import layer as module
from pytest_k3s_sandbox.layers.pod_network.layer import PodNetwork
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, Completed, Sandbox
from pytest_k3s_sandbox.sandbox.beneath import Beneath

ANSWER = json.dumps({"ips": [{"address": "10.42.0.2/32"}]})


class Noting:
    """A sandbox that runs nothing and notes what it was asked for; the plugin answers as it was told."""

    files = Beneath(Path("/"), "/")
    address = "10.213.0.2"

    def __init__(self, kind: str = "gvisor") -> None:
        """Answer that all is well."""
        self.kind = kind
        self.runs: list[tuple[str, ...]] = []
        self.asked: list[str] = []
        self.status = Completed((), 0, "", "")
        self.tried = Completed((), 0, f"{ANSWER}\n{module.REACHED}\n", "")
        self.broken: str | None = None

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Note a program and answer."""
        del timeout
        if env and "CNI_COMMAND" in env:
            self.asked.append(env["CNI_COMMAND"])
            return self.status
        self.runs.append(tuple(argv))
        if self.broken is not None and self.broken in argv[2] and check:
            raise StartError("a program failed", cause="it was told to")
        return self.tried


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "FOLDER", str(tmp_path / "net"))
    return tmp_path / "net"


def network(sandbox: Noting, pod_range: str = POD_RANGE) -> PodNetwork:
    return PodNetwork(cast("Sandbox", sandbox), pod_range)


def test_it_comes_up_and_takes_away_what_it_made(folder: Path) -> None:
    sandbox = Noting()
    layer = network(sandbox)
    with layer:
        assert layer.overrides.cni_conf_dir == str(folder / "net.d")
        assert layer.overrides.cni_bin_dir == BIN_DIR
        assert json.loads((folder / "net.d" / "10-pod-network.conflist").read_text()) == layer.conflist()
        assert sandbox.asked == ["STATUS"]
    up, down = sandbox.runs
    assert "ip_forward" in up[2]
    assert up[4:] == down[4:] == (module.STATE, "10.42.0.1", "10.213.0.2")
    assert not folder.exists()
    layer.__exit__(None, None, None)
    assert len(sandbox.runs) == 2


def test_on_plain_linux_the_nodes_own_address_stays_where_it_is(folder: Path) -> None:
    sandbox = Noting("host")
    with network(sandbox):
        assert folder.is_dir()
    assert {run[4:] for run in sandbox.runs} == {(module.STATE, "10.42.0.1", "")}


def test_the_list_names_the_plugin_its_range_and_the_nodes_address() -> None:
    assert network(Noting(), "10.9.4.0/22").conflist() == {
        "cniVersion": "1.0.0",
        "name": "k3s-sandbox",
        "plugins": [
            {
                "type": "k3s-sandbox-network",
                "gateway": "10.9.4.1",
                "ipam": {"subnet": "10.9.4.0/22", "dataDir": "/run/k3s-sandbox/pod-network"},
            }
        ],
    }


def test_a_plugin_that_refuses_leaves_nothing(folder: Path) -> None:
    sandbox = Noting()
    sandbox.status = Completed((), 1, '{"code": 50, "msg": "no address is free"}', "")
    with pytest.raises(LayerError, match="no address is free"), network(sandbox):
        pytest.fail("it must not come up")
    assert len(sandbox.runs) == 2
    assert not folder.exists()


def test_a_node_that_cannot_route_is_an_error_and_leaves_nothing(folder: Path) -> None:
    sandbox = Noting()
    sandbox.broken = "ip_forward"
    with pytest.raises(LayerError, match="it was told to"), network(sandbox):
        pytest.fail("it must not come up")
    assert sandbox.asked == []
    assert len(sandbox.runs) == 2
    assert not folder.exists()


def test_its_check_attaches_and_reaches_the_node(folder: Path) -> None:
    del folder
    sandbox = Noting()
    with network(sandbox) as layer:
        health = layer.check()
    assert health.ok
    assert health.details == {"address": "10.42.0.2/32"}
    assert json.loads(sandbox.runs[1][-2]) == {
        "cniVersion": "1.0.0",
        "name": "k3s-sandbox",
        **layer.conflist()["plugins"][0],
    }


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Completed((), 1, '{"code": 11, "msg": "no room"}', ""), "no room"),
        (Completed((), 0, f"{ANSWER}\n", ""), "10.42.0.2"),
        (Completed((), 0, f"what\n{module.REACHED}\n", ""), "what"),
        (Completed((), 0, '{"ips": 3}\n' + module.REACHED, ""), "TypeError"),
        (Completed((), 0, "", ""), "the node does not answer"),
    ],
)
def test_its_check_says_what_is_wrong(folder: Path, answer: Completed, said: str) -> None:
    del folder
    sandbox = Noting()
    with network(sandbox) as layer:
        sandbox.tried = answer
        health = layer.check()
    assert not health.ok
    assert said in health.details["plugin"]


@pytest.mark.parametrize(
    ("pod_range", "cause"),
    [("10.42.0.0/31", "it has no room"), ("10.42.0.1/24", "host bits"), ("fd00::/64", "Expected 4 octets")],
)
def test_a_range_without_room_is_refused(pod_range: str, cause: str) -> None:
    with pytest.raises(ConfigError) as caught:
        network(Noting(), pod_range)
    assert cause in str(caught.value.cause)
    assert caught.value.remedy == "e.g. 10.42.0.0/24"
