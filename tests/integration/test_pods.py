"""Pods do on a node in gVisor what pods do; pods.yaml has what is looked at here, made in one go."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest
from kubernetes.client import AppsV1Api

from pytest_k3s_sandbox.cluster.answers import found
from pytest_k3s_sandbox.cluster.components import MANIFESTS
from pytest_k3s_sandbox.cluster.images import Image, ImageConfig, ImageFile, find_busybox, write_images
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.node.session import NodeSession, open_session
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.sandbox.base import STATE_DIR
from pytest_k3s_sandbox.toolchain import Toolchain
from support.outside import outside

if TYPE_CHECKING:
    from kubernetes.client import V1ContainerStateWaiting, V1Pod, V1PodStatus

pytestmark = [pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor"), pytest.mark.timeout(240)]

PODS = Path(__file__).with_name("pods.yaml")
NAMESPACE = "pods"
SECONDS = 120
"""For all pods to come up beside each other; a test waits for its own, which are long there by then."""


SLEEPING = [{"name": "it", "image": "busybox:1.36", "command": ["sleep", "1000"]}]
STATIC = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "static", "namespace": NAMESPACE},
    "spec": {
        "containers": SLEEPING,
        "terminationGracePeriodSeconds": 1,
    },
}
MARK = "----"
QUESTIONS = {
    "two": {
        "user": "id -u; touch /tmp/here 2>&1 || true",
        "shared": "cat /shared/two; echo back > /shared/one",
    },
    "one": {
        "variables": "env",
        "files": "cat /settings/colour /settings/file.conf /one/file.conf /secret/password",
        "mode": "stat -L -c %a /secret/password",
        "refused": "(echo x > /settings/new) 2>&1 || true",
        "shared back": "cat /shared/two /shared/one",
        "memory": "grep ' /memory ' /proc/mounts | cut -d' ' -f3; echo kept > /memory/file; cat /memory/file",
        "host": "echo from the pod > /host/given",
        "projected": "cat /projected/labels /projected/colour",
        "token": "cat /projected/token; echo",
        "account": "cat /var/run/secrets/kubernetes.io/serviceaccount/token; echo",
        "cgroup": "cd /sys/fs/cgroup; cat cpu/cpu.shares cpu/cpu.cfs_quota_us memory/memory.limit_in_bytes",
    },
}


class World:
    """The cluster with everything of pods.yaml in it."""

    def __init__(self, up: NodeSession, kubectl: Path) -> None:
        """Keep what the tests need."""
        self.up, self.cluster, self.core = up, up.cluster, up.cluster.core
        self._kubectl = [str(kubectl), f"--kubeconfig={up.cluster.kubeconfig}", "--namespace", NAMESPACE]

    def kubectl(self, *words: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run kubectl in the namespace."""
        argv = [*self._kubectl, *words]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0 or not check, done.stderr
        return done

    def sh(self, pod: str, container: str, script: str) -> str:
        """Run a script in a container and return what it writes."""
        return self.kubectl("exec", pod, "-c", container, "--", "sh", "-c", script).stdout

    @contextlib.contextmanager
    def running(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """Run kubectl beside the test."""
        pipe = subprocess.PIPE
        argv = [*self._kubectl, *words]
        with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def status(self, pod: str) -> V1PodStatus:
        """Return a pod's status."""
        return self.core.read_namespaced_pod(pod, NAMESPACE).status

    def container(self, pod: str, name: str = "it") -> Any:  # noqa: ANN401 - None only in waits
        """Return the status of a container of a pod; None while it has none."""
        status = self.status(pod)
        every = [*(status.init_container_statuses or []), *(status.container_statuses or [])]
        return next((each for each in every if each.name == name), None)

    def wait(self, condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
        """Wait until something is so."""
        self.cluster.wait(lambda: bool(condition()), what, Deadline.after(seconds), self.hint)

    def wait_ready(self, pod: str) -> None:
        """Wait until a pod is Ready."""
        self.wait(lambda: condition(self.status(pod), "Ready") == "True", f"pod {pod} to be Ready")

    def hint(self) -> str:
        """Return what the pods are and what was said of them, for the message of a wait."""
        events = self.core.list_namespaced_event(NAMESPACE).items
        warnings = [f"{e.involved_object.name}: {e.message}" for e in events if e.type == "Warning"]
        return self.kubectl("get", "pods", check=False).stdout + "\n".join(warnings[-10:])


def condition(status: V1PodStatus, name: str) -> str | None:
    """Return the status of a pod's condition."""
    return next((each.status for each in status.conditions or [] if each.type == name), None)


def lines(stream: IO[str] | None, count: int) -> list[str]:
    """Read so many lines of a process."""
    assert stream is not None
    return [stream.readline().rstrip("\n") for _ in range(count)]


def private_image(folder: Path) -> Path:
    """Write an image that is in no registry."""
    root = [ImageFile("bin"), ImageFile("bin/busybox", content=find_busybox().read_bytes())]
    program = ImageConfig(entrypoint=["/bin/busybox", "sleep", "1000"], env={"OF": "the image"})
    return write_images(folder / "private.tar", [Image("example.org/private:1", root, program)])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One node in gVisor and all the pods, which come up side by side."""
    toolchain = Toolchain()
    folder = tmp_path_factory.mktemp("pods")
    with open_session(NodeSpec(), toolchain=toolchain, folder=folder / "run", experiment="test") as up:
        made = World(up, toolchain.get("kubectl").path)
        up.cluster.node.wait_ready(SECONDS)
        up.cluster.load_image(private_image(folder))
        # It ends with the sandbox: what becomes of a namespace's pods is looked at elsewhere.
        up.cluster.core.create_namespace({"metadata": {"name": NAMESPACE}})
        up.cluster.wait_usable(NAMESPACE, Deadline.after(SECONDS))
        made.kubectl("apply", "-f", str(PODS))
        (outside(up.cluster.sandbox, MANIFESTS) / "static.json").write_text(json.dumps(STATIC))
        yield made


@pytest.fixture(scope="module")
def given(world: World) -> dict[str, str]:
    """What the containers of pod ``given`` see, by the name of the question; asked in one go each."""
    world.wait_ready("given")
    return {
        name: answer
        for container, questions in QUESTIONS.items()
        for name, answer in zip(
            questions,
            world.sh("given", container, f"\necho {MARK}\n".join(questions.values())).split(f"{MARK}\n"),
            strict=True,
        )
    }


# Logs, exec, attach, port-forward.


def test_logs_have_all_that_was_written_in_its_order(world: World) -> None:
    world.wait_ready("talk")
    text = world.kubectl("logs", "talk", "-c", "talker").stdout.splitlines()
    assert text == [f"line {number}" for number in range(len(text))]
    assert len(world.kubectl("logs", "talk", "-c", "talker", "--tail=2").stdout.splitlines()) == 2
    stamped = world.kubectl("logs", "talk", "-c", "talker", "--timestamps", "--tail=1").stdout
    assert stamped.split(" ", 1)[0].startswith("20")


def test_logs_are_followed_while_they_are_written(world: World) -> None:
    world.wait_ready("talk")
    with world.running("logs", "--follow", "--tail=1", "talk", "-c", "talker") as process:
        seen = lines(process.stdout, 6)
    first = int(seen[0].removeprefix("line "))
    assert seen == [f"line {first + number}" for number in range(6)]


@pytest.mark.parametrize("code", [1, 255])
def test_exec_gives_the_exit_code(world: World, code: int) -> None:
    world.wait_ready("talk")
    done = world.kubectl("exec", "talk", "-c", "talker", "--", "sh", "-c", f"exit {code}", check=False)
    assert done.returncode == code


def test_exec_has_three_streams(world: World) -> None:
    world.wait_ready("talk")
    text = "".join(f"{number}\n" for number in range(2000))
    script = "cat; echo aside >&2"
    done = world.kubectl("exec", "-i", "talk", "-c", "talker", "--", "sh", "-c", script, stdin=text)
    assert done.stdout == text
    assert "aside\n" in done.stderr


def test_exec_of_what_is_not_there_is_refused_by_name(world: World) -> None:
    world.wait_ready("talk")
    done = world.kubectl("exec", "talk", "-c", "talker", "--", "no-such-program", check=False)
    assert done.returncode != 0
    assert "no-such-program" in done.stderr


def test_attach_reaches_the_containers_own_input_and_output(world: World) -> None:
    world.wait_ready("talk")
    with world.running("attach", "-i", "talk", "-c", "reader") as process:
        assert process.stdin is not None
        for word in ("one", "two"):
            process.stdin.write(f"{word}\n")
        process.stdin.flush()
        assert process.stdout is not None
        seen = [line.strip() for line in iter(process.stdout.readline, "got two\n")]
    assert "got one" in seen


def test_port_forward_reaches_a_server_in_the_pod(world: World) -> None:
    world.wait_ready("talk")
    with world.running("port-forward", "pod/talk", ":8080", "--address=127.0.0.1") as process:
        (said,) = lines(process.stdout, 1)
        assert "Forwarding from 127.0.0.1:" in said, said
        port = said.split("127.0.0.1:")[1].split(" ", maxsplit=1)[0]
        for _ in range(3):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/page", timeout=10) as answer:
                assert answer.read() == b"served\n"


# What pods are given.


def test_variables_come_from_everywhere(world: World, given: dict[str, str]) -> None:
    pairs = (line.partition("=") for line in given["variables"].splitlines())
    seen = {name: value for name, _, value in pairs}
    assert {
        "PLAIN": "text",
        "COLOUR": "green",
        "PASSWORD": "swordfish",
        "NAME": "given",
        "NODE": world.cluster.node.name,
        "LIMIT": str(64 << 20),
        "EXPANDED": "text-green",
        "ALL_colour": "green",
    }.items() <= seen.items()


def test_files_of_config_maps_and_secrets(given: dict[str, str]) -> None:
    assert given["files"] == "greena = 1\na = 1\nswordfish"
    assert given["mode"] == "400\n"
    assert "Read-only file system" in given["refused"]


def test_an_empty_dir_is_shared_by_the_containers_of_a_pod(given: dict[str, str]) -> None:
    assert given["shared"] == "written by two\n"
    assert given["shared back"] == "written by two\nback\n"


def test_an_empty_dir_in_memory_is_a_tmpfs(given: dict[str, str]) -> None:
    assert given["memory"] == "tmpfs\nkept\n"


@pytest.mark.usefixtures("given")
def test_a_host_path_is_the_nodes_folder(world: World) -> None:
    node = outside(world.cluster.sandbox, f"{STATE_DIR}/host-path")
    assert (node / "given").read_text() == "from the pod\n"


def test_projected_volumes_have_a_token_for_whom_it_was_asked(given: dict[str, str]) -> None:
    assert given["projected"] == 'tier="test"green'
    token = given["token"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    assert claims["aud"] == ["somebody"]
    assert claims["kubernetes.io"]["pod"]["name"] == "given"
    assert claims["exp"] - claims["iat"] == 600


def test_the_service_accounts_token_is_accepted_by_the_api_server(
    world: World, given: dict[str, str]
) -> None:
    spec = {"token": given["account"].strip()}
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
    done = world.kubectl("create", "-o", "json", "-f", "-", stdin=json.dumps(review))
    status = json.loads(done.stdout)["status"]
    assert status["authenticated"] is True
    assert status["user"]["username"] == f"system:serviceaccount:{NAMESPACE}:default"


def test_a_container_runs_as_the_user_that_it_is_given_on_a_root_that_it_cannot_write(
    given: dict[str, str],
) -> None:
    assert given["user"] == "65534\ntouch: /tmp/here: Read-only file system\n"


def test_resources_are_in_the_containers_cgroup(given: dict[str, str]) -> None:
    assert list(map(int, given["cgroup"].split())) == [10, 50000, 64 << 20]


def test_a_pod_that_asks_for_more_than_there_is_stays_pending_and_says_why(world: World) -> None:
    def why() -> str:
        conditions = world.status("greedy").conditions or []
        return next((each.message for each in conditions if each.reason == "Unschedulable"), "")

    world.wait(why, "pod greedy to be judged")
    assert "Insufficient cpu" in why()
    assert world.status("greedy").phase == "Pending"


# Starts, probes, restarts, ends.


def test_init_containers_run_in_their_order_beside_their_sidecar(world: World) -> None:
    world.wait(lambda: world.container("staged", "main").started, "container main to have started")
    assert world.sh("staged", "main", "cat /work/order").split() == ["first", "sidecar", "second", "main"]
    assert world.container("staged", "first").state.terminated.exit_code == 0
    assert world.container("staged", "sidecar").state.running is not None


def test_a_readiness_probe_decides_whether_a_container_is_ready(world: World) -> None:
    world.wait(lambda: world.container("staged", "main").started, "container main to have started")
    assert world.container("staged", "main").ready is False
    world.sh("staged", "main", "touch /work/ready")
    world.wait(lambda: world.container("staged", "main").ready, "main to be ready", 20)
    world.sh("staged", "main", "rm /work/ready")
    world.wait(lambda: not world.container("staged", "main").ready, "main to be unready", 20)


def test_a_liveness_probe_that_fails_restarts_its_container_alone(world: World) -> None:
    world.wait(lambda: world.container("staged", "sick").restart_count > 0, "container sick to be restarted")
    assert world.container("staged", "main").restart_count == 0
    # 128 + SIGTERM: in gVisor a container's first process has no protection from signals that it does not
    # handle (pid_namespaces(7)), so that SIGKILL (137) at the end of its grace is not needed.
    assert world.container("staged", "sick").last_state.terminated.exit_code in {137, 143}


def test_a_container_that_fails_is_restarted_and_then_backed_off(world: World) -> None:
    def backed_off() -> bool:
        status = world.container("crasher")
        waiting = status and status.state.waiting
        return bool(waiting and waiting.reason == "CrashLoopBackOff" and status.restart_count >= 1)

    world.wait(backed_off, "pod crasher to be backed off")
    assert world.container("crasher").last_state.terminated.exit_code == 5
    assert world.kubectl("logs", "--previous", "crasher").stdout == "this time\n"


def test_a_pod_that_runs_once_fails_with_its_code_and_its_last_word(world: World) -> None:
    world.wait(lambda: world.status("once").phase == "Failed", "pod once to have failed")
    ended = world.container("once").state.terminated
    assert (ended.exit_code, ended.reason, ended.message) == (7, "Error", "the reason\n")
    assert world.container("once").restart_count == 0


def test_a_pod_ends_as_it_is_asked_after_its_hook_or_is_killed_after_its_grace(world: World) -> None:
    world.wait_ready("ends")
    began = time.monotonic()
    world.kubectl("delete", "pod", "ends", "--timeout=50s")
    assert 5 <= time.monotonic() - began < 30
    node = outside(world.cluster.sandbox, f"{STATE_DIR}/host-path")
    assert (node / "ends").read_text() == "hook\nasked\n"


# Images and controllers.


def test_a_private_image_is_loaded_without_a_registry(world: World) -> None:
    world.wait_ready("given")
    done = world.kubectl("exec", "given", "-c", "own", "--", "/bin/busybox", "env")
    assert "OF=the image" in done.stdout.splitlines()


def test_an_image_that_was_not_loaded_is_refused_by_name(world: World) -> None:
    def waiting() -> V1ContainerStateWaiting | None:
        status = world.container("crasher", "unknown")
        return status and status.state.waiting

    def refused() -> bool:
        seen = waiting()
        return seen is not None and seen.reason == "ErrImageNeverPull"

    world.wait(refused, "the image to be refused")
    seen = waiting()
    assert seen is not None
    assert "example.org/unknown:1" in seen.message


def test_a_file_that_is_no_image_is_refused(world: World, tmp_path: Path) -> None:
    nothing = tmp_path / "image.tar"
    with pytest.raises(ConfigError, match="no such file"):
        world.cluster.load_image(nothing)


def test_a_job_completes_each_of_its_indexes(world: World) -> None:
    world.kubectl("wait", "--for=condition=Complete", "job/job", "--timeout=50s")
    said = world.kubectl("logs", "-l", "job-name=job", "--prefix=false").stdout
    assert sorted(said.splitlines()) == ["index 0", "index 1"]


def test_a_deployment_rolls_out_a_change(world: World) -> None:
    world.kubectl("rollout", "status", "deployment/deployment", "--timeout=50s")
    world.kubectl("set", "env", "deployment/deployment", "ROUND=2")
    world.kubectl("rollout", "status", "deployment/deployment", "--timeout=50s")
    pods = world.core.list_namespaced_pod(NAMESPACE, label_selector="app=deployment").items
    current = [pod for pod in pods if pod.metadata.deletion_timestamp is None]
    assert [pod.spec.containers[0].env[0].value for pod in current] == ["2"]


def test_a_daemon_set_has_a_pod_on_the_node(world: World) -> None:
    world.kubectl("rollout", "status", "daemonset/daemonset", "--timeout=50s")
    (pod,) = world.core.list_namespaced_pod(NAMESPACE, label_selector="app=daemonset").items
    assert pod.spec.node_name == world.cluster.node.name


def test_a_static_pod_comes_and_goes_with_its_file(world: World) -> None:
    name = f"static-{world.cluster.node.name}"

    def mirror() -> V1Pod | None:
        return found(lambda: world.core.read_namespaced_pod(name, NAMESPACE))

    def ready() -> bool:
        pod = mirror()
        return pod is not None and condition(pod.status, "Ready") == "True"

    world.wait(ready, f"{name} to be Ready")
    pod = mirror()
    assert pod is not None
    assert pod.metadata.annotations["kubernetes.io/config.source"] == "file"
    (outside(world.cluster.sandbox, MANIFESTS) / "static.json").unlink()
    world.wait(lambda: mirror() is None, f"{name} to be gone", 60)


def test_a_namespace_takes_its_pods_along_and_its_name_can_be_used_again(world: World) -> None:
    deployment = {
        "metadata": {"name": "lasting"},
        "spec": {
            "selector": {"matchLabels": {"app": "lasting"}},
            "template": {"metadata": {"labels": {"app": "lasting"}}, "spec": {"containers": SLEEPING}},
        },
    }
    with world.cluster.namespace("again") as name:
        AppsV1Api(world.cluster.client).create_namespaced_deployment(name, deployment)

        def phases() -> list[str]:
            return [pod.status.phase for pod in world.core.list_namespaced_pod("again").items]

        world.wait(lambda: phases() == ["Running"], "the deployment's pod to run")
    assert phases() == []
    assert world.core.read_namespace("again").status.phase == "Terminating"
    with world.cluster.namespace("again"):
        assert world.core.read_namespace("again").status.phase == "Active"
        assert phases() == []
