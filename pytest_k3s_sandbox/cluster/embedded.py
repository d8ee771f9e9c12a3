"""The parts that k3s is made of, as processes of their own with logs of their own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pytest_k3s_sandbox.cluster import certificates, components, dns, images
from pytest_k3s_sandbox.cluster.base import Phase
from pytest_k3s_sandbox.cluster.components import KINE_SOCKET, KUBELET_ROOT, PKI_DIR, ClusterSettings
from pytest_k3s_sandbox.cluster.datastore import FILE
from pytest_k3s_sandbox.cluster.logs import written_since
from pytest_k3s_sandbox.cluster.process_wait import until
from pytest_k3s_sandbox.cluster.programs import Programs
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError
from pytest_k3s_sandbox.layers.base import NodeOverrides
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR, Reachable, Sandbox
from pytest_k3s_sandbox.sandbox.network import machine_of
from pytest_k3s_sandbox.sandbox.trees import staged

CONTROL_PLANE = (dns.PROGRAM, "kube-scheduler", "kube-controller-manager", "kube-apiserver", "kine")
NODE = ("kubelet", "containerd")
IMAGES = "images.tar"
SHARE_ROOT = """
grep -q " $0 " /proc/self/mountinfo ||
{ mkdir -p "$0" && mount --bind "$0" "$0" && mount --make-rshared "$0"; }
"""
"""Makes a folder a shared mount, unless it is a mount: for the kubelet's.

Otherwise a kubelet does so itself (DoMakeRShared in k8s.io/mount-utils), while it already renames a
socket in there, and ends if the mount comes in between (``invalid cross-device link``).
"""
LISTENERS = "cd /proc/net; cat tcp; test ! -e tcp6 || cat tcp6"
"""Prints the TCP sockets (proc_net_tcp(5)); where IPv6 is switched off, there is no tcp6."""
POLL_SECONDS = 0.03
"""Between two questions while the control plane starts: they go over one connection and cost little."""
CONTAINERD_SERVES = b"containerd successfully booted"
"""containerd's log line when its socket serves. Its log can be read without starting a program inside."""


class Embedded(Programs):
    """kine on SQLite, kube-apiserver, scheduler, controller-manager, containerd, kubelet.

    Implements :class:`~.base.Distribution`.

    Args:
        seed: A datastore to begin with, with the objects of the DNS (see :mod:`~.datastore`); an empty one if
            None.
    """

    name = "embedded"
    kubelet_process = "kubelet"
    programs: tuple[str, ...] = (
        "kine",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "kubectl",
        "containerd",
        "containerd-shim-runc-v2",
        "ctr",
        "runc",
    )

    def __init__(self, seed: Path | None = None) -> None:
        """Start nothing yet."""
        super().__init__()
        self._seed = seed
        self._starting = contextlib.ExitStack()
        self._images_loaded = False
        self._store = components.IN_MEMORY

    def start_control_plane(self, sandbox: Sandbox, settings: ClusterSettings, phase: Phase) -> None:
        """Start datastore and API server; see :meth:`.base.Distribution.start_control_plane`."""
        with phase("configuration"):
            assert_ports_free(sandbox, settings)
            self._configure(sandbox, settings)
        self._starting.enter_context(phase("API server"))
        self._spawn(sandbox, "kine", components.kine())
        # The API server does not wait for a datastore, it fails.
        self._spawn(sandbox, "kube-apiserver", after_socket(KINE_SOCKET, components.kube_apiserver(settings)))

    def start_node(
        self,
        sandbox: Sandbox,
        settings: ClusterSettings,
        overrides: NodeOverrides,
        deadline: Deadline,
        phase: Phase,
    ) -> None:
        """Start containerd, then the rest when the API server answers; see :class:`.base.Distribution`."""
        settings = with_overrides(settings, overrides)
        self._store = settings.store
        files = sandbox.files
        files.write(f"{STATE_DIR}/containerd.toml", components.containerd_config(settings))
        files.write(f"{STATE_DIR}/kubelet.json", json.dumps(components.kubelet_config(settings), indent=1))
        with phase("containerd"):
            argv = [*overrides.wrap.get("containerd", ()), *components.containerd(settings)]
            seen = files.size(f"{STATE_DIR}/logs/containerd.log")  # of a node before
            self._spawn(sandbox, "containerd", argv, overrides)
            share_kubelet_root(sandbox)
            if not self._images_loaded:
                # In one archive: in gVisor the program that imports it costs more than the import.
                with staged(files, STATE_DIR) as folder:
                    each = [images.pause(settings.pause_image), images.busybox()]
                    images.write_images(folder / IMAGES, each)
            self._serves(sandbox, settings, "containerd", seen, deadline)
        # Nodes can register long before the API server calls itself ready, which it does when all roles are
        # written; a kubelet needs none of them (Node authorizer).
        self._until_api(sandbox, settings, "/api/v1/nodes?limit=1", deadline)
        argv = [*overrides.wrap.get("kubelet", ()), *components.kubelet(settings)]
        self._spawn(sandbox, "kubelet", argv, overrides)
        if not self._images_loaded:
            with phase("images"):
                self.load_image(sandbox, f"{STATE_DIR}/{IMAGES}", deadline)
            self._images_loaded = True
        self.wait_control_plane(sandbox, settings, deadline)

    def wait_control_plane(self, sandbox: Sandbox, settings: ClusterSettings, deadline: Deadline) -> None:
        """Wait until the API server says that it is ready, and start the controllers if they do not run.

        Raises:
            ClusterError: A part ended or the deadline passed; the message names its log.
        """
        self._until_api(sandbox, settings, "/readyz", deadline)
        self._starting.close()
        if "kube-scheduler" not in self.processes:
            self._spawn(sandbox, "kube-controller-manager", components.kube_controller_manager())
            self._spawn(sandbox, "kube-scheduler", components.kube_scheduler())
            if settings.dns:
                self._start_dns(sandbox, deadline)

    def stop_node(self) -> None:
        """End kubelet and containerd, side by side."""
        self._stop(NODE)

    def stop(self) -> None:
        """End the processes: the node's part, then the control plane, each part at once."""
        self.stop_node()
        self._stop(CONTROL_PLANE)
        self._starting.close()

    def load_image(self, sandbox: Reachable, tar: str, deadline: Deadline) -> None:
        """Import an image; see :meth:`.base.Distribution.load_image`."""
        load_image(sandbox, tar, deadline, self._store.snapshotter)

    def images(self, sandbox: Reachable, deadline: Deadline) -> frozenset[str]:
        """Return the names of the images; see :meth:`.base.Distribution.images`."""
        return image_names(sandbox, deadline)

    def _serves(
        self, sandbox: Sandbox, settings: ClusterSettings, name: str, seen: int, deadline: Deadline
    ) -> None:
        """See :meth:`.Programs._serves`."""
        process = self.processes[name]
        serves = {
            "containerd": lambda: CONTAINERD_SERVES in written_since(process.log, seen),
            "kube-apiserver": self._api(sandbox, settings).answers,
            dns.PROGRAM: lambda: dns.SERVES in written_since(process.log, seen),
        }
        if name in serves:
            until(serves[name], what=f"{name} to answer", deadline=deadline, alive={name: process})

    def _configure(self, sandbox: Sandbox, settings: ClusterSettings) -> None:
        files = sandbox.files
        for name in ("db", "manifests"):
            files.mkdir(f"{STATE_DIR}/{name}", 0o700)
        if self._seed is not None:
            files.copy_in(self._seed, f"{STATE_DIR}/db/{FILE}", 0o600)
        folder = certificates.pki(sandbox.control)
        pki = certificates.write_pki(folder, node=settings.node, address=settings.address)
        clients = {
            "admin": pki.admin,
            "controller-manager": pki.controller_manager,
            "scheduler": pki.scheduler,
            "kube-proxy": pki.kube_proxy,
            dns.PROGRAM: pki.coredns,
            "kubelet": pki.kubelet_client,
        }
        for name, pair in clients.items():
            path = pki.folder / f"{name}.kubeconfig"
            certificates.write_kubeconfig(path, server=settings.api_url, ca=pki.ca.cert, client=pair)
        files.mkdir(PKI_DIR, 0o700)
        ours = {pki.ca.cert.name, pki.admin.cert.name, pki.admin.key.name, certificates.ADMIN}
        for path in sorted(pki.folder.iterdir()):
            # The administrator's are inside, too, for a shell there.
            put = files.copy_in if path.name in ours else files.move_in
            put(path, f"{PKI_DIR}/{path.name}", 0o600)
        if settings.dns:
            hosts = {dns.MACHINE: machine_of(settings.address), settings.node: settings.address}
            files.write(dns.COREFILE, dns.corefile(f"{PKI_DIR}/{dns.PROGRAM}.kubeconfig", hosts))
            files.write(dns.NOWHERE, dns.NOWHERE_ZONE)

    def _start_dns(self, sandbox: Sandbox, deadline: Deadline) -> None:
        """Start CoreDNS, which may read nothing before its role is there: a prepared datastore has it."""
        if self._seed is None:
            sandbox.files.write(dns.MANIFEST, dns.manifest())
            argv = [f"{BIN_DIR}/kubectl", f"--kubeconfig={PKI_DIR}/{certificates.ADMIN}", "apply"]
            self._until(
                # The namespace may come later.
                lambda: sandbox.run([*argv, "-f", dns.MANIFEST], check=False).returncode == 0,
                "the objects of the DNS",
                deadline,
            )
        self._spawn(sandbox, dns.PROGRAM, dns.command())

    def _until_api(self, sandbox: Sandbox, settings: ClusterSettings, path: str, deadline: Deadline) -> None:
        api = self._api(sandbox, settings)
        self._until(lambda: api.answers(path), "kube-apiserver to answer", deadline, poll=POLL_SECONDS)


def share_kubelet_root(sandbox: Sandbox) -> None:
    """Make the kubelet's folder a shared mount, unless it is a mount already; see :data:`SHARE_ROOT`."""
    sandbox.run(["sh", "-c", SHARE_ROOT, KUBELET_ROOT])


def after_socket(socket: str, argv: Sequence[str]) -> list[str]:
    """Return the command that waits until a Unix socket is there, and becomes ``argv`` then."""
    return ["sh", "-c", f'until test -S {socket}; do sleep 0.02; done; exec "$@"', "sh", *argv]


def with_overrides(settings: ClusterSettings, overrides: NodeOverrides) -> ClusterSettings:
    """Return the settings with the layers' overrides."""
    return replace(
        settings,
        cni_bin_dir=overrides.cni_bin_dir or settings.cni_bin_dir,
        cni_conf_dir=overrides.cni_conf_dir or settings.cni_conf_dir,
        runtimes={name: overrides.runtimes.get(name, path) for name, path in settings.runtimes.items()},
    )


def load_image(
    sandbox: Reachable,
    tar: str,
    deadline: Deadline,
    snapshotter: str,
    *,
    ctr: str = f"{BIN_DIR}/ctr",
    socket: str = components.CONTAINERD_SOCKET,
) -> None:
    """Import an image into the namespace that the kubelet's containerd uses.

    Args:
        sandbox: Where containerd runs.
        tar: A docker-archive or OCI layout, a path inside.
        deadline: When to give up.
        snapshotter: The snapshotter that containerd is configured with.
        ctr: containerd's command-line client, a path inside.
        socket: containerd's socket.

    Raises:
        StartError: containerd refused it.
    """
    argv = [ctr, "-a", socket, "-n", "k8s.io", "images", "import", "--local", "--snapshotter", snapshotter]
    sandbox.run([*argv, tar], timeout=deadline.remaining())


def image_names(
    sandbox: Reachable,
    deadline: Deadline,
    *,
    ctr: str = f"{BIN_DIR}/ctr",
    socket: str = components.CONTAINERD_SOCKET,
) -> frozenset[str]:
    """Return the names of the images that the kubelet's containerd has.

    Args:
        sandbox: Where containerd runs.
        deadline: When to give up.
        ctr: containerd's command-line client, a path inside.
        socket: containerd's socket.

    Raises:
        StartError: containerd refused it.
    """
    argv = [ctr, "-a", socket, "-n", "k8s.io", "images", "list", "--quiet"]
    return frozenset(sandbox.run(argv, timeout=deadline.remaining()).stdout.split())


def assert_ports_free(sandbox: Sandbox, settings: ClusterSettings) -> None:
    """Make sure that the ports of the control plane and the kubelet are free.

    Raises:
        ClusterError: A port is taken; the message names it.
    """
    ports = {
        "kube-apiserver": settings.api_port,
        "kubelet": components.KUBELET_PORT,
        **components.CONTROL_PLANE_PORTS,
    }
    listening = listening_ports(sandbox.run(["sh", "-c", LISTENERS]).stdout)
    for name, port in ports.items():
        if port in listening:
            raise ClusterError(
                f"port {port} in {sandbox.name} is occupied",
                cause=f"{name} needs it, and another process listens on it",
                remedy="end that process, or choose another port with --k3s-api-port"
                if name == "kube-apiserver"
                else "end that process",
            )


def listening_ports(table: str) -> set[int]:
    """Return the TCP ports in state LISTEN (0A) of /proc/net/tcp and tcp6 (proc(5))."""
    rows = (line.split() for line in table.splitlines())
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3:4] == ["0A"]}
