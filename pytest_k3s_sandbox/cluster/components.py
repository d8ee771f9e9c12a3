"""The command lines and configuration files of Kubernetes' parts: pure functions.

Flags and fields: the components' reference pages for v1.34, and containerd's
``docs/cri/config.md`` for version 3 of its configuration. What other versions of
Kubernetes want differently is in :mod:`.versions`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_k3s_sandbox.cluster import dns, sandboxer, versions
from pytest_k3s_sandbox.layers.addresses import POD_RANGE, SERVICE_RANGE
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR

KINE_SOCKET = "/run/kine.sock"
CONTAINERD_STATE = "/run/containerd"
CONTAINERD_SOCKET = f"{CONTAINERD_STATE}/containerd.sock"
PKI_DIR = f"{STATE_DIR}/pki"
MANIFESTS = f"{STATE_DIR}/manifests"
"""Where the embedded kubelet looks for static pods."""
KUBELET_PORT = 10250
KUBELET_ROOT = "/var/lib/kubelet"
"""The kubelet's own folder, where it is unless told otherwise."""
CONTROL_PLANE_PORTS = {"kube-controller-manager": 10257, "kube-scheduler": 10259}


@dataclass(frozen=True)
class ImageStore:
    """Where containerd keeps images and containers, and how.

    Attributes:
        root: The folder, a path inside.
        snapshotter: ``overlayfs``, which needs a file system that overlays can be mounted on, or
            ``native``, which copies an image's files for every container.
    """

    root: str
    snapshotter: str


IN_MEMORY = ImageStore("/run/lib-containerd", "overlayfs")
"""On the tmpfs /run, which ends with the sandbox as everything does. Copying took more than a quarter of a
pod's start in gVisor (docs/findings.md)."""
ON_9P = ImageStore("/var/lib/containerd", "native")
"""On the sandbox's 9p mount, as in the research; overlays cannot be mounted there."""


@dataclass(frozen=True)
class ClusterSettings:
    """The values that the components' configuration depends on.

    Attributes:
        node: The node's name.
        address: The node's IPv4 address.
        api_port: The TCP port of the API server.
        cni_bin_dir: The folder with CNI plugins, a path inside.
        cni_conf_dir: The folder with the CNI configuration list, a path inside.
        runtime: The name of the OCI runtime that starts a pod without a RuntimeClass.
        runtimes: The OCI runtimes, paths inside by name; a RuntimeClass can have such a name as its handler.
        sandboxer: Whether a sandboxer holds the pods of that runtime; see :mod:`~.sandboxer`.
        dns: Whether the cluster has a DNS: CoreDNS runs, and pods ask it; see :mod:`~.dns`.
        pause_image: The reference of the sandbox image.
        store: Where images and containers are.
        kubernetes: The version of Kubernetes.
        pod_groups: The kubelet's ``cgroupsPerQOS``: a cgroup for each pod, with its limits. It needs a cgroup
            file system that is complete. Without it, a pod that is resized in place ends the kubelet.
        local_storage_isolation: The kubelet's ``localStorageCapacityIsolation``.
        kubelet_overrides: Fields put over the kubelet's configuration.
    """

    node: str
    address: str
    api_port: int = 6443
    cni_bin_dir: str = "/opt/cni/bin"
    cni_conf_dir: str = "/etc/cni/net.d"
    runtime: str = "runc"
    runtimes: Mapping[str, str] = field(default_factory=lambda: {"runc": f"{BIN_DIR}/runc"})
    sandboxer: bool = False
    dns: bool = False
    pause_image: str = "registry.k8s.io/pause:3.10"
    store: ImageStore = IN_MEMORY
    kubernetes: str = versions.OLDEST
    pod_groups: bool = False
    local_storage_isolation: bool = True
    kubelet_overrides: tuple[tuple[str, Any], ...] = ()

    @property
    def api_url(self) -> str:
        """The API server's address, the same from inside and from the machine."""
        return f"https://{self.address}:{self.api_port}"


def kine() -> list[str]:
    """Return kine's command: etcd's API on a Unix socket, SQLite behind it."""
    database = (
        f"sqlite://{STATE_DIR}/db/state.db?_journal=WAL&cache=shared&_busy_timeout=30000&_txlock=immediate"
    )
    return [
        f"{BIN_DIR}/kine",
        f"--listen-address=unix://{KINE_SOCKET}",
        f"--endpoint={database}",
        "--metrics-bind-address=0",
    ]


def kube_apiserver(settings: ClusterSettings) -> list[str]:
    """Return the API server's command."""
    pki = PKI_DIR
    return [
        f"{BIN_DIR}/kube-apiserver",
        f"--etcd-servers=unix://{KINE_SOCKET}",
        f"--secure-port={settings.api_port}",
        f"--advertise-address={settings.address}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--anonymous-auth=false",
        "--profiling=false",
        f"--client-ca-file={pki}/ca.crt",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt",
        f"--kubelet-client-key={pki}/apiserver-kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={pki}/front-proxy-ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki}/front-proxy-client.crt",
        f"--proxy-client-key-file={pki}/front-proxy-client.key",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki}/service-account.pub",
        f"--service-account-signing-key-file={pki}/service-account.key",
    ]


def _own_kubeconfig(name: str) -> list[str]:
    path = f"{PKI_DIR}/{name}.kubeconfig"
    return [
        f"--kubeconfig={path}",
        f"--authentication-kubeconfig={path}",
        f"--authorization-kubeconfig={path}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--profiling=false",
    ]


def kube_controller_manager() -> list[str]:
    """Return the controller manager's command."""
    return [
        f"{BIN_DIR}/kube-controller-manager",
        *_own_kubeconfig("controller-manager"),
        f"--root-ca-file={PKI_DIR}/ca.crt",
        f"--service-account-private-key-file={PKI_DIR}/service-account.key",
        "--use-service-account-credentials=true",
        # Its own limit of 20 a second makes its controllers start one after another, for 4 s, and a
        # namespace go in 9 s; no other client loads the API server here.
        "--kube-api-qps=1000",
        "--kube-api-burst=1000",
        "--allocate-node-cidrs=true",
        f"--cluster-cidr={POD_RANGE}",
        "--node-cidr-mask-size=24",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
    ]


def kube_scheduler() -> list[str]:
    """Return the scheduler's command."""
    return [f"{BIN_DIR}/kube-scheduler", *_own_kubeconfig("scheduler")]


def containerd(settings: ClusterSettings) -> list[str]:
    """Return containerd's command."""
    argv = [f"{BIN_DIR}/containerd", "--config", f"{STATE_DIR}/containerd.toml"]
    if not settings.sandboxer:
        return argv
    return sandboxer.started_with(argv, settings.store.root, CONTAINERD_STATE, CONTAINERD_SOCKET)


def containerd_config(
    settings: ClusterSettings,
    *,
    state: str = CONTAINERD_STATE,
    socket: str = CONTAINERD_SOCKET,
) -> str:
    """Return containerd's configuration (TOML, version 3).

    The unprivileged port and ICMP sysctls are off because gVisor lacks them. Containers get no
    session keyring of their own, because gVisor gives out 200 and never takes one back: the
    hundredth pod would not start.

    Args:
        settings: The images, folders and runtime to use.
        state: The folder of the state that ends with containerd.
        socket: Where it is reached.
    """
    text = json.dumps  # a JSON string is a TOML basic string
    store = settings.store
    unused = "native" if store.snapshotter == "overlayfs" else "overlayfs"
    return f"""version = 3
root = {text(store.root)}
state = {text(state)}
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.{unused}", "io.containerd.snapshotter.v1.erofs",
  "io.containerd.nri.v1.nri",
]

[grpc]
  address = {text(socket)}
{sandboxer.plugin() if settings.sandboxer else ""}
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = {text(store.snapshotter)}
  differ = "walking"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = {text(store.snapshotter)}
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = {text(settings.pause_image)}

[plugins."io.containerd.cri.v1.runtime"]
  enable_unprivileged_ports = false
  enable_unprivileged_icmp = false
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [{text(settings.cni_bin_dir)}, {text(BIN_DIR)}]
    conf_dir = {text(settings.cni_conf_dir)}
    max_conf_num = 1
    use_internal_loopback = true
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = {text(settings.runtime)}
{"".join(_runtime(settings, name) for name in settings.runtimes)}"""


def _runtime(settings: ClusterSettings, name: str) -> str:
    """Return the section of an OCI runtime in containerd's configuration."""
    text, held = json.dumps, settings.sandboxer and name == settings.runtime
    section = f'plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{name}'
    return f"""    [{section}]
      runtime_type = "io.containerd.runc.v2"
      sandboxer = "{sandboxer.PROGRAM if held else "podsandbox"}"
      [{section}.options]
        BinaryName = {text(settings.runtimes[name])}
        NoNewKeyring = true
        SystemdCgroup = false
"""


def kubelet(settings: ClusterSettings) -> list[str]:
    """Return the kubelet's command."""
    return [
        f"{BIN_DIR}/kubelet",
        f"--config={STATE_DIR}/kubelet.json",
        f"--kubeconfig={PKI_DIR}/kubelet.kubeconfig",
        f"--hostname-override={settings.node}",
        f"--node-ip={settings.address}",
        "--v=2",
    ]


def kubelet_config(settings: ClusterSettings) -> dict[str, Any]:
    """Return the embedded kubelet's KubeletConfiguration (kubelet.config.k8s.io/v1beta1)."""
    return {
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{PKI_DIR}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{PKI_DIR}/kubelet-serving.crt",
        "tlsPrivateKeyFile": f"{PKI_DIR}/kubelet-serving.key",
        "port": KUBELET_PORT,
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "volumePluginDir": f"{KUBELET_ROOT}/volume-plugins",
        "staticPodPath": MANIFESTS,
        # In gVisor inotify does not tell of files that the machine writes there.
        "fileCheckFrequency": "2s",
        "clusterDomain": dns.DOMAIN,
        **({"clusterDNS": [dns.SERVICE_ADDRESS]} if settings.dns else {}),
        "podCIDR": POD_RANGE,
    } | kubelet_tuning(settings)


def kubelet_tuning(settings: ClusterSettings) -> dict[str, Any]:
    """Return the settings of every kubelet in a sandbox, also of one that k3s configures.

    It is a whole KubeletConfiguration, as a file beside another one has to be.
    """
    thresholds = {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"}
    config: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": settings.pod_groups,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": thresholds,
        "localStorageCapacityIsolation": settings.local_storage_isolation,
    }
    return config | versions.kubelet_fields(settings.kubernetes) | dict(settings.kubelet_overrides)
