"""k3s itself as the node's distribution: the official binary where there is one, else a stand-in."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pytest_k3s_sandbox.cluster import k3s
from pytest_k3s_sandbox.cluster.components import ClusterSettings
from pytest_k3s_sandbox.cluster.images import Image, ImageConfig, ImageFile, find_busybox, write_images
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError, ConfigError
from pytest_k3s_sandbox.node.session import NodeSession
from pytest_k3s_sandbox.node.spec import NodeSpec, kubernetes_version
from pytest_k3s_sandbox.report.records import read_run
from pytest_k3s_sandbox.sandbox.base import STATE_DIR
from pytest_k3s_sandbox.toolchain import Toolchain
from support.outside import outside
from support.stand_in_node import node, toolchain_with, write_stand_in

pytestmark = [pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor"), pytest.mark.timeout(240)]

ADDRESS, PORT = "10.213.0.2", 6443
READY_SECONDS = 60


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in as a program, run by the Python that the sandbox shows."""
    return write_stand_in(tmp_path_factory.mktemp("k3s"))


def official() -> Path:
    """Return the official binary, if this machine has it already."""
    toolchain = Toolchain()
    found = toolchain.find("k3s")
    if found is None:
        why = "; ".join(toolchain.why("k3s"))
        pytest.skip(
            f"not applicable: no official k3s binary here ({why}); `k3s-sandbox provision k3s` gets it"
        )
    return found.path


@pytest.fixture(scope="module", params=["stand-in", "official"])
def up(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeSession]:
    """A node in gVisor on k3s."""
    program = official() if request.param == "official" else request.getfixturevalue("stand_in")
    with node(program, tmp_path_factory.mktemp("run")) as found:
        found.cluster.node.wait_ready(READY_SECONDS)
        yield found


def pod(image: str, script: str) -> dict[str, object]:
    container = {"name": "it", "image": image, "command": ["sh", "-c", script]}
    return {
        "metadata": {"name": "it"},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
    }


def run_pod(up: NodeSession, namespace: str, body: Mapping[str, object]) -> None:
    core = up.cluster.core
    core.create_namespaced_pod(namespace, body)
    up.cluster.wait(
        lambda: core.read_namespaced_pod("it", namespace).status.phase == "Running",
        "the pod to run",
        Deadline.after(READY_SECONDS),
        lambda: str(core.read_namespaced_pod("it", namespace).status.container_statuses),
    )


def test_server_and_node_are_one_process_in_which_the_node_is_ready(up: NodeSession) -> None:
    assert list(up.cluster.processes) == ["k3s"]
    assert up.cluster.node.conditions()["Ready"].status == "True"
    assert up.cluster.node.stats_summary()["node"]["nodeName"] == "k3s-sandbox"


def test_what_ran_is_named_in_the_records(up: NodeSession) -> None:
    environment = read_run(up.folder).environment
    assert environment is not None
    assert environment.distribution == "k3s"
    said = environment.programs["k3s"].version
    assert environment.kubernetes == said
    assert re.fullmatch(r"1\.\d+\.\d+\+(k3s\d+|stand-in)", said)


def test_the_sampler_follows_the_logs_of_the_node_in_k3s(up: NodeSession) -> None:
    assert up.readiness.take().node_ready
    assert "kubelet" in up.cluster.node.log.read_text()
    assert "containerd successfully booted" in up.cluster.log("containerd").read_text()


def test_a_users_image_is_loaded_and_its_pod_has_logs_and_exec(up: NodeSession, tmp_path: Path) -> None:
    root = [
        ImageFile("bin"),
        ImageFile("bin/busybox", content=find_busybox().read_bytes()),
        ImageFile("bin/sh", mode=0o777, link="busybox"),
        ImageFile("mine", mode=0o644, content=b"this image is mine\n"),
    ]
    tar = write_images(tmp_path / "mine.tar", [Image("example.org/mine:1", root, ImageConfig())])
    up.cluster.load_image(tar)
    with up.cluster.namespace("mine") as namespace:
        script = "while read -r line; do echo $line; done < /mine; exec /bin/busybox sleep 1000"
        run_pod(up, namespace, pod("example.org/mine:1", script))
        assert up.cluster.kubectl("logs", "-n", namespace, "it").stdout == "this image is mine\n"
        done = up.cluster.kubectl(
            "exec", "-n", namespace, "it", "--", "sh", "-c", "echo $0; exit 3", check=False
        )
        assert (done.returncode, done.stdout) == (3, "sh\n")


def test_an_image_that_containerd_refuses_is_told_and_nothing_of_it_stays(
    up: NodeSession, tmp_path: Path
) -> None:
    tar = tmp_path / "nonsense.tar"
    subprocess.run(["tar", "-cf", tar, "-C", "/etc", "hostname"], check=True)
    before = set(outside(up.cluster.sandbox, STATE_DIR).iterdir())
    with pytest.raises(ClusterError, match="could not be loaded") as caught:
        up.cluster.load_image(tar)
    assert caught.value.cause
    assert set(outside(up.cluster.sandbox, STATE_DIR).iterdir()) == before


def test_the_stand_in_saw_what_k3s_is_to_be_given(up: NodeSession) -> None:
    log = (up.cluster.logs / "k3s.log").read_text()
    if "stand-in" not in toolchain_version(up):
        pytest.skip("not applicable: the official binary ran")
    assert "stand-in: arguments, environment and files are those that k3s is to be given: server" in log


def toolchain_version(up: NodeSession) -> str:
    environment = read_run(up.folder).environment
    assert environment is not None
    return environment.kubernetes or ""


@pytest.mark.nightly
@pytest.mark.parametrize(("kind", "apart"), [("gvisor", True), ("host", False), ("host", True)])
def test_a_node_is_ready_runs_a_pod_and_can_be_started_again(
    stand_in: Path, tmp_path: Path, kind: str, *, apart: bool
) -> None:
    with (
        node(stand_in, tmp_path / "run", kind, apart=apart) as up,
        up.cluster.namespace("again") as namespace,
    ):
        up.cluster.node.wait_ready(READY_SECONDS)
        run_pod(up, namespace, pod("busybox:1.36", "sleep 1000"))
        layers = up.runner.layers
        up.runner.stop_node()
        assert list(up.cluster.processes) == (["k3s-server"] if apart else [])
        up.runner.start_node(layers)
        up.cluster.node.wait_ready(READY_SECONDS)
        status = up.cluster.core.read_namespaced_pod("it", namespace).status
        assert status.phase == "Running"


def refusal(stand_in: Path, argv: list[str], **environment: str) -> tuple[int, str]:
    """Return how the stand-in ends on the machine itself, where it finds none of its files."""
    path = f"/opt/k3s-sandbox/bin:{os.environ['PATH']}"
    done = subprocess.run(
        [stand_in, *argv],
        env={"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done.returncode, done.stdout


SETTINGS = ClusterSettings(node="n", address=ADDRESS, api_port=PORT)
COMMANDS = {
    "server": k3s.server(SETTINGS)[1:],
    "server alone": k3s.server(SETTINGS, agent=False)[1:],
    "agent": k3s.agent(SETTINGS)[1:],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_stand_in_wants_every_argument_as_it_is(stand_in: Path, name: str) -> None:
    argv = COMMANDS[name]
    code, said = refusal(stand_in, argv)
    assert code == 64
    assert "FileNotFoundError" in said, "the arguments are right, only the files are missing"
    index = argv.index("--token-file=/var/lib/k3s-sandbox/k3s-token")
    for wrong in ([*argv, "--debug"], argv[:-1], [*argv[:index], "--token-file=/x", *argv[index + 1 :]]):
        code, said = refusal(stand_in, wrong)
        assert code == 64
        assert "instead of" in said, shlex.join(wrong)


@pytest.mark.parametrize("variable", ["K3S_TOKEN", "CONTAINERD_ADDRESS", "GODEBUG", "INVOCATION_ID"])
def test_the_stand_in_wants_no_variable_that_changes_k3s(stand_in: Path, variable: str) -> None:
    code, said = refusal(stand_in, COMMANDS["server"], **{variable: "x"})
    assert code == 64
    assert f"environment variable {variable}='x'" in said


def test_the_stand_in_says_in_its_version_what_it_is(stand_in: Path) -> None:
    program = toolchain_with(stand_in).get("k3s")
    assert (program.version, program.origin) == ("1.34.4+stand-in", "env")
    assert stat.S_ISREG(program.path.stat().st_mode)


def test_a_version_that_the_binary_is_not_is_refused(stand_in: Path) -> None:
    environ = {**os.environ, "K3S_SANDBOX_K3S": str(stand_in)}
    spec = NodeSpec(distribution="k3s")
    assert kubernetes_version(spec, Toolchain(environ=environ, kubernetes="1.34")) == "1.34.4+stand-in"
    with pytest.raises(ConfigError, match=r"is version 1\.34\.4\+stand-in") as caught:
        kubernetes_version(spec, Toolchain(environ=environ, kubernetes="1.36"))
    assert "K3S_SANDBOX_K3S" in (caught.value.remedy or "")
