"""One peer stream: calls and their deadlines, what is served, what its end means.

Both ends are alike: each may call, serve and push. `link` is the connection below, with its queue and its bounds; here:

    inflight_max      requests of the other side that tasks may serve at once; beyond it, refused with Overloaded
    owed_max          the same for those that futures answer, of which each takes less than a kilobyte

A stream that ends fails every waiting call with PeerUnavailable: their outcome is unknown.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar

from base.errors import (
    Code,
    DeadlineExceeded,
    Overloaded,
    PeerUnavailable,
    RemoteProtocolError,
    RoadsteadError,
    TooLarge,
    UnknownMethod,
    from_wire,
)
from base.log import logger
from base.peer.deadlines import Deadlines
from base.peer.link import Link, StreamLimits
from base.peer.wire import (
    ENVELOPE_BYTES_MAX,
    Envelope,
    Method,
    Push,
    Reply,
    Request,
    encode_failure,
    encode_push,
    encode_reply,
    encode_request,
)

__all__ = ["Done", "Handlers", "PeerStream", "Serve"]

STOP_TIMEOUT_S = 1.0

Req = TypeVar("Req")
Rep = TypeVar("Rep")

Serve = Callable[[Any, str], Any]
"""(request, name of the calling node) -> reply, or an awaitable of it.

Only a coroutine takes a task, which ends with the caller's deadline and with the stream. A Future stays the handler's:
it is answered once it is done, and left alone.
"""

Done = Callable[[Any], None]
"""Gets the reply, or the RoadsteadError that stands for it."""

_Call = tuple[Done, Method[Any, Any]]
"""Who gets the reply, and how to decode it."""

Handlers = Mapping[str, tuple[Method[Any, Any], Serve]]


class PeerStream:
    """A live stream to the node called `peer`."""

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        peer: str,
        handlers: Handlers,
        limits: StreamLimits,
        on_lost: Callable[[Exception | None], None] | None = None,
    ) -> None:
        """Take over a connection on which both sides have agreed to the protocol; `on_lost` as in `Link`."""
        self.peer = peer
        self._handlers = handlers
        self._limits = limits
        self._waiting: dict[int, _Call] = {}
        self._next_id = 1
        self._serving: dict[asyncio.Task[None], Awaitable[Any]] = {}
        self._given_up: set[asyncio.Task[None]] = set()
        self._owed = 0  # requests that futures will answer
        self._loop = asyncio.get_running_loop()
        self._answers_due = Deadlines(self._loop, self._expire)
        self._served_by = Deadlines(self._loop, self._give_up)
        self._log = logger(peer=peer)
        self._link = Link(
            transport, peer=peer, limits=limits, on_batch=self._receive, on_end=self._ended, on_lost=on_lost
        )

    @property
    def is_closed(self) -> bool:
        """Whether the stream has ended: no call can succeed any more."""
        return self._link.is_closed

    async def call(self, method: Method[Req, Rep], request: Req, *, deadline_ms: int) -> Rep:
        """Send a request and wait for its reply.

        Requests leave in the order of the calls. Raises the peer's error, DeadlineExceeded or PeerUnavailable (both:
        outcome unknown), or Overloaded or TooLarge (nothing was sent).
        """
        future: asyncio.Future[Rep] = self._loop.create_future()

        def done(reply: Rep | RoadsteadError) -> None:
            if future.done():
                return
            if isinstance(reply, RoadsteadError):
                future.set_exception(reply)
            else:
                future.set_result(reply)

        request_id = self.ask(method, request, deadline_ms=deadline_ms, done=done)
        try:
            return await future
        except asyncio.CancelledError:
            self._taken(request_id)
            raise

    def ask(self, method: Method[Req, Rep], request: Req, *, deadline_ms: int, done: Done) -> int:
        """Send a request; `done` gets what `call` would return or raise, later and once. Return the request's number.

        For who asks all the time: it takes neither a task nor a future. Raises what `call` raises before anything was
        sent: PeerUnavailable, Overloaded or TooLarge.
        """
        request_id = self._next_id
        self._next_id += 1
        self._put(encode_request(request_id, method.name, deadline_ms, request))
        self._waiting[request_id] = done, method
        self._answers_due.add(request_id, deadline_ms / 1000)
        return request_id

    def push(self, method: Method[Req, Any], message: Req) -> None:
        """Queue a message that wants no reply; arrival is not confirmed.

        Raises Overloaded, TooLarge or PeerUnavailable.
        """
        self._put(encode_push(method.name, message))

    def feed(self, data: bytes) -> None:
        """Handle what the other side sent before the connection was taken over."""
        self._link.data_received(data)

    async def wait_ended(self) -> None:
        """Return when the stream has ended, by either side; the owner then calls `close`."""
        await self._link.wait_lost()

    async def close(self) -> None:
        """End the stream from this side, if it has not ended, and wait for what was being served. Idempotent."""
        self._link.close()
        await self._link.wait_closed()
        if self._serving:
            await asyncio.wait(self._serving, timeout=STOP_TIMEOUT_S)

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of the queues."""
        return {
            "queue_bytes": self._link.queue_bytes,
            "waiting": len(self._waiting),
            "inflight": len(self._serving) + self._owed,
        }

    # ---------------------------------------------------------------- calling

    def _put(self, envelope: bytes) -> None:
        link = self._link
        if link.is_closed:
            raise PeerUnavailable(f"the stream to {self.peer} is closed", peer=self.peer)
        size = len(envelope)
        if size > ENVELOPE_BYTES_MAX:
            raise TooLarge(f"{size} bytes are too many for one message", limit=ENVELOPE_BYTES_MAX)
        if link.queue_bytes + size > self._limits.queue_bytes_max:
            raise Overloaded(f"the queue to {self.peer} is full", what="peer_queue", retry_after_ms=100)
        link.put(envelope)

    def _receive(self, batch: list[Envelope]) -> None:
        for envelope in batch:
            if isinstance(envelope, Request):  # not `match`, which costs more than all that is decided here
                self._serve(envelope)
            elif isinstance(envelope, Reply):
                self._resolve(envelope)
            elif isinstance(envelope, Push):
                self._serve_push(envelope)
            else:
                self._fail(envelope.id, from_wire(envelope.code, envelope.message, envelope.detail))

    def _resolve(self, reply: Reply) -> None:
        found = self._taken(reply.id)
        if found is None:
            return  # too late: its caller has given up
        done, method = found
        try:
            result = method.decode_reply(reply.body)
        except RemoteProtocolError as error:
            result = error
        done(result)

    def _fail(self, request_id: int, error: RoadsteadError) -> None:
        found = self._taken(request_id)
        if found is not None:
            found[0](error)

    def _taken(self, request_id: int) -> _Call | None:
        """Forget a call and return it, None if it was settled before."""
        self._answers_due.met(request_id)
        return self._waiting.pop(request_id, None)

    def _expire(self, request_id: int) -> None:
        _, method = self._waiting[request_id]
        self._fail(request_id, DeadlineExceeded(f"{method.name} at {self.peer}: no reply in time", peer=self.peer))

    def _ended(self) -> None:
        for request_id in tuple(self._waiting):
            message = f"the stream to {self.peer} broke before the reply"
            self._fail(request_id, PeerUnavailable(message, peer=self.peer))
        self._answers_due.clear()
        self._served_by.clear()
        # What is being served has nobody left to answer to.
        for task in self._serving:
            task.cancel()

    # ---------------------------------------------------------------- serving

    def _serve(self, request: Request) -> None:
        try:
            self._require_capacity()
            result = self._invoke(request)
            if isinstance(result, asyncio.Future):
                self._owe(request, result)
            elif hasattr(result, "__await__"):
                task = self._spawn(self._answer_later(request, result), result)
                self._served_by.add(task, request.ttl_ms / 1000)
            else:
                self._answer(request.id, request.method, result)
        except Exception as error:  # noqa: BLE001 - any failure of a handler becomes the caller's error
            self._answer_error(request.id, request.method, error)

    def _owe(self, request: Request, future: asyncio.Future[Any]) -> None:
        self._owed += 1
        # Not with the request itself, whose body would keep the whole frame.
        future.add_done_callback(partial(self._pay, request.id, request.method))

    def _pay(self, request_id: int, name: str, future: asyncio.Future[Any]) -> None:
        self._owed -= 1
        try:
            value = future.result()
            if not self._link.is_closed:
                self._answer(request_id, name, value)
        except asyncio.CancelledError:
            self._answer_error(request_id, name, PeerUnavailable(f"{name} was given up"))
        except Exception as error:  # noqa: BLE001 - see _serve
            self._answer_error(request_id, name, error)

    async def _answer_later(self, request: Request, result: Awaitable[Any]) -> None:
        try:
            self._answer(request.id, request.method, await result)
        except (asyncio.CancelledError, TimeoutError) as error:
            if isinstance(error, asyncio.CancelledError) and asyncio.current_task() not in self._given_up:
                raise
            late = DeadlineExceeded(f"{request.method} took over {request.ttl_ms} ms")
            self._answer_error(request.id, request.method, late)
        except Exception as error:  # noqa: BLE001 - see _serve
            self._answer_error(request.id, request.method, error)

    def _give_up(self, task: asyncio.Task[None]) -> None:
        self._given_up.add(task)
        task.cancel()

    def _serve_push(self, push: Push) -> None:
        try:
            result = self._invoke(push)
            if hasattr(result, "__await__"):
                self._require_capacity(result)
                self._spawn(self._finish_push(push.method, result), result)
        except Exception as error:  # noqa: BLE001 - there is nobody to tell, and the stream lives on
            self._push_failed(push.method, error)

    async def _finish_push(self, name: str, result: Awaitable[Any]) -> None:
        try:
            await result
        except Exception as error:  # noqa: BLE001 - see _serve_push
            self._push_failed(name, error)

    def _push_failed(self, name: str, error: Exception) -> None:
        if isinstance(error, RoadsteadError):
            self._log.warning("peer_push_refused", method=name, error=str(error))
        else:
            self._log.error("peer_push_failed", method=name, exc_info=error)

    def _require_capacity(self, result: Awaitable[Any] | None = None) -> None:
        """Raises Overloaded when as much is served as may be; a result that is then not awaited is closed."""
        limits = self._limits
        if len(self._serving) >= limits.inflight_max or self._owed >= limits.owed_max:
            if inspect.iscoroutine(result):
                result.close()
            raise Overloaded("too many requests at once", what="inflight", retry_after_ms=50)

    def _invoke(self, envelope: Request | Push) -> Any:
        found = self._handlers.get(envelope.method)
        if found is None:
            raise UnknownMethod(f"{envelope.method} is not served here", method=envelope.method)
        method, serve = found
        return serve(method.decode_request(envelope.body), self.peer)

    def _spawn(self, work: Coroutine[Any, Any, None], result: Awaitable[Any]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._serving[task] = result
        task.add_done_callback(self._served)
        return task

    def _served(self, task: asyncio.Task[None]) -> None:
        self._served_by.met(task)
        self._given_up.discard(task)
        result = self._serving.pop(task)
        if inspect.iscoroutine(result):
            result.close()  # nobody began to await it if the stream ended right after the request came

    def _answer(self, request_id: int, name: str, value: object) -> None:
        reply = encode_reply(request_id, value)
        if len(reply) > ENVELOPE_BYTES_MAX:
            raise TooLarge(f"{name}: a reply of {len(reply)} bytes is too large", limit=ENVELOPE_BYTES_MAX)
        self._link.put(reply)

    def _answer_error(self, request_id: int, name: str, error: Exception) -> None:
        if isinstance(error, RoadsteadError):
            failure = encode_failure(request_id, error.code.number, error.message, error.detail)
        else:
            # Our own bug: said in full here, not to the other side.
            self._log.error("peer_request_failed", method=name, exc_info=error)
            failure = encode_failure(request_id, Code.INTERNAL.number, f"{name}: internal error", {})
        if not self._link.is_closed:
            self._link.put(failure)
