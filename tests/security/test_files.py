"""Whatever runs inside puts links, FIFOs and devices where the machine reads and writes, in vain."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pytest_k3s_sandbox.cluster.logs import COPIES, copy_logs
from pytest_k3s_sandbox.daemon import inventory
from pytest_k3s_sandbox.daemon.process import described
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ConfigError, StartError
from pytest_k3s_sandbox.node.diagnostics import look_inside
from pytest_k3s_sandbox.node.session import open_session
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.node.start import start_sandbox
from pytest_k3s_sandbox.sandbox import machine
from pytest_k3s_sandbox.sandbox.base import STATE_DIR
from pytest_k3s_sandbox.sandbox.beneath import Beneath
from pytest_k3s_sandbox.sandbox.inside import InsidePath
from pytest_k3s_sandbox.sandbox.resolve import RefusedError
from pytest_k3s_sandbox.sandbox.started import StartedSandbox
from pytest_k3s_sandbox.toolchain import Toolchain

MARKER = "what only root of the machine may read"
ELSE = 65534

pytestmark = [pytest.mark.k3s_requires("root", "gvisor"), pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def attacked() -> Iterator[StartedSandbox]:
    """A sandbox without a node: what is put in place there is what a pod with a ``hostPath`` can put."""
    with start_sandbox(NodeSpec("gvisor"), Toolchain()) as sandbox:
        yield sandbox


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the machine that its root alone can read."""
    path = tmp_path / "secret"
    path.write_text(MARKER)
    path.chmod(0o600)
    return path


def inside(sandbox: StartedSandbox, script: str) -> None:
    sandbox.run(["sh", "-ec", script])


def copied(sandbox: StartedSandbox, folder: Path) -> dict[str, str]:
    copy_logs(sandbox, folder)
    return {path.name: path.read_text(errors="replace") for path in (folder / "logs").iterdir()}


@pytest.mark.parametrize(
    "trick",
    [
        "ln -s {secret} {log}",
        "ln -s /dev/zero {log}",
        "mkfifo {log}",
        "echo x > {logs}/one; ln {logs}/one {log}",
        "mkdir {log}",
        "python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('{log}')\"",
        "mknod {log} c 1 5",
    ],
    ids=["link", "endless", "fifo", "hard link", "folder", "socket", "device"],
)
def test_a_log_that_is_no_regular_file_is_not_read(
    attacked: StartedSandbox, secret: Path, tmp_path: Path, trick: str
) -> None:
    logs = f"{STATE_DIR}/logs"
    log = f"{logs}/evil.log"
    try:
        inside(attacked, trick.format(secret=secret, log=log, logs=logs))
    except StartError as error:
        # gVisor makes no device on files that the machine can see, so there is nothing to read.
        assert "mknod" in trick
        assert "Operation not permitted" in str(error)  # noqa: PT017 - one of many tricks
        return
    try:
        found = copied(attacked, tmp_path)
        if "mkfifo" in trick or "socket" in trick:  # gVisor keeps these inside
            assert "evil.log" not in found or "not copied" in found["evil.log"]
        else:
            assert "not copied" in found["evil.log"]
        assert MARKER not in "".join(found.values())
        with pytest.raises(OSError, match=r"something inside|directory|device|No such"):
            (attacked.logs / "evil.log").read_text()
    finally:
        inside(attacked, f"rm -rf {log} {logs}/one")


def test_a_log_without_an_end_is_copied_to_its_last_part(
    attacked: StartedSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_k3s_sandbox.cluster.logs.COPY_BYTES", 1000)
    inside(attacked, f"truncate -s 200G {STATE_DIR}/logs/huge.log; echo end >> {STATE_DIR}/logs/huge.log")
    assert len(copied(attacked, tmp_path)["huge.log"]) == 1000
    with pytest.raises(RefusedError, match="larger than"):
        (attacked.logs / "huge.log").read_text()
    inside(attacked, f"rm {STATE_DIR}/logs/huge.log")


def test_any_number_of_logs_is_copied_in_part(attacked: StartedSandbox, tmp_path: Path) -> None:
    inside(attacked, f"cd {STATE_DIR}/logs; for i in $(seq 500); do echo > many-$i.log; done")
    assert len(copied(attacked, tmp_path)) == COPIES + 1  # and the log of runsc, which is the machine's
    inside(attacked, f"rm {STATE_DIR}/logs/many-*")


def test_a_folder_of_logs_that_leads_elsewhere_gives_nothing(
    attacked: StartedSandbox, tmp_path: Path
) -> None:
    machines = tmp_path / "machines"
    machines.mkdir()
    (machines / "kubelet.log").write_text(MARKER)
    inside(attacked, f"mv {STATE_DIR}/logs {STATE_DIR}/aside; ln -s {machines} {STATE_DIR}/logs")
    try:
        assert MARKER not in "".join(copied(attacked, tmp_path).values())
        with pytest.raises(RefusedError):
            (attacked.logs / "kubelet.log").read_text()
    finally:
        # The sandbox cannot be asked: what it runs logs there.
        folder = attacked.workdir / "var" / STATE_DIR.removeprefix("/var/")
        (folder / "logs").unlink()
        (folder / "aside").rename(folder / "logs")
    assert (machines / "kubelet.log").read_text() == MARKER


@pytest.mark.parametrize("name", ["kubelet.json", "pki", "cni/net.d", "runtime"])
def test_a_write_of_the_machine_lands_inside_or_nowhere(
    attacked: StartedSandbox, secret: Path, tmp_path: Path, name: str
) -> None:
    machines = tmp_path / "machines"
    machines.mkdir()
    path = f"{STATE_DIR}/{name}"
    inside(attacked, f"rm -rf {path}; mkdir -p $(dirname {path}); ln -s {secret} {path}")
    attacked.files.write(path, "new")  # the link itself is replaced
    assert attacked.files.text(path) == "new"
    inside(attacked, f"rm -rf {path}; ln -s {machines} {path}")
    with pytest.raises(OSError, match=r"link|directory"):
        attacked.files.write(f"{path}/file", "new")
    with pytest.raises(OSError, match=r"link|exists|directory"):
        attacked.files.mkdir(f"{path}/folder/below")
    inside(attacked, f"rm -rf {path}; mkfifo {path}")
    attacked.files.write(path, "again")  # and does not wait for a reader of the FIFO
    attacked.files.remove(path)
    assert secret.read_text() == MARKER
    assert list(machines.iterdir()) == []


def test_what_is_removed_is_inside_though_it_is_a_link(attacked: StartedSandbox, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    inside(
        attacked,
        f"mkdir {STATE_DIR}/tree; ln -s {tmp_path} {STATE_DIR}/tree/out; ln -s {tmp_path} {STATE_DIR}/out",
    )
    attacked.files.remove(f"{STATE_DIR}/tree")
    attacked.files.remove(f"{STATE_DIR}/out")
    assert (tmp_path / "kept").exists()


def test_a_folder_that_is_swapped_for_a_link_meanwhile_is_never_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "var/a").mkdir(parents=True)
    (root / "var/link").symlink_to(outside)
    outside.mkdir()
    files = Beneath(root)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for old, new in (("a", "b"), ("link", "a"), ("a", "link"), ("b", "a")):
                (root / "var" / old).rename(root / "var" / new)

    swapping = threading.Thread(target=swap)
    swapping.start()
    written = refused = 0
    try:
        for _ in range(3000):
            try:
                files.write("/var/a/file", "x")
                written += 1
            except OSError:
                refused += 1
    finally:
        stop.set()
        swapping.join()
    assert list(outside.iterdir()) == []
    assert written > 0
    assert refused > 0  # otherwise the swap was never met


def test_set_id_bits_of_the_inside_mean_nothing_outside(attacked: StartedSandbox) -> None:
    inside(attacked, "cp $(command -v sh) /var/tmp/rootsh; chmod 6755 /var/tmp/rootsh")
    there = attacked.workdir / "var/tmp/rootsh"
    assert there.stat().st_mode & stat.S_ISUID  # root sees it; and another user:
    stranger = ["setpriv", f"--reuid={ELSE}", f"--regid={ELSE}", "--clear-groups"]
    done = subprocess.run([*stranger, str(there), "-c", "id"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "uid=" not in done.stdout
    for folder in (machine.home(), machine.sandboxes(), attacked.workdir, attacked.control):
        assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0, folder


@pytest.mark.parametrize(("mode", "owner", "remedy"), [(0o755, 0, "chmod 700"), (0o700, ELSE, "of your own")])
def test_a_home_that_others_can_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, owner: int, remedy: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(mode)
    os.chown(home, owner, owner)
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(home))
    with pytest.raises(ConfigError, match=remedy):
        start_sandbox(NodeSpec("gvisor"), Toolchain())
    assert list(home.iterdir()) == []


POD = """
set -e
cd /node
mkdir -p evil/pki
for name in kubelet.json containerd.toml; do rm -f $name; ln -s MARKER $name; done
rm -rf pki.old; mv pki pki.old
ln -s SECRET_FOLDER pki
find . -name '*.kubeconfig' -exec cp /evil/kubeconfig {} ';'
cp /evil/kubeconfig admin.kubeconfig
for log in logs/*.log; do mv $log $log.old; ln -s MARKER $log; done
mkfifo logs/fifo.log
ln -s /dev/zero logs/endless.log
ln logs/kubelet.log.old logs/twice.log
echo done
sleep 1000
"""


def test_a_pod_that_can_write_the_nodes_folder_does_not_become_root_of_the_machine(
    tmp_path: Path, secret: Path
) -> None:
    """It replaces what it can, with a kubeconfig that names a program; then the machine uses the cluster."""
    ran, run = tmp_path / "ran", tmp_path / "run"
    run.mkdir()
    (tmp_path / "machines").mkdir()
    program = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "/bin/sh",
        "args": ["-c", f"id > {ran}"],
        "interactiveMode": "Never",
    }
    evil = yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": "https://10.213.0.2:6443"}}],
            "users": [{"name": "u", "user": {"exec": program}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        }
    )
    script = POD.replace("SECRET_FOLDER", str(tmp_path / "machines")).replace("MARKER", str(secret))
    pod = {
        "metadata": {"name": "attacker"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "volumes": [
                {"name": "node", "hostPath": {"path": STATE_DIR}},
                {"name": "evil", "configMap": {"name": "evil"}},
            ],
            "containers": [
                {
                    "name": "c",
                    "image": "busybox:1.36",
                    "command": ["sh", "-c", script],
                    "volumeMounts": [
                        {"name": "node", "mountPath": "/node"},
                        {"name": "evil", "mountPath": "/evil"},
                    ],
                }
            ],
        },
    }
    with open_session(NodeSpec("gvisor"), toolchain=Toolchain(), folder=run, experiment="attack") as up:
        cluster = up.cluster
        cluster.node.wait_ready(60)
        with cluster.namespace("attack") as namespace:
            cluster.core.create_namespaced_config_map(
                namespace, {"metadata": {"name": "evil"}, "data": {"kubeconfig": evil}}
            )
            cluster.core.create_namespaced_pod(namespace, pod)

            def done() -> bool:
                return "done" in cluster.kubectl("logs", "-n", namespace, "attacker", check=False).stdout

            cluster.wait(done, "the attack to be done", Deadline.after(40))
            # The machine goes on as if nothing were: kubectl, the client, ps, the line that `up` prints.
            assert cluster.kubectl("get", "nodes").returncode == 0
            assert len(cluster.core.list_node().items) == 1
            (row,) = [row for row in inventory.running() if row.sandbox == up.stack.sandbox.workdir.name]
            assert row.node in {"Ready", "NotReady"}
            shown = described(up, name="x", origin="test")
            assert "exec" not in Path(str(shown["kubeconfig"])).read_text()
            kubeconfig = json.loads(cluster.kubeconfig.read_text())
            assert set(kubeconfig["users"][0]["user"]) == {"client-certificate-data", "client-key-data"}
            look_inside(up.stack.sandbox, run)
            logs = {path.name: path for path in (run / "logs").iterdir()}
            assert {"kubelet.log", "endless.log", "twice.log"} <= set(logs)
            assert all(
                "not copied" in logs[name].read_text() for name in ("kubelet.log", "endless.log", "twice.log")
            )
            assert not any(path.is_symlink() for path in logs.values())
    assert not ran.exists()
    assert list((tmp_path / "machines").iterdir()) == []
    assert secret.read_text() == MARKER
    seen = subprocess.run(["grep", "-rl", MARKER, str(run)], capture_output=True, text=True, check=False)
    assert seen.stdout == ""


def test_a_path_of_a_log_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="for reading only"):
        InsidePath(tmp_path / "log").write_text("x")
