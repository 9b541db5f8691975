"""What opens connections between nodes, both ways: peer keys, and mutual TLS where it is configured.

A node proves that it is of the cluster by a peer key, and with TLS also by a certificate of the cluster's CA that names
the node. Both are read from files, and changes of the files count without a restart.
"""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta

from base.config import Section
from base.errors import ConfigError
from base.http import is_loopback
from base.keys import KeyList
from base.reload import Loadable
from base.tls import ClientCertificate, ServerCertificate

__all__ = ["RELOAD_MS", "SecurityConfig", "Trust", "require_safe"]

RELOAD_MS = 10_000


class SecurityConfig(Section, frozen=True, kw_only=True):
    """The `[security]` section: files of keys and certificates. Changes of the files count without a restart.

    `up` has keys of its own, and heeds `audit_file` and `open_metrics` alone.
    """

    peer_keys_file: Annotated[
        str,
        Meta(
            description="File of the keys that open streams between nodes, one a line. This node opens its streams "
            "with the first and accepts every one."
        ),
    ] = ""
    api_keys_file: Annotated[
        str,
        Meta(
            description="File of API keys, lines of `ROLE KEY [NAME]`; the roles are viewer, backend, operator and "
            "admin. Empty: the node's HTTP API refuses everybody."
        ),
    ] = ""
    ticket_keys_file: Annotated[
        str,
        Meta(
            description="File of the keys of tickets, lines of `KID KEY`. Schedulers sign with the first, access nodes "
            "accept every one."
        ),
    ] = ""
    user_keys_file: Annotated[
        str,
        Meta(
            description="File of the keys that user tokens are signed with, one a line, the newest first. Schedulers "
            "accept every one."
        ),
    ] = ""
    tls_certificate: Annotated[
        str,
        Meta(
            description="PEM file of this node's certificate, with those between it and the CA. With it, `tls_key` and "
            "`tls_ca` the node's port is served over TLS, and streams between nodes need certificates at both ends."
        ),
    ] = ""
    tls_key: Annotated[str, Meta(description="PEM file of the certificate's key, not encrypted.")] = ""
    tls_ca: Annotated[str, Meta(description="PEM file of the CA's certificate, or of several during a change.")] = ""
    reload_ms: Annotated[
        int,
        Meta(
            ge=10,
            description="How often these files are looked at (ms). Raising it delays what a change of them does.",
        ),
    ] = RELOAD_MS
    audit_file: Annotated[
        str,
        Meta(
            description="File that a line of JSON is appended to for each change that an operator asks for, and for "
            "each operator's request that is refused. Empty: they are in the log only, with the severities info and "
            "warning."
        ),
    ] = ""
    open_metrics: Annotated[
        bool,
        Meta(
            description="Let everybody who can connect read `/metrics` and `/debug/statistics`. Else it takes the role "
            "viewer, unless the node listens on loopback."
        ),
    ] = False

    def problems(self) -> Iterable[str]:
        """TLS is whole or off."""
        named = {"tls_certificate": self.tls_certificate, "tls_key": self.tls_key, "tls_ca": self.tls_ca}
        missing = [name for name, file in named.items() if not file]
        if 0 < len(missing) < len(named):
            yield f"{' and '.join(missing)} must be set too: TLS needs all three of {', '.join(named)}"

    @property
    def has_tls(self) -> bool:
        """Whether the node's port is served over TLS."""
        return bool(self.tls_certificate)


class Trust:
    """What this node shows to others, and what it accepts of them."""

    def __init__(
        self,
        keys: KeyList,
        *,
        server: ServerCertificate | None = None,
        client: ClientCertificate | None = None,
    ) -> None:
        """Take the parts. `of_key` and `load` make what can be used."""
        self._keys = keys
        self._server = server
        self._client = client

    @classmethod
    def of_key(cls, key: str) -> Trust:
        """Return the trust in whoever knows one fixed key, without TLS."""
        return cls(KeyList.of(key))

    @classmethod
    def of_files(cls, config: SecurityConfig) -> Trust:
        """Return what is made from the files that the section names; its `parts` are to be loaded."""
        files = (config.tls_certificate, config.tls_key)
        setting = "security.tls_certificate"
        keys = KeyList(config.peer_keys_file, setting="security.peer_keys_file")
        server = ServerCertificate(*files, setting=setting, ca=config.tls_ca) if config.has_tls else None
        client = ClientCertificate(*files, config.tls_ca, setting=setting) if config.has_tls else None
        return cls(keys, server=server, client=client)

    @classmethod
    def load(cls, config: SecurityConfig) -> Trust:
        """Read the files that the section names. Raises ConfigError with every fault."""
        trust = cls.of_files(config)
        faults: dict[str, None] = {}  # both ends of TLS have the same ones: told once
        for item in trust.parts:
            try:
                item.load()
            except ConfigError as error:
                faults.update(dict.fromkeys(error.errors))
        if faults:
            raise ConfigError(list(faults))
        return trust

    @property
    def parts(self) -> list[Loadable]:
        """What is made from files."""
        return [item for item in (self._keys, self._server, self._client) if item is not None]

    @property
    def peer_key(self) -> str:
        """The key to open streams with."""
        return self._keys.first

    @property
    def server_ssl(self) -> ssl.SSLContext | None:
        """To listen with, None without TLS. It is the same one for ever."""
        return self._server.context if self._server is not None else None

    @property
    def client_ssl(self) -> ssl.SSLContext | None:
        """To connect with, None without TLS. To be read for each connection."""
        return self._client.context if self._client is not None else None

    def accepts(self, offered: str) -> bool:
        """Return whether a key opens streams to this node. The time does not tell which key came close."""
        raw = offered.encode(errors="surrogateescape")
        found = False
        for key in self._keys.all:
            found |= hmac.compare_digest(key.encode(), raw)  # no early exit
        return found


def require_safe(security: SecurityConfig, *, host: str, allow_remote: bool) -> None:
    """Raises ConfigError if others than this machine could read along, and nobody said that they may.

    Args:
        security: of the node.
        host: what its port binds.
        allow_remote: somebody said so (`node.allow_remote`).
    """
    if not (is_loopback(host) or security.has_tls or allow_remote):
        need = "security.tls_certificate, tls_key and tls_ca, or node.allow_remote = true for a network that you trust"
        raise ConfigError([f"node.host is {host}, which is not loopback, and there is no TLS: set {need}"])
