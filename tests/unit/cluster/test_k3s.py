"""k3s' command lines, the files that it is given, and what is made of those that it writes."""

from __future__ import annotations

import base64
import contextlib
import json
import stat
import tarfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from pytest_k3s_sandbox.cluster import components, k3s
from pytest_k3s_sandbox.cluster.certificates import Authority
from pytest_k3s_sandbox.cluster.components import KUBELET_ROOT, ClusterSettings
from pytest_k3s_sandbox.cluster.embedded import LISTENERS
from pytest_k3s_sandbox.cluster.k3s import AGENT_DATA, DATA, KUBECONFIG, KUBELET_CONFIG, TOKEN, K3s, adopt
from pytest_k3s_sandbox.cluster.logs import copy_logs, log_of
from pytest_k3s_sandbox.cluster.reading import ApiReader
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError
from pytest_k3s_sandbox.layers.base import NodeOverrides
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR, Completed, Process, Sandbox
from pytest_k3s_sandbox.sandbox.beneath import Beneath
from pytest_k3s_sandbox.sandbox.inside import InsidePath

SETTINGS = ClusterSettings(node="node-1", address="10.213.0.2", api_port=7443, kubernetes="1.36.3+k3s1")
OVERRIDES = NodeOverrides(
    wrap={"kubelet": ("intercept", "--"), "containerd": ("not", "this")},
    environment={"SEEN": "yes"},
    cni_bin_dir="/cni/bin",
    cni_conf_dir="/cni/net.d",
    runtimes={"runc": "/runtime/adapted"},
)
SEEN = {"LC_ALL": "C", "SEEN": "yes"}
FIELD_GUIDE = {
    "--snapshotter=native",
    "--flannel-backend=none",
    "--disable-network-policy",
    "--disable-kube-proxy",
    "--disable-cloud-controller",
    "--disable-helm-controller",
    "--disable=coredns,servicelb,traefik,local-storage,metrics-server",
    "--node-ip=10.213.0.2",
    "--node-name=node-1",
    "--kubelet-arg=cgroups-per-qos=false",
    "--kubelet-arg=enforce-node-allocatable=",
    "--kubelet-arg=fail-swap-on=false",
    "--kubelet-arg=image-gc-high-threshold=100",
    "--kubelet-arg=image-gc-low-threshold=99",
}
NODE = {"--snapshotter", "--node-ip", "--node-name", "--pause-image", "--kubelet-arg"}


class Fake:
    """A process that runs until it is stopped."""

    def __init__(self, name: str, log: Path) -> None:
        """Run."""
        self.name, self.log = name, log
        self.status: int | None = None

    def poll(self) -> int | None:
        """Say whether it has ended."""
        return self.status

    def signal(self, _number: int) -> None:
        """End it."""
        self.status = 0

    def wait(self, _deadline: Deadline) -> int | None:
        """Say how it ended."""
        return self.status

    def stop(self, grace: float = 5.0) -> int:
        """End it."""
        assert grace >= 0
        return 0


class Folder:
    """A sandbox that is a folder; it notes what is started in it."""

    name = "k3ssb-test"

    def __init__(self, folder: Path, kind: str = "gvisor") -> None:
        """Be of a kind."""
        self.folder, self.kind = folder, kind
        self.logs = InsidePath(self.host_path(f"{STATE_DIR}/logs"))
        self.logs.mkdir(parents=True)
        self.files, self.control = Beneath(folder), folder / "control"
        self.control.mkdir()
        self.host_path(KUBECONFIG).write_text("")  # k3s has written one; what it holds is adopt()'s
        self.spawned: list[tuple[str, list[str], dict[str, str]]] = []
        self.shared_first = False

    def host_path(self, inside: str) -> Path:
        """Give the path outside."""
        return self.folder / inside.lstrip("/")

    def run(self, argv: Sequence[str], **_options: object) -> Completed:
        """Say that all ports are free, and note whether the kubelet's folder is shared in time."""
        assert argv[-1] in {LISTENERS, KUBELET_ROOT}
        self.shared_first = argv[-1] == KUBELET_ROOT and "k3s" not in {name for name, *_ in self.spawned}
        return Completed(tuple(argv), 0, "", "")

    def spawn(self, argv: Sequence[str], *, name: str, env: dict[str, str]) -> Process:
        """Note it."""
        self.spawned.append((name, list(argv), env))
        return cast("Process", Fake(name, self.logs / f"{name}.log"))


@contextlib.contextmanager
def no_phase(_name: str) -> Iterator[None]:
    yield


@pytest.fixture
def sandbox(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def started(sandbox: Folder, monkeypatch: pytest.MonkeyPatch, *, apart: bool = False) -> K3s:
    """Start all of it in a sandbox where the API server answers at once."""
    monkeypatch.setattr(k3s, "adopt", lambda *_: True)
    monkeypatch.setattr(ApiReader, "answers", lambda *_: True)
    made = K3s(apart=apart)
    where = cast("Sandbox", sandbox)
    made.start_control_plane(where, SETTINGS, no_phase)
    made.start_node(where, SETTINGS, OVERRIDES, Deadline.after(5), no_phase)
    return made


@pytest.mark.parametrize("apart", [False, True])
def test_the_kubelets_folder_is_shared_before_the_kubelet_starts(
    sandbox: Folder, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    started(sandbox, monkeypatch, apart=apart)
    assert sandbox.shared_first


def names(flags: list[str]) -> set[str]:
    return {flag.partition("=")[0] for flag in flags}


def test_the_server_has_the_flags_that_were_measured() -> None:
    argv = k3s.server(SETTINGS)
    assert argv[:2] == [f"{BIN_DIR}/k3s", "server"]
    assert set(argv) >= FIELD_GUIDE
    assert f"--data-dir={DATA}" in argv
    assert f"--write-kubeconfig={KUBECONFIG}" in argv
    assert "--https-listen-port=7443" in argv
    single = [flag for flag in argv if not flag.startswith("--kubelet-arg=")]
    assert len(names(single)) == len(single)


def test_a_server_without_a_node_and_its_agent_are_the_whole_apart() -> None:
    whole, alone, agent = k3s.server(SETTINGS), k3s.server(SETTINGS, agent=False), k3s.agent(SETTINGS)
    assert set(alone) - set(whole) == {"--disable-agent"}
    assert not names(alone) & NODE
    assert set(whole) - set(alone) == {flag for flag in agent if flag.partition("=")[0] in NODE}
    assert agent[:3] == [f"{BIN_DIR}/k3s", "agent", "--server=https://10.213.0.2:7443"]
    assert f"--token-file={TOKEN}" in agent
    assert f"--token-file={TOKEN}" in alone
    assert f"--data-dir={AGENT_DATA}" in agent
    # 7444 is the server's own API server, 7443 + 1; the load balancer takes its port and the one before.
    (balancer,) = (flag for flag in agent if flag.startswith("--lb-server-port="))
    assert {int(balancer.partition("=")[2]), int(balancer.partition("=")[2]) - 1}.isdisjoint({7443, 7444})


def test_server_and_node_are_one_process_under_what_wraps_the_kubelet(
    sandbox: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = started(sandbox, monkeypatch)
    assert sandbox.spawned == [("k3s", ["intercept", "--", *k3s.server(SETTINGS)], SEEN)]
    assert list(made.processes) == ["k3s"]
    made.stop_node()
    assert made.processes == {}


def test_an_agent_is_started_under_the_layers_and_its_server_is_not(
    sandbox: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = started(sandbox, monkeypatch, apart=True)
    assert sandbox.spawned == [
        ("k3s-server", k3s.server(SETTINGS, agent=False), {}),
        ("k3s", ["intercept", "--", *k3s.agent(SETTINGS)], SEEN),
    ]
    made.stop_node()
    assert list(made.processes) == ["k3s-server"]
    made.start_node(cast("Sandbox", sandbox), SETTINGS, NodeOverrides(), Deadline.after(5), no_phase)
    assert sandbox.spawned[-1] == ("k3s", k3s.agent(SETTINGS), {"LC_ALL": "C"})
    made.stop()
    assert made.processes == {}


def test_on_the_machine_itself_k3s_cannot_load_kernel_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = Folder(tmp_path, "host")
    started(sandbox, monkeypatch)
    ((_, argv, _),) = sandbox.spawned
    assert argv == [*k3s.NO_MODULES, "intercept", "--", *k3s.server(SETTINGS)]


@pytest.mark.parametrize(("apart", "data"), [(False, DATA), (True, AGENT_DATA)])
def test_the_files_that_k3s_reads_are_where_it_looks(
    sandbox: Folder, monkeypatch: pytest.MonkeyPatch, *, apart: bool, data: str
) -> None:
    started(sandbox, monkeypatch, apart=apart)
    token = sandbox.host_path(TOKEN)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) == 32
    tars = list(sandbox.host_path(f"{data}/agent/images").iterdir())
    assert {tar.name for tar in tars} == {"images.tar"}
    assert all(tarfile.is_tarfile(tar) for tar in tars)
    config = json.loads(sandbox.host_path(KUBELET_CONFIG).read_text())
    assert config["failCgroupV1"] is False  # 1.36 needs it
    assert config["kind"] == "KubeletConfiguration"
    assert f"config={KUBELET_CONFIG}" in k3s.KUBELET_ARGS


@pytest.mark.parametrize(("apart", "data"), [(False, DATA), (True, AGENT_DATA)])
def test_containerds_configuration_is_k3s_own_in_its_places_and_ours_in_the_rest(
    sandbox: Folder, monkeypatch: pytest.MonkeyPatch, *, apart: bool, data: str
) -> None:
    started(sandbox, monkeypatch, apart=apart)
    text = sandbox.host_path(f"{data}/agent/etc/containerd/config-v3.toml.tmpl").read_text()
    assert "{{" not in text  # k3s would fill it in
    config: dict[str, Any] = tomllib.loads(text)
    assert (config["root"], config["state"]) == (f"{data}/agent/containerd", "/run/k3s/containerd")
    assert config["grpc"]["address"] == "/run/k3s/containerd/containerd.sock"
    runtime = config["plugins"]["io.containerd.cri.v1.runtime"]
    assert runtime["cni"]["conf_dir"] == "/cni/net.d"
    assert runtime["containerd"]["runtimes"]["runc"]["options"]["BinaryName"] == "/runtime/adapted"


def test_the_nodes_logs_have_the_names_that_the_sampler_reads(
    sandbox: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(sandbox, monkeypatch)
    where = cast("Sandbox", sandbox)
    sandbox.host_path(f"{STATE_DIR}/logs/k3s.log").write_text("what k3s says")
    inside = sandbox.host_path(f"{DATA}/agent/containerd/containerd.log")
    assert not log_of(where, "containerd").exists()
    inside.parent.mkdir(parents=True)
    inside.write_text("what containerd says")
    assert log_of(where, "kubelet").read_text() == "what k3s says"
    assert log_of(where, "containerd").read_text() == "what containerd says"
    copy_logs(where, sandbox.folder)
    copied = {path.name: path.read_text() for path in (sandbox.folder / "logs").iterdir()}
    said = {"containerd.log": "what containerd says", "k3s.log": "what k3s says"}
    assert copied == {**said, "kubelet.log": "what k3s says"}


def test_an_image_is_imported_by_the_client_that_k3s_unpacked(
    sandbox: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(sandbox, "run", lambda argv, **_: ran.append(list(argv)))
    K3s().load_image(cast("Sandbox", sandbox), "/var/mine.tar", Deadline.after(5))
    assert ran[0][:3] == [f"{DATA}/data/current/bin/ctr", "-a", k3s.CONTAINERD_SOCKET]
    assert ran[0][-1] == "/var/mine.tar"


def test_a_k3s_that_ends_is_told_with_its_last_words(
    sandbox: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(k3s, "adopt", lambda *_: False)
    made = K3s()
    where = cast("Sandbox", sandbox)
    made.start_control_plane(where, SETTINGS, no_phase)
    sandbox.host_path(f"{STATE_DIR}/logs/k3s.log").write_text("time=now level=fatal msg=unpack")
    ended = Fake("k3s", sandbox.logs / "k3s.log")
    ended.signal(15)
    monkeypatch.setattr(sandbox, "spawn", lambda *_, **__: ended)
    with pytest.raises(ClusterError, match="level=fatal msg=unpack") as caught:
        made.start_node(where, SETTINGS, OVERRIDES, Deadline.after(5), no_phase)
    assert "k3s ended with exit code 0 while waiting for k3s to write its kubeconfig" in caught.value.what


AUTHORITY = Authority("test-ca")
ADMIN = AUTHORITY.client("test-admin")


def kubeconfig() -> dict[str, Any]:
    def data(pem: bytes) -> str:
        return base64.b64encode(pem).decode()

    cluster = {"server": "https://127.0.0.1:7443", "certificate-authority-data": data(AUTHORITY.issued.cert)}
    user = {"client-certificate-data": data(ADMIN.cert), "client-key-data": data(ADMIN.key)}
    return {"clusters": [{"cluster": cluster}], "users": [{"user": user}]}


def test_the_kubeconfig_is_adopted_with_the_address_that_the_machine_reaches(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    assert adopt(yaml.safe_dump(kubeconfig()).encode(), pki, SETTINGS) is True
    made = yaml.safe_load((pki / "admin.kubeconfig").read_text())
    assert made["clusters"][0]["cluster"]["server"] == SETTINGS.api_url
    certs = [(pki / name).read_bytes() for name in ("ca.crt", "admin.crt")]
    assert certs == [AUTHORITY.issued.cert, ADMIN.cert]
    public = (
        load_pem_private_key(key, None).public_key() for key in ((pki / "admin.key").read_bytes(), ADMIN.key)
    )
    assert next(public) == next(public)
    assert {stat.S_IMODE(path.stat().st_mode) for path in pki.iterdir()} == {0o600}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "clusters: [",
        "[" * 10_000,
        "clusters: []",
        "clusters: null\nusers: null",
        yaml.safe_dump(kubeconfig())[:-60],
        yaml.safe_dump(
            kubeconfig() | {"users": [{"user": {"client-certificate-data": "%", "client-key-data": ""}}]}
        ),
    ],
)
def test_a_kubeconfig_that_is_not_whole_yet_is_waited_for_and_leaves_nothing(
    tmp_path: Path, text: str
) -> None:
    pki = tmp_path / "pki"
    assert adopt(text.encode(), pki, SETTINGS) is False
    assert not pki.exists()


def test_nothing_but_certificates_and_a_key_is_taken_from_a_kubeconfig_that_the_inside_wrote(
    tmp_path: Path,
) -> None:
    hostile = kubeconfig()
    program = {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/sh", "args": ["-c", "id"]}
    hostile["users"][0]["user"] |= {
        "exec": program,
        "auth-provider": {"name": "gcp"},
        "tokenFile": "/etc/shadow",
    }
    hostile["clusters"][0]["cluster"] |= {"proxy-url": "http://192.0.2.1", "insecure-skip-tls-verify": True}
    assert adopt(yaml.safe_dump(hostile).encode(), tmp_path / "pki", SETTINGS) is True
    made = yaml.safe_load((tmp_path / "pki" / "admin.kubeconfig").read_text())
    assert set(made["users"][0]["user"]) == {"client-certificate-data", "client-key-data"}
    assert set(made["clusters"][0]["cluster"]) == {"server", "certificate-authority-data"}


def test_a_key_of_an_algorithm_that_nothing_here_knows_is_not_taken(tmp_path: Path) -> None:
    """PKCS #8 (RFC 5958) with the algorithm 1.2.3.4."""
    der = bytes.fromhex("300e020100300506032a030404020400")
    text = base64.b64encode(der).decode()
    pem = f"-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n".encode()
    with pytest.raises(UnsupportedAlgorithm):
        load_pem_private_key(pem, None)
    hostile = kubeconfig()
    hostile["users"][0]["user"]["client-key-data"] = base64.b64encode(pem).decode()
    assert adopt(yaml.safe_dump(hostile).encode(), tmp_path / "pki", SETTINGS) is False


@pytest.mark.parametrize("field", ["client-certificate-data", "client-key-data"])
def test_what_is_no_certificate_or_key_is_not_taken(tmp_path: Path, field: str) -> None:
    hostile = kubeconfig()
    hostile["users"][0]["user"][field] = base64.b64encode(b"#!/bin/sh\nid\n").decode()
    assert adopt(yaml.safe_dump(hostile).encode(), tmp_path / "pki", SETTINGS) is False
    assert not (tmp_path / "pki").exists()


def test_both_distributions_give_containerd_the_same_configuration_but_for_places() -> None:
    ours = tomllib.loads(components.containerd_config(replace(SETTINGS, store=components.ON_9P)))
    theirs = tomllib.loads(k3s.containerd_template(SETTINGS, DATA))
    for config in (ours, theirs):
        del config["root"], config["state"], config["grpc"]
    assert ours == theirs
