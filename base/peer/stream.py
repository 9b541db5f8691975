"""One peer stream: its two queues, its deadlines, its end.

Both ends are alike: each may call, serve and push. The owner runs `run()` until the stream ends; callers await `call`.

Limits, each with its meaning:
    queue_bytes_max   what may wait to be written; beyond it calls and pushes are refused with Overloaded
    inflight_max      requests of the other side that may be served at once; beyond it they are refused with Overloaded
    WRITE_TIMEOUT_S   how long one batch may take to leave before the stream counts as dead

A stream that ends fails every waiting call with PeerUnavailable: their outcome is unknown.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from aiohttp import ClientWebSocketResponse, WSMsgType, web

from base.errors import (
    Code,
    DeadlineExceeded,
    Overloaded,
    PeerUnavailable,
    RemoteProtocolError,
    RoadsteadError,
    UnknownMethod,
    from_wire,
)
from base.log import logger
from base.peer.wire import Envelope, Failure, Method, Push, Reply, Request, decode_batch, encode

__all__ = ["Handlers", "PeerStream", "Serve", "StreamLimits"]

WRITE_TIMEOUT_S = 10.0

Req = TypeVar("Req")
Rep = TypeVar("Rep")

Serve = Callable[[Any, str], Any]
"""(request, name of the calling node) -> reply, or an awaitable of it. A plain function is served without a task."""

Handlers = Mapping[str, tuple[Method[Any, Any], Serve]]


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Bounds of one stream, see the module."""

    queue_bytes_max: int = 16 * 1024 * 1024
    inflight_max: int = 1024


class PeerStream:
    """A live stream to the node called `peer`."""

    def __init__(
        self,
        socket: ClientWebSocketResponse | web.WebSocketResponse,
        *,
        peer: str,
        handlers: Handlers,
        limits: StreamLimits,
    ) -> None:
        self.peer = peer
        self._socket = socket
        self._handlers = handlers
        self._limits = limits
        self._queue: list[Envelope] = []
        self._queue_bytes = 0
        self._queued = asyncio.Event()
        self._waiting: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._next_id = 1
        self._inflight = 0
        self._is_closed = False
        self._log = logger(peer=peer)

    @property
    def is_closed(self) -> bool:
        """Whether the stream has ended: no call can succeed any more."""
        return self._is_closed

    async def call(self, method: Method[Req, Rep], request: Req, *, deadline_ms: int) -> Rep:
        """Send a request and wait for its reply.

        Requests leave in the order of the calls. Raises the peer's error, DeadlineExceeded or PeerUnavailable (both:
        outcome unknown), or Overloaded (nothing was sent).
        """
        if self._is_closed:
            raise PeerUnavailable(f"the stream to {self.peer} is closed", peer=self.peer)
        request_id = self._next_id
        self._next_id += 1
        self._enqueue(Request(request_id, method.name, deadline_ms, body := encode(request)), len(body))
        loop = asyncio.get_running_loop()
        future: asyncio.Future[msgspec.Raw] = loop.create_future()
        self._waiting[request_id] = future
        # A timer rather than asyncio.timeout: this is the hottest wait of the system, and it needs no cancellation.
        timer = loop.call_later(deadline_ms / 1000, self._expire, request_id, method.name, deadline_ms)
        try:
            return method.decode_reply(await future)
        finally:
            timer.cancel()
            self._waiting.pop(request_id, None)

    def push(self, method: Method[Req, Any], message: Req) -> None:
        """Queue a message that wants no reply. Raises Overloaded or PeerUnavailable; arrival is not confirmed."""
        if self._is_closed:
            raise PeerUnavailable(f"the stream to {self.peer} is closed", peer=self.peer)
        self._enqueue(Push(method.name, body := encode(message)), len(body))

    async def run(self) -> None:
        """Read and write until the stream ends, by either side; the owner then calls `close`.

        Raises RemoteProtocolError if the peer broke the protocol.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(self._write())
                try:
                    await self._read(tasks)
                finally:
                    # What is being served has nobody left to answer to.
                    self._is_closed = True
                    writer.cancel()
                    self._fail_waiting()
        except* RemoteProtocolError as group:
            raise group.exceptions[0] from None

    async def close(self) -> None:
        """End the stream from this side, if it has not ended; `run` then returns. Idempotent."""
        self._is_closed = True
        await self._close()

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of the queues."""
        return {"queue_bytes": self._queue_bytes, "waiting": len(self._waiting), "inflight": self._inflight}

    # ---------------------------------------------------------------- writing

    def _enqueue(self, envelope: Envelope, size: int) -> None:
        if self._queue_bytes + size > self._limits.queue_bytes_max:
            raise Overloaded(f"the queue to {self.peer} is full", what="peer_queue", retry_after_ms=100)
        self._put(envelope, size)

    def _put(self, envelope: Envelope, size: int) -> None:
        self._queue.append(envelope)
        self._queue_bytes += size
        self._queued.set()

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._queued.wait()
            self._queued.clear()
            batch, self._queue = self._queue, []
            self._queue_bytes = 0
            # Nearly always the socket takes it at once; only a write that waits is worth the price of a deadline.
            watchdog = loop.call_later(WRITE_TIMEOUT_S, self._abort)
            try:
                await self._socket.send_bytes(bytes(encode(batch)))
            except ConnectionError as error:
                self._log.info("peer_stream_write_failed", error=str(error))
                # The reader sees the closed socket and ends the stream.
                await self._close()
                return
            finally:
                watchdog.cancel()

    def _abort(self) -> None:
        """Cut the connection of a peer that does not read: writer and reader then fail, and the stream ends."""
        self._log.info("peer_stream_write_timed_out", deadline_s=WRITE_TIMEOUT_S)
        transport = self._socket.get_extra_info("transport")
        if transport is not None:
            transport.abort()

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self._socket.close()
        except (TimeoutError, ConnectionError):
            pass  # it is gone either way

    # ---------------------------------------------------------------- reading

    async def _read(self, tasks: asyncio.TaskGroup) -> None:
        async for message in self._socket:
            if message.type is WSMsgType.ERROR:
                return
            if message.type is not WSMsgType.BINARY:
                raise RemoteProtocolError(f"{self.peer} sent a text message on a peer stream")
            for envelope in decode_batch(message.data):
                match envelope:
                    case Request():
                        self._serve(envelope, tasks)
                    case Reply():
                        self._resolve(envelope.id, envelope.body)
                    case Failure():
                        self._reject(envelope)
                    case Push():
                        self._serve_push(envelope)

    def _resolve(self, request_id: int, body: msgspec.Raw) -> None:
        future = self._waiting.get(request_id)
        if future is not None and not future.done():
            # Copied: the body is a view into the whole batch and would keep all of it alive.
            future.set_result(body.copy())

    def _reject(self, failure: Failure) -> None:
        future = self._waiting.get(failure.id)
        if future is not None and not future.done():
            future.set_exception(from_wire(failure.code, failure.message, failure.detail))

    def _expire(self, request_id: int, name: str, deadline_ms: int) -> None:
        future = self._waiting.get(request_id)
        if future is not None and not future.done():
            message = f"{name} at {self.peer}: no reply within {deadline_ms} ms"
            future.set_exception(DeadlineExceeded(message, peer=self.peer))

    def _fail_waiting(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(
                    PeerUnavailable(f"the stream to {self.peer} broke before the reply", peer=self.peer)
                )

    # ---------------------------------------------------------------- serving

    def _serve(self, request: Request, tasks: asyncio.TaskGroup) -> None:
        if self._inflight >= self._limits.inflight_max:
            self._answer_error(request, Overloaded("too many requests at once", what="inflight", retry_after_ms=50))
            return
        try:
            method, serve = self._find(request.method)
            result = serve(method.decode_request(request.body), self.peer)
        except Exception as error:  # noqa: BLE001 - any failure of a handler becomes the caller's error
            self._answer_error(request, error)
            return
        if inspect.isawaitable(result):
            self._inflight += 1
            tasks.create_task(self._serve_async(request, result))
        else:
            self._answer(request, result)

    async def _serve_async(self, request: Request, result: Awaitable[Any]) -> None:
        try:
            async with asyncio.timeout(request.ttl_ms / 1000):
                value = await result
        except TimeoutError:
            self._answer_error(request, DeadlineExceeded(f"{request.method} took over {request.ttl_ms} ms"))
        except Exception as error:  # noqa: BLE001 - see _serve
            self._answer_error(request, error)
        else:
            self._answer(request, value)
        finally:
            self._inflight -= 1

    def _serve_push(self, push: Push) -> None:
        try:
            method, serve = self._find(push.method)
            serve(method.decode_request(push.body), self.peer)
        except RoadsteadError as error:
            self._log.warning("peer_push_refused", method=push.method, error=str(error))
        except Exception:  # noqa: BLE001 - our own bug; the stream lives on
            self._log.exception("peer_push_failed", method=push.method)

    def _find(self, name: str) -> tuple[Method[Any, Any], Serve]:
        found = self._handlers.get(name)
        if found is None:
            raise UnknownMethod(f"{name} is not served here", method=name)
        return found

    def _answer(self, request: Request, value: object) -> None:
        # Replies are not bounded by queue_bytes_max: inflight_max of the asking side bounds them.
        body = encode(value)
        self._put(Reply(request.id, body), len(body))

    def _answer_error(self, request: Request, error: Exception) -> None:
        if isinstance(error, RoadsteadError):
            failure = Failure(request.id, error.code.number, error.message, error.detail)
        else:
            # Our own bug: said in full here, not to the other side.
            self._log.error("peer_request_failed", method=request.method, exc_info=error)
            failure = Failure(request.id, Code.INTERNAL.number, f"{request.method}: internal error", {})
        self._put(failure, len(failure.message))
