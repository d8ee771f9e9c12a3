"""A namespace's operations by what an API server and kubectl answer; nothing is started."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.cluster import forwarding
from pytest_k3s_sandbox.cluster.access import deadline_of, short
from pytest_k3s_sandbox.cluster.applying import is_reference
from pytest_k3s_sandbox.cluster.events import Event, events_of
from pytest_k3s_sandbox.cluster.namespace import Namespace
from pytest_k3s_sandbox.cluster.process_wait import until
from pytest_k3s_sandbox.cluster.reading import ApiReader
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError, ConfigError, WaitError
from pytest_k3s_sandbox.sandbox.base import Completed
from pytest_k3s_sandbox.support.escaping import visible

PODS = "/api/v1/namespaces/ns/pods"
EVENTS = "/api/v1/namespaces/ns/events"
KINDS = {
    "/api/v1": [("pods", "Pod"), ("services", "Service")],
    "/apis/apps/v1": [("deployments", "Deployment")],
}
APPS = {"versions": [{"groupVersion": "apps/v1"}], "preferredVersion": {"groupVersion": "apps/v1"}}


class Cluster:
    """A cluster that answers what a test has put there.

    Attributes:
        there: The answers by path, without their queries.
        kubectls: What kubectl was called with.
        program: What is run in kubectl's place, as Python.
        loaded: The archive that was loaded, and the seconds for it.
    """

    logs = Path("/logs")
    lost = None
    core: Any = None

    def __init__(self) -> None:
        """Have the usual kinds."""
        self.there: dict[str, Any] = {"/apis": {"groups": [APPS]}}
        for base, kinds in KINDS.items():
            each = [{"name": name, "kind": kind, "namespaced": True} for name, kind in kinds]
            self.there[base] = {"resources": each}
        self.kubectls: list[tuple[str, ...]] = []
        self.answer = Completed((), 0, "", "")
        self.program = ""
        self.loaded: tuple[Path, float] | None = None

    def reader(self, _seconds: float = 0.0) -> ApiReader:
        """Read what is there."""
        return cast("ApiReader", SimpleNamespace(read=self.read, text=self.read))

    def read(self, path: str) -> object:
        """Return what is at a path."""
        return self.there.get(path.partition("?")[0])

    def kubectl(self, *words: str, **_: object) -> Completed:
        """Note the words."""
        self.kubectls.append(words)
        return self.answer

    def kubectl_command(self, *words: str) -> tuple[list[str], dict[str, str]]:
        """Run the program in its place."""
        self.kubectls.append(words)
        return [sys.executable, "-uc", self.program, *words], {}

    def wait(
        self,
        condition: Callable[[], bool],
        what: str,
        deadline: Deadline,
        hint: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Wait."""
        until(condition, what=what, deadline=deadline, alive={}, poll=0.01, hint=hint)

    def load_image(self, tar: Path, seconds: float = 60.0) -> tuple[str, ...]:
        """Note the archive and the time for it."""
        self.loaded = (tar, seconds)
        return ("example.org/mine:1",)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def namespace(cluster: Cluster, tmp_path: Path) -> Namespace:
    return Namespace("ns", cluster, [tmp_path])


def pod(name: str, phase: str = "Running", *states: dict[str, Any], **metadata: object) -> dict[str, Any]:
    states = states or ({"running": {}},)
    names = [f"c{number}" for number in range(len(states))]
    statuses = [{"name": each, "state": state} for each, state in zip(names, states, strict=True)]
    return {
        "kind": "Pod",
        "metadata": {"name": name, **metadata},
        "spec": {"containers": [{"name": each} for each in names]},
        "status": {"phase": phase, "containerStatuses": statuses},
    }


def put(cluster: Cluster, *pods: dict[str, Any]) -> None:
    cluster.there[PODS] = {"kind": "PodList", "items": [dict(each) for each in pods]}
    for each in pods:
        cluster.there[f"{PODS}/{each['metadata']['name']}"] = each


def deployment(cluster: Cluster, **status: object) -> None:
    cluster.there["/apis/apps/v1/namespaces/ns/deployments/it"] = {
        "kind": "Deployment",
        "metadata": {"name": "it"},
        "spec": {"selector": {"matchLabels": {"app": "it"}}},
        "status": status,
    }


def test_it_is_a_text(namespace: Namespace) -> None:
    assert namespace == "ns"
    assert f"{namespace}" == "ns"
    assert json.dumps([namespace]) == '["ns"]'
    assert {"ns": 1}[namespace] == 1


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "30", None, True])
def test_a_time_that_is_none_is_refused(namespace: Namespace, timeout: object) -> None:
    with pytest.raises(ConfigError, match=r"neither a number of seconds nor a Deadline"):
        namespace.wait("pod/x", "Ready", timeout=cast("float", timeout))
    deadline = Deadline.after(3)
    assert deadline_of(deadline) is deadline


def test_apply_remembers_what_is_in_no_namespace(namespace: Namespace, cluster: Cluster) -> None:
    there = cluster.there
    group = {"versions": [{"groupVersion": "g.io/v1"}], "preferredVersion": {"groupVersion": "g.io/v1"}}
    there["/apis"]["groups"].append(group)
    there["/apis/g.io/v1"] = {"resources": [{"name": "wides", "kind": "Wide", "namespaced": False}]}
    there["/apis/g.io/v1/wides/c"] = {"kind": "Wide"}
    items: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "ns"}},
        *({"apiVersion": "g.io/v1", "kind": "Wide", "metadata": {"name": name}} for name in "bc"),
    ]
    cluster.answer = Completed((), 0, json.dumps({"kind": "List", "items": items}), "")
    assert namespace.apply([{**each, "metadata": {"name": each["metadata"]["name"]}} for each in items]) == (
        "pod/a",
        "wide.g.io/b",
        "wide.g.io/c",
    )
    namespace.leave()
    assert cluster.kubectls[-1][1:3] == ("delete", "wide.g.io/b")
    count = len(cluster.kubectls)
    namespace.leave()
    assert len(cluster.kubectls) == count


def test_a_refusal_is_the_api_servers_with_nothing_that_a_terminal_obeys(
    namespace: Namespace, cluster: Cluster
) -> None:
    cluster.answer = Completed((), 1, "", "error: \x1b[2J no\nsecond\n" + "x" * 5000)
    with pytest.raises(ClusterError) as caught:
        namespace.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}})
    said = str(caught.value)
    assert said.startswith("applying Pod a in namespace ns: error: \\x1b[2J no\nsecond\n")
    assert len(said) < 2000


@pytest.mark.parametrize("word", ["deployment/it", "it", "deploy/a.b", "pod/a"])
def test_a_reference(word: str, tmp_path: Path) -> None:
    assert is_reference(word, [tmp_path])


@pytest.mark.parametrize(
    "word", ["a.yaml", "folder/a.yaml", "/abs", "there", "kind: Pod", "a\nb", "../x", ""]
)
def test_no_reference(word: str, tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    assert not is_reference(word, [tmp_path])


def test_logs_of_one_container_are_as_they_were_written(namespace: Namespace, cluster: Cluster) -> None:
    put(cluster, pod("a"))
    cluster.there[f"{PODS}/a/log"] = "\x1b[1mbold\nno end"
    assert namespace.logs("a") == "\x1b[1mbold\nno end"


def test_logs_of_several_have_their_places(namespace: Namespace, cluster: Cluster) -> None:
    deployment(cluster)
    put(cluster, pod("a", "Running", {"running": {}}, {"waiting": {}}), pod("b"))
    cluster.there[f"{PODS}/a/log"] = "one\ntwo"
    cluster.there[f"{PODS}/b/log"] = "three\n"
    assert namespace.logs("deployment/it") == "[pod/a/c0] one\n[pod/a/c0] two\n[pod/b/c0] three\n"
    assert namespace.logs("deployment/it", prefix=False) == "one\ntwo\nthree\n"
    with pytest.raises(ConfigError, match=r"the container 'c' of deployment/it: its containers are c0, c1"):
        namespace.logs("deployment/it", container="c")


def test_what_has_not_started_has_written_nothing(namespace: Namespace, cluster: Cluster) -> None:
    put(cluster, pod("a", "Pending", {"waiting": {"reason": "ContainerCreating"}}))
    assert namespace.logs("a") == ""
    with pytest.raises(ClusterError, match="pods that exist: a"):
        namespace.logs("b")


def test_a_wait_is_over_at_once_when_it_is_so(namespace: Namespace, cluster: Cluster) -> None:
    put(cluster, pod("a"), pod("b"))
    namespace.wait("a", "Running", timeout=0)
    namespace.wait("pods", "Running", selector="app=it", timeout=0)
    namespace.wait("pod/c", "deleted", timeout=0)
    with pytest.raises(ConfigError, match="a selector chooses among all objects of a kind"):
        namespace.wait("pod/a", "Running", selector="app=it")


def test_a_wait_ends_with_the_pod(namespace: Namespace, cluster: Cluster) -> None:
    put(cluster, pod("a", "Failed", {"terminated": {"exitCode": 3}}))
    cluster.there[f"{PODS}/a/log"] = "Remedy: \x1b[2J\n" * 50
    about = {"kind": "Pod", "name": "a"}
    cluster.there[EVENTS] = {
        "items": [{"involvedObject": about, "type": "Warning", "reason": "R", "message": "m\n\x07" * 999}]
    }
    with pytest.raises(WaitError) as caught:
        namespace.wait("a", "Ready", timeout=60)
    said = str(caught.value)
    assert "waiting for pod/a to be Ready (namespace ns) is of no use: pod a: it has failed already" in said
    assert "container c0 ended with exit code 3" in said
    assert "--:--:-- Warning R pod/a: m\\n\\x07" in said
    assert said.count("  [pod/a/c0] Remedy: \\x1b[2J") == 8
    assert max(map(len, said.splitlines())) < 1000
    assert said.isprintable() or visible(said) == said


def test_a_workload_without_an_image_is_given_up_after_a_while(
    namespace: Namespace, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_k3s_sandbox.cluster import object_wait

    monkeypatch.setattr(object_wait, "PODS_SECONDS", 0.0)
    monkeypatch.setattr(object_wait, "STAYS_SECONDS", 0.05)
    deployment(cluster)
    lacking = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    put(cluster, pod("old", "Pending", lacking, deletionTimestamp="2026-01-01T00:00:00Z"), pod("new"))
    with pytest.raises(WaitError, match="timed out"):
        namespace.wait("deployment/it", "Available", timeout=0.2)
    put(cluster, pod("new", "Pending", lacking))
    with pytest.raises(WaitError, match=r"of no use: deployment it: pod new: container c0 waits: ImagePull"):
        namespace.wait("deployment/it", "Available", timeout=60)


def test_a_time_out_says_what_there_is(namespace: Namespace, cluster: Cluster) -> None:
    condition = {"type": "Available", "status": "False", "reason": "Why", "message": "words"}
    deployment(cluster, conditions=[condition], unavailableReplicas=1)
    put(cluster, pod("a", "Running", {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}))
    with pytest.raises(WaitError) as caught:
        namespace.wait("deployment/it", "Available", timeout=0.05)
    said = str(caught.value)
    for words in (
        "timed out waiting for deployment/it to be Available (namespace ns)",
        "deployment it (unavailableReplicas 1)",
        "condition Available=False (Why): words",
        "pod a is Running; container c0 is waiting: CrashLoopBackOff: back-off",
    ):
        assert words in said
    cluster.there[PODS] = {}
    with pytest.raises(WaitError, match="no pods have the labels a=b"):
        namespace.wait("pods", "Ready", selector="a=b", timeout=0)


SERVES = "import time; print('Forwarding from 127.0.0.1:40123 -> 80'); time.sleep(60)"


def test_a_forward_is_a_url_and_ends(namespace: Namespace, cluster: Cluster) -> None:
    cluster.program = SERVES
    with namespace.port_forward("pod/a", "http", scheme="https") as url:
        assert (url, url.host, url.port) == ("https://127.0.0.1:40123", "127.0.0.1", 40123)
    assert "--address=127.0.0.1" in cluster.kubectls[0]
    assert cluster.kubectls[0][-2:] == ("pods/a", ":http")


def test_a_forward_that_fails(namespace: Namespace, cluster: Cluster) -> None:
    cluster.program = (
        "import sys; sys.exit('error: unable to forward port because pod is not running \\x1b[1m')"
    )
    with (
        pytest.raises(ClusterError, match=r"pod is not running \\x1b") as caught,
        namespace.port_forward("a", 1),
    ):
        pass
    assert caught.value.remedy is not None
    cluster.program = "import time; time.sleep(60)"
    with (
        pytest.raises(ClusterError, match="no pod of it runs in time"),
        namespace.port_forward("a", 1, timeout=0.3),
    ):
        pass


def test_a_forward_that_ends_is_started_again_and_an_error_has_its_words(
    namespace: Namespace, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "AGAIN_SECONDS", 0)
    cluster.program = "print('Forwarding from 127.0.0.1:40123 -> 80'); print('error: lost connection to pod')"

    def use() -> None:
        with namespace.port_forward("pod/a", 80):
            until(lambda: len(cluster.kubectls) > 2, what="a start", deadline=Deadline.after(30), alive={})
            raise OSError("reset")

    with pytest.raises(OSError, match="reset") as caught:
        use()
    assert cluster.kubectls[1][-1] == "40123:80"
    assert "kubectl said: error: lost connection to pod" in caught.value.__notes__[0]


@pytest.mark.parametrize("port", [0, 65536, -1, True, "", "A", "a b", "0", "--x", "x" * 16, 1.5])
def test_no_port(namespace: Namespace, port: object) -> None:
    with pytest.raises(ConfigError, match="neither a TCP port"):
        namespace.port_forward("pod/a", cast("int", port))


def test_exec_without_a_command(namespace: Namespace) -> None:
    with pytest.raises(ConfigError, match="there is no command"):
        namespace.exec("pod/a")


def test_following_what_has_ended(namespace: Namespace, cluster: Cluster) -> None:
    put(cluster, pod("a"))
    cluster.program = "print('one'); print('two', end='')"
    assert list(namespace.logs("a", follow=True)) == ["one", "two"]
    cluster.program = "import sys; print('one'); sys.exit('error: gone')"
    with pytest.raises(ClusterError, match="following the log of pod/a: error: gone"):
        list(namespace.logs("a", follow=True))
    with pytest.raises(ConfigError):
        namespace.logs("a", follow=True, previous=True)  # type: ignore[call-overload] # refused, too
    with pytest.raises(ConfigError):
        namespace.logs("a", tail=-1)


def test_events_are_in_the_order_of_their_time() -> None:
    raw: list[dict[str, Any]] = [
        {"lastTimestamp": "2026-01-01T00:00:02Z", "reason": "second", "count": 3},
        {"eventTime": "2026-01-01T00:00:01.5Z", "reason": "first", "involvedObject": None},
        {"reason": "none", "metadata": {}},
    ]
    found = events_of(raw)
    assert [event.reason for event in found] == ["none", "first", "second"]
    assert str(found[2]).startswith("00:00:02 ")
    assert str(found[2]).endswith("(3 times)")


@given(st.text(), st.text(), st.text())
def test_an_event_is_one_harmless_line(reason: str, message: str, name: str) -> None:
    about = {"kind": "Pod", "name": name}
    line = str(Event.of({"reason": reason, "message": message, "involvedObject": about}))
    assert "\n" not in line
    assert visible(line) == line


@given(st.text(), st.integers(1, 50))
def test_a_short_text_is_short_and_harmless(text: str, most: int) -> None:
    assert visible(short(text, most)) == short(text, most)
    assert len(short(text, most)) <= 10 * (most + 1)


def test_an_image_is_looked_for_beside_the_test_first(
    cluster: Cluster, namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.tar").write_bytes(b"")
    monkeypatch.chdir("/")
    assert namespace.load_image("mine.tar", timeout=7) == ("example.org/mine:1",)
    assert cluster.loaded is not None
    file, seconds = cluster.loaded
    assert file == tmp_path / "mine.tar"
    assert 6 < seconds <= 7
    namespace.load_image("none.tar")
    assert cluster.loaded[0] == Path("none.tar")
