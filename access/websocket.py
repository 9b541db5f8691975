"""The WebSocket transport: sockets in, sessions' effects out. Decides nothing.

Writes never wait: a connection's frames gather while its socket is busy and leave together, joined by newlines as the
protocol allows. What waits is bounded in bytes; a client that does not read is closed with 3008 and recovers by offset
when it comes back, and nobody else notices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import WSCloseCode, WSMsgType, web

from access.core.protocol import Close

__all__ = ["Connection", "run_connection"]

WRITE_TIMEOUT_S = 15.0
CLOSE_TIMEOUT_S = 2.0


class Connection:
    """One client's socket, as the node sees it: `write` and `close` return at once."""

    def __init__(self, socket: web.WebSocketResponse, *, write_bytes_max: int) -> None:
        self._socket = socket
        self._write_bytes_max = write_bytes_max
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._replaceable: dict[int, int] = {}
        """Where frames wait that a later one may replace."""
        self._wake = asyncio.Event()
        self._close: Close | None = None

    def write(self, data: bytes, replaces: int | None = None) -> bool:
        """Queue a frame, in the place of one with the same `replaces` if that still waits.

        False when the client is too slow, and the caller must close it.
        """
        at = None if replaces is None else self._replaceable.get(replaces)
        size = len(data) - (len(self._waiting[at]) if at is not None else 0)
        if self._waiting_bytes + size > self._write_bytes_max:
            return False
        self._waiting_bytes += size
        if at is not None:
            self._waiting[at] = data
        else:
            if replaces is not None:
                self._replaceable[replaces] = len(self._waiting)
            self._waiting.append(data)
        self._wake.set()
        return True

    def close(self, close: Close) -> None:
        """Close after what is queued; a slow client's queue is dropped, since it would not read it."""
        self._close = self._close or close
        if close is Close.SLOW:
            self._waiting.clear()
            self._replaceable.clear()
        self._wake.set()

    async def run_writer(self) -> None:
        """Write until closed. One task a connection."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._waiting = self._waiting, []
            self._waiting_bytes = 0
            self._replaceable.clear()
            try:
                if batch:
                    async with asyncio.timeout(WRITE_TIMEOUT_S):
                        await self._socket.send_str(b"\n".join(batch).decode())
                if self._close is not None:
                    async with asyncio.timeout(CLOSE_TIMEOUT_S):
                        await self._socket.close(code=self._close.code, message=self._close.reason.encode())
                    return
            except (TimeoutError, ConnectionError):
                # Not reading, or gone. Without this the reader would wait for a client that is not there.
                self._abort()
                return

    def _abort(self) -> None:
        transport = self._socket.get_extra_info("transport") if self._socket.prepared else None
        if transport is not None:
            transport.abort()


async def run_connection(
    request: web.Request,
    *,
    frame_bytes_max: int,
    write_bytes_max: int,
    arrived: Callable[[Connection], None],
    received: Callable[[Connection, str | bytes], None],
    gone: Callable[[Connection], None],
) -> web.WebSocketResponse:
    """Upgrade the request and run the connection until it ends.

    Args:
        request: the HTTP request.
        frame_bytes_max: longest frame accepted; a longer one closes with 1009.
        write_bytes_max: see `Connection`.
        arrived: called once with the new connection.
        received: called with each frame, in order.
        gone: called once when the connection is over, whoever ended it.
    """
    socket = web.WebSocketResponse(max_msg_size=frame_bytes_max, compress=False, timeout=CLOSE_TIMEOUT_S)
    await socket.prepare(request)
    connection = Connection(socket, write_bytes_max=write_bytes_max)
    async with asyncio.TaskGroup() as tasks:
        writer = tasks.create_task(connection.run_writer())
        arrived(connection)
        try:
            async for message in socket:
                if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                    break
                received(connection, message.data)
            if not socket.closed:
                await socket.close(code=WSCloseCode.PROTOCOL_ERROR)
        finally:
            gone(connection)
            writer.cancel()
    return socket
