"""What waits for a client: in order, bounded, and of states only the last one."""

from __future__ import annotations

import asyncio

import pytest

from access.core.protocol import Close
from access.websocket import Connection


class Socket:
    """A socket that keeps what was sent."""

    prepared = False

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.has_sent = asyncio.Event()
        self.closed: int | None = None

    async def send_str(self, data: str) -> None:
        self.sent.append(data)
        self.has_sent.set()

    async def close(self, *, code: int, message: bytes) -> None:
        self.closed = code
        del message


async def sent(socket: Socket, connection: Connection) -> list[str]:
    """What leaves, frame by frame, until the connection is closed."""
    connection.close(Close.SHUTDOWN)
    async with asyncio.timeout(5):
        await connection.run_writer()
    assert socket.closed == Close.SHUTDOWN.code
    return [frame for batch in socket.sent for frame in batch.split("\n")]


@pytest.fixture
def socket() -> Socket:
    return Socket()


@pytest.fixture
def connection(socket: Socket) -> Connection:
    return Connection(socket, write_bytes_max=20)  # type: ignore[arg-type]


async def test_frames_leave_in_order(socket: Socket, connection: Connection) -> None:
    """Together, as they waited together."""
    assert all(connection.write(frame) for frame in (b"a", b"b", b"c"))
    assert await sent(socket, connection) == ["a", "b", "c"]
    assert len(socket.sent) == 1


async def test_of_states_that_wait_the_last_one_leaves(socket: Socket, connection: Connection) -> None:
    """In the place of the first, and for as little room as it takes; others stay."""
    for frame, replaces in ((b"x1", 1), (b"m", None), (b"y1", 2), (b"x2+", 1), (b"x3", 1), (b"y2", 2)):
        assert connection.write(frame, replaces)
    assert connection.write(b"0123456789abcde")
    assert not connection.write(b"-")
    assert await sent(socket, connection) == ["x3", "m", "y2", "0123456789abcde"]


async def test_a_state_that_left_is_not_replaced(socket: Socket, connection: Connection) -> None:
    """The next one is a frame of its own."""
    async with asyncio.TaskGroup() as tasks:
        writer = tasks.create_task(connection.run_writer())
        for frame in (b"x1", b"x2"):
            socket.has_sent.clear()
            connection.write(frame, 1)
            async with asyncio.timeout(5):
                await socket.has_sent.wait()
        writer.cancel()
    assert socket.sent == ["x1", "x2"]


async def test_nothing_replaces_what_was_dropped(socket: Socket, connection: Connection) -> None:
    """A client that is too slow is not written to, only closed."""
    connection.write(b"x1", 1)
    connection.close(Close.SLOW)
    async with asyncio.timeout(5):
        await connection.run_writer()
    assert (socket.sent, socket.closed) == ([], Close.SLOW.code)
