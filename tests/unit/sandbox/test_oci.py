"""The OCI bundle of a gVisor sandbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_k3s_sandbox.sandbox import gvisor, layout, oci
from pytest_k3s_sandbox.sandbox.base import Bind


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    plan = layout.plan(tmp_path, [], [Bind(Path("/opt"), "/srv/rw", writable=True)])
    return oci.config(plan, argv=["python", "agent.py"], hostname="name", netns="/run/netns/x")


def test_the_root_is_read_only_and_its_own(config: dict[str, Any], tmp_path: Path) -> None:
    assert config["root"] == {"path": str(tmp_path / "rootfs"), "readonly": True}


def test_every_bind_says_whether_it_can_be_written(config: dict[str, Any]) -> None:
    options = {
        mount["destination"]: mount["options"] for mount in config["mounts"] if mount["type"] == "bind"
    }
    assert options["/usr"] == ["rbind", "ro"]
    assert options["/srv/rw"] == ["rbind", "rw"]
    assert {path for path, words in options.items() if "rw" in words} == {"/var", "/srv/rw"}


def test_nothing_of_the_machines_homes_is_mounted(config: dict[str, Any]) -> None:
    sources = {mount["source"] for mount in config["mounts"] if mount["type"] == "bind"}
    assert not sources & {"/", "/home", "/root", "/etc", "/var", "/dev", "/run"}


def test_kernel_file_systems_are_the_sandboxes_own(config: dict[str, Any]) -> None:
    kinds = {mount["destination"]: mount["type"] for mount in config["mounts"]}
    wanted = {"/proc": "proc", "/sys": "sysfs", "/dev": "tmpfs", "/tmp": "tmpfs", "/run": "tmpfs"}  # noqa: S108 - inside
    assert wanted.items() <= kinds.items()
    places = [mount["destination"] for mount in config["mounts"]]
    assert len(set(places)) == len(places)


def test_the_process_has_the_capabilities_that_the_layers_need(config: dict[str, Any]) -> None:
    process = config["process"]
    needed = {
        "CAP_SYS_ADMIN",
        "CAP_SYS_PTRACE",
        "CAP_NET_ADMIN",
        "CAP_NET_RAW",
        "CAP_MKNOD",
        "CAP_SYS_CHROOT",
    }
    for kind in ("bounding", "effective", "inheritable", "permitted"):
        assert needed <= set(process["capabilities"][kind])
        assert all(name.startswith("CAP_") for name in process["capabilities"][kind])
    assert process["args"] == ["python", "agent.py"]
    assert process["user"] == {"uid": 0, "gid": 0}
    assert process["terminal"] is False


def test_the_environment_is_fixed(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET", "s3cr3t")
    again = oci.config(layout.plan(tmp_path, []), argv=[], hostname="n", netns="x")
    assert again["process"]["env"] == config["process"]["env"]
    assert {entry.partition("=")[0] for entry in again["process"]["env"]} == {
        "PATH",
        "HOME",
        "LANG",
        "PYTHONDONTWRITEBYTECODE",
    }


def test_it_has_namespaces_of_its_own_and_the_network_by_path(config: dict[str, Any]) -> None:
    namespaces = {entry["type"]: entry.get("path") for entry in config["linux"]["namespaces"]}
    assert namespaces == {"pid": None, "ipc": None, "uts": None, "mount": None, "network": "/run/netns/x"}
    assert config["hostname"] == "name"


def test_it_is_json(config: dict[str, Any]) -> None:
    assert json.loads(json.dumps(config)) == config


def test_no_flag_of_runsc_hides_the_9p_root() -> None:
    assert "--overlay2=none" in gvisor.FLAGS
    assert not any(flag.startswith(("--rootfs", "--in-sandbox")) for flag in gvisor.FLAGS)
