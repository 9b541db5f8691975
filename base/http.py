"""What every HTTP port of the system has in common: errors, bodies, credentials, health, metrics, listening.

Every failure is one JSON shape, with the code and retry meaning of `base.errors`:

    {"error": {"code": 404, "name": "not_found", "retry": "never", "message": "...", "detail": {...}}}

and, where it is known when to come back, a `Retry-After` header in seconds. `/healthz` says that the process runs,
`/readyz` that it takes work (503 while starting or draining), `/metrics` is Prometheus text, `/debug/statistics` a JSON
snapshot. The last two tell much of a system: where others than this machine can ask, they take an API key.

A connection that sends no request is not kept for long, and one address has no more than its share of the places for
such (`base.heads`). What is no HTTP is answered in the same shape, and counted and logged as any other request that
failed.

What changes something by the operators' routes is audited, and so is who was refused there (`base.audit`).
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import ssl
from collections.abc import Awaitable, Callable, Mapping
from functools import reduce
from logging import Logger
from typing import Any, Protocol, TypeVar, cast

import msgspec
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Middleware

from base.accepting import Acceptor
from base.audit import FAILED, Audit, audited
from base.core.limits import Places
from base.credentials import OPERATOR_HEADER, Credentials, Role, bearer, credential_of
from base.errors import (
    BadRequest,
    Code,
    ConfigError,
    NotFound,
    RoadsteadError,
    TooLarge,
    UnknownMethod,
)
from base.heads import Heads
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
    "body_of",
    "credential_of",
    "failure",
    "is_loopback",
    "json_body",
    "json_response",
    "query_param",
]

T = TypeVar("T")

BACKLOG = 1_024
KEEPALIVE_S = 75.0
"""How long a connection may stay open between two requests."""
READ_TIMEOUT_S = 10.0
"""How long a request's body may take to arrive."""
HANDSHAKE_S = 10.0
"""How long a connection may take to agree on TLS."""
HANDSHAKES_MAX = 1_024
"""How many may be about to agree on TLS at once, at most half of them from one address; more are dropped."""
SERVER = "roadstead"
"""What is told of who serves: whoever attacks need not learn what it is built on, and in which version."""
_encoder = msgspec.json.Encoder()
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def body_of(request: web.Request, *, bytes_max: int | None = None) -> bytes:
    """Read the body. One that breaks off is the client's fault, as the port knows, whoever reads it.

    Args:
        request: not read so far, if there is a limit.
        bytes_max: the limit, where it is less than the port's; no more than that is kept.

    Raises:
        TooLarge: it is over the limit.
        BadRequest: it did not arrive in time.
    """
    if bytes_max is not None:
        if (request.content_length or 0) > bytes_max:
            raise _too_large(bytes_max)
        request = request.clone(client_max_size=bytes_max)
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        raise BadRequest(f"the body did not arrive within {READ_TIMEOUT_S:g} s") from None
    except web.HTTPRequestEntityTooLarge:
        if bytes_max is None:
            raise  # the port knows its limit
        raise _too_large(bytes_max) from None


async def json_body(request: web.Request, kind: type[T], *, bytes_max: int | None = None) -> T:
    """Decode the body. Raises BadRequest naming the field that is wrong, else as `body_of`."""
    raw = await body_of(request, bytes_max=bytes_max)
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


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is over {limit} bytes", limit=limit)


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
        credentials: Credentials | None = None,
        audit: Audit | None = None,
        open_metrics: bool = True,
    ) -> None:
        """Nothing is opened yet.

        Args:
            node: its name.
            metrics: its metrics.
            statistics: read by `/debug/statistics`.
            body_bytes_max: longer bodies are refused with 413.
            is_public: the port is for clients: it shows no metrics and no statistics.
            credentials: who may do what, if there is anything here that not everybody may.
            audit: where changes and refusals are written.
            open_metrics: metrics and statistics are for everybody who can connect; else for the role viewer.
        """
        assert open_metrics or credentials is not None
        middlewares: list[Middleware] = [self._errors]
        if audit is not None and credentials is not None:
            middlewares.insert(0, audited(audit, credentials, node=node))
        self.app = web.Application(middlewares=middlewares, client_max_size=body_bytes_max)
        self.app.on_response_prepare.append(self._name_server)
        self.layers: list[Layer] = []
        """Between the port and the HTTP server, the outermost last. Those that read requests are inside of `Heads`."""
        self.is_ready = False
        self.url = ""
        self._node = node
        self._metrics = metrics
        self._statistics = statistics
        self._body_bytes_max = body_bytes_max
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | Acceptor | None = None
        self._viewers = None if open_metrics else credentials
        self._log = logger(node=node)
        self._failures = (
            metrics.counter("client_http_errors", "The same, of requests that came to the clients' port.", ["name"])
            if is_public
            else metrics.counter("http_errors", "HTTP requests answered with an error, by code name.", ["name"])
        )
        if not is_public:
            self._dropped = metrics.counter(
                "http_dropped",
                "Connections dropped before their first request: tls, too_many, slow, long_head.",
                ["reason"],
            )
            self.layers.append(Heads(dropped=self._drop))
        self.app.router.add_get("/healthz", self._healthz)
        self.app.router.add_get("/readyz", self._readyz)
        if not is_public:
            self.app.router.add_get("/metrics", self._render_metrics)
            self.app.router.add_get("/debug/statistics", self._render_statistics)

    async def prepare(self) -> Callable[[], asyncio.Protocol]:
        """Return a factory of the protocol that serves one connection, for whoever listens by other means."""
        # shutdown_timeout: open peer streams and clients were told to leave before; do not wait for them again.
        self._runner = web.AppRunner(self.app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        loop = asyncio.get_running_loop()
        return lambda: _Connection(self, server, loop)

    async def listen(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> str:
        """Bind and serve, over TLS if told so; return the base URL (port 0 picks a free one).

        Raises:
            ConfigError: the address cannot be bound; the message says which and why.
        """
        arrive = reduce(lambda inner, layer: layer.over(inner), self.layers, await self.prepare())
        try:
            if tls is None:
                loop = asyncio.get_running_loop()
                self._listening = await loop.create_server(arrive, host, port, backlog=BACKLOG)
                bound = self._listening.sockets[0].getsockname()[:2]
            else:
                self._listening = acceptor = Acceptor(
                    lambda _address: arrive(),
                    tls,
                    deadline_s=HANDSHAKE_S,
                    places=Places(HANDSHAKES_MAX),
                    dropped=self._drop,
                )
                bound = acceptor.listen(host, port, backlog=BACKLOG)
        except OSError as error:
            await self.close()
            reason = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            raise ConfigError([f"{self._node}: cannot listen on {host}:{port}: {reason}"]) from error
        bound_host, bound_port = bound
        shown = f"[{bound_host}]" if ":" in bound_host else bound_host
        self.url = f"{'https' if tls else 'http'}://{shown}:{bound_port}"
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

    def refuse(self, error: BaseException, path: str) -> tuple[int, dict[str, str], bytes]:
        """Count a request that failed, and return the status, headers and body to answer; to be called in its `except`.

        An error that is none of ours is our own bug: it is logged in full, and told as a bare 500.
        """
        if not isinstance(error, RoadsteadError):
            self._log.error("http_request_failed", path=path, exc_info=error)
            error = RoadsteadError()
        self._failures.labels(self._node, error.code.label).inc()
        return failure(error)

    def answer_failed(self, request: web.BaseRequest, error: BaseException) -> web.Response:
        """Answer what failed beside the application: what is no request, or our bug. The connection ends with it."""
        if isinstance(error, HttpProcessingError):
            reason = error.message.partition(":")[0].partition("\n")[0]  # what follows quotes it, tokens and all
            self._log.info("request_malformed", address=request.remote, reason=reason)
            error = BadRequest(f"this is no HTTP request: {reason}")
        response = _response(self.refuse(error, request.path))
        response.headers[hdrs.SERVER] = SERVER
        response.force_close()
        return response

    def log_failed(self, reason: str, error: object) -> None:
        """Log what ended a connection: a bug, ours or of the HTTP server."""
        self._log.error("http_connection_failed", reason=reason, exc_info=error)

    async def _name_server(self, _request: web.Request, response: web.StreamResponse) -> None:
        response.headers[hdrs.SERVER] = SERVER

    def _drop(self, reason: str, detail: str) -> None:
        self._dropped.labels(self._node, reason).inc()
        self._log.info("connection_dropped", reason=reason, detail=detail)

    @web.middleware
    async def _errors(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPRequestEntityTooLarge:
            failed: RoadsteadError = _too_large(self._body_bytes_max)
        except web.HTTPNotFound:
            failed = NotFound(f"no such path: {request.path}")
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            failed = UnknownMethod(f"{request.method} is not allowed here; allowed: {allowed}")
        except web.HTTPClientError as error:
            failed = BadRequest(error.text or error.reason)
        except Exception as error:  # noqa: BLE001 - `refuse` tells ours from others
            if error is not request.content.exception():
                request[FAILED] = error.code if isinstance(error, RoadsteadError) else Code.INTERNAL
                return _response(self.refuse(error, request.path))
            # Reading the body ended in this: the client is gone, or compressed it in another way than it says.
            failed = BadRequest("the body broke off, or is not encoded as its headers say")
            request.content.feed_eof()  # or the server would read on once this is answered, and fail as well
        request[FAILED] = failed.code
        return _response(self.refuse(failed, request.path))

    async def _healthz(self, _request: web.Request) -> web.Response:
        return json_response({"status": "ok"})

    async def _readyz(self, _request: web.Request) -> web.Response:
        if self.is_ready:
            return json_response({"status": "ready"})
        return json_response({"status": "not ready"}, status=503)

    async def _render_metrics(self, request: web.Request) -> web.Response:
        if self._viewers is not None:
            self._viewers.require(request, Role.VIEWER)
        return web.Response(
            body=self._metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _render_statistics(self, request: web.Request) -> web.Response:
        if self._viewers is not None:
            self._viewers.require(request, Role.VIEWER)
        return json_response(self._statistics())


class _Connection(web.RequestHandler):
    """A connection of the HTTP server that tells by our means what fails beside the application."""

    __slots__ = ("_owner",)

    def __init__(self, owner: HttpServer, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        nobody = cast("Logger", None)  # how it is told to write no access log
        super().__init__(server, loop=loop, access_log=nobody, keepalive_timeout=KEEPALIVE_S)
        self._owner = owner

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what the parser refuses, or what the application did not answer. Raises ConnectionError: too late."""
        answer = self._owner.answer_failed(request, exc or RuntimeError(message or f"status {status}"))
        if request.writer.output_size > 0:
            raise ConnectionError("the failure comes in the middle of an answer")
        return answer

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Write what ended the connection into our log."""
        self._owner.log_failed(str(args[0]), kw.get("exc_info"))
