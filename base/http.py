"""What every HTTP port of the system has in common: errors, bodies, credentials, health, metrics, listening.

Every failure is one JSON shape, with the code and retry meaning of `base.errors`:

    {"error": {"code": 404, "name": "not_found", "retry": "never", "message": "...", "detail": {...}}}

and, where it is known when to come back, a `Retry-After` header in seconds. `/healthz` says that the process runs,
`/readyz` that it takes work (503 while starting or draining), `/metrics` is Prometheus text, `/debug/statistics` a JSON
snapshot.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from functools import reduce
from typing import Any, Protocol, TypeVar

import msgspec
from aiohttp import web

from base.errors import (
    BadRequest,
    Code,
    ConfigError,
    NotFound,
    PermissionDenied,
    RoadsteadError,
    TooLarge,
    Unauthenticated,
    UnknownMethod,
)
from base.log import logger
from base.metrics import Metrics

__all__ = [
    "KEEPALIVE_S",
    "OPERATOR_HEADER",
    "Credentials",
    "HttpServer",
    "Layer",
    "Role",
    "bearer",
    "credential_of",
    "failure",
    "is_loopback",
    "json_body",
    "json_response",
    "query_param",
]

T = TypeVar("T")

OPERATOR_HEADER = "X-Operator"
BACKLOG = 1_024
KEEPALIVE_S = 75.0
"""How long a connection may stay open between two requests."""
_encoder = msgspec.json.Encoder()
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Role(IntEnum):
    """What an API key allows; each role includes those before it."""

    VIEWER = 1
    """Read nodes, statuses and metrics."""
    BACKEND = 2
    """Act for users: send messages, ask for tickets."""
    OPERATOR = 3
    """Drain, resize, roll out."""
    ADMIN = 4
    """Everything."""

    def require(self, role: Role) -> None:
        """Raises PermissionDenied when this role is too low."""
        if self < role:
            raise PermissionDenied(f"this needs the role {role.name.lower()}, the key has {self.name.lower()}")


class Credentials:
    """API keys and what they allow. Compared in constant time."""

    def __init__(self, keys: Mapping[str, Role]) -> None:
        """`keys`: secret -> role."""
        self._keys = tuple((key.encode(), role) for key, role in keys.items())

    def require(self, request: web.Request, role: Role) -> None:
        """Raises Unauthenticated without a known key, PermissionDenied when its role is too low."""
        offered = bearer(request)
        if offered is None:
            raise Unauthenticated("send an API key as `Authorization: Bearer KEY`")
        held = self.role_of(offered)
        if held is None:
            raise Unauthenticated("unknown API key")
        held.require(role)

    def role_of(self, offered: str) -> Role | None:
        """Return the key's role, None for an unknown key."""
        found = None
        raw = offered.encode(errors="surrogateescape")
        for key, role in self._keys:
            # No early exit: the time must not tell which key came close.
            if hmac.compare_digest(key, raw):
                found = role
        return found

    def who(self, request: web.Request) -> str:
        """Return who asks, for audit logs: the key's role and fingerprint, and the name that they give themselves.

        A fingerprint is the first 8 hex digits of the key's SHA-256. The name, from the header `X-Operator`, is a
        courtesy and no proof. Raises Unauthenticated without a known key.
        """
        self.require(request, Role.VIEWER)
        key = bearer(request) or ""
        role = self.role_of(key)
        assert role is not None
        fingerprint = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:8]
        name = "".join(c for c in request.headers.get(OPERATOR_HEADER, "") if c.isprintable())[:64]
        return f"{role.name.lower()} {fingerprint}{f' ({name})' if name else ''}"


def bearer(request: web.Request) -> str | None:
    """Return the bearer credential of a request, None when it has none."""
    return credential_of(request.headers.get("Authorization", ""))


def credential_of(authorization: str) -> str | None:
    """Return the bearer credential in the value of an `Authorization` header, None when it has none."""
    kind, _, value = authorization.partition(" ")
    return value.strip() or None if kind.lower() == "bearer" else None


async def json_body(request: web.Request, kind: type[T]) -> T:
    """Decode the body. Raises BadRequest naming the field that is wrong, TooLarge over the port's body limit."""
    raw = await request.read()
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadRequest(f"bad JSON body: {error}") from error
    except UnicodeDecodeError as error:
        raise BadRequest("the body is not UTF-8") from error


def json_response(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Encode a struct, dict or list as the JSON answer."""
    return web.Response(body=_encoder.encode(value), status=status, content_type="application/json", headers=headers)


def failure(error: RoadsteadError) -> tuple[int, dict[str, str], bytes]:
    """Return the status, headers and body that answer a request that failed."""
    code: Code = error.code
    headers = {"Content-Type": "application/json; charset=utf-8"}
    if "retry_after_ms" in error.detail:
        headers["Retry-After"] = str(-(-int(error.detail["retry_after_ms"]) // 1000))
    if code is Code.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    body: dict[str, Any] = {
        "code": code.number,
        "name": code.label,
        "retry": code.retry.value,
        "message": error.message,
    }
    if error.detail:
        body["detail"] = error.detail
    return code.http_status, headers, _encoder.encode({"error": body})


def _response(answer: tuple[int, dict[str, str], bytes]) -> web.Response:
    status, headers, body = answer
    return web.Response(body=body, status=status, headers=headers)


def query_param(request: web.Request, name: str, default: str | None = None) -> str:
    """Return a query parameter. Raises BadRequest when it is missing and has no default."""
    value = request.query.get(name, default)
    if value is None:
        raise BadRequest(f"the query parameter {name} is missing")
    return value


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a listener on the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_Arrive = Callable[[], asyncio.Protocol]


class Layer(Protocol):
    """Who sees connections before the HTTP server does, and gives it those that are not for itself alone."""

    def over(self, inner: _Arrive) -> _Arrive:
        """Return what makes the protocol of a new connection; `inner` makes the one to give it to."""
        ...

    def close(self) -> None:
        """Close the connections that were not given away."""
        ...


class HttpServer:
    """One node's HTTP port. Add routes to `app.router`, then `listen`; `is_ready` drives `/readyz`."""

    def __init__(
        self,
        node: str,
        metrics: Metrics,
        *,
        statistics: Callable[[], object],
        body_bytes_max: int = 1024 * 1024,
        is_public: bool = False,
    ) -> None:
        """Nothing is opened yet.

        Args:
            node: its name.
            metrics: its metrics.
            statistics: read by `/debug/statistics`.
            body_bytes_max: longer bodies are refused with 413.
            is_public: the port is for clients: it shows no metrics and no statistics.
        """
        self.app = web.Application(middlewares=[self._errors], client_max_size=body_bytes_max)
        self.layers: list[Layer] = []
        """Between the port and the HTTP server, the outermost last."""
        self.is_ready = False
        self.url = ""
        self._node = node
        self._metrics = metrics
        self._statistics = statistics
        self._body_bytes_max = body_bytes_max
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None
        self._log = logger(node=node)
        self._failures = (
            metrics.counter("client_http_errors", "The same, of requests that came to the clients' port.", ["name"])
            if is_public
            else metrics.counter("http_errors", "HTTP requests answered with an error, by code name.", ["name"])
        )
        self.app.router.add_get("/healthz", self._healthz)
        self.app.router.add_get("/readyz", self._readyz)
        if not is_public:
            self.app.router.add_get("/metrics", self._render_metrics)
            self.app.router.add_get("/debug/statistics", self._render_statistics)

    async def prepare(self) -> Callable[[], asyncio.Protocol]:
        """Return a factory of the protocol that serves one connection, for whoever listens by other means."""
        # shutdown_timeout: open peer streams and clients were told to leave before; do not wait for them again.
        self._runner = web.AppRunner(self.app, access_log=None, shutdown_timeout=0.5, keepalive_timeout=KEEPALIVE_S)
        await self._runner.setup()
        assert self._runner.server is not None
        return self._runner.server

    async def listen(self, host: str, port: int) -> str:
        """Bind and serve; return the base URL (port 0 picks a free one).

        Raises:
            ConfigError: the address cannot be bound; the message says which and why.
        """
        arrive = reduce(lambda inner, layer: layer.over(inner), self.layers, await self.prepare())
        try:
            self._listening = await asyncio.get_running_loop().create_server(arrive, host, port, backlog=BACKLOG)
        except OSError as error:
            await self.close()
            reason = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            raise ConfigError([f"{self._node}: cannot listen on {host}:{port}: {reason}"]) from error
        bound_host, bound_port = self._listening.sockets[0].getsockname()[:2]
        shown = f"[{bound_host}]" if ":" in bound_host else bound_host
        self.url = f"http://{shown}:{bound_port}"
        return self.url

    async def close(self) -> None:
        """Stop listening and end every open request."""
        self.is_ready = False
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        for layer in reversed(self.layers):
            layer.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def refuse(self, error: Exception, path: str) -> tuple[int, dict[str, str], bytes]:
        """Count a request that failed, and return the status, headers and body to answer; to be called in its `except`.

        An error that is none of ours is our own bug: it is logged in full, and told as a bare 500.
        """
        if not isinstance(error, RoadsteadError):
            self._log.exception("http_request_failed", path=path)
            error = RoadsteadError()
        self._failures.labels(self._node, error.code.label).inc()
        return failure(error)

    @web.middleware
    async def _errors(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPRequestEntityTooLarge:
            limit = self._body_bytes_max
            failed: Exception = TooLarge(f"the body is over {limit} bytes", limit=limit)
        except web.HTTPNotFound:
            failed = NotFound(f"no such path: {request.path}")
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            failed = UnknownMethod(f"{request.method} is not allowed here; allowed: {allowed}")
        except web.HTTPClientError as error:
            failed = BadRequest(error.text or error.reason)
        except Exception as error:  # noqa: BLE001 - `refuse` tells ours from others
            return _response(self.refuse(error, request.path))
        return _response(self.refuse(failed, request.path))

    async def _healthz(self, _request: web.Request) -> web.Response:
        return json_response({"status": "ok"})

    async def _readyz(self, _request: web.Request) -> web.Response:
        if self.is_ready:
            return json_response({"status": "ready"})
        return json_response({"status": "not ready"}, status=503)

    async def _render_metrics(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=self._metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _render_statistics(self, _request: web.Request) -> web.Response:
        return json_response(self._statistics())
