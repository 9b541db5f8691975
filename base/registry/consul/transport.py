"""Requests to a Consul agent: py-consul's calls, carried by an aiohttp client that is set up here.

The library's own carrier has no deadline of its own, reads the token once and from the environment first, leaves it out
of transactions, and sets TLS up in ways that aiohttp deprecates. Its endpoints take any carrier, and this is ours.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from functools import partialmethod
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from consul.base import HTTPClient, Response  # type: ignore[import-untyped]
from yarl import URL

from base.clock import Clock, Instant
from base.errors import ConfigError
from base.log import logger
from base.registry.config import RegistryConfig

__all__ = ["Secrets", "Transport"]

LOOK_MS = 1_000
"""How often files are looked at, at most."""

T = TypeVar("T")

_Stamp = tuple[tuple[int, int], ...]


class Secrets:
    """The token and the certificates to ask with, read again when their files change.

    A change that cannot be used is told in the log, and what was read before stays in use.
    """

    def __init__(self, config: RegistryConfig, clock: Clock, *, node: str) -> None:
        """Read all files. Raises ConfigError when that cannot be."""
        self._config = config
        self._clock = clock
        self._log = logger(node=node)
        self._files = [
            Path(file)
            for file in (config.consul_token_file, config.consul_ca_file, config.consul_certificate, config.consul_key)
            if file
        ]
        self._token = ""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if config.consul_url.startswith("https:") else None
        if self._context is not None and not config.consul_ca_file:
            self._context.load_default_certs()
        self._seen = self._stamp()
        self._load()
        self._look_at = Instant(clock.monotonic() + LOOK_MS)

    @property
    def context(self) -> ssl.SSLContext | None:
        """The one lasting context of all connections, None where there is no TLS."""
        return self._context

    def headers(self) -> dict[str, str]:
        """Return what a request has to carry."""
        if self._clock.monotonic() >= self._look_at:
            self._look()
        return {"X-Consul-Token": self._token} if self._token else {}

    def _look(self) -> None:
        self._look_at = Instant(self._clock.monotonic() + LOOK_MS)
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen = stamp  # a bad file is told once
                self._load()
        except ConfigError as error:
            self._log.error("consul_secrets_not_loaded", error=str(error))

    def _stamp(self) -> _Stamp:
        try:
            return tuple((seen.st_mtime_ns, seen.st_size) for seen in (file.stat() for file in self._files))
        except OSError as error:
            raise ConfigError([f"registry: {error.filename} cannot be read: {error.strerror}"]) from error

    def _load(self) -> None:
        config = self._config
        try:
            if config.consul_token_file:
                token = Path(config.consul_token_file).read_text(encoding="ascii").strip()
                if not token or len(token.split()) != 1:
                    raise ConfigError([f"registry.consul_token_file {config.consul_token_file}: not one token"])
                self._token = token
            if self._context is not None and config.consul_ca_file:
                self._context.load_verify_locations(cafile=config.consul_ca_file)
            if self._context is not None and config.consul_certificate:
                # Tried on a context of its own first: a pair that does not fit would leave this one half changed.
                for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), self._context):
                    context.load_cert_chain(config.consul_certificate, config.consul_key, password="")
        except (OSError, ValueError, ssl.SSLError) as error:
            raise ConfigError([f"registry: the files for Consul cannot be used: {error}"]) from error


class Transport(HTTPClient):  # type: ignore[misc]
    """Implements py-consul's carrier. Each request has a deadline and the newest token."""

    def __init__(self, config: RegistryConfig, secrets: Secrets, *, connections_max: int, deadline_ms: int) -> None:
        """Nothing is opened yet.

        Args:
            config: where the agent is.
            secrets: what to ask with.
            connections_max: requests beyond that wait for a connection, within their deadline.
            deadline_ms: of requests that name none (ms).
        """
        url = URL(config.consul_url)
        super().__init__(url.host, url.port, url.scheme)
        self.base_uri = config.consul_url.rstrip("/")
        self._secrets = secrets
        self._connections_max = connections_max
        self._deadline_ms = deadline_ms
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _request(
        self,
        method: str,
        callback: Callable[[Any], T],
        path: str,
        params: Sequence[tuple[str, Any]] | None = None,
        *,
        data: str | bytes = b"",
        connections_timeout: float | None = None,
        **_: object,
    ) -> T:
        """Send it, and return what the callback makes of the answer. The library's headers are left out for ours.

        Raises:
            ConsulException: what the callback makes of a failure.
            aiohttp.ClientError, OSError: it did not arrive, or its answer did not.
            TimeoutError: no answer in time.
        """
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=self._connections_max, ssl=self._secrets.context or True)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        timeout = aiohttp.ClientTimeout(total=connections_timeout or self._deadline_ms / 1000)
        url = URL(self.uri(path, params), encoded=True)  # quoted already
        headers = self._secrets.headers()
        async with self._session.request(method, url, headers=headers, data=data, timeout=timeout) as answer:
            body = await answer.text(encoding="utf-8")
            return callback(Response(answer.status, answer.headers, body))

    get = partialmethod(_request, "GET")
    put = partialmethod(_request, "PUT")
    post = partialmethod(_request, "POST")
    delete = partialmethod(_request, "DELETE")
