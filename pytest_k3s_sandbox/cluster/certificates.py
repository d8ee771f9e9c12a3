"""The certificates and keys of one node's cluster, and the kubeconfig files that use them.

Names and groups follow Kubernetes' "PKI certificates and requirements" page (the table "All
certificates" and "Configure certificates for user accounts") and its "Using Node Authorization" page.
All keys are EC P-256: they take well under a millisecond to make, an RSA key some tens of them.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pytest_k3s_sandbox.cluster import dns
from pytest_k3s_sandbox.support import clock

BACKDATED = timedelta(hours=1)
"""How far before now certificates begin to be valid: the sandbox's clock may be behind ours."""

LIFETIME = timedelta(days=3650)
"""How long after now certificates end: longer than anyone keeps a sandbox."""

API_SERVER_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)
"""The DNS names by which programs and pods reach the API server."""


ADMIN = "admin.kubeconfig"
"""The administrator's kubeconfig, in the folder of :func:`pki`."""


def pki(control: Path) -> Path:
    """Return the folder of a cluster's keys in a sandbox's folder of the machine's own files."""
    return control / "pki"


@dataclass(frozen=True)
class Pair:
    """The files of one certificate.

    Attributes:
        cert: The certificate, PEM.
        key: Its private key, PEM, readable by the owner only.
    """

    cert: Path
    key: Path


@dataclass(frozen=True)
class Pki:
    """Where each certificate and key lies.

    Attributes:
        folder: The folder that holds them all.
        ca: The authority of the cluster; clients and servers trust it.
        apiserver: The API server's serving certificate.
        apiserver_kubelet_client: The API server's certificate for kubelets.
        front_proxy_ca: The certificate of the aggregation layer's own authority.
        front_proxy_client: The API server's certificate for extension API servers.
        admin: A client that may do everything.
        controller_manager: The controller-manager's client certificate.
        scheduler: The scheduler's client certificate.
        kube_proxy: kube-proxy's client certificate.
        coredns: CoreDNS' client certificate.
        kubelet_client: The kubelet's certificate for the API server.
        kubelet_serving: The kubelet's serving certificate, for logs, exec and statistics.
        service_account_key: The private key that signs service account tokens.
        service_account_public: The public key that verifies them.
    """

    folder: Path
    ca: Pair
    apiserver: Pair
    apiserver_kubelet_client: Pair
    front_proxy_ca: Path
    front_proxy_client: Pair
    admin: Pair
    controller_manager: Pair
    scheduler: Pair
    kube_proxy: Pair
    coredns: Pair
    kubelet_client: Pair
    kubelet_serving: Pair
    service_account_key: Path
    service_account_public: Path


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, in memory.

    Attributes:
        cert: The certificate, PEM.
        key: Its private key, PEM.
    """

    cert: bytes
    key: bytes


class Authority:
    """A self-signed certificate authority.

    Args:
        common_name: The name it is known by.
        now: The time from which validity is counted; the present when not given.
    """

    def __init__(self, common_name: str, *, now: datetime | None = None) -> None:
        """Make its key and certificate."""
        now = clock.now() if now is None else now
        self._begin = now - BACKDATED
        self._end = now + LIFETIME
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(common_name)
        self._cert = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def issued(self) -> Issued:
        """The authority's own certificate and key."""
        return Issued(self._cert.public_bytes(Encoding.PEM), _private_pem(self._key))

    def client(self, common_name: str, organization: str | None = None) -> Issued:
        """Issue a client certificate.

        Args:
            common_name: The user that Kubernetes sees.
            organization: The group that the user is in.

        Returns:
            The certificate and its key.
        """
        subject = _name(common_name, organization)
        return self._leaf(subject, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), None)

    def server(self, common_name: str, names: Iterable[str], organization: str | None = None) -> Issued:
        """Issue a serving certificate.

        Args:
            common_name: The subject; clients look at ``names`` alone.
            names: DNS names and IP addresses that clients connect to; duplicates are dropped.
            organization: The subject's organization.

        Returns:
            The certificate and its key.
        """
        alternatives = x509.SubjectAlternativeName([_general_name(n) for n in dict.fromkeys(names)])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        return self._leaf(_name(common_name, organization), usage, alternatives)

    def _leaf(
        self,
        subject: x509.Name,
        usage: x509.ExtendedKeyUsage,
        alternatives: x509.SubjectAlternativeName | None,
    ) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            self._builder(subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(usage, critical=False)
        )
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        cert = builder.sign(self._key, hashes.SHA256())
        return Issued(cert.public_bytes(Encoding.PEM), _private_pem(key))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        ours = self._key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._begin)
            .not_valid_after(self._end)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ours), critical=False)
        )


def write_pki(
    folder: Path,
    *,
    node: str,
    address: str,
    service_address: str = "10.43.0.1",
    names: Iterable[str] = (),
) -> Pki:
    """Make all certificates and keys of a cluster with one node.

    Args:
        folder: Where to write them; made when missing, readable by the owner only.
        node: The name under which the kubelet registers.
        address: The IP address of the node and of the API server.
        service_address: The first address of the service range, which is the ``kubernetes`` service.
        names: More names or addresses by which clients reach the API server.

    Returns:
        The paths of all files; an earlier run's files of the same names are overwritten.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    ca = Authority("k3s-sandbox-ca")
    front_proxy = Authority("k3s-sandbox-front-proxy-ca")
    token_key = ec.generate_private_key(ec.SECP256R1())
    serving_names = ("127.0.0.1", address, service_address, *API_SERVER_NAMES, *names)
    masters = "system:masters"
    kubelet_user = f"system:node:{node}"

    def put(name: str, issued: Issued) -> Pair:
        return Pair(
            _write(folder / f"{name}.crt", issued.cert, 0o644),
            _write(folder / f"{name}.key", issued.key, 0o600),
        )

    return Pki(
        folder=folder,
        ca=put("ca", ca.issued),
        apiserver=put("apiserver", ca.server("kube-apiserver", serving_names)),
        apiserver_kubelet_client=put(
            "apiserver-kubelet-client", ca.client("kube-apiserver-kubelet-client", masters)
        ),
        # Nothing signs with this authority later, so that its key need not lie on disk.
        front_proxy_ca=_write(folder / "front-proxy-ca.crt", front_proxy.issued.cert, 0o644),
        front_proxy_client=put("front-proxy-client", front_proxy.client("front-proxy-client")),
        admin=put("admin", ca.client("kubernetes-admin", masters)),
        controller_manager=put("controller-manager", ca.client("system:kube-controller-manager")),
        scheduler=put("scheduler", ca.client("system:kube-scheduler")),
        kube_proxy=put("kube-proxy", ca.client("system:kube-proxy")),
        coredns=put("coredns", ca.client(dns.USER)),
        kubelet_client=put("kubelet-client", ca.client(kubelet_user, "system:nodes")),
        kubelet_serving=put("kubelet-serving", ca.server(kubelet_user, (address, node), "system:nodes")),
        service_account_key=_write(folder / "service-account.key", _private_pem(token_key), 0o600),
        service_account_public=_write(
            folder / "service-account.pub",
            token_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            0o644,
        ),
    )


def kubeconfig(
    server: str, ca: bytes | str, cert: bytes | str, key: bytes | str, *, name: str = "k3s-sandbox"
) -> dict[str, Any]:
    """Describe how one client reaches one cluster (client-go's ``clientcmd/api/v1.Config``).

    Args:
        server: The URL of the API server.
        ca: The authority to trust; ``bytes`` are PEM and are embedded, a ``str`` is a path and is named.
        cert: The client's certificate, likewise.
        key: The client's private key, likewise.
        name: The name of the cluster, the user and the context.

    Returns:
        The content of a kubeconfig file, with its only context chosen.
    """
    cluster = {"server": server, **_material("certificate-authority", ca)}
    user = {**_material("client-certificate", cert), **_material("client-key", key)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }


def write_kubeconfig(path: Path, *, server: str, ca: Path, client: Pair, embed: bool = True) -> Path:
    """Write a kubeconfig file that only its owner can read.

    Args:
        path: The file; overwritten when it exists.
        server: The URL of the API server.
        ca: The certificate of the authority that signed the server's.
        client: The client's certificate and key.
        embed: Put the certificates and the key into the file, so that it works anywhere; otherwise
            it names their paths.

    Returns:
        ``path``.
    """
    files = (ca, client.cert, client.key)
    parts = [file.read_bytes() if embed else str(file.absolute()) for file in files]
    # JSON is YAML, too, and is written in a fiftieth of the time.
    text = json.dumps(kubeconfig(server, *parts), indent=1)
    return _write(path, f"{text}\n".encode(), 0o600)


def _material(field: str, value: bytes | str) -> dict[str, str]:
    if isinstance(value, str):
        return {field: value}
    return {f"{field}-data": base64.b64encode(value).decode("ascii")}


def _name(common_name: str, organization: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization is not None:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    # SEC 1 ("EC PRIVATE KEY"), the form that client-go's keyutil writes itself.
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def _write(path: Path, content: bytes, mode: int) -> Path:
    # The mode is set before the content is there, and also on a file that an earlier run left.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.truncate(0)
        file.write(content)
    return path
