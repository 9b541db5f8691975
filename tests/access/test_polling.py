"""Long poll over real sockets: turns, waiting, being away, and polls that come to another node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from access import polling
from access.core.protocol import Close
from tests.access.http_nodes import AWAY_MS, CONNECT, LIMITS, SETTLE_S, HttpNode, Nodes, running_nodes, until

RPC = '{"id":%d,"rpc":{"method":"m","data":%d}}'


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    async with running_nodes() as made:
        yield made


class Poller:
    """A client by the contract: the next turn when it has an answer."""

    def __init__(self, nodes: Nodes, at: HttpNode | None = None) -> None:
        self.at = at or nodes.one
        self.session = ""
        self.turn = 0
        self._nodes = nodes

    async def ask(self, turn: int | None = None, body: str = "", **params: str) -> tuple[int, Any]:
        """Send one request; return the status, and the messages or the error."""
        query = {"node": "access-1", "session": self.session, "turn": str(turn)} if turn is not None else {}
        async with (
            asyncio.timeout(SETTLE_S),
            self._nodes.http.post(self.at.url("/connection/poll"), data=body, params={**query, **params}) as response,
        ):
            answer = await response.json()
            if response.status != 200:
                return response.status, answer["error"]
            assert response.headers["Cache-Control"] == "no-store"
            assert (answer["node"], answer["turn"]) == ("access-1", turn or 0)
            self.session = answer["session"]
            return 200, answer["messages"]

    async def open(self) -> None:
        at, self.at = self.at, self._nodes.one
        status, (reply,) = await self.ask(body=CONNECT)
        self.at = at
        assert (status, reply["id"], reply["connect"]["session"]) == (200, 1, self.session)

    async def next(self, body: str = "") -> Any:
        self.turn += 1
        status, messages = await self.ask(self.turn, body)
        assert status == 200
        return messages


@pytest.fixture(params=["one", "two"])
async def poller(request: pytest.FixtureRequest, nodes: Nodes) -> Poller:
    """A client whose session is at the first node, and whose polls come to either."""
    made = Poller(nodes, getattr(nodes, request.param))
    await made.open()
    return made


async def waits(nodes: Nodes, poller: Poller, requests: int = 1) -> None:
    """Return when this many requests of the client wait."""
    connection = nodes.one.transports._polls._connections[poller.session]
    await until(lambda: connection._asking == requests)


def look(nodes: Nodes, later_ms: int) -> None:
    """Let time pass, and the node look who is gone."""
    nodes.one.clock.advance(later_ms)
    nodes.one.transports._polls.look()


def offsets(messages: list[Any]) -> list[int]:
    return [message["push"]["pub"]["offset"] for message in messages]


async def test_commands_go_with_a_poll_and_messages_with_its_answer(nodes: Nodes, poller: Poller) -> None:
    """Several of both at a time, in order."""
    assert await poller.next(RPC % (2, 7) + "\n" + RPC % (3, 8)) == [
        {"id": 2, "rpc": {"data": 7}},
        {"id": 3, "rpc": {"data": 8}},
    ]
    nodes.one.gateway.publish(1)
    nodes.one.gateway.ping()
    nodes.one.gateway.publish(2)
    messages = await poller.next()
    assert messages[1] == {}
    assert offsets([messages[0], messages[2]]) == [1, 2]
    assert nodes.one.transports.statistics() == {"streams": 0, "polls": 1}


async def test_a_poll_waits_for_a_message(nodes: Nodes, poller: Poller) -> None:
    """Meanwhile the client can send by the other way."""
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(poller.next())
        await waits(nodes, poller)
        assert await nodes.emulate(poller.at, poller.session, RPC % (5, 5)) == 204
    assert waiting.result() == [{"id": 5, "rpc": {"data": 5}}]


async def test_a_poll_waits_only_for_a_while(poller: Poller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then its answer is empty, before a proxy loses patience."""
    monkeypatch.setattr(polling, "WAIT_S", 0.05)
    assert await poller.next() == []
    assert await poller.next() == []


@pytest.mark.spec("RT-01")
async def test_a_lost_answer_is_given_again(nodes: Nodes, poller: Poller) -> None:
    """The same one, though more has come since, and the commands of the request count once."""
    first = await poller.next(RPC % (2, 2))
    nodes.one.gateway.publish(1)
    taken = len(nodes.one.gateway.frames)
    assert await poller.ask(poller.turn, RPC % (2, 2)) == (200, first)
    assert len(nodes.one.gateway.frames) == taken
    assert offsets(await poller.next()) == [1]


async def test_a_request_that_is_repeated_while_it_waits_gets_the_answer(nodes: Nodes, poller: Poller) -> None:
    """The one before it is told that it does not: whoever sent it has given it up."""
    async with asyncio.TaskGroup() as tasks:
        earlier = tasks.create_task(poller.ask(1))
        await waits(nodes, poller)
        later = tasks.create_task(poller.ask(1))
        status, error = await earlier
        assert (status, error["name"]) == (400, "bad_request")
        nodes.one.gateway.publish(1)
    status, messages = later.result()
    assert (status, offsets(messages)) == (200, [1])


@pytest.mark.parametrize("turn", [0, 2, 5, 10**18 - 1])
async def test_a_turn_out_of_order_is_refused(nodes: Nodes, poller: Poller, turn: int) -> None:
    """And says which one was the last; the session goes on."""
    await poller.next(RPC % (2, 2))
    expected = 400 if turn != 2 else 200
    nodes.one.gateway.publish(1)
    status, answer = await poller.ask(turn)
    assert status == expected
    if status == 400:
        assert answer["detail"] == {"turn": 1}
        assert offsets(await poller.next()) == [1]


async def test_a_client_that_stays_away_is_gone(nodes: Nodes, poller: Poller) -> None:
    """It is away between two polls, not while one waits."""
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(poller.next())
        await waits(nodes, poller)
        look(nodes, 10 * AWAY_MS)
        nodes.one.gateway.publish(1)
    assert offsets(waiting.result()) == [1]
    look(nodes, AWAY_MS)
    assert nodes.one.gateway.here
    look(nodes, 1)
    assert nodes.one.gateway.ended == [1006]
    assert (await poller.ask(2))[0] == 404
    assert await nodes.emulate(poller.at, poller.session, "{}") == 404


async def test_a_close_is_the_last_message(nodes: Nodes, poller: Poller) -> None:
    """It can be asked for again, until the client would be away; nothing comes after it."""
    nodes.one.gateway.publish(1)
    nodes.one.gateway.close_all(Close.SHUTDOWN)
    messages = await poller.next()
    assert offsets(messages[:1]) == [1]
    assert messages[1:] == [{"push": {"disconnect": {"code": 3001, "reason": "shutdown"}}}]
    assert nodes.one.gateway.ended == [3001]
    assert await poller.ask(poller.turn) == (200, messages)
    assert (await poller.ask(poller.turn + 1))[0] == 404
    look(nodes, AWAY_MS + 1)
    assert nodes.one.transports.statistics()["polls"] == 0
    assert nodes.one.gateway.ended == [3001]
    assert (await poller.ask(poller.turn))[0] == 404


async def test_who_is_closed_is_gone_though_it_asks_for_its_last_answer(nodes: Nodes, poller: Poller) -> None:
    """For ever, without taking the news: it is away from when it was closed."""
    first = await poller.next(RPC % (2, 2))
    look(nodes, AWAY_MS)
    assert await poller.ask(poller.turn) == (200, first)
    nodes.one.gateway.close_all(Close.FORCE_DISCONNECT)
    for _ in range(2):
        look(nodes, AWAY_MS // 2)
        assert await poller.ask(poller.turn) == (200, first)
    assert nodes.one.gateway.here
    look(nodes, 1)
    assert nodes.one.gateway.ended == [Close.FORCE_DISCONNECT.code]
    assert (await poller.ask(poller.turn))[0] == 404


async def test_a_close_while_a_poll_waits_is_told_at_once(nodes: Nodes, poller: Poller) -> None:
    """A node that drains does not wait for the end of its polls."""
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(poller.next())
        await waits(nodes, poller)
        nodes.one.gateway.close_all(Close.SHUTDOWN)
    assert waiting.result()[0]["push"]["disconnect"]["code"] == 3001


async def test_what_waits_for_a_client_is_bounded(nodes: Nodes, poller: Poller) -> None:
    """Beyond its budget it is told 3008, and nothing else."""
    for offset in range(1, 4):
        nodes.one.gateway.publish(offset, '"' + "x" * (LIMITS.write_bytes_max // 2 - 100) + '"')
    assert await poller.next() == [{"push": {"disconnect": {"code": 3008, "reason": "slow"}}}]


async def test_few_polls_wait_for_other_nodes(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is told when to come back; at the session's own node there is room."""
    monkeypatch.setattr(polling, "PEER_WAITS_MAX", 1)
    pollers = [Poller(nodes, nodes.two) for _ in range(2)]
    for poller in pollers:
        await poller.open()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(pollers[0].next())
        await until(lambda: nodes.one.transports._polls._peer_waits)
        status, error = await pollers[1].ask(1)
        assert (status, error["retry"]) == (503, "same_node")
        pollers[1].at = nodes.one
        other = tasks.create_task(pollers[1].next())
        await waits(nodes, pollers[1])
        nodes.one.gateway.publish(1)
    assert offsets(waiting.result()) == offsets(other.result()) == [1]


async def test_who_is_not_admitted_opens_nothing(nodes: Nodes) -> None:
    """But who is here goes on."""
    poller = Poller(nodes)
    await poller.open()
    nodes.one.refuses = True
    assert (await Poller(nodes).ask(body=CONNECT))[0] == 503
    assert await poller.next(RPC % (2, 2)) == [{"id": 2, "rpc": {"data": 2}}]


@pytest.mark.parametrize(
    ("params", "body", "status"),
    [
        ({}, "", 400),
        ({}, "x" * (LIMITS.frame_bytes_max + 1), 413),
        ({"session": "s"}, "", 400),
        ({"session": "s", "node": "access-1"}, "", 400),
        ({"session": "s", "node": "access-1", "turn": "one"}, "", 400),
        ({"session": "s", "node": "access-2", "turn": "-1"}, "", 400),
        ({"session": "s", "node": "access-2", "turn": "\u0661"}, "", 400),
        ({"session": "s", "node": "access-2", "turn": "1" + 18 * "0"}, "", 400),
        ({"session": "s", "node": "access-2", "turn": 18 * "9"}, "", 404),
        ({"session": "s", "node": "access-1", "turn": "1"}, "", 404),
        ({"session": "s", "node": "access-2", "turn": "1"}, "", 404),
        ({"session": "s", "node": "access-9", "turn": "1"}, "", 404),
        ({"session": "s", "node": "access-1", "turn": "1"}, "x" * (LIMITS.frame_bytes_max + 1), 404),
        ({"session": "s", "node": "access-2", "turn": "1"}, "x" * (LIMITS.frame_bytes_max + 1), 413),
    ],
)
async def test_what_is_no_poll_is_refused(nodes: Nodes, params: dict[str, str], body: str, status: int) -> None:
    """By a status; the gateway never hears of it."""
    assert (await Poller(nodes).ask(body=body, **params))[0] == status
    assert not nodes.one.gateway.addresses
