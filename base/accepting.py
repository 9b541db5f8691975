"""Accepting connections whose first bytes are not yet the request: behind a load balancer, with TLS, or both.

A load balancer names each client by the PROXY protocol, in a header that comes before anything else on the connection,
before TLS too. The header is looked at without being taken out of the socket (MSG_PEEK), then exactly its bytes are
read, and the rest is a connection as any other: so the event loop's own TLS serves it. A connection without a header,
or slower than the deadline, is dropped.

Whoever is before the end of that or of a TLS handshake has one of a number of places, of which one address gets no
more than its share, and who gets none is dropped: the loop's own listeners would take any number of handshakes that do
not go on. Before its header a connection is nobody's: its address is that of the balancer, through which all come.

Source: HAProxy, "The PROXY protocol", versions 1 and 2; the rules of the header are in `base/core/proxy_protocol`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address, ip_address, ip_network
from typing import NamedTuple, cast

from base.core.limits import Places, address_key
from base.core.proxy_protocol import HEADER_BYTES_MAX, Header, parse

__all__ = ["TLS_SHUTDOWN_S", "Acceptor"]

ACCEPTED_AT_ONCE = 64
PAUSE_S = 0.1
"""How long accepting rests when the process has no file descriptor left."""
TLS_SHUTDOWN_S = 2.0
"""How long a client may take to answer the end of TLS."""


class _Pending(NamedTuple):
    """A connection before the end of its PROXY header."""

    deadline: asyncio.TimerHandle
    header: bytearray
    """What came of it so far: nothing that comes after it."""


class _Place:
    """A place that somebody has until it is given back, once or more often."""

    __slots__ = ("_is_held", "_key", "_places")

    def __init__(self, places: Places, key: str | None) -> None:
        self._places = places
        self._key = key
        self._is_held = True

    def give_back(self) -> None:
        if self._is_held:
            self._is_held = False
            self._places.leave(self._key)


class _Started(asyncio.Protocol):
    """Gives the place back as the connection is made, and not only when its task learns of it."""

    __slots__ = ("_inner", "_place")

    def __init__(self, place: _Place, inner: asyncio.Protocol) -> None:
        self._place = place
        self._inner = inner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._place.give_back()
        cast("asyncio.Transport", transport).set_protocol(self._inner)  # that of uvloop is none of its subclasses
        self._inner.connection_made(transport)


class Acceptor:
    """A listening socket for connections that begin with a PROXY header, with TLS, or with the one and the other."""

    def __init__(
        self,
        arrive: Callable[[str | None], asyncio.Protocol],
        context: ssl.SSLContext | None,
        *,
        deadline_s: float,
        places: Places,
        dropped: Callable[[str, str], None],
        proxies: Iterable[str] = (),
    ) -> None:
        """Nothing is opened yet.

        Args:
            arrive: makes the protocol of a connection from an address; None: the socket's own (a health check's).
            context: for TLS, None without.
            deadline_s: how long a connection may take to its header, and again to the end of its TLS handshake.
            places: for those on their way, by address; each is given back before `connection_made`, so that whoever
                made them may count those who go on in them, too.
            dropped: told why somebody is, in one word and in a sentence.
            proxies: networks from which connections are taken, with a header; none: from everywhere, without one.
        """
        self._arrive = arrive
        self._proxies = tuple(map(ip_network, proxies))
        self._context = context
        self._deadline_s = deadline_s
        self._places = places
        self._dropped = dropped
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._pending: dict[socket.socket, _Pending] = {}
        self._starting: set[asyncio.Task[None]] = set()

    def listen(self, host: str, port: int, *, backlog: int) -> tuple[str, int]:
        """Bind; return the address. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
            self._socket.listen(backlog)
        except OSError:
            self._socket.close()
            self._socket = None
            raise
        self._loop.add_reader(self._socket, self._accept)
        bound_host, bound_port = self._socket.getsockname()[:2]
        return bound_host, bound_port

    def close(self) -> None:
        """Stop accepting, and drop who is on the way. Idempotent."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        for pending in tuple(self._pending):
            self._drop(pending, "closed")
        for starting in tuple(self._starting):
            starting.cancel()

    def _accept(self) -> None:
        assert self._socket is not None
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                accepted, peer = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                # No file descriptor is left. The socket stays readable, so that without a rest this would spin.
                self._loop.remove_reader(self._socket)
                self._loop.call_later(PAUSE_S, self._resume)
                return
            accepted.setblocking(False)
            key = address_key(peer[0]) if not self._proxies else None
            reason = self._refusal(peer[0], key)
            if reason is not None:
                self._dropped(reason, f"from {peer[0]}")
                accepted.close()
            elif not self._proxies:
                self._begin(accepted, None, key)
            else:
                deadline = self._loop.call_later(self._deadline_s, self._drop, accepted, "slow")
                self._pending[accepted] = _Pending(deadline, bytearray())
                self._loop.add_reader(accepted, self._look, accepted)

    def _refusal(self, host: str, key: str | None) -> str | None:
        """Take a place; return why there is none."""
        if self._proxies:
            address = ip_address(host.partition("%")[0])
            mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
            if not any((mapped or address) in network for network in self._proxies):
                return "unknown_proxy"
        return None if self._places.take(key) else "too_many"

    def _resume(self) -> None:
        if self._socket is not None:
            self._loop.add_reader(self._socket, self._accept)

    # ---------------------------------------------------------------- the PROXY header

    def _look(self, accepted: socket.socket) -> None:
        held = self._pending[accepted].header
        try:
            seen = accepted.recv(HEADER_BYTES_MAX, socket.MSG_PEEK)
            if not seen:
                self._drop(accepted, "gone")
                return
            header = parse(bytes(held) + seen)
            if header is None:  # the header goes on, so that all of this is header
                held += accepted.recv(len(seen))
                return
            if isinstance(header, Header):
                accepted.recv(header.length - len(held))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._drop(accepted, "gone")
            return
        if isinstance(header, Header):
            self._pass_on(accepted, header)
        else:
            self._drop(accepted, "bad_proxy_header")

    def _pass_on(self, accepted: socket.socket, header: Header) -> None:
        self._end(accepted)
        address = header.source[0] if header.source is not None else None
        key = address_key(address) if address is not None else None
        if self._places.take(key):
            self._begin(accepted, address, key)
        else:
            self._dropped("too_many", f"from {address or 'a balancer'}")
            accepted.close()

    def _end(self, accepted: socket.socket) -> None:
        self._loop.remove_reader(accepted)
        self._pending.pop(accepted).deadline.cancel()
        self._places.leave(None)

    def _drop(self, accepted: socket.socket, reason: str) -> None:
        self._dropped(reason, "before the end of its header")
        self._end(accepted)
        accepted.close()

    # ---------------------------------------------------------------- TLS

    def _begin(self, accepted: socket.socket, address: str | None, key: str | None) -> None:
        place = _Place(self._places, key)
        # A task of the loop's own, which ends with the TLS handshake or its deadline: there is no group to own it.
        task = self._loop.create_task(self._start(accepted, address, place))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        task.add_done_callback(lambda _task: place.give_back())

    async def _start(self, accepted: socket.socket, address: str | None, place: _Place) -> None:
        has_tls = self._context is not None
        peer = address or _peer_of(accepted)
        try:
            await self._loop.connect_accepted_socket(
                lambda: _Started(place, self._arrive(address)),
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=self._deadline_s if has_tls else None,
                ssl_shutdown_timeout=TLS_SHUTDOWN_S if has_tls else None,
            )
        except OSError as error:  # that of TLS is one
            reason = str(error) or type(error).__name__
            self._dropped("tls" if has_tls else "gone", f"from {peer}: {reason}")
            accepted.close()


def _peer_of(accepted: socket.socket) -> str:
    try:
        return str(accepted.getpeername()[0])
    except OSError:
        return "somebody who has gone"
