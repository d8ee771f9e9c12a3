"""The layer in a sandbox that is a folder: what it writes, checks and takes away."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest

from pytest_k3s_sandbox.errors import ConfigError, LayerError, StartError
from pytest_k3s_sandbox.layers.base import Layer
from pytest_k3s_sandbox.layers.cni import layer as module
from pytest_k3s_sandbox.layers.cni.layer import FakeCni
from pytest_k3s_sandbox.sandbox.base import Completed, Sandbox
from pytest_k3s_sandbox.sandbox.beneath import Beneath


class Here:
    """A sandbox whose inside is outside; only what the layer uses."""

    files = Beneath(Path("/"), "/")

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a program on this machine."""
        done = subprocess.run(
            argv,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            check=check,
            timeout=timeout,
        )
        return Completed(tuple(argv), done.returncode, done.stdout, done.stderr)


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.setattr(module, "FOLDER", str(tmp_path / "cni"))
    return cast("Sandbox", Here())


def test_it_comes_up_checked_and_leaves_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    layer: Layer = FakeCni(sandbox, "10.99.0.0/24")
    assert layer.name == "fake_cni"
    with layer:
        health = layer.check()
        assert health.ok
        assert health.details == {
            **dict.fromkeys(["VERSION", "ADD", "CHECK", "DEL"], "ok"),
            "address": "10.99.0.2/24",  # the first one: its own attachment is forgotten
        }
        assert layer.overrides.cni_bin_dir == str(tmp_path / "cni/bin")
        assert layer.overrides.cni_conf_dir == str(tmp_path / "cni/net.d")
        (conflist,) = (tmp_path / "cni/net.d").iterdir()
        content = json.loads(conflist.read_text())
        assert content["cniVersion"] == "1.0.0"
        (plugin,) = content["plugins"]
        assert (tmp_path / "cni/bin" / plugin["type"]).stat().st_mode & 0o111
        assert plugin["ipam"]["subnet"] == "10.99.0.0/24"
        assert sorted(path.name for path in (tmp_path / "cni").iterdir()) == ["bin", "lib", "net.d", "state"]
    assert list(tmp_path.iterdir()) == []


def test_check_says_that_the_range_is_full(sandbox: Sandbox, tmp_path: Path) -> None:
    with FakeCni(sandbox, "10.99.0.0/30") as layer:
        assert list((tmp_path / "cni/state/k3s-sandbox").iterdir()) == []
        (tmp_path / "cni/state/k3s-sandbox/10.99.0.2").write_text("pod eth0\n")
        health = layer.check()
    assert not health.ok
    assert "no address is free" in health.details["ADD"]


def test_a_missing_python_is_reported_and_nothing_is_left(sandbox: Sandbox, tmp_path: Path) -> None:
    with FakeCni(sandbox, python="/nonexistent/python") as layer:
        health = layer.check()
    assert not health.ok
    assert health.details["VERSION"].startswith("exit code 12")
    assert list(tmp_path.iterdir()) == []


def test_a_sandbox_that_fails_is_a_layer_error(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Completed:
        raise StartError("the sandbox is gone")

    monkeypatch.setattr(sandbox, "run", fail)
    with pytest.raises(LayerError, match="the sandbox is gone"):
        FakeCni(sandbox).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_leaving_twice_does_no_harm(sandbox: Sandbox) -> None:
    layer = FakeCni(sandbox)
    with layer:
        pass
    layer.__exit__(None, None, None)


@pytest.mark.parametrize("pod_range", ["", "10.42.0.0/31", "10.42.0.1/24", "fd00::/64", "pods"])
def test_a_wrong_range_is_refused_at_once(sandbox: Sandbox, pod_range: str) -> None:
    with pytest.raises(ConfigError, match="pod range"):
        FakeCni(sandbox, pod_range)
