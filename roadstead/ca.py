"""A small certificate authority in a folder, for development and for clusters that have none of their own.

    ca.pem, ca.key       the CA's certificate, which every node trusts, and its key, which no node needs
    NAME.pem, NAME.key   the certificate and key of the node NAME, for both ends of connections

A node's certificate names the node itself, which is what other nodes check (`base.peer.upgrade`), and the hosts under
which it is reached, which is what clients check: `localhost`, `127.0.0.1`, and whatever else is said. Issuing for a
name again replaces its files; running nodes load them.

Source: RFC 5280, 4.2 (extensions), RFC 5480 (P-256).
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from base.clock import Timestamp
from base.errors import ConfigError
from base.site import is_node_name

__all__ = ["CA_DAYS", "NODE_DAYS", "CertificateAuthority", "Issued"]

CA_DAYS = 3_650
NODE_DAYS = 90
SKEW = timedelta(minutes=5)
"""A certificate is valid from so long before it is made, for machines whose clocks are behind."""
LOCAL = ("localhost", "127.0.0.1")
_CA = "ca"


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate in the folder. Times are in ms since the Unix epoch."""

    name: str
    hosts: tuple[str, ...]
    """DNS names and addresses that it is for; none for the CA's own."""
    serial: str
    """In hex digits."""
    not_after: Timestamp
    certificate: Path
    key: Path


class CertificateAuthority:
    """The CA of a folder. Methods raise ConfigError for what the operator must mend."""

    def __init__(self, folder: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        """`create` and `open` make it."""
        self.folder = folder
        self._certificate = certificate
        self._key = key

    @property
    def file(self) -> Path:
        """The CA's certificate: `security.tls_ca` of every node."""
        return self.folder / f"{_CA}.pem"

    @classmethod
    def create(cls, folder: Path, *, now: Timestamp, days: int = CA_DAYS) -> CertificateAuthority:
        """Make a CA. Raises ConfigError when there is one already: its certificates would be worth nothing."""
        if (folder / f"{_CA}.key").exists() or (folder / f"{_CA}.pem").exists():
            raise ConfigError([f"{folder} has a CA already"])
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Roadstead CA")])
        certificate = (
            _builder(name, name, key, now=now, days=days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        _write_pair(folder, _CA, certificate, key)
        return cls(folder, certificate, key)

    @classmethod
    def open(cls, folder: Path) -> CertificateAuthority:
        """Return the CA of a folder. Raises ConfigError when there is none."""
        try:
            certificate = _read(folder / f"{_CA}.pem")
            key = load_pem_private_key((folder / f"{_CA}.key").read_bytes(), None)
        except FileNotFoundError as error:
            raise ConfigError([f"{folder} has no CA; make one with `roadstead ca init {folder}`"]) from error
        except OSError as error:
            raise ConfigError([f"{error.filename} cannot be read: {error.strerror}"]) from error
        except (ValueError, TypeError) as error:
            raise ConfigError([f"{folder}/{_CA}.key is no key that can be used: {error}"]) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigError([f"{folder}: {_CA}.key is not the key of {_CA}.pem"])
        return cls(folder, certificate, key)

    def issue(self, name: str, *, now: Timestamp, hosts: Iterable[str] = (), days: int = NODE_DAYS) -> Issued:
        """Make, or replace, the certificate and key of a node.

        Args:
            name: the node's.
            now: it is valid from about now on.
            hosts: DNS names and IP addresses under which the node is reached, beside those of this machine.
            days: how long it is valid, at most as long as the CA.

        Raises:
            ConfigError: a name cannot be used, the CA is over, or the files cannot be written.
        """
        if not is_node_name(name) or name == _CA:
            raise ConfigError([f"{name!r} cannot be the name of a node"])
        names = tuple(dict.fromkeys((*LOCAL, *hosts)))
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        latest = self._certificate.not_valid_after_utc
        if latest <= _time(now):
            raise ConfigError([f"the CA in {self.folder} is over since {latest:%Y-%m-%d}; make a new one"])
        builder = _builder(subject, self._certificate.subject, key, now=now, days=days, latest=latest)
        issuer_key = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(name), *map(_general_name, names)]), critical=False
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        _write_pair(self.folder, name, certificate, key)
        return _issued(self.folder / f"{name}.pem", certificate)

    def listed(self) -> list[Issued]:
        """Return the certificates of the folder, the CA's first, then by name. Raises ConfigError for a bad file."""
        files = sorted(self.folder.glob("*.pem"), key=lambda file: (file.stem != _CA, file.stem))
        return [_issued(file, _read(file)) for file in files]


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    *,
    now: Timestamp,
    days: int,
    latest: datetime | None = None,
) -> x509.CertificateBuilder:
    until = _time(now) + timedelta(days=days)
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(now) - SKEW)
        .not_valid_after(until if latest is None else min(until, latest))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not host.isascii() or not host.isprintable() or not host or " " in host:
        raise ConfigError([f"{host!r} is neither a DNS name in ASCII nor an address"])
    return x509.DNSName(host)


def _issued(file: Path, certificate: x509.Certificate) -> Issued:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        hosts: list[str] = []
    else:
        hosts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return Issued(
        name=file.stem,
        hosts=tuple(hosts),
        serial=f"{certificate.serial_number:x}",
        not_after=Timestamp(int(certificate.not_valid_after_utc.timestamp() * 1000)),
        certificate=file,
        key=file.with_suffix(".key"),
    )


def _read(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except ValueError as error:
        raise ConfigError([f"{file} is no certificate in PEM: {error}"]) from error


def _write_pair(folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    files = {
        f"{name}.key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        f"{name}.pem": certificate.public_bytes(Encoding.PEM),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for file, content in files.items():
            partial = folder / f".{file}.partial"
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
                stream.write(content)
            partial.replace(folder / file)
    except OSError as error:
        raise ConfigError([f"{error.filename or folder} cannot be written: {error.strerror}"]) from error


def _time(now: Timestamp) -> datetime:
    return datetime.fromtimestamp(now // 1000, UTC)
