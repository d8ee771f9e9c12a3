"""The layer, in a sandbox that only says what a process would."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from pytest_k3s_sandbox.errors import ConfigError, LayerError, StartError
from pytest_k3s_sandbox.layers.base import Layer, NodeOverrides, Restorable
from pytest_k3s_sandbox.layers.services.declaration import LAYER
from pytest_k3s_sandbox.layers.services.layer import STATUS, Services
from pytest_k3s_sandbox.layers.services.rules import GVISOR_BYTES
from pytest_k3s_sandbox.sandbox.base import Sandbox
from pytest_k3s_sandbox.sandbox.beneath import Beneath
from support.fake_process import FakeProcess


class _FakeSandbox:
    """Remembers what is spawned, and has its status."""

    name, address = "k3ssb-1", "10.213.0.2"

    def __init__(
        self, folder: Path, status: object, *, kind: str = "gvisor", code: int | None = None
    ) -> None:
        self.kind = kind
        self.files = Beneath(folder)
        self.process = FakeProcess(folder, "services", "services: no nat table\n")
        self.status = status
        self.code = code
        self.settings: list[dict[str, Any]] = []

    def spawn(
        self, argv: Sequence[str], *, name: str, env: Mapping[str, str] | None = None, cwd: str = "/"
    ) -> FakeProcess:
        del env, cwd
        if self.status is StartError:
            raise StartError("no such program")
        assert name == "services"
        self.settings.append(json.loads(argv[-1]))
        self.process.code = self.code
        self.say(self.status)
        return self.process

    def say(self, status: object) -> None:
        if status is not None:
            text = status if isinstance(status, str) else json.dumps(status)
            self.files.write(STATUS, text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "var").mkdir()
    return tmp_path


SAID = {"pid": 7, "synced": True, "error": "", "rules": 3, "left_out": []}


def layer_in(sandbox: _FakeSandbox, **options: Any) -> Services:  # noqa: ANN401  # each test names options
    return Services(cast("Sandbox", sandbox), **{"timeout": 0.2, **options})


def test_it_is_a_layer_that_can_be_restored(folder: Path) -> None:
    made: Layer = layer_in(_FakeSandbox(folder, SAID))
    assert isinstance(made, Restorable)
    assert (made.name, made.overrides) == ("services", NodeOverrides())
    assert (LAYER.name, LAYER.processes) == ("services", ("services",))
    assert LAYER.make(cast("Sandbox", _FakeSandbox(folder, SAID)), None).name == "services"


def test_the_process_is_told_what_the_node_has(folder: Path) -> None:
    sandbox = _FakeSandbox(folder, SAID)
    with layer_in(sandbox):
        assert sandbox.settings == [
            {
                "kubeconfig": "/var/lib/k3s-sandbox/pki/kube-proxy.kubeconfig",
                "status": STATUS,
                "node": "k3s-sandbox",
                "address": "10.213.0.2",
                "gateway": "10.42.0.1",
                "service": "10.43.0.1/16",
                "capacity": GVISOR_BYTES,
                "pod_range": "10.42.0.0/24",
            }
        ]
    assert sandbox.process.stops == 1
    native = _FakeSandbox(folder, SAID, kind="host")
    with layer_in(native, gateway="10.42.0.9", node="n", address="10.1.1.1", service_range="10.96.0.0/12"):
        (told,) = native.settings
    assert (told["capacity"], told["pod_range"], told["gateway"]) == (None, "", "10.42.0.9")
    assert (told["node"], told["address"], told["service"]) == ("n", "10.1.1.1", "10.96.0.1/12")


@pytest.mark.parametrize(
    "options",
    [{"service_range": "10.43.0.1/16"}, {"pod_range": "x"}, {"gateway": "-j"}, {"service_range": "::/64"}],
)
def test_a_wrong_value_is_refused_before_anything_starts(folder: Path, options: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        layer_in(_FakeSandbox(folder, SAID), **options)


@pytest.mark.parametrize(
    ("status", "ok"),
    [
        (SAID, True),
        ({**SAID, "synced": False}, False),
        ({**SAID, "error": "refused"}, False),
        ({**SAID, "synced": "yes"}, False),
        ({"pid": 7}, False),
    ],
)
def test_it_is_healthy_after_a_sync_without_error(folder: Path, status: dict[str, Any], *, ok: bool) -> None:
    with layer_in(_FakeSandbox(folder, status)) as up:
        health = up.check()
    assert health.ok is ok
    assert health.details["pid"] == "7"


@pytest.mark.parametrize("status", ["", "[]", "{", '{"pid": 8}', "[" * 5000, "x" * 70000])
def test_a_status_of_another_form_or_process_is_none(folder: Path, status: str) -> None:
    sandbox = _FakeSandbox(folder, SAID)
    with layer_in(sandbox) as up:
        sandbox.say(status)
        assert not up.check().ok
    with pytest.raises(LayerError, match="not begun"):
        layer_in(_FakeSandbox(folder, status)).__enter__()


def test_a_process_that_ends_at_once_is_an_error_with_its_words(folder: Path) -> None:
    sandbox = _FakeSandbox(folder, None, code=2)
    with pytest.raises(LayerError, match="exit code 2: services: no nat table"):
        layer_in(sandbox).__enter__()
    with pytest.raises(LayerError, match="no such program"):
        layer_in(_FakeSandbox(folder, StartError)).__enter__()


def test_a_process_that_has_ended_is_a_fault_until_it_is_restored(folder: Path) -> None:
    sandbox = _FakeSandbox(folder, SAID)
    up = layer_in(sandbox)
    assert up.fault() is None
    assert not up.check().ok
    with up:
        assert up.fault() is None
        sandbox.process.code = -9
        assert "SIGKILL" in (up.fault() or "")
        assert not up.check().ok
        up.restore()
        assert up.fault() is None
        assert up.check().ok
    assert len(sandbox.settings) == 2
