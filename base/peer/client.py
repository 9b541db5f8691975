"""Keeps one stream open to a peer: connects, authenticates, reconnects with jitter, lets callers wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from base.core.backoff import Backoff
from base.errors import DeadlineExceeded, PeerUnavailable, RemoteProtocolError, RoadsteadError, Unauthenticated
from base.ids import entropy
from base.log import logger
from base.peer.link import StreamLimits
from base.peer.stream import Done, PeerStream, Serve
from base.peer.upgrade import connect
from base.peer.wire import Method
from base.trust import Trust

__all__ = ["PeerClient"]

CONNECT_TIMEOUT_S = 3.0

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class PeerClient:
    """A lasting connection to the peer at `url`. `run` keeps it; `call` and `push` use it, and so may the peer."""

    def __init__(
        self,
        url: str,
        *,
        peer: str,
        node: str,
        trust: Trust,
        limits: StreamLimits | None = None,
        on_connected: Callable[[], None] | None = None,
    ) -> None:
        """Name both ends.

        Args:
            url: the peer's base URL, `http://host:port` or `https://host:port`.
            peer: the peer's node id, for messages.
            node: this node's id, told to the peer.
            trust: what this node shows to the peer, and believes of it.
            limits: bounds of the stream.
            on_connected: called each time a new stream is up: whatever state lived in the old one is gone.
        """
        self.url = url
        self.peer = peer
        self._node = node
        self._trust = trust
        self._limits = limits or StreamLimits()
        self._on_connected = on_connected
        self._handlers: dict[str, tuple[Method[Any, Any], Serve]] = {}
        self._stream: PeerStream | None = None
        self._connected = asyncio.Event()
        self._is_over = False
        """`run` has ended: there will be no stream any more."""
        self._backoff = Backoff(entropy(), base_ms=50, ceiling_ms=2_000)
        self._failure = ""
        """Why there is no stream, as was logged last; empty once there is one again."""
        self._log = logger(node=node, peer=peer)

    @property
    def is_connected(self) -> bool:
        """Whether a stream is up at this moment."""
        return self._stream is not None and not self._stream.is_closed

    def serve(self, method: Method[Req, Rep], handler: Serve) -> None:
        """Answer the peer's calls and pushes of the method, as `PeerServer.serve` does. Before `run`."""
        assert method.name not in self._handlers
        self._handlers[method.name] = (method, handler)

    async def call(self, method: Method[Req, Rep], request: Req, *, deadline_ms: int) -> Rep:
        """Call the peer, waiting for a stream if none is up; the deadline covers both. Errors as `PeerStream.call`."""
        stream = self._stream
        if (
            stream is not None and not stream.is_closed
        ):  # nearly always: the request is queued before anything else runs
            return await stream.call(method, request, deadline_ms=deadline_ms)
        loop = asyncio.get_running_loop()
        give_up = loop.time() + deadline_ms / 1000
        stream = await self._wait_for_stream(deadline_ms)
        left_ms = max(1, int((give_up - loop.time()) * 1000))
        return await stream.call(method, request, deadline_ms=left_ms)

    def ask(self, method: Method[Req, Rep], request: Req, *, deadline_ms: int, done: Done) -> None:
        """As `PeerStream.ask`. Raises PeerUnavailable when no stream is up: this never waits for one."""
        if self._stream is None:
            raise PeerUnavailable(f"no stream to {self.peer}", peer=self.peer)
        self._stream.ask(method, request, deadline_ms=deadline_ms, done=done)

    async def wait_connected(self, *, deadline_ms: int) -> None:
        """Return when a stream is up. Raises DeadlineExceeded, or PeerUnavailable when `run` has ended."""
        await self._wait_for_stream(deadline_ms)

    def push(self, method: Method[Req, Any], message: Req) -> None:
        """Push to the peer. Raises PeerUnavailable when no stream is up: a push never waits."""
        if self._stream is None:
            raise PeerUnavailable(f"no stream to {self.peer}", peer=self.peer)
        self._stream.push(method, message)

    async def run(self) -> None:
        """Connect, let the stream live until it breaks, wait, connect again; until cancelled."""
        self._is_over = False
        try:
            while True:
                try:
                    await self._run_once()
                except (OSError, TimeoutError, RoadsteadError) as error:
                    self._tell(error)
                await asyncio.sleep(self._backoff.next_ms() / 1000)
        finally:
            self._is_over = True
            self._connected.set()  # whoever waits for a stream waits in vain

    def _tell(self, error: Exception) -> None:
        """Log why there is no stream, once a reason: a node of another version may be there for hours."""
        failure = str(error) or type(error).__name__
        if failure != self._failure:
            self._failure = failure
            # A peer that is not there comes back; one that refuses us needs somebody to look at it.
            is_refused = isinstance(error, Unauthenticated | RemoteProtocolError)
            say = self._log.warning if is_refused else self._log.info
            say("peer_stream_failed", error=failure)

    async def _run_once(self) -> None:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            transport, received = await connect(self.url, node=self._node, trust=self._trust)
        stream = PeerStream(transport, peer=self.peer, handlers=self._handlers, limits=self._limits)
        try:
            self._stream = stream
            self._connected.set()
            self._backoff.reset()
            self._failure = ""
            if self._on_connected is not None:
                self._on_connected()
            # Only now: what the peer sends must find the state of the new stream, not of the old one.
            stream.feed(received)
            transport.resume_reading()
            await stream.wait_ended()
        finally:
            self._stream = None
            await stream.close()

    async def _wait_for_stream(self, deadline_ms: int) -> PeerStream:
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                while self._stream is None or self._stream.is_closed:
                    if self._is_over:
                        raise PeerUnavailable(f"{self.peer} has gone, or is another one now", peer=self.peer)
                    self._connected.clear()
                    await self._connected.wait()
        except TimeoutError:
            raise DeadlineExceeded(f"no stream to {self.peer} within {deadline_ms} ms", peer=self.peer) from None
        return self._stream
