"""The load generator's clients against a node of the test's own: what they do, and what they bear witness of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import jwt
import msgspec
import pytest

from access.core.handshake import Accepted, RequestHead, accept, encode_response, parse_head
from access.core.websocket import FrameReader, Opcode, encode_close, encode_frame
from bench.load.wire import Clear, Close, Deafen, Kind, Open, Probe, Send, Setup, Subscribe
from bench.load.worker import Worker
from scheduler.api import TICKET_AUDIENCE

KEY = "a key that is long enough for HS256"
SETTLE_S = 5.0
ME = "load-0000007"
INBOX = f"inbox:{ME}"
MASK_TTL_S = 60


class Session:
    """A connection as the node sees it: commands are kept, and answered as a node would."""

    def __init__(self, node: Node, writer: asyncio.StreamWriter) -> None:
        self.commands: list[dict[str, Any]] = []
        self.is_over = False
        self.closed_with: bytes | None = None
        self._node = node
        self._writer = writer

    def say(self, *messages: dict[str, Any]) -> None:
        self.write(encode_frame(Opcode.TEXT, b"\n".join(map(msgspec.json.encode, messages))))

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    def push(self, offset: int, *, to: str = ME, at_ns: int = 1) -> None:
        self.say({"push": {"channel": INBOX, "pub": publication(offset, to=to, at_ns=at_ns)}})

    def hang_up(self) -> None:
        self._writer.transport.abort()

    def take(self, command: dict[str, Any]) -> None:
        self.commands.append(command)
        if "connect" in command:
            self.say({"id": command["id"], **self._node.on_connect(command["connect"])})
        elif command:
            self.say({"id": command["id"], next(key for key in command if key != "id"): {}})


class Node:
    """Accepts, refuses the first `refusals` upgrades, and keeps its sessions."""

    def __init__(self) -> None:
        self.refusals = 0
        self.sessions: list[Session] = []
        self.url = ""
        self.on_connect: Callable[[dict[str, Any]], dict[str, Any]] = lambda _: connected(0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = parse_head(await reader.readuntil(b"\r\n\r\n"))
        assert isinstance(head, RequestHead)
        if self.refusals:
            self.refusals -= 1
            writer.write(encode_response(503, headers=[("Retry-After", "1")]))
            writer.close()
            return
        accepted = accept(head, subprotocols=(), allows_deflate=False)
        assert isinstance(accepted, Accepted)
        writer.write(accepted.response)
        session = Session(self, writer)
        self.sessions.append(session)
        frames = FrameReader(is_server=True, message_bytes_max=100_000)
        while data := await reader.read(65_536):
            for opcode, payload in frames.feed(data):
                if opcode == Opcode.CLOSE:
                    session.closed_with = payload
                else:
                    for line in payload.split(b"\n"):
                        session.take(msgspec.json.decode(line))
            assert frames.violation is None
        session.is_over = True
        writer.close()


def publication(offset: int, *, to: str = ME, at_ns: int = 1) -> dict[str, Any]:
    return {"offset": offset, "data": {"kind": "message", "to": to, "body": {"at_ns": at_ns}}}


def connected(offset: int, *, recovered: bool | None = None, publications: tuple[int, ...] = ()) -> dict[str, Any]:
    start: dict[str, Any] = {"epoch": "e", "offset": offset}
    if recovered is not None:
        start |= {"was_recovering": True, "recovered": recovered, "publications": list(map(publication, publications))}
    return {"connect": {"client": "c", "version": "v", "subs": {INBOX: start}}}


@asynccontextmanager
async def node() -> AsyncIterator[Node]:
    made = Node()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/here"
    try:
        yield made
    finally:
        server.close()


@pytest.fixture
async def first() -> AsyncIterator[Node]:
    async with node() as made:
        yield made


@pytest.fixture
async def second() -> AsyncIterator[Node]:
    async with node() as made:
        yield made


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    made = Worker(Setup(sources=["127.0.0.1", "127.16.0.1"], ticket_kid="k", ticket_key=KEY, ticket_ttl_s=MASK_TTL_S))
    async with asyncio.TaskGroup() as tasks:
        opening = tasks.create_task(made.opener.run())
        yield made
        await made.carry_out(Close())
        opening.cancel()


def one(url: str, **options: Any) -> Open:
    """The order to open client 7."""
    options = {"rate": 1_000, "deadline_s": SETTLE_S, "backoff_ms": 1, **options}
    return Open(urls=[url], first=7, count=1, **options)


async def eventually(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(SETTLE_S):
        while not look():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)


async def until(worker: Worker, **counts: int) -> dict[str, int]:
    """Wait until these are counted, spaces for underscores; return all counts."""
    wanted = {what.replace("_", " "): count for what, count in counts.items()}
    await eventually(lambda: wanted.items() <= worker.report().counts.items())
    return worker.report().counts


async def test_it_connects_with_a_ticket_and_answers_pings(first: Node, worker: Worker) -> None:
    """The ticket is its user's, and every ping has its pong, also among other messages."""
    await worker.carry_out(one(first.url))
    (session,) = first.sessions
    claims = jwt.decode(session.commands[0]["connect"]["token"], KEY, algorithms=["HS256"], audience=TICKET_AUDIENCE)
    assert (claims["sub"], claims["exp"] - claims["iat"]) == (ME, MASK_TTL_S)
    assert session.commands[0]["connect"]["subs"] == {}
    session.say({})
    session.say({}, {"push": {"channel": INBOX, "pub": publication(1)}}, {})
    await until(worker, pings=3, received=1)
    await eventually(lambda: len(session.commands) == 4)
    assert session.commands[1:] == [{}, {}, {}]
    assert worker.report().open == 1


async def test_it_comes_back_after_a_refusal_no_sooner_than_told(first: Node, worker: Worker) -> None:
    """By the header Retry-After, in seconds."""
    first.refusals = 1
    began = asyncio.get_running_loop().time()
    await worker.carry_out(one(first.url))
    assert asyncio.get_running_loop().time() - began >= 1
    assert worker.report().counts["refused 503"] == 1
    assert worker.report().open == 1


async def test_it_falls_back_when_nobody_listens(first: Node, worker: Worker) -> None:
    """Along the addresses that the order names for that."""
    await worker.carry_out(one("ws://127.0.0.1:9/here", fallbacks=[first.url]))
    assert worker.report().counts["unreachable"] >= 1
    assert len(first.sessions) == 1


async def test_an_error_reply_is_counted_and_tried_again(first: Node, worker: Worker) -> None:
    """By its code."""
    answers = iter([{"error": {"code": 109, "message": "token expired"}}, connected(0)])
    first.on_connect = lambda _: next(answers)
    await worker.carry_out(one(first.url))
    assert worker.report().counts["error 109"] == 1
    assert len(first.sessions) == 2


@pytest.mark.spec("AR-9")
async def test_holes_and_repeats_are_seen(first: Node, worker: Worker) -> None:
    """Of all offsets; but what somebody sent himself is not received."""
    first.on_connect = lambda _: connected(10)
    await worker.carry_out(one(first.url))
    (session,) = first.sessions
    for offset in (11, 13, 13, 14):
        session.push(offset)
    session.push(15, to="somebody")
    session.push(16)
    session.push(17, to="")  # a group's
    counts = await until(worker, received=6)
    assert (counts["gaps"], counts["duplicates"]) == (1, 1)
    assert sum(count for _, count in worker.report().latencies["push"]) == 6


async def test_it_moves_and_takes_its_position_along(first: Node, second: Node, worker: Worker) -> None:
    """First the new connection, then the end of the old one; what both bring counts once."""
    await worker.carry_out(one(first.url))
    (old,) = first.sessions
    old.push(1)
    await until(worker, received=1)

    def resume(request: dict[str, Any]) -> dict[str, Any]:
        assert request["token"] == "moved"
        assert request["subs"] == {INBOX: {"recover": True, "epoch": "e", "offset": 1}}
        assert not old.is_over
        old.push(2)
        return connected(3, recovered=True, publications=(2, 3))

    second.on_connect = resume
    old.say({"push": {"message": {"data": {"move": {"url": second.url, "ticket": "moved", "after_ms": 1_000}}}}})
    await until(worker, received=3, told_to_move=1)
    await eventually(lambda: old.is_over)
    second.sessions[0].push(4)
    counts = await until(worker, received=4)
    assert old.closed_with == (1000).to_bytes(2, "big")
    assert counts.keys().isdisjoint({"gaps", "duplicates", "closed untold", "closed before arrival", "unrecovered"})
    assert worker.report().open == 1


async def test_ends_without_notice_are_counted_and_come_back(first: Node, worker: Worker) -> None:
    """With the position of before; a position that is not known any more is counted, too."""
    await worker.carry_out(one(first.url, reconnects=True))
    first.sessions[0].push(1)
    await until(worker, received=1)
    first.on_connect = lambda request: connected(9, recovered=request["subs"][INBOX]["offset"] != 1)
    first.sessions[0].write(encode_close(3001, "shutdown"))
    await until(worker, closed_3001=1, closed_untold=1, unrecovered=1)
    first.sessions[1].hang_up()
    counts = await until(worker, closed_1006=1, closed_untold=2)
    await eventually(lambda: worker.report().open == 1)
    assert counts["received"] == 1


@pytest.mark.spec("AR-9")
async def test_it_sends_by_its_schedule_and_counts_answers(first: Node, worker: Worker) -> None:
    """Each message carries when it was meant to leave, and goes to the next user."""
    await worker.carry_out(one(first.url))
    await worker.carry_out(Send(rate=1_000, seconds=0.01, first=100, count=3))
    sent = [command["rpc"]["data"] for command in first.sessions[0].commands[1:]]
    assert [message["to"] for message in sent] == [f"load-{100 + number % 3:07d}" for number in range(10)]
    stamps = [message["body"]["at_ns"] for message in sent]
    assert [later - stamps[0] for later in stamps] == [number * 1_000_000 for number in range(10)]
    assert len({message["client_msg_id"] for message in sent}) == 10
    await worker.carry_out(Probe(rate=1_000, seconds=0.005))
    await worker.carry_out(Subscribe(channel="news"))
    await worker.carry_out(Subscribe(channel="more news", rate=1_000))
    counts = await until(worker, send_done=10, probe_done=5, subscribe_done=2)
    assert counts["send unanswered"] == 0
    await worker.carry_out(Clear())
    assert "send done" not in worker.report().counts


async def test_deaf_it_counts_bytes(first: Node, worker: Worker) -> None:
    """As a bare WebSocket and a bare socket do from the beginning."""
    await worker.carry_out(one(first.url))
    await worker.carry_out(Deafen())
    first.sessions[0].write(b"12345")
    await until(worker, bytes=5)


@pytest.mark.parametrize(("kind", "scheme"), [(Kind.WEBSOCKET, "ws"), (Kind.TCP, "tcp")])
async def test_plain_connections_are_open_early(first: Node, worker: Worker, kind: Kind, scheme: str) -> None:
    """A bare socket when it is connected, a WebSocket after its upgrade."""
    await worker.carry_out(one(first.url.replace("ws", scheme), kind=kind))
    assert worker.report().open == 1
    if kind is Kind.WEBSOCKET:
        first.sessions[0].push(1)
        await eventually(lambda: worker.report().counts.get("bytes", 0) > 0)
