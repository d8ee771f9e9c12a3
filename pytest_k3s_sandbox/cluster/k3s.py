"""k3s itself: the official binary, server and node in one process, or a server and an agent.

Flags: the reference pages of ``k3s server`` and ``k3s agent``, and k3s' source for the rest:
``--kubelet-arg=config=FILE`` is merged over k3s' own KubeletConfiguration (since v1.32, k3s issue 2116);
a ``config-v3.toml.tmpl`` replaces containerd's configuration (pkg/agent/containerd/config.go); tar files
in ``agent/images`` are imported before the node starts ("Air-Gap Install").
"""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509 import load_pem_x509_certificate

from pytest_k3s_sandbox.cluster import certificates, components, images
from pytest_k3s_sandbox.cluster.base import Phase
from pytest_k3s_sandbox.cluster.components import PKI_DIR, ClusterSettings, ImageStore
from pytest_k3s_sandbox.cluster.embedded import (
    assert_ports_free,
    image_names,
    load_image,
    share_kubelet_root,
    with_overrides,
)
from pytest_k3s_sandbox.cluster.process_wait import until
from pytest_k3s_sandbox.cluster.programs import Programs
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.layers.base import NodeOverrides
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR, Reachable, Sandbox
from pytest_k3s_sandbox.sandbox.trees import staged

DATA = f"{STATE_DIR}/k3s"
"""Where k3s keeps everything: ``server``, ``agent``, and its own programs, which it unpacks to ``data``."""

AGENT_DATA = f"{STATE_DIR}/k3s-agent"
"""The same for an agent beside a server."""

TOKEN = f"{STATE_DIR}/k3s-token"
KUBECONFIG = f"{STATE_DIR}/k3s.kubeconfig"
KUBECONFIG_LIMIT = 1 << 16
"""Bytes that k3s' kubeconfig may have; it has some 3,000."""
KUBELET_CONFIG = f"{STATE_DIR}/k3s-kubelet.json"
RUN = "/run/k3s/containerd"
CONTAINERD_SOCKET = f"{RUN}/containerd.sock"
SNAPSHOTTER = "native"
"""k3s keeps images in its data folder, which is 9p."""
DISABLED = "coredns,servicelb,traefik,local-storage,metrics-server"

KUBELET_ARGS = (
    f"config={KUBELET_CONFIG}",
    "cgroups-per-qos=false",
    "enforce-node-allocatable=",
    "fail-swap-on=false",
    "image-gc-high-threshold=100",
    "image-gc-low-threshold=99",
)

NO_MODULES = ("setpriv", "--bounding-set=-sys_module", "--inh-caps=-sys_module", "--")
"""k3s loads kernel modules when it starts (pkg/agent/syssetup); into the machine's own kernel it must not."""


def server(settings: ClusterSettings, *, agent: bool = True) -> list[str]:
    """Return the command of a server.

    Args:
        settings: The node's name, ports and so on.
        agent: Whether the node runs in the same process.
    """
    return [
        f"{BIN_DIR}/k3s",
        "server",
        f"--https-listen-port={settings.api_port}",
        f"--advertise-address={settings.address}",
        f"--tls-san={settings.address}",
        f"--token-file={TOKEN}",
        f"--write-kubeconfig={KUBECONFIG}",
        "--write-kubeconfig-mode=600",
        "--flannel-backend=none",
        "--disable-network-policy",
        "--disable-kube-proxy",
        "--disable-cloud-controller",
        "--disable-helm-controller",
        f"--disable={DISABLED}",
        *(node(settings, DATA) if agent else (f"--data-dir={DATA}", "--disable-agent")),
    ]


def agent(settings: ClusterSettings) -> list[str]:
    """Return the command of an agent that joins the server in the same sandbox.

    Its load balancer gets ports of its own: the usual one, 6444, is the server's API server.
    """
    return [
        f"{BIN_DIR}/k3s",
        "agent",
        f"--server={settings.api_url}",
        f"--token-file={TOKEN}",
        f"--lb-server-port={settings.api_port + 3}",
        *node(settings, AGENT_DATA),
    ]


def node(settings: ClusterSettings, data: str) -> list[str]:
    """Return the flags of the node, which servers and agents share.

    Args:
        settings: Its name and address.
        data: The data folder.
    """
    return [
        f"--data-dir={data}",
        f"--snapshotter={SNAPSHOTTER}",
        f"--node-ip={settings.address}",
        f"--node-name={settings.node}",
        f"--pause-image={settings.pause_image}",
        *(f"--kubelet-arg={argument}" for argument in KUBELET_ARGS),
    ]


class K3s(Programs):
    """The official k3s binary.

    Implements :class:`~.base.Distribution`. In one process, the default, the control plane needs what the
    node needs and starts with it; stopping the node stops it, too, and starting it again goes on with
    the same data.

    Args:
        apart: Run a server without a node first, and an agent that joins it.
    """

    name = "k3s"
    kubelet_process = "k3s"
    programs = ("k3s",)

    def __init__(self, *, apart: bool = False) -> None:
        """Start nothing yet."""
        super().__init__()
        self._apart = apart
        self._data = AGENT_DATA if apart else DATA

    def start_control_plane(self, sandbox: Sandbox, settings: ClusterSettings, phase: Phase) -> None:
        """Write the files that k3s reads; start the server if it is one of its own."""
        with phase("configuration"):
            assert_ports_free(sandbox, settings)
            self._configure(sandbox, settings)
        if self._apart:
            self._spawn(sandbox, "k3s-server", server(settings, agent=False))

    def start_node(
        self,
        sandbox: Sandbox,
        settings: ClusterSettings,
        overrides: NodeOverrides,
        deadline: Deadline,
        phase: Phase,
    ) -> None:
        """Start k3s or the agent, which is the node, under the layer that wraps the kubelet."""
        settings = with_overrides(settings, overrides)
        self._write_node_files(sandbox, settings)
        share_kubelet_root(sandbox)
        wrap = overrides.wrap.get("kubelet", ())
        if self._apart:
            with phase("API server"):
                self._until_api(sandbox, settings, deadline)
            self._spawn(sandbox, "k3s", [*wrap, *agent(settings)], overrides)
        else:
            self._spawn(sandbox, "k3s", [*wrap, *server(settings)], overrides)
            with phase("API server"):
                self._until_api(sandbox, settings, deadline)

    def stop_node(self) -> None:
        """End the process with the node in it."""
        self._stop(["k3s"])

    def stop(self) -> None:
        """End the node, then the server."""
        self.stop_node()
        self._stop(["k3s-server"])

    def load_image(self, sandbox: Reachable, tar: str, deadline: Deadline) -> None:
        """Import an image with the client that k3s brings along and has unpacked."""
        ctr = f"{self._data}/data/current/bin/ctr"
        load_image(sandbox, tar, deadline, SNAPSHOTTER, ctr=ctr, socket=CONTAINERD_SOCKET)

    def images(self, sandbox: Reachable, deadline: Deadline) -> frozenset[str]:
        """Return the names of the images; see :meth:`.base.Distribution.images`."""
        ctr = f"{self._data}/data/current/bin/ctr"
        return image_names(sandbox, deadline, ctr=ctr, socket=CONTAINERD_SOCKET)

    def _spawn(
        self, sandbox: Sandbox, name: str, argv: list[str], overrides: NodeOverrides | None = None
    ) -> None:
        super()._spawn(sandbox, name, [*NO_MODULES, *argv] if sandbox.kind == "host" else argv, overrides)

    def _serves(
        self, sandbox: Sandbox, settings: ClusterSettings, name: str, seen: int, deadline: Deadline
    ) -> None:
        """See :meth:`.Programs._serves`; k3s in one process is its API server, too."""
        del seen
        alive = {name: self.processes[name]}
        answers = self._api(sandbox, settings).answers
        until(answers, what="the API server to answer", deadline=deadline, alive=alive)

    def _configure(self, sandbox: Sandbox, settings: ClusterSettings) -> None:
        sandbox.files.write(TOKEN, secrets.token_hex(16), 0o600)
        with staged(sandbox.files, f"{self._data}/agent/images") as folder:
            each = [images.pause(settings.pause_image), images.busybox()]
            images.write_images(folder / "images.tar", each)

    def _write_node_files(self, sandbox: Sandbox, settings: ClusterSettings) -> None:
        tuning = components.kubelet_tuning(settings)
        sandbox.files.write(KUBELET_CONFIG, json.dumps(tuning, indent=1))
        folder = f"{self._data}/agent/etc/containerd"
        sandbox.files.mkdir(folder)
        sandbox.files.write(f"{folder}/config-v3.toml.tmpl", containerd_template(settings, self._data))

    def _until_api(self, sandbox: Sandbox, settings: ClusterSettings, deadline: Deadline) -> None:
        pki = certificates.pki(sandbox.control)

        def adopted() -> bool:
            try:
                return adopt(sandbox.files.read(KUBECONFIG, KUBECONFIG_LIMIT), pki, settings)
            except OSError:
                return False

        self._until(adopted, "k3s to write its kubeconfig", deadline)
        if (pki / certificates.ADMIN).exists():  # for a shell inside
            sandbox.files.mkdir(PKI_DIR, 0o700)
            sandbox.files.copy_in(pki / certificates.ADMIN, f"{PKI_DIR}/{certificates.ADMIN}", 0o600)
        self._until(self._api(sandbox, settings).answers, "the API server to answer", deadline)


def containerd_template(settings: ClusterSettings, data: str) -> str:
    """Return the template of containerd's configuration, which is one without anything to fill in.

    Args:
        settings: The images, folders and runtime to use.
        data: k3s' data folder.
    """
    store = ImageStore(f"{data}/agent/containerd", SNAPSHOTTER)
    return components.containerd_config(replace(settings, store=store), state=RUN, socket=CONTAINERD_SOCKET)


def adopt(written: bytes, pki: Path, settings: ClusterSettings) -> bool:
    """Make the files that reach the cluster from outside, out of the kubeconfig that k3s wrote.

    Whatever runs inside can have written it. So nothing of it is used but two certificates and a key,
    and only if they are that; a kubeconfig may name programs to run. Its server is 127.0.0.1, too,
    which is the sandbox itself.

    Args:
        written: The content of k3s' kubeconfig.
        pki: The folder that gets ``ca.crt``, ``admin.crt``, ``admin.key`` and ``admin.kubeconfig``.
        settings: Where the API server is reached.

    Returns:
        Whether it was complete; it is asked for again and again while k3s starts.
    """
    try:
        config: Any = yaml.safe_load(written)
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        parts = {
            "ca.crt": _certificate(cluster["certificate-authority-data"]),
            "admin.crt": _certificate(user["client-certificate-data"]),
            "admin.key": _key(user["client-key-data"]),
        }
    except (
        yaml.YAMLError,
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        RecursionError,
        UnsupportedAlgorithm,
    ):
        return False
    pki.mkdir(mode=0o700, exist_ok=True)
    for name, content in parts.items():
        (pki / name).touch(mode=0o600)
        (pki / name).write_bytes(content)
    certificates.write_kubeconfig(
        pki / certificates.ADMIN,
        server=settings.api_url,
        ca=pki / "ca.crt",
        client=certificates.Pair(pki / "admin.crt", pki / "admin.key"),
    )
    return True


def _certificate(text: str) -> bytes:
    """Return a certificate, written anew; raises ValueError if the Base64 text has no such content."""
    return load_pem_x509_certificate(base64.b64decode(text, validate=True)).public_bytes(Encoding.PEM)


def _key(text: str) -> bytes:
    """Return a private key, written anew; raises ValueError if the Base64 text has no such content."""
    key = load_pem_private_key(base64.b64decode(text, validate=True), password=None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
