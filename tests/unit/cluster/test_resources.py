"""What deployment/greeter means, by what the API server says that it has."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest

from pytest_k3s_sandbox.cluster.reading import ApiUnavailable
from pytest_k3s_sandbox.cluster.resources import Resources, split
from pytest_k3s_sandbox.errors import ConfigError


def entry(name: str, kind: str, *short: str, namespaced: bool = True) -> dict[str, Any]:
    singular = kind.lower()
    return {
        "name": name,
        "kind": kind,
        "singularName": singular,
        "shortNames": list(short),
        "namespaced": namespaced,
    }


def group(name: str, *versions: str) -> dict[str, Any]:
    every = [{"groupVersion": f"{name}/{version}"} for version in versions]
    return {"name": name, "versions": every, "preferredVersion": every[0]}


class Api:
    """An API server; counts what is read."""

    def __init__(self) -> None:
        """Have some resources."""
        self.read_paths: list[str] = []
        self.answers: dict[str, Any] = {
            "/api/v1": {
                "resources": [
                    entry("pods", "Pod", "po"),
                    {**entry("pods/log", "Pod")},
                    entry("nodes", "Node", "no", namespaced=False),
                    entry("events", "Event", "ev"),
                ]
            },
            "/apis": {"groups": [group("broken.io", "v1"), group("apps", "v1", "v1beta1")]},
            "/apis/apps/v1": {"resources": [entry("deployments", "Deployment", "deploy")]},
            "/apis/apps/v1beta1": {"resources": [entry("olds", "Old")]},
        }

    def read(self, path: str) -> dict[str, Any] | None:
        """Return what is there."""
        self.read_paths.append(path)
        if path == "/apis/broken.io/v1":
            raise ApiUnavailable(path, "its server is away", 503)
        answer: dict[str, Any] = self.answers[path]
        return answer


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.mark.parametrize(
    "word", ["deployment", "deployments", "deploy", "Deployment", "deployments.apps", "deployment.v1.apps"]
)
def test_a_word_is_looked_up_as_kubectl_does(api: Api, word: str) -> None:
    found = Resources(lambda: api).find(f"{word}/greeter")
    assert str(found) == "deployments.apps/greeter"
    assert found.resource.path("ns", found.name) == "/apis/apps/v1/namespaces/ns/deployments/greeter"
    assert found.resource.path("ns") == "/apis/apps/v1/namespaces/ns/deployments"


def test_what_is_in_no_namespace(api: Api) -> None:
    found = Resources(lambda: api).find("node/n")
    assert found.resource.path("ns", "n") == "/api/v1/nodes/n"
    assert str(found) == "nodes/n"


def test_no_more_is_read_than_the_word_needs(api: Api) -> None:
    resources = Resources(lambda: api)
    assert str(resources.find("it")) == "pods/it"
    assert api.read_paths == ["/api/v1"]
    resources.find("deploy/x")
    resources.find("deploy/y")
    assert api.read_paths.count("/apis/apps/v1") == 1
    assert str(resources.find("old/x")) == "olds.apps/x"


def test_what_came_later_is_found(api: Api) -> None:
    resources = Resources(lambda: api)
    with pytest.raises(ConfigError):
        resources.find("widget/x")
    api.answers["/apis"]["groups"].append(group("mine.io", "v1"))
    api.answers["/apis/mine.io/v1"] = {"resources": [entry("widgets", "Widget")]}
    assert str(resources.find("widget/x")) == "widgets.mine.io/x"


def test_an_unknown_kind_is_told_with_what_was_meant(api: Api) -> None:
    with pytest.raises(ConfigError) as caught:
        Resources(lambda: api).find("deploymnt/greeter")
    said = str(caught.value)
    assert "the kind 'deploymnt' of 'deploymnt/greeter'" in said
    assert "did you mean 'deployment'?" in said


@pytest.mark.parametrize("text", ["", "/", "pod/", "a/b/c", "--all", "pod/-x", "pod/a b", "pod/\x1b"])
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split(text)
    assert "Remedy: name it like 'deployment/greeter'" in str(caught.value)


def test_a_missing_answer_is_not_told_as_an_unknown_kind(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(path: str) -> NoReturn:
        raise ApiUnavailable(path, "refused")

    monkeypatch.setattr(api, "read", away)
    resources = Resources(lambda: api)
    for _ in range(2):
        with pytest.raises(ApiUnavailable):
            resources.find("pod/x")
