"""The wires between one node in a network of its own and all others: they can be cut, in one direction too, and slow.

What a node says while its wire is cut is not lost, as TCP would send it again: it arrives when the wire is mended, ends
of connections too. Whoever connects meanwhile is connected, and hears nothing.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import cast

from tests.process.faults.namespaces import Namespace

__all__ = ["Wires"]

HELD_BYTES_MAX = 16_000_000
"""A node that says more to a wire that is cut than its peers' buffers hold would have to wait."""


class Direction:
    """What goes one way, all connections together."""

    def __init__(self) -> None:
        self.is_cut = False
        self.delay_s = 0.0
        self._due: deque[tuple[float, Callable[[], None]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def carry(self, arrive: Callable[[], None]) -> None:
        """Have it arrive, in the order in which it was said."""
        if not self.is_cut and not self.delay_s and not self._due:
            arrive()
            return
        self._due.append((self._loop.time() + self.delay_s, arrive))
        self.flush()

    def flush(self) -> None:
        """Let arrive what is due."""
        while not self.is_cut and self._due and self._due[0][0] <= self._loop.time():
            self._due.popleft()[1]()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due and not self.is_cut:
            self._timer = self._loop.call_at(self._due[0][0], self.flush)


class _End(asyncio.Protocol):
    """One of a connection's two sockets: what comes here goes to `other`, by `direction`."""

    def __init__(self, direction: Direction, on_made: Callable[[], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _End
        self._direction = direction
        self._on_made = on_made
        self._unsaid: list[bytes] = []
        self._is_over = False
        """No more is to be said here."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        for data in self._unsaid:
            self.transport.write(data)
        self._unsaid.clear()
        if self._is_over:
            self.transport.close()
        self._on_made()

    def data_received(self, data: bytes) -> None:
        self._direction.carry(lambda: self.other.say(data))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the event loop's interface
        self.transport = None
        self._direction.carry(self.other.end)

    def say(self, data: bytes) -> None:
        """Say what the other side said."""
        if self._is_over:
            return
        if self.transport is None:
            self._unsaid.append(data)
            assert sum(map(len, self._unsaid)) < HELD_BYTES_MAX
        elif not self.transport.is_closing():
            self.transport.write(data)

    def end(self) -> None:
        """The other side is gone."""
        self._is_over = True
        if self.transport is not None:
            self.transport.close()


class Wires:
    """See the module."""

    def __init__(self, namespace: Namespace, *, inside: Iterable[int], outside: Iterable[int]) -> None:
        """`inside` are the ports of the node that is apart, `outside` those of all others; all on loopback."""
        self.to_node = Direction()
        self.from_node = Direction()
        self._namespace = namespace
        self._inside = tuple(inside)
        self._outside = tuple(outside)
        self._ends: set[_End] = set()
        self._tasks: asyncio.TaskGroup

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Wires]:
        """Carry until the block ends."""
        loop = asyncio.get_running_loop()
        servers: list[asyncio.Server] = []
        async with asyncio.TaskGroup() as self._tasks:
            try:
                for port in self._inside:
                    accept = self._accepting(self.to_node, self.from_node, lambda port=port: self._dial_node(port))
                    servers.append(await loop.create_server(accept, "127.0.0.1", port))
                for port in self._outside:
                    accept = self._accepting(self.from_node, self.to_node, lambda port=port: _dial(port))
                    servers.append(await loop.create_server(accept, sock=self._namespace.listener(port)))
                yield self
            finally:
                for server in servers:
                    server.close()
                for end in tuple(self._ends):
                    if end.transport is not None:
                        end.transport.abort()

    def cut(self, *, to_node: bool = True, from_node: bool = True) -> None:
        """Let nothing through any more."""
        self.to_node.is_cut, self.from_node.is_cut = to_node, from_node

    def slow(self, delay_s: float) -> None:
        """Let everything take so long, each way."""
        self.to_node.delay_s = self.from_node.delay_s = delay_s

    def mend(self) -> None:
        """Let everything through, what was held up first."""
        self.to_node.is_cut = self.from_node.is_cut = False
        self.slow(0)
        self.to_node.flush()
        self.from_node.flush()

    async def _dial_node(self, port: int) -> socket.socket:
        return await _connected(self._namespace.socket(), port)

    def _accepting(
        self, there: Direction, back: Direction, dial: Callable[[], Awaitable[socket.socket]]
    ) -> Callable[[], _End]:
        def accept() -> _End:
            called = _End(back, on_made=lambda: None)
            caller = _End(there, on_made=lambda: there.carry(lambda: self._join(called, dial)))
            caller.other, called.other = called, caller
            self._ends |= {caller, called}
            return caller

        return accept

    def _join(self, end: _End, dial: Callable[[], Awaitable[socket.socket]]) -> None:
        self._tasks.create_task(self._joined(end, dial))

    async def _joined(self, end: _End, dial: Callable[[], Awaitable[socket.socket]]) -> None:
        try:
            made = await dial()
        except OSError:
            end.connection_lost(None)  # nobody listens there
            return
        await asyncio.get_running_loop().create_connection(lambda: end, sock=made)


async def _dial(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setblocking(False)
    return await _connected(made, port)


async def _connected(made: socket.socket, port: int) -> socket.socket:
    try:
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
    except BaseException:
        made.close()
        raise
    return made
