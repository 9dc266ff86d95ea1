#!/usr/bin/env python3
"""Certificates, keys and kubeconfigs of the embedded cluster.

Everything is written below --directory, readable by root only. What is there is kept while it still fits and is
valid for another 30 days; anything else is issued again. Prints one JSON object: {"changes": [sentence, ...],
"digest": of all certificates, so that components can be restarted when one was renewed}.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import hashlib
import ipaddress
import json
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFETIME = datetime.timedelta(days=3650)
CERTIFICATE_LIFETIME = datetime.timedelta(days=365)
RENEW_BEFORE = datetime.timedelta(days=30)


@dataclass(frozen=True)
class Wanted:
    """A certificate that has to exist: its file name, issuer and subject, and the names a server answers to."""

    name: str
    authority: str
    common_name: str
    organization: str = ""
    server_names: tuple[str, ...] = ()
    client: bool = True


def write(path: Path, content: bytes) -> None:
    """Write a file that only root can read, in one step, so that a killed run leaves no half of it."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)
    temporary.rename(path)


def key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PEM of a private key."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def subject(common_name: str, organization: str = "") -> x509.Name:
    """The X.509 name that Kubernetes reads a user (CN) and a group (O) from."""
    names = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization:
        names.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(names)


def alternative_names(names: tuple[str, ...]) -> list[x509.GeneralName]:
    """Addresses and host names as subject alternative names."""
    result: list[x509.GeneralName] = []
    for name in names:
        try:
            result.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            result.append(x509.DNSName(name))
    return result


class Store:
    """The directory of certificates; remembers in `changes` what had to be issued."""

    def __init__(self, directory: Path, dry_run: bool) -> None:
        self.directory = directory
        self.dry_run = dry_run
        self.now = datetime.datetime.now(datetime.UTC)
        self.changes: list[str] = []
        self.authorities: dict[str, tuple[x509.Certificate, ec.EllipticCurvePrivateKey]] = {}

    def load(self, name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
        """The pair of that name, or None if it is missing, unreadable or about to expire."""
        try:
            certificate = x509.load_pem_x509_certificate((self.directory / f"{name}.crt").read_bytes())
            key = serialization.load_pem_private_key((self.directory / f"{name}.key").read_bytes(), None)
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            return None
        return (certificate, key) if certificate.not_valid_after_utc - self.now > RENEW_BEFORE else None

    def builder(self, name: x509.Name, lifetime: datetime.timedelta) -> x509.CertificateBuilder:
        """What every certificate has in common. The start lies back a little: clocks are set late after a boot."""
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - datetime.timedelta(hours=1))
            .not_valid_after(self.now + lifetime)
        )

    def save(self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        """Write a pair and remember it. The key goes first: a pair that does not fit is issued again."""
        if not self.dry_run:
            write(self.directory / f"{name}.key", key_bytes(key))
            write(self.directory / f"{name}.crt", certificate.public_bytes(serialization.Encoding.PEM))
        self.changes.append(f"issued certificate {name}")

    def authority(self, name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """The certificate authority of that name, made if it is missing."""
        if pair := self.authorities.get(name) or self.load(name):
            return pair
        key = ec.generate_private_key(ec.SECP256R1())
        who = subject(f"ansible-mlflow {name}")
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        certificate = (
            self.builder(who, AUTHORITY_LIFETIME)
            .issuer_name(who)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        self.save(name, certificate, key)
        self.authorities[name] = certificate, key
        return certificate, key

    def fits(self, certificate: x509.Certificate, wanted: Wanted, authority: x509.Certificate) -> bool:
        """Whether an existing certificate is the wanted one: same subject and names, signed by today's authority."""
        try:
            certificate.verify_directly_issued_by(authority)
            extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            names = list(extension)
        except x509.ExtensionNotFound:
            names = []
        except Exception:  # verify_directly_issued_by raises several unrelated kinds; each means: not ours
            return False
        return certificate.subject == subject(wanted.common_name, wanted.organization) and names == alternative_names(
            wanted.server_names
        )

    def certificate(self, wanted: Wanted) -> None:
        """Issue a certificate unless a fitting one is there."""
        authority, authority_key = self.authority(wanted.authority)
        pair = self.load(wanted.name)
        if pair and self.fits(pair[0], wanted, authority):
            return
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH] if wanted.client else []
        if wanted.server_names:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        builder = (
            self.builder(subject(wanted.common_name, wanted.organization), CERTIFICATE_LIFETIME)
            .issuer_name(authority.subject)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
        )
        if wanted.server_names:
            names = x509.SubjectAlternativeName(alternative_names(wanted.server_names))
            builder = builder.add_extension(names, critical=False)
        self.save(wanted.name, builder.sign(authority_key, hashes.SHA256()), key)

    def service_account_key(self) -> None:
        """The key pair that service account tokens are signed with. It never expires: its tokens do."""
        private, public = self.directory / "service-account.key", self.directory / "service-account.pub"
        if private.exists() and public.exists():
            return
        key = ec.generate_private_key(ec.SECP256R1())
        encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        if not self.dry_run:
            write(private, key_bytes(key))
            write(public, key.public_key().public_bytes(encoding, form))
        self.changes.append("made the service account key")

    def kubeconfig(self, path: Path, certificate: str, server: str) -> None:
        """A kubeconfig that carries its certificates. JSON is YAML: no library is needed to write it."""
        if self.dry_run and self.changes:
            return  # it would carry what was not written

        def encoded(name: str) -> str:
            return base64.b64encode((self.directory / name).read_bytes()).decode()

        credentials = {
            "client-certificate-data": encoded(f"{certificate}.crt"),
            "client-key-data": encoded(f"{certificate}.key"),
        }
        name = "ansible-mlflow"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": name, "cluster": {"server": server, "certificate-authority-data": encoded("ca.crt")}}
            ],
            "users": [{"name": certificate, "user": credentials}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": certificate}}],
            "current-context": name,
        }
        text = (json.dumps(content, indent=2) + "\n").encode()
        if not path.exists() or path.read_bytes() != text:
            if not self.dry_run:
                write(path, text)
            self.changes.append(f"wrote {path}")


def main() -> None:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="for kubeconfig, and for the rest in pki/")
    parser.add_argument("--node-name", required=True)
    parser.add_argument("--node-address", required=True, help="address of the API server, etcd's client and kubelet")
    parser.add_argument("--service-address", required=True, help="cluster IP of the Service `kubernetes`")
    parser.add_argument("--dry-run", action=argparse.BooleanOptionalAction, help="write nothing, say what would be")
    arguments = parser.parse_args()

    directory = arguments.directory / "pki"
    if not arguments.dry_run:
        arguments.directory.mkdir(mode=0o700, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
    store = Store(directory, arguments.dry_run)
    api_names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
    api_names += (arguments.node_address, arguments.service_address)
    node = arguments.node_name
    loopback = ("127.0.0.1", "localhost")
    # etcd and the front proxy have authorities of their own: a client certificate of the cluster must open neither.
    for wanted in (
        Wanted("apiserver", "ca", "kube-apiserver", server_names=api_names, client=False),
        Wanted("apiserver-kubelet-client", "ca", "kube-apiserver-kubelet-client", "system:masters"),
        Wanted("kubelet-server", "ca", node, server_names=(node, arguments.node_address), client=False),
        Wanted("controller-manager-server", "ca", "kube-controller-manager", server_names=loopback, client=False),
        Wanted("scheduler-server", "ca", "kube-scheduler", server_names=loopback, client=False),
        Wanted("etcd", "etcd-ca", "etcd", server_names=loopback),
        Wanted("apiserver-etcd-client", "etcd-ca", "kube-apiserver"),
        Wanted("front-proxy-client", "front-proxy-ca", "front-proxy-client"),
        Wanted("admin", "ca", "admin", "system:masters"),
        Wanted("kubelet", "ca", f"system:node:{node}", "system:nodes"),
        Wanted("controller-manager", "ca", "system:kube-controller-manager"),
        Wanted("scheduler", "ca", "system:kube-scheduler"),
        Wanted("proxy", "ca", "system:kube-proxy"),
        Wanted("router", "ca", "kube-router"),
    ):
        store.certificate(wanted)
    store.service_account_key()
    server = f"https://{arguments.node_address}:6443"
    for name in ("kubelet", "controller-manager", "scheduler", "proxy", "router"):
        store.kubeconfig(directory / f"{name}.kubeconfig", name, server)
    store.kubeconfig(arguments.directory / "kubeconfig", "admin", server)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(directory.glob("*.crt"))))
    print(json.dumps({"changes": store.changes, "digest": digest.hexdigest()}))


if __name__ == "__main__":
    main()
