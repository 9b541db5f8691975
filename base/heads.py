"""Connections before their first request: what an HTTP port gives them is a place and little time.

The HTTP server waits for a request as long as it waits between two of them, and counts nobody. So each connection
begins here and goes to it with the end of its first head. Until then it has one of a number of places, of which one
address gets no more than its share, and a deadline that no dripping of bytes puts off. Whoever is without a place or
late is dropped without an answer, as there was no request yet.

What cannot be the beginning of a request goes to the HTTP server at once, which answers that and hangs up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from base.core.limits import Places, address_key

__all__ = ["Heads"]

HEAD_S = 10.0
"""How long a connection may take to the end of its first head."""
HEADS_MAX = 4_096
"""How many may be before it at once."""
HEAD_BYTES_MAX = 64 * 1024
"""A longer head is none: the HTTP server takes 8 kB for its first line, and as much for each field."""
HEAD_END = b"\r\n\r\n"

Arrive = Callable[[], asyncio.Protocol]


class Heads:
    """A layer of an HTTP server, see `base.http`: keeps each connection until its first head is there."""

    def __init__(self, *, dropped: Callable[[str, str], None]) -> None:
        """`dropped` is told why a connection is, in one word and in a sentence: too_many, slow, long_head."""
        self._dropped = dropped
        self._places = Places(HEADS_MAX)
        self._here: dict[_Arrival, float] = {}
        """When each has to be through. All get as long, so that the first of them is the next."""
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return how many are before the end of their head."""
        return len(self._places)

    def over(self, inner: Arrive) -> Arrive:
        """Return what takes connections off the port and gives them to `inner`."""
        return lambda: _Arrival(self, inner)

    def close(self) -> None:
        """Drop whoever has not sent its head yet."""
        for arrival in tuple(self._here):
            arrival.hang_up()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ---------------------------------------------------------------- for arrivals

    def entered(self, arrival: _Arrival, key: str) -> bool:
        """A connection from the address of this key is there; False if there is no place for it."""
        if not self._places.take(key):
            return False
        loop = asyncio.get_running_loop()
        self._here[arrival] = loop.time() + HEAD_S
        if self._timer is None:
            self._timer = loop.call_later(HEAD_S, self._look)
        return True

    def left(self, arrival: _Arrival, key: str) -> None:
        """It goes on, or is gone."""
        del self._here[arrival]
        self._places.leave(key)

    def drop(self, reason: str, address: str) -> None:
        """Tell that a connection is dropped."""
        self._dropped(reason, f"from {address}: before the end of its first head")

    def _look(self) -> None:
        # One timer for all: most are through at once, and would pay for one that is never due.
        loop = asyncio.get_running_loop()
        self._timer = None
        for arrival, until in tuple(self._here.items()):
            if until > loop.time():
                self._timer = loop.call_at(until, self._look)
                break
            arrival.drop("slow")


class _Arrival(asyncio.Protocol):
    """A connection until the end of its first head."""

    __slots__ = ("_address", "_inner", "_key", "_layer", "_read", "_transport")

    def __init__(self, layer: Heads, inner: Arrive) -> None:
        self._layer = layer
        self._inner = inner
        self._address = ""
        self._key = ""
        self._read = b""
        self._transport: asyncio.Transport | None = None
        """None before it has a place, and after."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        made = cast("asyncio.Transport", transport)  # that of uvloop is none of its subclasses
        peer = transport.get_extra_info("peername")
        self._address = str(peer[0]) if isinstance(peer, tuple) else ""
        self._key = address_key(self._address)
        if not self._layer.entered(self, self._key):
            self._layer.drop("too_many", self._address)
            made.abort()
            return
        self._transport = made

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        # Empty lines before a request are not of it (RFC 9112, 2.2), and would look like the end of its head.
        read = self._read + data if self._read else data.lstrip(b"\r\n")
        self._read = read
        if read and (HEAD_END in read or not read[:1].isupper()):
            self._pass_on()
        elif len(read) > HEAD_BYTES_MAX:
            self.drop("long_head")

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._transport is not None:
            self._end()

    def hang_up(self) -> None:
        """Hang up without counting it, as the port closes."""
        self._end().abort()

    def drop(self, reason: str) -> None:
        """Hang up for a reason that is counted."""
        self._layer.drop(reason, self._address)
        self._end().abort()

    def _pass_on(self) -> None:
        data = self._read
        transport, protocol = self._end(), self._inner()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)

    def _end(self) -> asyncio.Transport:
        transport, self._transport = self._transport, None
        assert transport is not None
        self._read = b""
        self._layer.left(self, self._key)
        return transport
