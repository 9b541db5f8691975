"""A port behind a load balancer that names each client by the PROXY protocol, in a header before anything else.

Every connection must come from one of the balancers and begin with the header; any other is dropped, and so is one that
is too slow with it. Who serves the connection from there on sees it with the client's address.

Source: HAProxy, "The PROXY protocol", versions 1 and 2; the rules of the header are in `base/core/proxy_protocol`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, cast

from base.core.proxy_protocol import Header, parse

__all__ = ["Proxied"]

HEADER_S = 5.0
"""How long a connection may take to its header. A balancer sends it first thing."""

Arrive = Callable[[], asyncio.Protocol]


class Proxied:
    """A layer of an HTTP server, see `base.http`: takes the header off each connection."""

    def __init__(self, proxies: Iterable[str], *, dropped: Callable[[str], None]) -> None:
        """`proxies`: the balancers' networks. `dropped` is told why a connection is: one word."""
        self._proxies = tuple(map(ip_network, proxies))
        self._dropped = dropped
        self._arrivals: set[_Arrival] = set()

    def over(self, inner: Arrive) -> Arrive:
        """Return what takes connections off the port and gives them to `inner`."""
        return lambda: _Arrival(self, inner)

    def close(self) -> None:
        """Drop whoever has not sent the header yet."""
        for arrival in tuple(self._arrivals):
            arrival.drop("closed")

    # ---------------------------------------------------------------- for arrivals

    def is_known(self, host: str) -> bool:
        """Return whether a connection from that address may be taken."""
        address = ip_address(host.partition("%")[0])
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return any((mapped or address) in network for network in self._proxies)

    def begun(self, arrival: _Arrival) -> None:
        """A connection is there, its header not yet."""
        self._arrivals.add(arrival)

    def ended(self, arrival: _Arrival, dropped: str = "") -> None:
        """Its header came, or it was dropped for a reason."""
        self._arrivals.discard(arrival)
        if dropped:
            self._dropped(dropped)


class _Arrival(asyncio.Protocol):
    """A connection until the end of its header."""

    __slots__ = ("_deadline", "_inner", "_layer", "_read", "_transport")

    def __init__(self, layer: Proxied, inner: Arrive) -> None:
        self._layer = layer
        self._inner = inner
        self._read = b""
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # that of uvloop is none of its subclasses
        self._layer.begun(self)
        peer = transport.get_extra_info("peername")
        if peer is None:  # it hung up before it was looked at
            self.drop("gone")
            return
        if not self._layer.is_known(peer[0]):
            self.drop("unknown_proxy")
            return
        self._deadline = asyncio.get_running_loop().call_later(HEADER_S, self.drop, "slow")

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        self._read += data
        header = parse(self._read)
        if isinstance(header, Header):
            self._pass_on(header)
        elif header is not None:
            self.drop("bad_proxy_header")

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._transport is not None:
            self._end("gone")

    def drop(self, reason: str) -> None:
        """Hang up."""
        transport = self._end(reason)
        transport.abort()

    def _pass_on(self, header: Header) -> None:
        rest = self._read[header.length :]
        transport, protocol = self._end(), self._inner()
        transport.set_protocol(protocol)
        protocol.connection_made(transport if header.source is None else _Named(transport, header.source))
        if rest:
            protocol.data_received(rest)

    def _end(self, dropped: str = "") -> asyncio.Transport:
        transport, self._transport = self._transport, None
        assert transport is not None
        self._read = b""
        if self._deadline is not None:
            self._deadline.cancel()
        self._layer.ended(self, dropped)
        return transport


class _Named(asyncio.Transport):
    """A connection with the address that its header gave."""

    __slots__ = ("_inner", "_source")

    def __init__(self, inner: asyncio.Transport, source: tuple[str, int]) -> None:
        super().__init__()
        self._inner = inner
        self._source = source

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._source if name == "peername" else self._inner.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._inner.is_closing()

    def close(self) -> None:
        self._inner.close()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._inner.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._inner.get_protocol()

    def is_reading(self) -> bool:
        return self._inner.is_reading()

    def pause_reading(self) -> None:
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        self._inner.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._inner.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._inner.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._inner.get_write_buffer_limits()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self._inner.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        self._inner.writelines(list_of_data)

    def write_eof(self) -> None:
        self._inner.write_eof()

    def can_write_eof(self) -> bool:
        return self._inner.can_write_eof()

    def abort(self) -> None:
        self._inner.abort()
