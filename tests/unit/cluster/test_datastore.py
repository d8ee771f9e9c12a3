"""The datastore that clusters begin with: what is taken out of it, and when it is a new one."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_k3s_sandbox.cluster import datastore
from pytest_k3s_sandbox.errors import ClusterError, MissingCapability, SandboxError, StartError
from pytest_k3s_sandbox.node import seed as seeds
from pytest_k3s_sandbox.node.seed import seed
from pytest_k3s_sandbox.toolchain import Toolchain
from pytest_k3s_sandbox.toolchain.progress import SilentProgress

KEPT = (
    "/registry/clusterroles/admin",
    "/registry/configmaps/kube-system/kubeadm-config",
    "/registry/leases/kube-node-lease/n",
    "/registry/services/specs/default/kubernetes",
)
GONE = (
    "/registry/masterleases/10.213.0.2",
    "/registry/leases/kube-system/apiserver-abc",
    "/registry/services/endpoints/default/kubernetes",
    "/registry/endpointslices/default/kubernetes",
    "/registry/configmaps/kube-system/extension-apiserver-authentication",
    "/registry/configmaps/default/kube-root-ca.crt",
    "/registry/events/default/a.1",
)


def database(path: Path, names: tuple[str, ...]) -> Path:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE kine (id INTEGER PRIMARY KEY, name TEXT)")
        connection.executemany("INSERT INTO kine (name) VALUES (?)", [(name,) for name in names])
        connection.commit()
    return path


def test_what_belongs_to_one_run_goes_and_the_rest_stays_in_one_file(tmp_path: Path) -> None:
    path = database(tmp_path / "state.db", (*GONE, *KEPT, "compact_rev_key"))
    assert datastore.clean(path) == len(KEPT)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = [name for (name,) in connection.execute("SELECT name FROM kine ORDER BY name")]
    assert rows == sorted((*KEPT, "compact_rev_key"))
    assert [file.name for file in tmp_path.iterdir()] == ["state.db"]


def test_a_datastore_without_objects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="wrote nothing"):
        datastore.clean(database(tmp_path / "state.db", GONE))
    (tmp_path / "other").write_text("x" * 5000)
    with pytest.raises(ClusterError, match="not a database"):
        datastore.clean(tmp_path / "other")


def test_another_program_writes_another_seed(tmp_path: Path) -> None:
    programs = [tmp_path / "kine", tmp_path / "kube-apiserver"]
    for program in programs:
        program.write_text("a")
    link = tmp_path / "link"
    link.symlink_to(programs[0])
    name = datastore.identity(programs)
    assert name == datastore.identity([link, programs[1]])
    assert name != datastore.identity(programs[:1])
    os.utime(programs[0], (1, 1))
    assert name != datastore.identity(programs)


def test_an_empty_datastore_can_be_asked_for(tmp_path: Path) -> None:
    assert seed(Toolchain(tmp_path, {"K3S_SANDBOX_SEED": "0"})) is None
    assert list(tmp_path.iterdir()) == []


class Noted(SilentProgress):
    """Keeps what it is told besides work."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep it."""
        self.notes.append(text)


@pytest.mark.parametrize("error", [StartError, MissingCapability])
def test_where_here_cannot_start_the_datastore_is_empty_and_a_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[SandboxError]
) -> None:
    def refuse(_spec: object, _toolchain: object) -> None:
        raise error("cannot start a sandbox of kind host", cause="cgroups are read-only", remedy="mount them")

    monkeypatch.setattr(seeds, "start_sandbox", refuse)
    monkeypatch.setattr(Toolchain, "get", lambda _self, name: SimpleNamespace(path=Path("/bin", name)))
    monkeypatch.setattr(datastore, "identity", lambda *_: "a-key")
    noted = Noted()
    assert seed(Toolchain(tmp_path, {}, progress=noted)) is None
    (note,) = noted.notes
    assert "begin with an empty datastore" in note
    assert note.endswith("cannot start a sandbox of kind host: cgroups are read-only Remedy: mount them")


def test_a_control_plane_that_does_not_come_up_is_no_reason_for_an_empty_datastore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(_spec: object, _toolchain: object) -> contextlib.AbstractContextManager[SimpleNamespace]:
        return contextlib.nullcontext(SimpleNamespace(address="192.0.2.1"))

    def refuse(*_: object, **__: object) -> None:
        raise StartError("the API server ended")

    monkeypatch.setattr(seeds, "start_sandbox", started)
    monkeypatch.setattr("pytest_k3s_sandbox.node.seed.ClusterRunner", refuse)
    monkeypatch.setattr(Toolchain, "get", lambda _self, name: SimpleNamespace(path=Path("/bin", name)))
    monkeypatch.setattr(datastore, "identity", lambda *_: "a-key")
    with pytest.raises(StartError, match="the API server ended"):
        seed(Toolchain(tmp_path, {}))
