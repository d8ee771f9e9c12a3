"""The cluster's DNS: CoreDNS as a program of the node, its configuration, and its objects in kube-system.

k3s runs CoreDNS in a pod (``manifests/coredns.yaml`` of k3s). Here it is a process beside the control plane,
which needs no image and no container. The program is ``toolchain/go/coredns``, CoreDNS with few plugins.

It answers at the address of the pods' gateway. The Service ``kube-dns`` leads there. The Service has no
selector; its EndpointSlice names that address.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network
from typing import Any

from pytest_k3s_sandbox.layers.addresses import POD_RANGE, SERVICE_RANGE
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR

PROGRAM = "coredns"
"""The program, and the process's name."""

USER = "system:coredns"
"""The user of its client certificate, and the name of its role."""

DOMAIN = "cluster.local"
REVERSE = ("in-addr.arpa", "ip6.arpa")
MACHINE = "host.k3s.internal"
"""The name of the machine, for programs in the cluster."""

SERVICE_ADDRESS = str(IPv4Network(SERVICE_RANGE)[10])
"""The address of the Service, 10.43.0.10 as in k3s: the tenth of the service range."""
ADDRESS = str(IPv4Network(POD_RANGE)[1])
"""Where CoreDNS listens: the first address of the pod range, which is the gateway of the pods."""
PORT = 53
METRICS_PORT = 9153

COREFILE = f"{STATE_DIR}/Corefile"
NOWHERE = f"{STATE_DIR}/nowhere.zone"
MANIFEST = f"{STATE_DIR}/dns.json"
"""The objects, for a datastore that begins without them."""
SERVES = b"CoreDNS-"
"""The begin of the log line after which it answers: it states its version then (``coremain.Run``)."""

TTL = 5
"""Seconds for which a client may keep an answer about the cluster: the kubernetes plugin's default."""
HOST_TTL = 60
"""Seconds for which a client may keep an answer about a host, as in k3s."""
CACHE_SECONDS = 30
"""The longest time for which an answer from outside is kept, as in k3s."""

NOWHERE_ZONE = f"""\
@ {CACHE_SECONDS} IN SOA {MACHINE}. hostmaster.{MACHINE}. 1 7200 1800 86400 {CACHE_SECONDS}
@ {CACHE_SECONDS} IN NS {MACHINE}.
"""
"""A root zone without names (RFC 1035, section 5): every name is answered by NXDOMAIN, which ends a lookup.

Without it CoreDNS answers SERVFAIL or REFUSED. Then clients ask again, and musl waits for another answer
until its time is up (``res_msend``).
"""


def command() -> list[str]:
    """Return CoreDNS' command; :data:`COREFILE` is its configuration."""
    return [f"{BIN_DIR}/{PROGRAM}", f"-conf={COREFILE}"]


def corefile(
    kubeconfig: str,
    hosts: Mapping[str, str],
    *,
    address: str = ADDRESS,
    upstreams: Sequence[str] = (),
) -> str:
    """Return CoreDNS' configuration: that of k3s, for a process in the network of the node.

    Only the ports of the Service are taken: the plugins health and ready would take two more from programs in
    the node's network. Names of the cluster are not cached, as in kubeadm's configuration: their answers come
    from memory, and a cache would hide a name for some seconds that has just been made.

    Args:
        kubeconfig: How it reaches the API server, a path inside.
        hosts: Addresses by name, for names outside the cluster's domain.
        address: Where it listens.
        upstreams: The servers for names outside the cluster, by address; without one such a name does not
            exist. :data:`NOWHERE` must have :data:`NOWHERE_ZONE` then.
    """
    entries = "".join(f"        {host} {name}\n" for name, host in hosts.items())
    reverse = " ".join(REVERSE)
    return f"""\
.:{PORT} {{
    bind {address}
    errors
    prometheus {address}:{METRICS_PORT}
    loadbalance
    hosts /dev/null {{
{entries}\
        ttl {HOST_TTL}
        reload 0
        fallthrough
    }}
    kubernetes {DOMAIN} {reverse} {{
        kubeconfig {kubeconfig}
        pods insecure
        ttl {TTL}
        fallthrough {reverse}
    }}
{_outside(upstreams)}}}
"""


def _outside(upstreams: Sequence[str]) -> str:
    """Return the last lines of the configuration, for the names that no other plugin has answered."""
    if not upstreams:
        return f"""\
    file {NOWHERE} . {{
        reload 0
    }}
"""
    return f"""\
    cache {CACHE_SECONDS} {{
        disable success {DOMAIN}
        disable denial {DOMAIN}
    }}
    loop
    forward . {" ".join(upstreams)}
"""


def objects(address: str = ADDRESS) -> list[dict[str, Any]]:
    """Return the objects of the DNS: what CoreDNS may read, and the Service with its address.

    Names, labels and rules are those of k3s, except that the role is a user's and no service account's.

    Args:
        address: Where CoreDNS listens.
    """
    ports = [_port("dns", PORT, "UDP"), _port("dns-tcp", PORT, "TCP"), _port("metrics", METRICS_PORT, "TCP")]
    return [_role(), _binding(), _service(ports), _endpoints(address, ports)]


def manifest() -> str:
    """Return the objects as a manifest (JSON) for kubectl."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects()})


def _port(name: str, number: int, protocol: str) -> dict[str, Any]:
    return {"name": name, "port": number, "protocol": protocol}


def _role() -> dict[str, Any]:
    core = ["endpoints", "services", "pods", "namespaces"]
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": USER},
        "rules": [
            {"apiGroups": [group], "resources": resources, "verbs": ["list", "watch"]}
            for group, resources in (("", core), ("discovery.k8s.io", ["endpointslices"]))
        ],
    }


def _binding() -> dict[str, Any]:
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": USER},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": USER},
        "subjects": [{"apiGroup": group, "kind": "User", "name": USER}],
    }


def _service(ports: list[dict[str, Any]]) -> dict[str, Any]:
    labels = {
        "k8s-app": "kube-dns",
        "kubernetes.io/cluster-service": "true",
        "kubernetes.io/name": "CoreDNS",
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": labels},
        "spec": {"clusterIP": SERVICE_ADDRESS, "ports": ports},
    }


def _endpoints(address: str, ports: list[dict[str, Any]]) -> dict[str, Any]:
    labels = {
        "kubernetes.io/service-name": "kube-dns",
        # By it the controllers of Kubernetes know that the object is not theirs.
        "endpointslice.kubernetes.io/managed-by": "k3s-sandbox",
    }
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        "ports": ports,
    }
