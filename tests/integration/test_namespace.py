"""A user's test on a real node: apply, wait, logs, exec, port-forward, events, delete."""

from __future__ import annotations

import contextlib
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError

import pytest

from pytest_k3s_sandbox.cluster.images import Image, ImageConfig, ImageFile, find_busybox, write_images
from pytest_k3s_sandbox.cluster.namespace import Namespace
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError, WaitError
from pytest_k3s_sandbox.pytestplugin.namespaces import Namespaces

pytestmark = [pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor"), pytest.mark.timeout(200)]

SECONDS = 90
"""For pods to come up, on a machine that does much else."""

GREETER = """\
# Two pods that write and serve.
apiVersion: apps/v1
kind: Deployment
metadata: {name: greeter}
spec:
  replicas: 2
  selector: {matchLabels: {app: greeter}}
  template:
    metadata: {labels: {app: greeter}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: web
          image: busybox:1.36
          command: [sh, -c, "echo hi; mkdir /www; echo page > /www/index.html; exec httpd -f -p 8080 -h /www"]
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {exec: {command: [test, -e, /www/index.html]}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: greeter}
spec: {selector: {app: greeter}, ports: [{name: web, port: 80, targetPort: http}]}
"""


def pod(name: str, script: str, **spec: object) -> dict[str, object]:
    """Return a pod that runs a script once."""
    container = {"name": "it", "image": "busybox:1.36", "command": ["sh", "-c", script]}
    wanted = {"containers": [container], "restartPolicy": "Never", "terminationGracePeriodSeconds": 0, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": wanted}


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - a forwarded port
        return bytes(answer.read())


@pytest.fixture(scope="module")
def greeter(k3s_namespaces: Namespaces, tmp_path_factory: pytest.TempPathFactory) -> Namespace:
    """A namespace with the greeter, for all tests of this module."""
    file = tmp_path_factory.mktemp("manifests") / "greeter.yaml"
    file.write_text(GREETER)
    namespace = k3s_namespaces(scope="module")
    assert namespace.apply(file) == ("deployment.apps/greeter", "service/greeter")
    namespace.wait("deployment/greeter", "Available", timeout=SECONDS)
    namespace.wait("deploy/greeter", "Ready", timeout=SECONDS)
    namespace.wait("pods", "Ready", selector="app=greeter", timeout=SECONDS)
    return namespace


def test_it_is_the_name(greeter: Namespace) -> None:
    assert greeter.cluster.core.read_namespace(greeter).metadata.name == f"{greeter}" == str(greeter)


def test_logs_of_all_pods(greeter: Namespace) -> None:
    said = greeter.logs("deployment/greeter").splitlines()
    assert len(said) == 2
    assert all(line.startswith("[pod/greeter-") and line.endswith("/web] hi") for line in said)
    assert greeter.logs("service/greeter", container="web", prefix=False) == "hi\nhi\n"


def test_exec(greeter: Namespace) -> None:
    assert greeter.exec("deployment/greeter", "cat", "/www/index.html").stdout == "page\n"
    assert greeter.exec("deployment/greeter", "cat", stdin="given").stdout == "given"
    assert greeter.exec("deployment/greeter", "false", check=False).returncode == 1
    with pytest.raises(ClusterError, match=r"in deployment/greeter: exit code 3: no") as caught:
        greeter.exec("deployment/greeter", "sh", "-c", "printf 'no\\033[2J' >&2; exit 3")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(("what", "port"), [("deployment/greeter", 8080), ("service/greeter", "web")])
def test_a_port_is_forwarded_as_long_as_the_block_lasts(
    greeter: Namespace, what: str, port: int | str
) -> None:
    with greeter.port_forward(what, port) as url:
        assert url == f"http://127.0.0.1:{url.port}"
        assert get(url) == b"page\n"
    with pytest.raises(URLError):
        get(url)


def test_a_forward_survives_a_connection_that_is_refused(greeter: Namespace) -> None:
    name = next(event.about for event in greeter.events() if event.reason == "Started").partition("/")[2]
    serve = "mkdir -p /late; echo late > /late/page; httpd -p 8081 -h /late"
    with greeter.port_forward(name, 8081) as url:
        with contextlib.suppress(OSError):
            get(f"{url}/page")  # kubectl ends with it
        greeter.exec(name, "sh", "-c", serve)

        def served() -> bool:
            with contextlib.suppress(OSError):
                return get(f"{url}/page") == b"late\n"
            return False

        greeter.cluster.wait(served, "the late server to be reached", Deadline.after(30))


@pytest.mark.parametrize(
    ("what", "port", "words"),
    [
        ("deployment/nothing", 80, '"nothing" not found'),
        ("service/greeter", 81, "does not have a service port 81"),
        ("service/greeter", "nothing", "does not have a named port 'nothing'"),
    ],
)
def test_a_port_that_is_not_there(greeter: Namespace, what: str, port: int | str, words: str) -> None:
    with pytest.raises(ClusterError, match=words), greeter.port_forward(what, port, timeout=10):
        pass


def test_events(greeter: Namespace) -> None:
    (event,) = greeter.events("deployment/greeter")
    assert (event.type, event.reason, event.about) == ("Normal", "ScalingReplicaSet", "deployment/greeter")
    assert "Scaled up" in str(event)
    times = [event.time for event in greeter.events() if event.time is not None]
    assert times == sorted(times)


def test_a_pod_that_ends(k3s_namespace: Namespace) -> None:
    k3s_namespace.apply([pod("good", "echo one; echo two"), pod("bad", "printf 'oh\\033[2J\\n'; exit 3")])
    lines = list(k3s_namespace.logs("good", follow=True, timeout=SECONDS))
    assert lines == ["one", "two"]
    k3s_namespace.wait("good", "Succeeded", timeout=SECONDS)
    k3s_namespace.wait("pod/good", "jsonpath={.status.phase}=Succeeded")
    assert k3s_namespace.logs("good", tail=1) == "two\n"

    k3s_namespace.wait("pod/bad", "Failed", timeout=SECONDS)
    began = time.monotonic()
    with pytest.raises(WaitError, match=r"waiting for pod/bad to be Running .* is of no use") as caught:
        k3s_namespace.wait("pod/bad", "Running", timeout=SECONDS)
    assert time.monotonic() - began < SECONDS / 3
    said = str(caught.value)
    for words in ("it has failed already: container it ended with exit code 3", "condition Ready=False",
                  " Started pod/bad: ", "[pod/bad/it] oh\\x1b[2J"):  # fmt: skip
        assert words in said

    k3s_namespace.apply(pod("talk", "while :; do echo word; sleep 0.2; done"))
    k3s_namespace.wait("talk", "Running", timeout=SECONDS)
    talk = k3s_namespace.logs("talk", follow=True, timeout=2)
    assert next(talk) == "word"
    with pytest.raises(WaitError, match="timed out following the log of pod/talk"):
        list(talk)
    k3s_namespace.delete("talk")
    k3s_namespace.wait("talk", "deleted")


def test_a_wait_that_times_out_says_what_there_is(k3s_namespace: Namespace) -> None:
    never = pod("never", "echo started; sleep 1000")
    probe = {"exec": {"command": ["false"]}, "periodSeconds": 1}
    container = {"name": "it", "image": "busybox:1.36", "command": ["sh", "-c", "echo started; sleep 99"]}
    never["spec"] = {
        "containers": [{**container, "readinessProbe": probe}],
        "terminationGracePeriodSeconds": 0,
    }
    k3s_namespace.apply(never)
    k3s_namespace.wait("never", "Running", timeout=SECONDS)
    with pytest.raises(WaitError, match="timed out waiting for pod/never to be Ready") as caught:
        k3s_namespace.wait("never", "Ready", timeout=4)
    said = str(caught.value)
    for words in ("container it is running and not ready", "condition Ready=False (ContainersNotReady)",
                  "Unhealthy", "[pod/never/it] started"):  # fmt: skip
        assert words in said
    with pytest.raises(WaitError, match="it does not exist; pods that exist: never"):
        k3s_namespace.wait("nver", "Ready", timeout=0.5)


def test_a_missing_image_ends_the_wait_and_a_loaded_one_runs(
    k3s_namespace: Namespace, tmp_path: Path
) -> None:
    container = {"name": "it", "image": "example.org/mine:1", "imagePullPolicy": "Never"}
    mine = {**pod("mine", ""), "spec": {"containers": [container], "terminationGracePeriodSeconds": 0}}
    k3s_namespace.apply(mine)
    with pytest.raises(WaitError, match="container it waits: ErrImageNeverPull"):
        k3s_namespace.wait("mine", "Running", timeout=SECONDS)
    k3s_namespace.delete(mine, grace=1)

    root = [ImageFile("bin"), ImageFile("bin/busybox", content=find_busybox().read_bytes())]
    image = Image("example.org/mine:1", root, ImageConfig(entrypoint=["/bin/busybox", "sleep", "1000"]))
    assert k3s_namespace.load_image(write_images(tmp_path / "mine.tar", [image])) == ("example.org/mine:1",)
    k3s_namespace.apply(mine)
    k3s_namespace.wait("mine", "Running", timeout=SECONDS)


def role(namespaces: Namespaces, name: str) -> Callable[[], str]:
    """Return what tells whether there is a role of the whole cluster, by any namespace."""
    cluster = namespaces().cluster
    return lambda: cluster.kubectl("get", "clusterrole", name, "--output=name", check=False).stdout


@pytest.fixture
def outside(k3s_namespaces: Namespaces) -> Iterator[Callable[[], str]]:
    """What tells whether the role ``mine`` exists; there is none when the test's namespace is gone."""
    ask = role(k3s_namespaces, "mine")
    yield ask
    assert ask() == ""


def test_what_is_in_no_namespace_goes_with_it(outside: Callable[[], str], k3s_namespaces: Namespaces) -> None:
    namespace = k3s_namespaces(scope="function")
    rules = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "rules": []}
    namespace.cluster.kubectl("create", "clusterrole", "theirs", "--verb=get", "--resource=pods")
    namespace.apply([{**rules, "metadata": {"name": name}} for name in ("mine", "theirs")])
    assert namespace._outside == ["clusterrole.rbac.authorization.k8s.io/mine"]
    assert outside() != ""
    namespace.leave()
    assert role(k3s_namespaces, "theirs")() != ""


def test_the_api_servers_own_words(k3s_namespace: Namespace) -> None:
    with pytest.raises(ClusterError, match=r"applying Pod x in namespace .*containrs"):
        k3s_namespace.apply({**pod("x", ""), "spec": {"containrs": []}})
    with pytest.raises(ClusterError, match=r"deleting pod/none in namespace .*not found"):
        k3s_namespace.delete("pod/none")
    k3s_namespace.delete("pod/none", missing_ok=True)
    with pytest.raises(ClusterError, match=r"pod/none in namespace .* it does not exist"):
        k3s_namespace.logs("pod/none")


def test_no_forward_remains(greeter: Namespace) -> None:
    with greeter.port_forward("deployment/greeter", 8080) as url:
        host, port = url.host, url.port
    with socket.socket() as free:  # nothing listens there
        free.bind((host, port))
