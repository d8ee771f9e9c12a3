"""Manifests: the text that kubectl gets, and the errors about other input."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import cast

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.cluster.manifests import Manifest, is_path, read
from pytest_k3s_sandbox.errors import ConfigError

POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "it"}}
TEXT = "apiVersion: v1\nkind: Pod\nmetadata: {name: it}\n"


def names(given: Manifest, *folders: Path) -> list[str]:
    return [each.content["metadata"]["name"] for each in read(given, "ns", folders).documents]


def refusal(given: object, *folders: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read(cast("Manifest", given), "ns", folders)
    assert caught.value.cause
    assert caught.value.remedy
    return str(caught.value)


@pytest.mark.parametrize("manifest", [POD, TEXT, json.dumps(POD), [POD]])
def test_an_object_comes_as_a_dict_a_text_or_a_list(manifest: Manifest) -> None:
    assert names(manifest) == ["it"]


def test_a_file_is_found_beside_the_test_before_the_working_directory(tmp_path: Path) -> None:
    for folder, name in (("first", "one"), ("second", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "it.yaml").write_text(TEXT.replace("it", name))
    assert names("it.yaml", tmp_path / "first", tmp_path / "second") == ["one"]
    assert names(Path("it.yaml"), tmp_path / "none", tmp_path / "second") == ["two"]
    assert names(str(tmp_path / "second" / "it.yaml"), tmp_path / "first") == ["two"]


def test_a_folder_is_all_manifests_in_it_by_their_names(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", "c.json"):
        (tmp_path / name).write_text(json.dumps(POD).replace("it", name[0]))
    (tmp_path / "notes.txt").write_text("none")
    assert names(tmp_path) == ["a", "b", "c"]


def test_kubectl_gets_a_text_as_it_was_written() -> None:
    text = f"# a comment\n{TEXT}data: {{at: 12:30, day: 2026-01-01}}\n---\n# nothing\n---\n{TEXT}"
    found = read([text, POD], "ns", [])
    assert text in found.text
    assert found.text.startswith("---\n")
    assert len(found.documents) == 3
    assert len([each for each in yaml.safe_load_all(found.text) if each]) == 3


def test_a_list_is_its_items() -> None:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [POD, POD]})
    assert names(text) == ["it", "it"]
    bad = {"apiVersion": "v1", "kind": "PodList", "items": [POD, {"kind": "Pod"}]}
    assert "document 1, item 2" in refusal(bad)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "greeter.yaml").write_text(TEXT)
    said = refusal("greter.yaml", tmp_path)
    assert f"the manifest greter.yaml: there is no such file; tried {tmp_path}/greter.yaml" in said
    assert "did you mean 'greeter.yaml'?" in said


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "no file in it ends with .yaml, .yml, .json" in refusal(tmp_path)


def test_a_text_that_does_not_parse_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("kind: Pod\nmetadata:\n  name: {{ .Values.name }}\n")
    said = refusal("bad.yaml", tmp_path)
    assert "bad.yaml, line 3" in said
    assert "{{ .Values.name }}" in said
    assert "Helm" in said
    assert "the manifest, line 2" in refusal("kind: Pod\n\tname: x\n")


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"apiVersion": "v1", "metadata": {"name": "x"}}, "it has no kind; it has apiVersion, metadata"),
        ({"kind": "Deployment", "metadata": {"name": "x"}}, "add it, as in `apiVersion: apps/v1`"),
        ("- one\n- two\n", "it is not an object but a list"),
        ("just words: of\n", "it has no apiVersion"),
        ("# nothing\n", "it has no object"),
        ("", "it has no object"),
        ([], "it has no object"),
        (7, "it is of type int"),
        ({**POD, "spec": date(2026, 1, 1)}, "it cannot be JSON"),
        (
            {**POD, "metadata": {"name": "it", "namespace": "prod"}},
            "names the namespace 'prod', and this is 'ns'",
        ),
        ({**POD, "metadata": {"generateName": "it-"}}, "generateName gives none"),
        ({**POD, "metadata": {"name": 7}}, "a text in quotes"),
        ({**POD, "metadata": None}, "apply needs metadata.name"),
    ],
)
def test_what_is_no_object_of_the_namespace_is_refused(manifest: object, words: str, tmp_path: Path) -> None:
    assert words in refusal(manifest, tmp_path / "none")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "it.yaml").write_bytes(b"\xff\xfe\x00")
    assert "it is not UTF-8" in refusal("it.yaml", tmp_path)


def test_its_own_namespace_may_be_named() -> None:
    assert names({**POD, "metadata": {"name": "it", "namespace": "ns"}}) == ["it"]


@pytest.mark.parametrize("text", ["greeter.yaml", "a folder/greeter.yaml", "/abs", "C:x"])
def test_what_is_a_path(text: str) -> None:
    assert is_path(text)


@given(st.text())
def test_any_text_is_read_or_refused_with_a_remedy(text: str) -> None:
    try:
        found = read(f"{text}\n", "ns", [Path("/none")])
    except ConfigError as error:
        remedy = error.remedy
    else:
        remedy = found.text
    assert remedy
