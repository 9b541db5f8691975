"""HAProxy's agent, line by line; the real HAProxy is in the tests of other people's programs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base import loop
from base.errors import ConfigError
from base.ids import NodeId
from scheduler import agent_check
from scheduler.agent_check import CONNECTIONS_MAX, LINE_BYTES_MAX, AgentCheck, agent_line
from scheduler.core.node import AccessNode

SOON_S = 2.0


def node(name: str = "access-1", **values: Any) -> AccessNode:
    return AccessNode(id=NodeId(name), url="http://10.0.0.1:80", **({"capacity": 1_000} | values))


@pytest.mark.parametrize(
    ("one", "weight", "proxies", "line"),
    [
        (node(), 1_000.0, 1, "up ready 100% maxconn:1000"),
        (node(connections=250), 1_000.0, 1, "up ready 75% maxconn:1000"),
        (node(connections=250), 1_000.0, 3, "up ready 75% maxconn:333"),
        (node(connections=50), 250.0, 2, "up ready 20% maxconn:125"),
        (node(connections=1_000), 1_000.0, 1, "up ready 1% maxconn:1000"),
        (node(connections=1_700), 1_000.0, 1, "up ready 1% maxconn:1000"),
        (node(capacity=1), 0.1, 4, "up ready 10% maxconn:1"),
        (node(is_draining=True), 1_000.0, 1, "up drain"),
        (node(is_cordoned=True), 1_000.0, 1, "up drain"),
        (node(capacity=0), 0.0, 1, "down #no capacity"),
        (None, 0.0, 1, "down #unknown node"),
    ],
)
def test_the_line_says_what_a_node_takes(one: AccessNode | None, weight: float, proxies: int, line: str) -> None:
    """Percent is what is free of the capacity, maxconn this proxy's part of it."""
    assert agent_line(one, weight, proxies) == line


@given(st.integers(1, 10**7), st.floats(0, 1), st.integers(0, 10**7), st.integers(1, 1_000))
def test_a_node_that_takes_clients_is_never_at_nought(capacity: int, ramp: float, used: int, proxies: int) -> None:
    """0 % is a drain to HAProxy, and maxconn 0 no limit."""
    up, ready, percent, limit = agent_line(node(capacity=capacity, connections=used), capacity * ramp, proxies).split()
    assert (up, ready) == ("up", "ready")
    assert 1 <= int(percent.removesuffix("%")) <= 100
    assert 1 <= int(limit.removeprefix("maxconn:")) <= capacity


class Agent:
    """The agent on its port, and those who ask."""

    def __init__(self, deadline_s: float) -> None:
        self.nodes: tuple[AccessNode, ...] = (node(),)
        self.check = AgentCheck(nodes=lambda: self.nodes, weight=lambda one: one.capacity, deadline_s=deadline_s)
        self.port = 0

    async def ask(self, *parts: bytes) -> bytes:
        """Send the parts one after the other and return the answer, b"" for none."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(SOON_S):
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
                return await reader.read()
        except OSError:
            return b""
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def agent(deadline_s: float = SOON_S) -> AsyncIterator[Agent]:
    served = Agent(deadline_s)
    served.port = await served.check.listen("127.0.0.1", 0)
    try:
        yield served
    finally:
        await served.check.close()


async def test_a_name_is_answered_with_a_line_however_it_comes() -> None:
    """In pieces, with spaces and a carriage return, and with more after it."""
    async with agent() as served:
        for parts in (b"access-1\n",), (b"acc", b"ess-1", b"\n"), (b" access-1\r\n",), (b"access-1\nmore\n",):
            assert await served.ask(*parts) == b"up ready 100% maxconn:1000\n"
        for name in (b"access-2\n", b"\n", b"\xff\xfe\n"):
            assert await served.ask(name) == b"down #unknown node\n"


async def test_what_changed_shows_at_the_next_check() -> None:
    """The nodes are another object then."""
    async with agent() as served:
        await served.ask(b"access-1\n")
        served.nodes = (node(is_draining=True), node("access-2"))
        assert await served.ask(b"access-1\n") == b"up drain\n"
        assert await served.ask(b"access-2\n") == b"up ready 100% maxconn:1000\n"
        served.nodes = (node("access-2"),)
        assert await served.ask(b"access-1\n") == b"down #unknown node\n"


async def test_a_scheduler_that_knows_no_node_yet_says_nothing() -> None:
    """No answer changes nothing at HAProxy, while "unknown" would take all its servers out."""
    async with agent() as served:
        served.nodes = ()
        assert await served.ask(b"access-1\n") == b""


@pytest.mark.parametrize("size", [LINE_BYTES_MAX, LINE_BYTES_MAX + 1, 100_000])
@pytest.mark.parametrize("end", [b"", b"\n"])
async def test_a_line_that_is_too_long_is_told_so(size: int, end: bytes) -> None:
    """As soon as that is certain."""
    async with agent() as served:
        answer = await served.ask(b"x" * size + end)
        # What it still sends may reset the connection before the answer is read.
        assert answer in {b"down #the name is too long\n", b""}
        if size <= LINE_BYTES_MAX + 1:
            assert answer


async def test_the_longest_line_is_taken() -> None:
    """Its line feed included."""
    async with agent() as served:
        assert await served.ask(b"x" * (LINE_BYTES_MAX - 1) + b"\n") == b"down #unknown node\n"


async def test_who_sends_no_line_is_hung_up_on_at_the_deadline() -> None:
    """Without a word, which changes nothing at HAProxy."""
    async with agent(deadline_s=0.05) as served:
        assert await served.ask(b"access-1") == b""
        assert not served.check.open


async def test_more_than_so_many_at_once_are_hung_up_on_and_the_rest_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever holds connections open holds no more than these, and those for two seconds."""
    monkeypatch.setattr(agent_check, "CONNECTIONS_MAX", 3)
    assert CONNECTIONS_MAX == 256
    async with agent() as served:
        held = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(3)]
        async with asyncio.timeout(SOON_S):
            while len(served.check.open) < 3:  # noqa: ASYNC110 - the server accepts in its own time
                await asyncio.sleep(0)
        assert await served.ask(b"access-1\n") == b""
        held[0][1].write(b"access-1\n")
        assert await held[0][0].read() == b"up ready 100% maxconn:1000\n"
        held[0][1].close()
        async with asyncio.timeout(SOON_S):
            while len(served.check.open) == 3:  # noqa: ASYNC110 - see above
                await asyncio.sleep(0)
        assert await served.ask(b"access-1\n") == b"up ready 100% maxconn:1000\n"
        for _reader, writer in held[1:]:
            writer.close()


async def test_closing_hangs_up_and_may_be_done_twice() -> None:
    """Nobody is waited for."""
    async with agent() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        async with asyncio.timeout(SOON_S):
            while not served.check.open:  # noqa: ASYNC110 - the server accepts in its own time
                await asyncio.sleep(0)
            await served.check.close()
            with contextlib.suppress(OSError):
                assert await reader.read() == b""
        writer.close()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", served.port)


async def test_a_port_that_is_taken_is_a_fault_of_the_configuration() -> None:
    """Which one, and why."""
    async with agent() as served:
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{served.port}: the port is in use"):
            await AgentCheck(nodes=tuple, weight=lambda _: 1.0).listen("127.0.0.1", served.port)
    with pytest.raises(ConfigError, match=r"agent check: cannot listen on 192\.0\.2\.1:0"):
        await AgentCheck(nodes=tuple, weight=lambda _: 1.0).listen("192.0.2.1", 0)


def test_it_answers_on_the_event_loop_of_the_product() -> None:
    """Whose transports are of no class of asyncio."""

    async def ask() -> bytes:
        agent = AgentCheck(nodes=lambda: [node()], weight=lambda _: 1_000.0)
        port = await agent.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"access-1\n")
        async with asyncio.timeout(SOON_S):
            said = await reader.readline()
        writer.close()
        await agent.close()
        return said

    assert loop.run(ask()) == b"up ready 100% maxconn:1000\n"
