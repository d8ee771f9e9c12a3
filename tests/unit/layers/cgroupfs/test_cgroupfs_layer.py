"""The layer, in a sandbox that only says what a server would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest

from pytest_k3s_sandbox.errors import LayerError, StartError
from pytest_k3s_sandbox.layers.base import Layer, NodeOverrides
from pytest_k3s_sandbox.layers.cgroupfs.layer import FuseCgroupfs
from pytest_k3s_sandbox.layers.cgroupfs.probe import render
from pytest_k3s_sandbox.sandbox.base import Completed, Sandbox
from support.fake_process import FakeProcess

GOOD = {"f_type": "0x65735546", "problems": ""}
READY = f"{render(GOOD)}ready, pid 7\n"


class _FakeSandbox:
    """Remembers what is spawned and answers the probe."""

    kind = "gvisor"

    def __init__(self, folder: Path, log: str, *, code: int | None = None, found: object = None) -> None:
        self.process = FakeProcess(folder, "cgroupfs", log, code)
        self.found = render(GOOD) if found is None else found
        self.spawned: list[str] = []

    def spawn(
        self, argv: Sequence[str], *, name: str, env: Mapping[str, str] | None = None, cwd: str = "/"
    ) -> FakeProcess:
        assert (name, env, cwd) == ("cgroupfs", None, "/")
        self.spawned = list(argv)
        return self.process

    def run(self, argv: Sequence[str], **_: object) -> Completed:
        if isinstance(self.found, Exception):
            raise self.found
        return Completed(tuple(argv), 0, str(self.found), "")


def layer(sandbox: _FakeSandbox, timeout: float = 0.1) -> FuseCgroupfs:
    return FuseCgroupfs(cast("Sandbox", sandbox), timeout=timeout)


def test_it_comes_up_and_goes_down(tmp_path: Path) -> None:
    sandbox = _FakeSandbox(tmp_path, READY)
    with layer(sandbox) as up:
        checked: Layer = up
        assert checked.check().ok
        assert up.overrides == NodeOverrides()
        assert up.check().details == GOOD
        assert sandbox.process.stops == 0
    assert sandbox.process.stops == 1
    assert "--stack-on" in sandbox.spawned
    assert not up.check().ok
    up.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("log", "code", "message"),
    [
        ("no /dev/fuse\n", 2, "no /dev/fuse"),
        ("", None, "not ready"),
        (READY.replace("pid 7", "pid 6"), None, "not ready"),
        (f"{render({'problems': 'cpu: broken'})}ready, pid 7\n", None, "cpu: broken"),
        ("ready, pid 7\n", None, "not what a probe says"),
    ],
)
def test_failures_name_the_cause_and_the_log(
    tmp_path: Path, log: str, code: int | None, message: str
) -> None:
    sandbox = _FakeSandbox(tmp_path, log, code=code)
    with pytest.raises(LayerError, match=message) as caught, layer(sandbox):
        pytest.fail("it must not come up")
    assert caught.value.log == sandbox.process.log
    assert sandbox.process.stops == 1


def test_on_the_machine_itself_no_cgroup_is_mounted(tmp_path: Path) -> None:
    sandbox = _FakeSandbox(tmp_path, READY)
    sandbox.kind = "host"
    with layer(sandbox):
        assert "--at" in sandbox.spawned


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (render({"problems": "cpu: broken"}), "cpu: broken"),
        ("nonsense", "nonsense"),
        (StartError("probe"), "the probe failed"),
    ],
)
def test_a_check_asks_a_program_of_its_own(tmp_path: Path, found: object, message: str) -> None:
    with layer(_FakeSandbox(tmp_path, READY, found=found)) as up:
        health = up.check()
    assert not health.ok
    assert message in health.details["problems"]
