"""The write path of an access node and nothing else: `python -m bench.fanout_server PAYLOAD_BYTES`.

Connections are the production class; behind them is a gateway that only keeps them. The server prints its port; for
each line on standard input it writes one frame, encoded at the start, to all of them.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

from access.core.handshake import Accepted, RequestHead, accept, parse_head
from access.core.outgoing import Form
from access.core.websocket import Opcode, encode_frame
from access.ports import Connection
from access.websocket import SUBPROTOCOLS, TransportLimits, WebSocketConnection
from base import loop

__all__ = ["Arrival", "Kept"]

BACKLOG = 4_096
LIMITS = TransportLimits(frame_bytes_max=65_536, write_bytes_max=1_048_576)


class Kept:
    """The connections. Implements `Gateway`."""

    def __init__(self) -> None:
        self.connections: dict[Connection, None] = {}

    def arrived(self, connection: Connection, address: str) -> str:
        """See `Gateway`."""
        self.connections[connection] = None
        return address

    def received(self, connection: Connection, frame: bytes) -> None:
        """See `Gateway`."""

    def crowded(self, connection: Connection) -> None:
        """See `Gateway`."""

    def relieved(self, connection: Connection) -> None:
        """See `Gateway`."""

    def gone(self, connection: Connection) -> None:
        """See `Gateway`."""
        del self.connections[connection]


class Arrival(asyncio.Protocol):
    """A connection until its handshake is done."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is accepted."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer the request when it is there."""
        assert self._transport is not None
        self._data += data
        head = parse_head(self._data)
        if head is None:
            return
        answer = accept(head, subprotocols=SUBPROTOCOLS, allows_deflate=False) if type(head) is RequestHead else None
        if not isinstance(answer, Accepted):
            self._transport.close()
            return
        self._transport.write(answer.response)
        connection = WebSocketConnection(
            self._kept, self._transport, form=Form.WS_JSON, address="127.0.0.1", limits=LIMITS
        )
        self._transport.set_protocol(connection)
        connection.start(b"")


async def _main() -> None:
    frame = encode_frame(Opcode.TEXT, b"x" * int(sys.argv[1]))
    kept = Kept()
    server = await asyncio.get_running_loop().create_server(lambda: Arrival(kept), "127.0.0.1", 0, backlog=BACKLOG)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    print(server.sockets[0].getsockname()[1], flush=True)
    while await orders.readline():
        for connection in kept.connections:
            connection.write(frame)


if __name__ == "__main__":
    loop.run(_main())
