"""A kept cluster as its user has it: in a kubeconfig of theirs, by kubectl, with images of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from pytest_k3s_sandbox.cluster.images import Image, ImageConfig, ImageFile, find_busybox, write_images
from pytest_k3s_sandbox.daemon import registry
from pytest_k3s_sandbox.sandbox import machine, reaper

pytestmark = [pytest.mark.k3s_requires("root", "gvisor"), pytest.mark.timeout(400)]

Done = subprocess.CompletedProcess[str]
Cli = Callable[..., Done]

UP_SECONDS = 240.0
MINE = """\
# my clusters
apiVersion: v1
kind: Config
clusters: [{name: prod, cluster: {server: "https://prod.example.org"}}]
contexts: [{name: prod, context: {cluster: prod, user: me}}]
users: [{name: me, user: {token: "0123"}}]
current-context: prod
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's kubeconfig."""
    file = tmp_path / "mine" / "config"
    file.parent.mkdir()
    file.write_text(MINE)
    monkeypatch.setenv("KUBECONFIG", f"{file}:{tmp_path}/another")
    return file


@pytest.fixture
def up(cli: Cli, home: Path, config: Path, tmp_path: Path) -> Iterator[Done]:
    """A cluster in the user's kubeconfig; its daemon process ends with the test."""
    done = cli(
        "up", "--report", "reports", "--merge", "--kubeconfig", str(tmp_path / "copy"), timeout=UP_SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert "k3s-sandbox-up" in config.read_text()
    yield done
    for state in registry.states():
        os.kill(state.pid, signal.SIGKILL)
        while state.alive:
            time.sleep(0.05)
    assert home.is_dir()
    with machine.lock():
        reaper.reap()


def image(folder: Path) -> Path:
    """Write an image that is in no registry."""
    root = [ImageFile("bin"), ImageFile("bin/busybox", content=find_busybox().read_bytes())]
    program = ImageConfig(entrypoint=["/bin/busybox", "sleep", "1000"])
    return write_images(folder / "mine.tar", [Image("example.org/mine:1", root, program)])


def test_a_cluster_in_the_users_hands(cli: Cli, up: Done, config: Path, tmp_path: Path) -> None:
    # The copy is whole, and its owner's alone.
    copy = tmp_path / "copy"
    assert copy.stat().st_mode & 0o777 == 0o600
    assert yaml.safe_load(copy.read_text())["current-context"] == "k3s-sandbox"
    assert f"kubeconfig: {copy}" in up.stderr

    # The user's file has it, and what it had.
    merged = yaml.safe_load(config.read_text())
    assert [each["name"] for each in merged["contexts"]] == ["prod", "k3s-sandbox-up"]
    assert merged["current-context"] == "prod"
    assert merged["users"][0] == {"name": "me", "user": {"token": "0123"}}
    assert f"merged into {config}; use it: kubectl --context k3s-sandbox-up" in up.stderr
    assert config.with_name("config.before-k3s-sandbox-up").read_text() == MINE

    # kubectl as the administrator: output, input and exit code are its own.
    nodes = cli("kubectl", "--", "get", "nodes", "--no-headers")
    assert nodes.stdout.split()[:2] == ["k3s-sandbox", "Ready"]
    assert cli("kubectl", "get", "namespace", "default", "-o", "name").stdout == "namespace/default\n"
    missing = cli("kubectl", "--name", "up", "--", "get", "pod", "none")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert 'pods "none" not found' in missing.stderr
    argv = [sys.executable, "-m", "pytest_k3s_sandbox.cli", "kubectl", "--", "create", "-f", "-"]
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "given"}}
    created = subprocess.run(
        argv, input=json.dumps(manifest), capture_output=True, text=True, check=False, timeout=60
    )
    assert created.stdout == "configmap/given created\n"
    other = subprocess.run(
        [cli_kubectl(), "--context", "k3s-sandbox-up", "get", "configmap", "given", "-o", "name"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert other.stdout == "configmap/given\n", other.stderr

    # An image of the user's own.
    loaded = cli("load", str(image(tmp_path)))
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout == "example.org/mine:1\n"
    assert "loaded into up" in loaded.stderr
    assert json.loads(cli("load", "mine.tar", "--json", "-", "--quiet").stdout) == ["example.org/mine:1"]
    refused = cli("load", "none.tar")
    assert refused.returncode == 2
    assert "image none.tar: there is no such file" in refused.stderr

    # Its end is its end in the user's file, too.
    down = cli("down")
    assert down.returncode == 0, down.stderr
    assert config.read_text() == MINE
    assert sorted(config.parent.iterdir()) == [config]
    assert list(registry.folder().iterdir()) == []


def cli_kubectl() -> str:
    """Return the kubectl that a user would have."""
    from pytest_k3s_sandbox.toolchain import Toolchain

    return str(Toolchain().get("kubectl").path)


def test_the_cluster_of_a_killed_daemon_is_taken_out_by_the_next_command(
    cli: Cli, up: Done, config: Path
) -> None:
    assert up.returncode == 0
    state = registry.find()
    os.kill(state.pid, signal.SIGKILL)
    while state.alive:
        time.sleep(0.05)
    assert "no sandbox runs" in cli("ps").stdout
    assert config.read_text() == MINE


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--merge"], ["the kubeconfig ", "line 1: it is not YAML", "it was left as it is"]),
        (["--kubeconfig", "none/copy"], ["--kubeconfig none/copy", "is not a folder that can be written"]),
        (["--kubeconfig", "."], ["--kubeconfig .", "it is a folder"]),
    ],
)
def test_nothing_starts_for_a_file_that_cannot_be_written(
    refused: Callable[..., str], config: Path, home: Path, words: list[str], said: list[str]
) -> None:
    home.mkdir(mode=0o700)
    (home / "sandboxes").mkdir(mode=0o700)
    config.write_text("clusters: [")
    refused("up", *words, words=[*said, "Remedy: "])
    assert config.read_text() == "clusters: ["
