"""The command that starts a sandboxer, on this machine with stand-ins for the programs."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

from pytest_k3s_sandbox.cluster import components, sandboxer
from pytest_k3s_sandbox.cluster.components import ClusterSettings
from pytest_k3s_sandbox.sandbox.base import BIN_DIR
from support.waiting import until

SETTINGS = ClusterSettings(
    "node",
    "10.0.0.2",
    runtime="crun",
    runtimes={"crun": "/crun", "runc": "/runc"},
    sandboxer=True,
)


def test_the_pods_of_crun_are_the_sandboxers_and_those_of_runc_are_containerds() -> None:
    config = tomllib.loads(components.containerd_config(SETTINGS))
    runtimes = config["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]
    assert {name: section["sandboxer"] for name, section in runtimes.items()} == {
        "crun": sandboxer.PROGRAM,
        "runc": "podsandbox",
    }
    plugin = config["proxy_plugins"][sandboxer.PROGRAM]
    assert plugin == {"type": "sandbox", "address": f"{sandboxer.FOLDER}/controller.sock"}


def test_without_one_containerd_is_started_as_it_is() -> None:
    without = dataclasses.replace(SETTINGS, sandboxer=False)
    assert "proxy_plugins" not in tomllib.loads(components.containerd_config(without))
    assert components.containerd(without)[0] == f"{BIN_DIR}/containerd"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the command, with every path below the test's folder and shell scripts as the programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    started = f'echo "$@" >>{tmp_path}/started; echo $$ >{tmp_path}/run/pid'
    body = {
        "containerd": "exec sleep 600",
        sandboxer.PROGRAM: f"{started}; while :; do sleep 0.05; done",
        "crun": f'echo "$@" >>{tmp_path}/removed',
    }
    for name, text in body.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    script = sandboxer.START.replace(sandboxer.FOLDER, f"{tmp_path}/run").replace(BIN_DIR, str(programs))
    monkeypatch.setattr(sandboxer, "START", script.replace(sandboxer.TASKS, f"{tmp_path}/tasks"))
    return sandboxer.started_with([f"{programs}/containerd"], "/root", "/state", f"{tmp_path}/c.sock")


def text_of(path: Path) -> str:
    """Return a file's text, once it has one."""
    until(lambda: path.exists() and path.read_text())
    return path.read_text()


@pytest.fixture
def listening(tmp_path: Path) -> None:
    """Make the socket that the sandboxer waits for."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "c.sock.ttrpc"))


@pytest.mark.usefixtures("listening")
def test_containerd_ends_with_its_sandboxer(tmp_path: Path, start: list[str]) -> None:
    (tmp_path / "tasks/of-crun").mkdir(parents=True)
    (tmp_path / "tasks/of-crun/status").touch()
    (tmp_path / "tasks/of-runc").mkdir()
    containerd = subprocess.Popen(start)
    pid = int(text_of(tmp_path / "run/pid"))
    assert text_of(tmp_path / "started").split() == [
        f"{tmp_path}/run",
        "/root/io.containerd.grpc.v1.cri",
        "/state/io.containerd.grpc.v1.cri",
        f"{tmp_path}/c.sock",
    ]
    assert text_of(tmp_path / "removed").split() == [
        "--root",
        f"{tmp_path}/tasks",
        "delete",
        "--force",
        "of-crun",
    ]
    os.kill(pid, 9)
    assert containerd.wait(timeout=20) == -9


@pytest.mark.usefixtures("listening")
def test_a_sandboxer_stays_when_containerd_is_started_again(tmp_path: Path, start: list[str]) -> None:
    first = subprocess.Popen(start)
    pid = int(text_of(tmp_path / "run/pid"))
    text_of(tmp_path / "started")
    first.kill()
    first.wait(timeout=20)
    second = subprocess.Popen(start)
    until(lambda: text_of(tmp_path / "run/containerd") == f"{second.pid}\n")
    time.sleep(0.2)
    assert int(text_of(tmp_path / "run/pid")) == pid
    os.kill(pid, 9)  # it ends the one that runs now
    assert second.wait(timeout=20) == -9
    assert len(text_of(tmp_path / "started").splitlines()) == 1
