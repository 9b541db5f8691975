"""Certificates that are loaded anew when their files change: a renewal needs no restart.

A server listens with one lasting context. Each handshake is handed to the newest one behind it, which was made whole
from the files: what was loaded last counts for new connections, also what is no longer trusted, and connections that
are open are not touched. A client takes the newest context for each connection.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from base.errors import ConfigError
from base.reload import Loadable

__all__ = ["ClientCertificate", "ServerCertificate", "names_of"]


class ServerCertificate(Loadable):
    """What a listener shows: a chain and its key, from two PEM files. With a CA, clients may show theirs."""

    def __init__(self, chain: str, key: str, *, setting: str, ca: str = "") -> None:
        """Nothing is read yet.

        Args:
            chain: file of the certificate and those between it and the CA.
            key: file of its key, not encrypted.
            setting: name of the option, for messages.
            ca: file of the certificates that clients' are checked with; a client without one is let in, and a client
                with another CA's is not.
        """
        super().__init__(chain, key, *([ca] if ca else []))
        self._source = _Source(chain, key, ca, setting)
        self._newest = self._make()
        self.context = self._make()
        """To listen with; lasting."""
        self.context.sni_callback = self._hand_over

    def _read(self) -> None:
        self._newest = self._source.fill(self._make)

    def _make(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        if self._source.ca is not None:
            context.verify_mode = ssl.CERT_OPTIONAL
            # A client is to be checked each time, with what is trusted then: no tickets to resume a session with.
            # OpenSSL keeps the sessions of TLS 1.2 nevertheless: see `names_of`.
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        return context

    def _hand_over(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._newest


class ClientCertificate(Loadable):
    """What a node shows to the servers that it connects to, and which CA's servers it believes."""

    def __init__(self, chain: str, key: str, ca: str, *, setting: str) -> None:
        """Nothing is read yet. The files are those of `ServerCertificate`."""
        super().__init__(chain, key, ca)
        self._source = _Source(chain, key, ca, setting)
        self.context = self._make()
        """The newest: to be read for each connection."""

    def _read(self) -> None:
        self.context = self._source.fill(self._make)

    def _make(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the chain and the host's name
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


class _Source:
    """The files of a certificate."""

    def __init__(self, chain: str, key: str, ca: str, setting: str) -> None:
        self.chain, self.key = Path(chain), Path(key)
        self.ca = Path(ca) if ca else None
        self._setting = setting

    def fill(self, make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        """Return a new context with what the files hold now. Raises ConfigError."""
        context = make()
        try:
            # With a wrong password, since without any OpenSSL asks for that of an encrypted key on the terminal.
            context.load_cert_chain(self.chain, self.key, password="")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError([f"{self._setting} {self.chain} with {self.key}: {error}"]) from error
        if self.ca is not None:
            try:
                context.load_verify_locations(self.ca)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError([f"the CA of {self._setting}, {self.ca}: {error}"]) from error
        return context


def names_of(connection: ssl.SSLObject | None) -> frozenset[str] | None:
    """Return the DNS names in the certificate that the other side proved to have, None when it showed none.

    None also for a session that was resumed: what it proved once may not be believed any more.
    """
    if connection is None or connection.session_reused:
        return None
    shown: Mapping[str, Any] | None = connection.getpeercert()
    if not shown:
        return None
    return frozenset(name for kind, name in shown.get("subjectAltName", ()) if kind == "DNS")
