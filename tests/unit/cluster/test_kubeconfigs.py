"""A user's kubeconfig gets a cluster and loses it again; all else in it stays as it was."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.cluster import kubeconfigs, userfile
from pytest_k3s_sandbox.cluster.certificates import kubeconfig
from pytest_k3s_sandbox.errors import ConfigError

NAME = "k3s-sandbox-up"
OURS = kubeconfig("https://10.0.0.2:6443", b"ca", b"cert", b"key")
USERS = """\
# mine
apiVersion: v1
kind: Config
clusters:
- name: prod
  cluster: &prod {server: "https://prod", insecure-skip-tls-verify: true}
- name: again
  cluster: *prod
contexts:
- name: prod
  context: {cluster: prod, user: me}
users:
- name: me
  user:
    token: "0123"
    auth-provider:
      config: {expiry: 2026-01-01T00:00:00Z, number: 007, time: 12:30}
current-context: prod
preferences: {}
extensions:
"""


def texts(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - makes only texts
    return found


def merged(text: str) -> str:
    return kubeconfigs.merge(text, OURS, NAME, "file").text


def test_it_is_added_and_the_others_stay_as_they_were_written() -> None:
    found = texts(merged(USERS))
    before = texts(USERS)
    assert found["clusters"][:2] == before["clusters"]
    assert found["users"][:1] == before["users"]
    assert found["users"][0]["user"]["auth-provider"]["config"] == {
        "expiry": "2026-01-01T00:00:00Z",
        "number": "007",
        "time": "12:30",
    }
    assert yaml.safe_load(merged(USERS))["users"][0]["user"]["token"] == "0123"  # noqa: S105 - made up
    assert yaml.safe_load(merged(USERS))["clusters"][0]["cluster"]["insecure-skip-tls-verify"] is True
    assert found["contexts"][1] == {"name": NAME, "context": {"cluster": NAME, "user": NAME}}
    assert found["clusters"][2]["cluster"]["server"] == "https://10.0.0.2:6443"


def test_the_current_context_stays_and_an_empty_one_is_set() -> None:
    assert texts(merged(USERS))["current-context"] == "prod"
    assert not kubeconfigs.merge(USERS, OURS, NAME, "file").current
    for text in ("", "{}", "null", "current-context: ''", "clusters: null\nusers: []"):
        assert texts(merged(text))["current-context"] == NAME
        assert kubeconfigs.merge(text, OURS, NAME, "file").current


def test_merging_twice_is_merging_once() -> None:
    assert merged(merged(USERS)) == merged(USERS)


def test_what_is_removed_leaves_what_was_before() -> None:
    rest = kubeconfigs.remove(merged(USERS), NAME, "file")
    assert kubeconfigs.same(rest, USERS)
    assert kubeconfigs.is_empty(kubeconfigs.remove(merged(""), NAME, "file"))
    assert not kubeconfigs.is_empty(USERS)


names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9) | st.dates(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=5,
)
lists = st.lists(st.fixed_dictionaries({"name": names, "cluster": values}), max_size=3)


@given(lists, lists, lists, names | st.just(""), st.dictionaries(names, values, max_size=2), st.booleans())
def test_any_kubeconfig_keeps_what_it_has(
    clusters: list[dict[str, Any]],
    contexts: list[dict[str, Any]],
    users: list[dict[str, Any]],
    current: str,
    more: dict[str, Any],
    flow: bool,
) -> None:
    config = {**more, "clusters": clusters, "contexts": contexts, "users": users, "current-context": current}
    config.pop("kind", None)
    text = yaml.safe_dump(config, default_flow_style=flow, allow_unicode=True)
    now = yaml.safe_load(merged(text))
    for section in kubeconfigs.SECTIONS:
        assert now[section][:-1] == yaml.safe_load(text)[section]
        assert now[section][-1]["name"] == NAME
    kept = set(config) - {*kubeconfigs.SECTIONS, "current-context", "apiVersion"}
    assert {key: now[key] for key in kept} == {key: yaml.safe_load(text)[key] for key in kept}
    back = yaml.safe_load(kubeconfigs.remove(merged(text), NAME, "file"))
    assert {key: back[key] for key in config if key != "apiVersion"} == {
        key: value for key, value in yaml.safe_load(text).items() if key != "apiVersion"
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("clusters: [", "file, line 1: it is not YAML"),
        ("a: b\n c: d\n", "file, line 2: it is not YAML"),
        ("just words", "it has no fields"),
        ("- a", "it has no fields"),
        ("kind: Pod", "its kind is Pod"),
        ("clusters: {}", "its clusters are not a list"),
        ("users: [{user: {}}]", "its users are not a list of entries with names"),
        ("contexts: [x]", "its contexts are not a list"),
    ],
)
def test_a_broken_one_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        merged(text)
    assert words in str(caught.value)
    assert "it was left as it is" in str(caught.value)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """The cluster's own kubeconfig."""
    file = tmp_path / "admin.kubeconfig"
    file.write_text(yaml.safe_dump(OURS))
    return file


def test_which_file_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert userfile.user_file({}) == tmp_path / ".kube" / "config"
    assert userfile.user_file({"KUBECONFIG": f":{tmp_path}/a:{tmp_path}/b"}) == tmp_path / "a"
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert userfile.user_file({"KUBECONFIG": f"{tmp_path}/link"}) == tmp_path / "real"


def test_a_file_without_other_changes_is_the_same_bytes_again(tmp_path: Path, ours: Path) -> None:
    file = tmp_path / "config"
    file.write_text(USERS)
    file.chmod(0o640)
    done = userfile.merge(file, ours, NAME)
    assert NAME in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert done.backup is not None
    assert Path(done.backup).read_text() == USERS
    assert stat.S_IMODE(Path(done.backup).stat().st_mode) == 0o600
    assert userfile.undo(userfile.Merge.of(yaml.safe_load(done.dumped()))) is None
    assert file.read_text() == USERS
    assert sorted(tmp_path.iterdir()) == [ours, file]


def test_a_file_that_has_changed_keeps_its_changes(tmp_path: Path, ours: Path) -> None:
    file = tmp_path / "config"
    file.write_text(USERS)
    done = userfile.merge(file, ours, NAME)
    file.write_text(file.read_text().replace("https://prod", "https://other"))
    assert userfile.undo(done) is None
    assert NAME not in file.read_text()
    assert "https://other" in file.read_text()
    assert Path(str(done.backup)).read_text() == USERS


def test_a_new_file_goes_with_the_cluster(tmp_path: Path, ours: Path) -> None:
    file = tmp_path / ".kube" / "config"
    done = userfile.merge(file, ours, NAME)
    assert done.current
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert userfile.undo(done) is None
    assert not file.exists()
    assert userfile.undo(done) is None  # there is nothing to do


def test_two_clusters_in_one_file_in_any_order(tmp_path: Path, ours: Path) -> None:
    file = tmp_path / "config"
    file.write_text(USERS)
    one = userfile.merge(file, ours, "k3s-sandbox-one")
    two = userfile.merge(file, ours, "k3s-sandbox-two")
    assert userfile.undo(one) is None
    assert "k3s-sandbox-one" not in file.read_text()
    assert "k3s-sandbox-two" in file.read_text()
    assert userfile.undo(two) is None
    assert kubeconfigs.same(file.read_text(), USERS)


def test_a_broken_file_is_not_touched(tmp_path: Path, ours: Path) -> None:
    file = tmp_path / "config"
    file.write_text("clusters: [")
    for act in (lambda: userfile.check(file), lambda: userfile.merge(file, ours, NAME)):
        with pytest.raises(ConfigError, match="it is not YAML"):
            act()
    assert file.read_text() == "clusters: ["
    assert sorted(tmp_path.iterdir()) == [ours, file]
    file.write_bytes(b"\xff\x00")
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        userfile.check(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        userfile.check(file)


def test_a_file_that_breaks_meanwhile_is_told_of_and_left(tmp_path: Path, ours: Path) -> None:
    file = tmp_path / "config"
    file.write_text(USERS)
    done = userfile.merge(file, ours, NAME)
    file.write_text("clusters: [")
    said = userfile.undo(done)
    assert said is not None
    assert "still names the cluster" in said
    assert file.read_text() == "clusters: ["


def test_another_program_that_changes_it_is_waited_for(
    tmp_path: Path, ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(userfile, "LOCK_SECONDS", 0.1)
    file = tmp_path / "config"
    lock = tmp_path / "config.lock"
    lock.touch()
    with pytest.raises(ConfigError, match=r"another program has locked it by .*config\.lock"):
        userfile.merge(file, ours, NAME)
    assert not file.exists()
    lock.unlink()
    userfile.merge(file, ours, NAME)
    assert not lock.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has files of another user: run as root")
def test_a_file_belongs_to_whom_it_belonged(tmp_path: Path, ours: Path) -> None:
    file = tmp_path / "config"
    file.write_text(USERS)
    os.chown(file, 65534, 65534)
    done = userfile.merge(file, ours, NAME)
    assert file.stat().st_uid == Path(str(done.backup)).stat().st_uid == 65534
    (tmp_path / "home").mkdir()
    os.chown(tmp_path / "home", 65534, 65534)
    userfile.merge(tmp_path / "home" / ".kube" / "config", ours, NAME)
    assert (tmp_path / "home" / ".kube").stat().st_uid == 65534
    assert (tmp_path / "home" / ".kube" / "config").stat().st_uid == 65534
