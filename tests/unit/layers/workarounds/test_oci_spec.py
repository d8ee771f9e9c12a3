"""The adaptation of OCI specifications: what goes, and that nothing else does."""

from __future__ import annotations

import copy
import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.workarounds import oci_spec
from pytest_k3s_sandbox.layers.workarounds.oci_spec import adapt, adapt_file, main

words = st.sampled_from(["type", "path", "cgroup", "linux", "namespaces", "seccomp", "mounts", "pid", "a"])
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
namespaces = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["pid", "network", "ipc", "uts", "mount", "cgroup", "user"])},
        optional={"path": st.just("/proc/1/ns/x")},
    )
)
specs = st.fixed_dictionaries(
    {"ociVersion": st.just("1.2.0")},
    optional={
        "process": documents,
        "mounts": documents,
        "linux": st.fixed_dictionaries(
            {}, optional={"namespaces": namespaces | documents, "seccomp": documents, "resources": documents}
        )
        | documents,
    },
)

SPEC: dict[str, Any] = {
    "ociVersion": "1.2.0",
    "process": {"args": ["sleep"], "oomScoreAdj": -998, "noNewPrivileges": True},
    "mounts": [{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}],
    "linux": {
        "resources": {"memory": {"limit": 9007199254740993}, "devices": [{"allow": False, "access": "rwm"}]},
        "cgroupsPath": "/k8s.io/abc",
        "namespaces": [{"type": "pid"}, {"type": "cgroup"}, {"type": "network", "path": "/run/netns/x"}],
        "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"},
        "maskedPaths": ["/proc/kcore"],
    },
}


def test_the_cgroup_namespace_and_the_seccomp_profile_go_and_nothing_else() -> None:
    expected = copy.deepcopy(SPEC)
    del expected["linux"]["seccomp"]
    del expected["linux"]["namespaces"][1]
    assert adapt(SPEC) == expected


@given(specs)
def test_adapting_twice_is_adapting_once_and_the_input_is_left_alone(spec: dict[str, Any]) -> None:
    before = copy.deepcopy(spec)
    once = adapt(spec)
    assert spec == before
    assert adapt(once) == once


@given(specs)
def test_everything_but_two_fields_of_linux_is_as_it_was(spec: dict[str, Any]) -> None:
    adapted = adapt(spec)
    assert {k: v for k, v in adapted.items() if k != "linux"} == {
        k: v for k, v in spec.items() if k != "linux"
    }
    linux, original = adapted.get("linux"), spec.get("linux")
    if not isinstance(original, dict):
        assert linux == original
        return
    assert isinstance(linux, dict)
    assert "seccomp" not in linux
    rest = {name: value for name, value in original.items() if name not in {"seccomp", "namespaces"}}
    assert {name: value for name, value in linux.items() if name != "namespaces"} == rest
    if isinstance(original.get("namespaces"), list):
        kept = [n for n in original["namespaces"] if not (isinstance(n, dict) and n.get("type") == "cgroup")]
        assert linux["namespaces"] == kept
    else:
        assert linux.get("namespaces") == original.get("namespaces")


def test_a_file_is_replaced_with_its_mode_and_large_numbers_kept(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SPEC))
    path.chmod(0o640)
    inode = path.stat().st_ino
    assert adapt_file(str(path))
    assert json.loads(path.read_text()) == adapt(SPEC)
    assert "9007199254740993" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_ino != inode
    assert [each.name for each in tmp_path.iterdir()] == ["config.json"]
    assert not adapt_file(str(path))


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_malformed_specification_is_logged_for_the_shim(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, log = tmp_path / "config.json", tmp_path / "log.json"
    path.write_text(content)
    assert main([str(path), str(log)]) == 1
    entry = json.loads(log.read_text())
    assert entry["level"] == "error"
    assert str(path) in entry["msg"]
    assert str(path) in capsys.readouterr().err
    assert path.read_text() == content


def test_a_failed_replacement_leaves_the_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SPEC))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert main([str(path), ""]) == 1
    assert json.loads(path.read_text()) == SPEC
    assert [one.name for one in tmp_path.iterdir()] == ["config.json"]


def test_the_program_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SPEC))
    program = Path(oci_spec.__file__)
    subprocess.run([sys.executable, "-IS", program, path, ""], check=True, timeout=30)
    assert json.loads(path.read_text()) == adapt(SPEC)
