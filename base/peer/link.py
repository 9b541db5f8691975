"""One connection that carries batches: what leaves together, how much may wait, whether the other side still lives.

Envelopes that are put in one step of the event loop leave as one frame, and so do those put while received data is
handled. There is no task here: the event loop calls when bytes arrived, and each step ends with one write.

Limits, each with its meaning:
    queue_bytes_max   what may wait to be written. What would exceed it is refused before it is put; replies, which are
                      owed, are put all the same, and while they exceed it nothing is read: who asks must read
    QUIET_TICKS       after so long without anything to send, an empty batch is sent
    SILENT_TICKS      after so long without anything received, the connection counts as dead
    STUCK_TICKS       how long the other side may leave the socket full before it is cut off

The three times are counted in ticks of `tick_s` (5 s), each of which gives the event loop the chance to read, rather
than read off the clock: a process that was paused itself must not blame its peers. A tick costs an idle process a
wake-up, so there are few; a time is over at the tick after it, 15 to 20 s for the silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from base.errors import RemoteProtocolError
from base.log import logger
from base.peer.wire import KEEPALIVE, Envelope, FrameReader, decode_batch, encode_frame

__all__ = ["Link", "StreamLimits"]

QUIET_TICKS = 1
SILENT_TICKS = 4
STUCK_TICKS = 3
assert SILENT_TICKS > 2 * QUIET_TICKS, "two keepalives are never further apart than two ticks"
CLOSE_TIMEOUT_S = 1.0

BATCH_BYTES = 512 * 1024
"""A longer queue leaves as several frames, so that the transport never holds much more than one of them."""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Bounds of one stream, see the modules `link` and `stream`."""

    queue_bytes_max: int = 16 * 1024 * 1024
    inflight_max: int = 1024
    owed_max: int = 16_384
    tick_s: float = 5.0
    """Seconds between two looks at the times of a link; tests make it shorter."""


class Link(asyncio.Protocol):
    """A connected transport, taken over from whoever opened it."""

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        peer: str,
        limits: StreamLimits,
        on_batch: Callable[[list[Envelope]], None],
        on_end: Callable[[], None],
        on_lost: Callable[[Exception | None], None] | None = None,
    ) -> None:
        """Take the transport over; from here on it calls this object.

        Args:
            transport: connected, with nothing left to read for its former owner.
            peer: the other node, for messages.
            limits: see the module.
            on_batch: gets each batch received.
            on_end: called once, when nothing can be sent or received any more.
            on_lost: the former owner's `connection_lost`, if it must learn when the socket is closed.
        """
        self.is_closed = False
        self.queue_bytes = 0
        self._transport = transport
        self._limits = limits
        self._on_batch = on_batch
        self._on_end = on_end
        self._on_lost = on_lost
        self._log = logger(peer=peer)
        self._loop = asyncio.get_running_loop()
        self._frames = FrameReader()
        self._queue: list[bytes] = []
        self._is_flush_due = False
        self._is_full = False  # the transport's buffer, from pause_writing to resume_writing
        self._is_reading = True
        self._lost = asyncio.Event()
        # Ticks since something was sent, was received, and since the buffer became full.
        self._quiet = self._silent = self._stuck = 0
        self._ticking = self._loop.call_later(limits.tick_s, self._tick)
        transport.set_protocol(self)

    def put(self, envelope: bytes) -> None:
        """Queue an envelope; it leaves at the end of this step of the event loop, if the socket takes it."""
        self._queue.append(envelope)
        self.queue_bytes += len(envelope)
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def abort(self) -> None:
        """Cut the connection, leaving unsent what is."""
        self._end()
        self._transport.abort()

    def close(self) -> None:
        """Send what the transport takes now and close the connection. Idempotent."""
        self._flush()
        self._end()
        self._transport.close()

    async def wait_lost(self) -> None:
        """Return when the socket is closed, by either side."""
        await self._lost.wait()

    async def wait_closed(self) -> None:
        """After `close`: return when the socket is closed, which is forced on a peer that takes too long."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._lost.wait()
        except TimeoutError:
            pass  # the peer does not read
        finally:
            self._transport.abort()

    # ---------------------------------------------------------------- called by the event loop

    def data_received(self, data: bytes) -> None:
        """Handle the batches that are whole; what is put meanwhile leaves as one frame."""
        if self.is_closed:
            return
        self._silent = 0
        self._is_flush_due = True  # by this method, below
        try:
            for batch in self._frames.feed(data):
                self._on_batch(decode_batch(batch))
        except RemoteProtocolError as error:
            self._log.warning("peer_stream_refused", error=str(error))
            self.abort()
        self._flush()
        if self.queue_bytes > self._limits.queue_bytes_max and not self.is_closed:
            self._is_reading = False
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """Keep what is put from here on in the queue, where it is bounded."""
        self._is_full = True
        self._stuck = 0

    def resume_writing(self) -> None:
        """Go on with the queue."""
        self._is_full = False
        self._flush()
        if not self._is_reading and self.queue_bytes <= self._limits.queue_bytes_max and not self.is_closed:
            self._is_reading = True
            self._silent = 0
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self._end()
        self._lost.set()
        if self._on_lost is not None:
            self._on_lost(exc)

    # ---------------------------------------------------------------- inside

    def _flush(self) -> None:
        self._is_flush_due = False
        while self._queue and not self._is_full and not self.is_closed:
            if self.queue_bytes <= BATCH_BYTES:
                batch, self._queue = self._queue, []
                self.queue_bytes = 0
            else:
                batch = self._take_some()
            self._quiet = 0
            self._transport.write(encode_frame(batch))

    def _take_some(self) -> list[bytes]:
        """Take from the queue's head what BATCH_BYTES hold, at least one envelope."""
        size = count = 0
        for envelope in self._queue:
            if count and size + len(envelope) > BATCH_BYTES:
                break
            size += len(envelope)
            count += 1
        batch = self._queue[:count]
        del self._queue[:count]
        self.queue_bytes -= size
        return batch

    def _tick(self) -> None:
        self._quiet += 1
        self._silent += 1
        self._stuck += 1
        if self._is_full and self._stuck >= STUCK_TICKS:
            self._log.info("peer_stream_write_timed_out")
            self.abort()
            return
        if self._is_reading and self._silent >= SILENT_TICKS:
            self._log.info("peer_stream_fell_silent")
            self.abort()
            return
        if self._quiet >= QUIET_TICKS and not self._is_full:
            self._quiet = 0
            self._transport.write(KEEPALIVE)
        self._ticking = self._loop.call_later(self._limits.tick_s, self._tick)

    def _end(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._ticking.cancel()
            self._on_end()
