"""The command lines and configurations of Kubernetes' parts."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml

from pytest_k3s_sandbox.cluster import components
from pytest_k3s_sandbox.cluster.components import PKI_DIR, ClusterSettings
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR

SETTINGS = ClusterSettings(
    node="node-1",
    address="10.213.0.2",
    api_port=16443,
    cni_bin_dir="/cni/bin",
    cni_conf_dir='/cni/"quoted"',
    runtime="crun",
    runtimes={"crun": "/bin/crun", "runc": "/runtime/adapted"},
)
COMMANDS: dict[str, Callable[[], list[str]]] = {
    "kine": components.kine,
    "kube-apiserver": lambda: components.kube_apiserver(SETTINGS),
    "kube-controller-manager": components.kube_controller_manager,
    "kube-scheduler": components.kube_scheduler,
    "containerd": lambda: components.containerd(SETTINGS),
    "kubelet": lambda: components.kubelet(SETTINGS),
}


def flags(argv: list[str]) -> dict[str, str]:
    return dict(word[2:].split("=", 1) for word in argv[1:] if "=" in word)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_part_is_the_program_under_test_with_each_flag_once(name: str) -> None:
    argv = COMMANDS[name]()
    assert argv[0] == f"{BIN_DIR}/{name}"
    names = [word.partition("=")[0] for word in argv[1:]]
    assert len(set(names)) == len(names)
    assert all(word.startswith("--") for word in argv[1:]) or name == "containerd"


@pytest.mark.parametrize("name", COMMANDS)
def test_no_part_writes_or_reads_outside_the_sandboxes_own_folders(name: str) -> None:
    argv = COMMANDS[name]()
    values = list(flags(argv).values()) or argv[1:]  # containerd's are words of their own
    assert any("/" in value for value in values)
    for value in values:
        path = PurePosixPath(value.removeprefix("unix://").removeprefix("sqlite://"))
        if path.is_absolute() and not value.startswith("10."):
            assert str(path).startswith((f"{STATE_DIR}/", "/run/")), value


def test_kine_keeps_its_database_in_the_state_folder_and_opens_no_port() -> None:
    given = flags(components.kine())
    assert given["endpoint"].startswith(f"sqlite://{STATE_DIR}/db/")
    assert given["listen-address"] == "unix:///run/kine.sock"
    assert given["metrics-bind-address"] == "0"


def test_the_api_server_listens_where_the_settings_say_and_reaches_kubelets_by_address() -> None:
    given = flags(components.kube_apiserver(SETTINGS))
    assert given["secure-port"] == "16443"
    assert given["advertise-address"] == "10.213.0.2"
    assert given["kubelet-preferred-address-types"] == "InternalIP"
    assert given["etcd-servers"] == flags(components.kine())["listen-address"]
    assert given["authorization-mode"] == "Node,RBAC"
    assert given["anonymous-auth"] == "false"
    assert SETTINGS.api_url == "https://10.213.0.2:16443"


def test_the_parts_agree_on_ranges_and_keys() -> None:
    api = flags(components.kube_apiserver(SETTINGS))
    manager = flags(components.kube_controller_manager())
    assert api["service-cluster-ip-range"] == manager["service-cluster-ip-range"]
    assert manager["cluster-cidr"] == components.kubelet_config(SETTINGS)["podCIDR"]
    assert api["service-account-signing-key-file"] == manager["service-account-private-key-file"]
    assert api["client-ca-file"] == manager["root-ca-file"] == f"{PKI_DIR}/ca.crt"


def test_only_the_api_server_and_the_kubelet_are_reached_from_outside() -> None:
    for argv in (components.kube_controller_manager(), components.kube_scheduler()):
        assert flags(argv)["bind-address"] == "127.0.0.1"


def test_containerds_configuration_has_the_settings_and_what_gvisor_needs() -> None:
    config: dict[str, Any] = tomllib.loads(components.containerd_config(SETTINGS))
    runtime = config["plugins"]["io.containerd.cri.v1.runtime"]
    assert config["version"] == 3
    assert config["grpc"]["address"] == components.CONTAINERD_SOCKET
    assert runtime["enable_unprivileged_ports"] is False
    assert runtime["enable_unprivileged_icmp"] is False
    assert "/cni/bin" in runtime["cni"]["bin_dirs"]
    assert runtime["cni"]["conf_dir"] == '/cni/"quoted"'
    options = runtime["containerd"]["runtimes"]["runc"]["options"]
    assert options == {"BinaryName": "/runtime/adapted", "NoNewKeyring": True, "SystemdCgroup": False}
    assert runtime["containerd"]["default_runtime_name"] == "crun"
    crun = runtime["containerd"]["runtimes"]["crun"]
    assert crun["options"] == options | {"BinaryName": "/bin/crun"}
    images = config["plugins"]["io.containerd.cri.v1.images"]
    assert images["pinned_images"]["sandbox"] == SETTINGS.pause_image


@pytest.mark.parametrize("store", [components.IN_MEMORY, components.ON_9P])
def test_images_are_unpacked_by_the_stores_snapshotter_which_is_not_disabled(
    store: components.ImageStore,
) -> None:
    config = tomllib.loads(components.containerd_config(replace(SETTINGS, store=store)))
    assert config["root"] == store.root
    assert config["plugins"]["io.containerd.cri.v1.images"]["snapshotter"] == store.snapshotter
    (unpacks,) = config["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"]
    assert unpacks["snapshotter"] == store.snapshotter
    assert f"io.containerd.snapshotter.v1.{store.snapshotter}" not in config["disabled_plugins"]


def test_the_kubelets_command_and_configuration_agree() -> None:
    given = flags(components.kubelet(SETTINGS))
    config = components.kubelet_config(SETTINGS)
    assert given["hostname-override"] == "node-1"
    assert given["node-ip"] == "10.213.0.2"
    assert given["config"] == f"{STATE_DIR}/kubelet.json"
    assert config["containerRuntimeEndpoint"] == f"unix://{components.CONTAINERD_SOCKET}"
    assert config["port"] == components.KUBELET_PORT


def test_the_kubelets_configuration_is_what_the_field_guide_measured() -> None:
    config = components.kubelet_config(SETTINGS)
    wanted = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "localStorageCapacityIsolation": True,
    }
    assert wanted.items() <= config.items()
    groups = components.kubelet_config(replace(SETTINGS, pod_groups=True))
    assert groups == config | {"cgroupsPerQOS": True}
    assert config["authentication"]["anonymous"]["enabled"] is False
    assert config["authorization"]["mode"] == "Webhook"
    assert json.loads(json.dumps(config)) == config == yaml.safe_load(json.dumps(config))


def test_the_kubelet_reads_static_pods_where_embedded_makes_a_folder_for_them() -> None:
    config = components.kubelet_config(SETTINGS)
    assert config["staticPodPath"] == f"{STATE_DIR}/manifests"
    assert config["fileCheckFrequency"] == "2s"


def test_overrides_win_and_reach_only_the_configuration_they_are_for() -> None:
    changed = ClusterSettings(
        node="n",
        address="1.2.3.4",
        local_storage_isolation=False,
        kubelet_overrides=(("failSwapOn", True), ("new", 1)),
    )
    config = components.kubelet_config(changed)
    assert (config["failSwapOn"], config["new"], config["localStorageCapacityIsolation"]) == (True, 1, False)
    assert components.kubelet_config(SETTINGS)["failSwapOn"] is False


def test_an_override_wins_over_what_the_version_needs() -> None:
    changed = ClusterSettings(
        node="n", address="1.2.3.4", kubernetes="1.36.3", kubelet_overrides=(("failCgroupV1", True),)
    )
    assert components.kubelet_config(changed)["failCgroupV1"] is True


def test_the_tuning_is_a_configuration_of_its_own_and_part_of_the_embedded_kubelets() -> None:
    tuning = components.kubelet_tuning(SETTINGS)
    assert tuning.items() <= components.kubelet_config(SETTINGS).items()
    assert (tuning["kind"], tuning["cgroupDriver"]) == ("KubeletConfiguration", "cgroupfs")
    # What k3s decides itself would be overridden by a file that has it.
    assert not {"authentication", "authorization", "tlsCertFile", "clusterDomain", "podCIDR"} & set(tuning)
