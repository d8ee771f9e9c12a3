"""The layer, in a sandbox that only says what a server would."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import LayerError, StartError
from pytest_k3s_sandbox.layers.base import Effect, Layer
from pytest_k3s_sandbox.layers.cgroupfs.layer import FuseCgroupfs
from pytest_k3s_sandbox.sandbox.base import Completed, Sandbox

GOOD = {"magic.cpu": "0x65735546", "problems": ""}


class _FakeProcess:
    """A server that has written its log."""

    name, pid = "cgroupfs", 7

    def __init__(self, log: Path, code: int | None) -> None:
        self.log = log
        self.code = code
        self.stops = 0

    def poll(self) -> int | None:
        return self.code

    def wait(self, deadline: Deadline) -> int | None:
        del deadline
        return self.code

    def signal(self, number: int) -> None:
        raise AssertionError(number)

    def stop(self, grace: float = 5.0) -> int:
        del grace
        self.stops += 1
        self.code = 0
        return 0


class _FakeSandbox:
    """Remembers what is spawned and answers the probe."""

    kind = "gvisor"

    def __init__(self, folder: Path, log: str, *, code: int | None = None, found: object = None) -> None:
        self.process = _FakeProcess(folder / "cgroupfs.log", code)
        self.process.log.write_text(log)
        self.found = found if found is not None else GOOD
        self.spawned: list[str] = []

    def spawn(
        self, argv: Sequence[str], *, name: str, env: Mapping[str, str] | None = None, cwd: str = "/"
    ) -> _FakeProcess:
        assert (name, env, cwd) == ("cgroupfs", None, "/")
        self.spawned = list(argv)
        return self.process

    def run(self, argv: Sequence[str], **_: object) -> Completed:
        if isinstance(self.found, Exception):
            raise self.found
        return Completed(tuple(argv), 0, json.dumps(self.found), "")


def layer(sandbox: _FakeSandbox, timeout: float = 0.1) -> FuseCgroupfs:
    return FuseCgroupfs(cast("Sandbox", sandbox), timeout=timeout)


def test_it_comes_up_and_goes_down(tmp_path: Path) -> None:
    sandbox = _FakeSandbox(tmp_path, "ready\n")
    with layer(sandbox) as up:
        checked: Layer = up
        assert checked.check().ok
        assert up.effect == Effect()
        assert sandbox.process.stops == 0
    assert sandbox.process.stops == 1
    assert "--real" in sandbox.spawned
    assert not up.check().ok
    up.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("log", "code", "found", "message"),
    [
        ("no /dev/fuse\n", 2, GOOD, "no /dev/fuse"),
        ("", None, GOOD, "not ready"),
        ("ready\n", None, {"problems": "cpu: broken"}, "cpu: broken"),
        ("ready\n", None, StartError("probe"), "the probe failed"),
    ],
)
def test_failures_name_the_cause_and_the_log(
    tmp_path: Path, log: str, code: int | None, found: object, message: str
) -> None:
    sandbox = _FakeSandbox(tmp_path, log, code=code, found=found)
    with pytest.raises(LayerError, match=message) as caught, layer(sandbox):
        pytest.fail("it must not come up")
    assert caught.value.log == sandbox.process.log
    assert sandbox.process.stops == 1


def test_on_the_machine_itself_no_cgroup_is_mounted(tmp_path: Path) -> None:
    sandbox = _FakeSandbox(tmp_path, "ready\n")
    sandbox.kind = "here"
    with layer(sandbox):
        assert "--real" not in sandbox.spawned
