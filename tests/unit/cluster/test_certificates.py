"""The certificates, read back and verified as a peer would."""

from __future__ import annotations

import base64
import os
import stat
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from pytest_k3s_sandbox.cluster import dns
from pytest_k3s_sandbox.cluster.certificates import (
    Authority,
    Pair,
    Pki,
    kubeconfig,
    write_kubeconfig,
    write_pki,
)

ADDRESS = "10.77.0.2"
NODE = "node-1"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    folder = tmp_path_factory.mktemp("certificates") / "pki"
    return write_pki(folder, node=NODE, address=ADDRESS, names=["api.example", ADDRESS])


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def subject(path: Path) -> tuple[str, str | None]:
    attributes = load(path).subject
    organizations = attributes.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return (
        str(attributes.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value),
        str(organizations[0].value) if organizations else None,
    )


def pairs(pki: Pki) -> dict[str, Pair]:
    return {name: value for name, value in vars(pki).items() if isinstance(value, Pair)}


def alternatives(path: Path) -> set[str]:
    extension = load(path).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return {str(name.value) for name in extension.value}


def test_a_client_trusts_the_api_server_by_each_of_its_names(pki: Pki) -> None:
    store = Store([load(pki.ca.cert)])
    for name in ("localhost", "kubernetes.default.svc", "api.example"):
        PolicyBuilder().store(store).build_server_verifier(x509.DNSName(name)).verify(
            load(pki.apiserver.cert), []
        )
    for address in ("127.0.0.1", ADDRESS, "10.43.0.1"):
        PolicyBuilder().store(store).build_server_verifier(x509.IPAddress(IPv4Address(address))).verify(
            load(pki.apiserver.cert), []
        )
    stranger = PolicyBuilder().store(store).build_server_verifier(x509.DNSName("elsewhere"))
    with pytest.raises(VerificationError):
        stranger.verify(load(pki.apiserver.cert), [])


def test_alternative_names_are_those_asked_for_and_no_others(pki: Pki) -> None:
    assert alternatives(pki.apiserver.cert) == {
        *("127.0.0.1", ADDRESS, "10.43.0.1", "localhost", "kubernetes", "kubernetes.default"),
        *("kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "api.example"),
    }
    assert alternatives(pki.kubelet_serving.cert) == {ADDRESS, NODE}


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("admin", ("kubernetes-admin", "system:masters")),
        ("apiserver_kubelet_client", ("kube-apiserver-kubelet-client", "system:masters")),
        ("controller_manager", ("system:kube-controller-manager", None)),
        ("scheduler", ("system:kube-scheduler", None)),
        ("kube_proxy", ("system:kube-proxy", None)),
        ("coredns", (dns.USER, None)),
        ("kubelet_client", ("system:node:node-1", "system:nodes")),
    ],
)
def test_clients_are_who_kubernetes_expects(pki: Pki, field: str, expected: tuple[str, str | None]) -> None:
    cert = getattr(pki, field).cert
    assert subject(cert) == expected
    load(cert).verify_directly_issued_by(load(pki.ca.cert))
    usage = load(cert).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_the_front_proxy_has_an_authority_of_its_own(pki: Pki) -> None:
    load(pki.front_proxy_client.cert).verify_directly_issued_by(load(pki.front_proxy_ca))
    with pytest.raises(ValueError, match="issuer"):
        load(pki.front_proxy_client.cert).verify_directly_issued_by(load(pki.ca.cert))


def test_each_key_belongs_to_its_certificate_and_is_readable_by_the_owner_only(pki: Pki) -> None:
    assert len(pairs(pki)) == 11
    for pair in pairs(pki).values():
        key = load_pem_private_key(pair.key.read_bytes(), None)
        assert key.public_key() == load(pair.cert).public_key()
        assert stat.S_IMODE(pair.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(pki.service_account_key.stat().st_mode) == 0o600
    assert stat.S_IMODE(pki.folder.stat().st_mode) == 0o700


def test_service_account_keys_fit_each_other(pki: Pki) -> None:
    private = load_pem_private_key(pki.service_account_key.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.public_key() == load_pem_public_key(pki.service_account_public.read_bytes())


def test_validity_is_from_an_hour_ago_to_ten_years(pki: Pki) -> None:
    now = datetime.now(UTC)
    for pair in pairs(pki).values():
        cert = load(pair.cert)
        assert timedelta(minutes=59) < now - cert.not_valid_before_utc < timedelta(minutes=65)
        assert timedelta(days=3649) < cert.not_valid_after_utc - now <= timedelta(days=3650)


def test_authority_counts_from_the_given_time() -> None:
    authority = Authority("x", now=datetime(2030, 1, 1, 12, tzinfo=UTC))
    cert = x509.load_pem_x509_certificate(authority.client("someone").cert)
    assert cert.not_valid_before_utc == datetime(2030, 1, 1, 11, tzinfo=UTC)


def test_writing_again_closes_a_key_file_that_was_open_to_all(tmp_path: Path) -> None:
    first = write_pki(tmp_path, node=NODE, address=ADDRESS)
    first.admin.key.write_bytes(b"x" * 10_000)
    first.admin.key.chmod(0o644)
    second = write_pki(tmp_path, node=NODE, address=ADDRESS)
    assert stat.S_IMODE(second.admin.key.stat().st_mode) == 0o600
    load_pem_private_key(second.admin.key.read_bytes(), None)
    assert second.admin.key.stat().st_size < 1000


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        pki = write_pki(tmp_path / "pki", node=NODE, address=ADDRESS)
    finally:
        os.umask(before)
    assert stat.S_IMODE(pki.ca.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(pki.ca.cert.stat().st_mode) == 0o644


def test_an_embedded_kubeconfig_holds_everything(pki: Pki, tmp_path: Path) -> None:
    path = write_kubeconfig(
        tmp_path / "config", server="https://10.77.0.2:6443", ca=pki.ca.cert, client=pki.admin
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = yaml.safe_load(path.read_text())
    cluster, user = content["clusters"][0]["cluster"], content["users"][0]["user"]
    assert cluster["server"] == "https://10.77.0.2:6443"
    assert base64.b64decode(cluster["certificate-authority-data"]) == pki.ca.cert.read_bytes()
    assert base64.b64decode(user["client-certificate-data"]) == pki.admin.cert.read_bytes()
    assert base64.b64decode(user["client-key-data"]) == pki.admin.key.read_bytes()
    context = next(c for c in content["contexts"] if c["name"] == content["current-context"])["context"]
    assert (context["cluster"], context["user"]) == (
        content["clusters"][0]["name"],
        content["users"][0]["name"],
    )


def test_a_kubeconfig_that_embeds_nothing_names_the_files(pki: Pki, tmp_path: Path) -> None:
    path = write_kubeconfig(
        tmp_path / "config", server="https://x", ca=pki.ca.cert, client=pki.admin, embed=False
    )
    content = yaml.safe_load(path.read_text())
    assert content["users"][0]["user"] == {
        "client-certificate": str(pki.admin.cert),
        "client-key": str(pki.admin.key),
    }
    assert content["clusters"][0]["cluster"]["certificate-authority"] == str(pki.ca.cert)


def test_kubeconfig_tells_a_path_from_content() -> None:
    content = kubeconfig("https://x", "/pki/ca.crt", b"CERT", b"KEY", name="n")
    assert content["clusters"][0]["cluster"]["certificate-authority"] == "/pki/ca.crt"
    assert content["users"][0]["user"]["client-key-data"] == "S0VZ"


def test_the_kubernetes_client_reads_it(pki: Pki, tmp_path: Path) -> None:
    from kubernetes import config

    path = write_kubeconfig(tmp_path / "config", server="https://x:1", ca=pki.ca.cert, client=pki.admin)
    client = config.new_client_from_config(str(path))  # it publishes no types
    assert client.configuration.host == "https://x:1"
    client.close()
