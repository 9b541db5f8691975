"""Certificates for tests: a CA in a folder, and nodes' certificates of it."""

from __future__ import annotations

import ssl
from pathlib import Path

from base.clock import SystemClock
from base.trust import SecurityConfig
from roadstead.ca import CertificateAuthority

__all__ = ["NOW", "Authority"]

NOW = SystemClock().realtime()


class Authority:
    """A CA, and what nodes are configured with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = CertificateAuthority.create(folder, now=NOW)

    def issue(self, name: str, *, days: int = 2) -> bytes:
        """Make a node's certificate, or another one; return it as others are shown it."""
        made = self.ca.issue(name, now=NOW, days=days)
        return ssl.PEM_cert_to_DER_cert(made.certificate.read_text())

    def config(self, name: str, **fields: object) -> SecurityConfig:
        """Return the section of a node, with a certificate."""
        if not (self.folder / f"{name}.pem").exists():
            self.issue(name)
        keys = self.folder / "peer-keys"
        if not keys.exists():
            keys.write_text("a-peer-key-of-the-tests\n")
        return SecurityConfig(
            **{
                "peer_keys_file": str(keys),
                "tls_certificate": str(self.folder / f"{name}.pem"),
                "tls_key": str(self.folder / f"{name}.key"),
                "tls_ca": str(self.ca.file),
                "reload_ms": 20,
                **fields,
            }
        )

    def client(self, name: str = "") -> ssl.SSLContext:
        """Return a client's context that believes this CA, and shows the certificate of `name` if there is one."""
        context = ssl.create_default_context(cafile=str(self.ca.file))
        if name:
            context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        return context
