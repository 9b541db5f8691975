"""The quick way in beside the HTTP server alone: the same bytes in, the same answers out."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any, NamedTuple

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from base.clock import SimClock, Timestamp
from base.http import Credentials, Role
from base.ids import Incarnation, NodeId
from base.keys import KeyList, KeyRing
from base.registry.memory import MemoryRegistry
from base.site import NodeConfig, Site
from base.trust import Trust
from scheduler import front as front_module
from scheduler.access_api import BODY_BYTES_MAX
from scheduler.config import SchedulerConfig
from scheduler.core.node import AccessNode
from scheduler.front import Front
from scheduler.service import Scheduler
from scheduler.tokens import mint_user_token

KEY = "a-secret-of-at-least-thirty-two-bytes"
PAGE = "https://app.example.com"
SOON_S = 5.0
NODES = [AccessNode(id=NodeId(f"access-{n}"), url=f"http://a{n}:80", capacity=100) for n in range(3)]


class Stack(NamedTuple):
    """A scheduler that listens. Those of one test decide alike."""

    scheduler: Scheduler
    clock: SimClock
    front: Front
    port: int

    def token(self, user: str = "alice", *, age_ms: int = -60_000) -> str:
        return mint_user_token(user, key=KEY, expires_at=Timestamp(self.clock.realtime() - age_ms))

    def quick(self) -> int:
        return int(self.metric("roadstead_schedule_quick_requests_total"))

    def metric(self, name: str) -> float:
        lines = self.scheduler.node.metrics.render().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))

    def address_of(self, answer: Answer) -> str:
        """The client's address, as the decision saw it."""
        past = self.scheduler.decider.explain_past(int(answer.json()["decision"].rpartition("-")[2], 16))
        assert past is not None
        return past[0].request.address


class Answer(NamedTuple):
    """An answer without what tells one server or second from another."""

    status: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture(autouse=True)
def _loaded_dice(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("service", "decider", "access_api"):
        monkeypatch.setattr(f"scheduler.{module}.entropy", lambda: Random(7))


@asynccontextmanager
async def listening(config: SchedulerConfig | None = None, *, is_quick: bool = True) -> AsyncIterator[Stack]:
    """A scheduler with three access nodes, with the quick way in or without it."""
    clock = SimClock()
    site = Site(
        name=NodeId("scheduler-1"),
        incarnation=Incarnation(1),
        host="127.0.0.1",
        port=0,
        registry=MemoryRegistry(clock),
        clock=clock,
        trust=Trust.of_key("peer-key"),
        credentials=Credentials({"backend-key": Role.BACKEND, "viewer-key": Role.VIEWER}),
        config=NodeConfig(),
    )
    scheduler = Scheduler(
        config or SchedulerConfig(), site, user_keys=KeyList.of(KEY), ticket_keys=KeyRing.of({"k1": KEY})
    )
    front = next(layer for layer in scheduler.node.http.layers if isinstance(layer, Front))
    if not is_quick:
        scheduler.node.http.layers.remove(front)
    scheduler.decider.observe(NODES, schedulers=1)
    await scheduler.start()
    try:
        yield Stack(scheduler, clock, front, int(scheduler.node.http.url.rpartition(":")[2]))
    finally:
        await scheduler.stop()


@asynccontextmanager
async def both(config: SchedulerConfig | None = None) -> AsyncIterator[tuple[Stack, Stack]]:
    async with listening(config) as quick, listening(config, is_quick=False) as plain:
        yield quick, plain


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    async with asyncio.timeout(SOON_S):
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        headers = dict(line.lower().split(": ", 1) for line in lines)
        assert headers.pop("date")
        headers.pop("server", None)
        return Answer(status, headers, await reader.readexactly(int(headers["content-length"])))


async def ask(port: int, *parts: bytes, answers: int = 1) -> list[Answer]:
    """Send the parts one after the other on a new connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        return [await read_answer(reader) for _ in range(answers)]
    finally:
        writer.close()
        await writer.wait_closed()


def get(query: str = "", *lines: str, token: str = "") -> bytes:
    bearer = (f"Authorization: Bearer {token}",) if token else ()
    return "\r\n".join((f"GET /v1/access{query} HTTP/1.1", "Host: s", *bearer, *lines, "", "")).encode("latin-1")


# ---------------------------------------------------------------- the same answers

QUERIES = [
    "",
    "?",
    "?device=phone",
    "?device=phone&platform=ios&app=5.1.0&region=east&rtt=east:23,west:40",
    "?device=phone&device=phone",
    "?device=phone&device=tablet",
    "?device=",
    "?device",
    "?&&device=a&",
    "?=x",
    "?unknown=1",
    "?unknown=1&unknown=2",
    "?why",
    "?why=1",
    "?device=a%20b+c%C3%A9",
    "?device=%FF%FE",
    "?device=%ED%A0%80",
    "?device=%",
    "?device=%4",
    "?device=%zz",
    "?device=%00",
    "?device=%0a",
    "?%64evice=phone",
    "?device=phone;platform=ios",
    "?device=" + "x" * 128,
    "?device=" + "x" * 129,
    "?device=" + "x" * 9_000,
    "?app=" + "1" * 200,
    "?region=nowhere",
    "?region=%07",
    "?rtt=east",
    "?rtt=east:1,east:-1",
    "?rtt=" + ",".join(f"r{n}:1" for n in range(17)),
    "?rtt=east%3A23%2Cwest%3A40",
    "?address=192.0.2.1",
    "?address=2001:db8::1",
    "?address=nonsense",
    "?user=alice",
    "?user=bob",
    "?user=%F0%9F%98%80",
    "?user=" + "u" * 129,
    "?user=alice&address=::ffff:192.0.2.1&device=phone",
    "?a#b",
    '?a="',
    "?a=é",
    "?a=\\",
    "?a= b",
    "?\x00",
]

LINES = [
    (),
    ("Accept: */*", "Accept-Encoding: gzip, br", "User-Agent: x", "Cookie: a=b", "X-Request-Id: 1"),
    ("X-Forwarded-For: 203.0.113.7", "Forwarded: for=203.0.113.7"),
    ("Connection: close",),
    ("Connection: Keep-Alive",),
    ("Connection: TE", "TE: trailers"),
    (f"Origin: {PAGE}",),
    ("Origin: https://evil.example.net",),
    ("Origin: null",),
    (f"Origin: {PAGE}", "Connection: close"),
    ("Content-Length: 0",),
    ("Content-Length: 0", "Content-Length: 0"),
    ("Content-Length: 0", "Content-Length: 1"),
    ("Content-Length: x",),
    ("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__"),
    ("Host: another",),
    ("User-Agent: x", "User-Agent: y"),
    ("X: 1", " folded"),
    ("X : 1",),
    ("X\x00: 1",),
    ("X: \x00",),
    ("X: \xff",),
    ("no colon",),
    (": no name",),
    ("X: 1\nY: 2",),
    ("X: " + "x" * 8_500,),
    tuple(f"X{n}: {n}" for n in range(140)),
]


def credentials_of(stack: Stack) -> dict[str, tuple[str, ...]]:
    """Lines of the header, by what they say."""
    good = stack.token()
    values = {
        "a user": f"Bearer {good}",
        "a backend": "Bearer backend-key",
        "a role too low": "Bearer viewer-key",
        "an unknown key": "Bearer nonsense",
        "an expired token": f"Bearer {stack.token(age_ms=60_000)}",
        "an odd scheme": f"bEaReR   {good}  ",
        "no scheme": good,
        "another scheme": "Basic YTpi",
        "no value": "Bearer ",
        "not ASCII": "Bearer \xe9",
    }
    lines = {name: (f"Authorization: {value}",) for name, value in values.items()}
    return lines | {"none": (), "two": (f"Authorization: Bearer {good}", "Authorization: Bearer backend-key")}


async def test_answers_are_the_same_on_both_ways() -> None:
    """Status, headers and body, for hundreds of requests, good and bad; and the quick way does take the usual ones."""
    config = SchedulerConfig(origins=(PAGE,), proxies=("127.0.0.0/8",), lifetime_ms=600_000)
    async with both(config) as (quick, plain):
        callers = credentials_of(quick)
        cases = [
            *itertools.product(QUERIES, (callers["a user"], callers["a backend"]), LINES[:2]),
            *itertools.product(QUERIES[2:4], callers.values(), LINES[:1]),
            *itertools.product(("?device=phone", "?user=alice"), (callers["a user"], callers["a backend"]), LINES),
        ]
        assert len(cases) > 300
        statuses = set()
        for query, caller, lines in cases:
            request = get(query, *caller, *lines)
            (ours,), (theirs,) = [await ask(stack.port, request) for stack in (quick, plain)]
            assert ours == theirs, request
            statuses.add(ours.status)
        assert {status[9:12] for status in statuses} == {"200", "400", "401", "403"}
        assert quick.quick() > len(cases) / 2
        assert plain.quick() == 0
        for name in ("roadstead_http_errors_total", "roadstead_schedule_decisions_total"):
            assert quick.metric(name) == plain.metric(name) > 0


async def test_that_nobody_takes_clients_is_told_on_both_ways() -> None:
    """With when to come back, and why."""
    async with both() as stacks:
        answers = []
        for stack in stacks:
            stack.scheduler.decider.observe([replace(node, is_draining=True) for node in NODES], schedulers=1)
            answers += await ask(stack.port, get(token=stack.token()))
        assert answers[0] == answers[1]
        assert answers[0].status == "HTTP/1.1 503 Service Unavailable"
        assert int(answers[0].headers["retry-after"]) >= 1
        assert stacks[0].quick() == 1


async def test_a_bug_of_ours_is_a_bare_500_on_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection goes on, as nothing is wrong with it."""
    async with both() as stacks:
        answers = []
        for stack in stacks:
            monkeypatch.setattr(stack.scheduler.decider, "decide", lambda _request: 1 // 0)
            answers += await ask(stack.port, get(token=stack.token()), get(token=stack.token()), answers=2)
        assert answers[:2] == answers[2:]
        assert answers[0].json()["error"]["code"] == 100
        assert stacks[0].quick() == 2


async def test_a_client_cannot_write_itself_an_address() -> None:
    """Only what a proxy wrote counts; on both ways, and in the header that is named, alone."""
    forged = ("X-Forwarded-For: 203.0.113.7", "X-Forwarded-For: 203.0.113.8", "Forwarded: for=203.0.113.9")
    configs = {
        SchedulerConfig(): "127.0.0.1",
        SchedulerConfig(proxies=("10.0.0.0/8",)): "127.0.0.1",
        SchedulerConfig(proxies=("127.0.0.0/8",)): "203.0.113.8",
        SchedulerConfig(proxies=("127.0.0.0/8",), address_header="Forwarded"): "203.0.113.9",
    }
    for config, expected in configs.items():
        async with both(config) as stacks:
            for stack in stacks:
                (answer,) = await ask(stack.port, get("", *forged, token=stack.token()))
                assert stack.address_of(answer) == expected
            assert [stack.quick() for stack in stacks] == [1, 0]


async def test_pages_are_answered_by_the_quick_way_too() -> None:
    """They may share a proxy's connections with all others."""
    async with listening(SchedulerConfig(origins=(PAGE,))) as stack:
        asked = [get("", f"Origin: {origin}", token=stack.token()) for origin in (PAGE, "https://evil.example.net")]
        answers = await ask(stack.port, *asked, answers=2)
        assert [answer.headers.get("access-control-allow-origin") for answer in answers] == [PAGE, None]
        assert [answer.status[9:12] for answer in answers] == ["200", "403"]
        assert stack.quick() == 2


# ---------------------------------------------------------------- connections


def in_loop(factory: Callable[[], asyncio.AbstractEventLoop], main: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await main()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run())


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_goes_over_to_the_http_server_in_the_middle(
    factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """With whatever came of the next requests, and in order; however the bytes come."""

    async def main() -> None:
        async with both() as stacks:
            token = stacks[0].token()
            body = b'{"device":"phone"}'
            post = (
                get(token=token).replace(b"GET", b"POST").replace(b"Host", b"Content-Length: %d\r\nHost" % len(body))
                + body
            )
            requests = [get(token=token), get("?why=1", token=token), post, get("?bad=1", token=token)]
            health = b"GET /healthz HTTP/1.1\r\nHost: s\r\n\r\n"
            stream = b"".join([*requests, health, get(token=token)])
            for parts in ([stream], [stream[:700], stream[700:]], [bytes([byte]) for byte in stream]):
                ours, theirs = [await ask(stack.port, *parts, answers=6) for stack in stacks]
                assert ours == theirs
                assert [answer.status[9:12] for answer in ours] == ["200", "403", "200", "400", "200", "200"]
            assert stacks[0].quick() == 6
            assert len(stacks[0].front) == 0

    in_loop(factory, main)


async def test_a_long_body_is_refused_before_anybody_asks_who_sends_it() -> None:
    """And before it comes. One that is as long as it may be is read."""
    head = b"POST /v1/access HTTP/1.1\r\nHost: s\r\nContent-Length: %d\r\n\r\n"
    async with listening() as stack:
        (refused,) = await ask(stack.port, head % (BODY_BYTES_MAX + 1))
        (nobody,) = await ask(stack.port, head % BODY_BYTES_MAX, b"{}".ljust(BODY_BYTES_MAX))
        assert [answer.status[9:12] for answer in (refused, nobody)] == ["413", "401"]


async def test_while_draining_each_connection_ends_with_its_next_answer() -> None:
    """And says so."""
    async with listening() as stack:
        reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
        writer.write(get(token=stack.token()))
        assert "connection" not in (await read_answer(reader)).headers
        await stack.scheduler.drain()
        writer.write(get(token=stack.token()) * 2)
        assert (await read_answer(reader)).headers["connection"] == "close"
        assert await reader.read() == b""
        writer.close()


async def test_connections_end_with_the_server() -> None:
    """Those that ask nothing, too."""
    async with listening() as stack:
        reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
        writer.write(get(token=stack.token()))
        await read_answer(reader)
        assert len(stack.front) == 1
    async with asyncio.timeout(SOON_S):
        assert await reader.read() == b""
    assert len(stack.front) == 0
    writer.close()


async def test_a_connection_that_asks_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted from its last answer; part of a request is nothing."""
    monkeypatch.setattr(front_module, "KEEPALIVE_S", 0.2)
    loop = asyncio.get_running_loop()
    async with listening() as stack:
        reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
        await asyncio.sleep(0.1)
        writer.write(get(token=stack.token()) + b"GET /v1/access")
        await read_answer(reader)
        answered = loop.time()
        async with asyncio.timeout(SOON_S):
            assert await reader.read() == b""
        assert loop.time() - answered >= 0.19
        writer.close()


# ---------------------------------------------------------------- one connection, byte by byte


class Wire(asyncio.Transport):
    """The transport of a connection without a socket."""

    def __init__(self, full_after: int | None = None) -> None:
        super().__init__({"peername": ("192.0.2.1", 1)})
        self.protocol: Any = None
        self.written: list[bytes] = []
        self.is_paused = self.is_ended = False
        self._full_after = full_after

    def write(self, data: Any) -> None:
        assert not self.is_ended
        self.written.append(bytes(data))
        if self._full_after is not None and len(self.written) % self._full_after == 0:
            self.protocol.pause_writing()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def is_closing(self) -> bool:
        return self.is_ended

    def close(self) -> None:
        self.is_ended = True

    abort = close


class Rest(asyncio.Protocol):
    """Stands for the HTTP server."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received.append(data)


def connect(stack: Stack, wire: Wire) -> Rest:
    rest = Rest()
    wire.protocol = stack.front.over(lambda: rest)()
    wire.protocol.connection_made(wire)
    return rest


def numbers(written: Sequence[bytes]) -> list[int]:
    """Which requests were answered: each has an unknown parameter that the error names."""
    text = b"".join(written).decode()
    return [int(part.partition("`")[0]) for part in text.split("unknown field `n")[1:]]


def numbered(count: int) -> list[bytes]:
    return [get(f"?n{number}=1") for number in range(count)]


async def turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_requests_are_answered_in_order_however_they_are_cut() -> None:
    """As soon as each is whole, and what is not for us goes on untouched."""
    foreign = b"POST /v1/access HTTP/1.1\r\nHost: s\r\nContent-Length: 3\r\n\r\nabc" + get("?n9=1")
    whole = b"".join(numbered(4)) + foreign

    with asyncio.Runner() as runner:

        async def open_() -> tuple[AsyncExitStack, Stack]:
            exits = AsyncExitStack()
            return exits, await exits.enter_async_context(listening())

        exits, stack = runner.run(open_())

        @given(cuts=st.lists(st.integers(0, len(whole)), max_size=12).map(sorted))
        def check(cuts: list[int]) -> None:
            async def feed() -> None:
                wire = Wire()
                rest = connect(stack, wire)
                for start, end in itertools.pairwise([0, *cuts, len(whole)]):
                    if start < end:
                        wire.protocol.data_received(whole[start:end])
                        heads = whole[: min(end, len(whole) - len(foreign))].count(b"\r\n\r\n")
                        assert numbers(wire.written) == list(range(heads))
                assert b"".join(rest.received) == foreign
                assert rest.transport is wire
                assert wire.protocol is rest

            runner.run(feed())

        check()
        runner.run(exits.aclose())


async def test_a_client_that_does_not_take_its_answers_is_not_read_from() -> None:
    """Until it does; then it gets the rest, in order."""
    async with listening() as stack:
        wire = Wire(full_after=3)
        rest = connect(stack, wire)
        wire.protocol.data_received(b"".join(numbered(7)) + b"GET / HTTP/1.1\r\n")
        for answered in (3, 6):
            await turns()
            assert numbers(wire.written) == list(range(answered))
            assert wire.is_paused
            wire.protocol.resume_writing()
        assert numbers(wire.written) == list(range(7))
        assert rest.received == [b"GET / HTTP/1.1\r\n"]
        assert not wire.is_paused


async def test_a_connection_full_of_requests_leaves_others_their_turn() -> None:
    """And is not read from, while there is something left to answer."""
    async with listening() as stack:
        wire = Wire()
        connect(stack, wire)
        wire.protocol.data_received(b"".join(numbered(70)))
        assert len(numbers(wire.written)) == 32
        assert wire.is_paused
        wire.protocol.data_received(b"".join(numbered(71)[70:]))
        assert len(numbers(wire.written)) == 32
        await turns()
        assert numbers(wire.written) == list(range(71))
        assert not wire.is_paused
        wire.protocol.data_received(b"".join(numbered(70)))
        wire.protocol.connection_lost(None)
        await turns()
        assert len(wire.written) == 71 + 32
        assert len(stack.front) == 0


async def test_the_last_answer_is_the_last() -> None:
    """What was sent behind `Connection: close` is not looked at."""
    async with listening() as stack:
        wire = Wire()
        rest = connect(stack, wire)
        wire.protocol.data_received(get("?n0=1", "Connection: close") + get("?n1=1"))
        assert wire.is_ended
        wire.protocol.data_received(get("?n2=1"))
        wire.protocol.resume_writing()
        assert numbers(wire.written) == [0]
        assert rest.received == []
        wire.protocol.connection_lost(None)


# ---------------------------------------------------------------- behind the PROXY protocol


async def test_a_balancer_names_the_client_on_both_ways() -> None:
    """The address that counts is that of the header, or what an HTTP proxy behind it says if it is one itself."""
    config = SchedulerConfig(proxies=("127.0.0.0/8", "10.0.0.0/8"), proxy_protocol=True)
    forged = "X-Forwarded-For: 203.0.113.7"
    async with both(config) as stacks:
        for stack in stacks:
            for source, expected in (("192.0.2.1", "192.0.2.1"), ("10.0.0.1", "203.0.113.7")):
                header = f"PROXY TCP4 {source} 192.0.2.2 1 2\r\n".encode()
                (answer,) = await ask(stack.port, header + get("", forged, token=stack.token()))
                assert stack.address_of(answer) == expected
            (answer,) = await ask(stack.port, b"PROXY UNKNOWN\r\n", get(token=stack.token()))
            assert stack.address_of(answer) == "127.0.0.1"
            reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
            writer.write(get(token=stack.token()))
            assert await reader.read() == b""
            writer.close()
            assert stack.metric("roadstead_schedule_dropped_total") == 1
        assert [stack.quick() for stack in stacks] == [3, 0]


def test_without_proxies_there_is_no_proxy_protocol() -> None:
    """Nobody could connect."""
    assert any("proxy_protocol" in problem for problem in SchedulerConfig(proxy_protocol=True).problems())
    assert not list(SchedulerConfig(proxy_protocol=True, proxies=("10.0.0.0/8",)).problems())
