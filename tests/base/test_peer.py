"""Peer streams over real loopback sockets: calls both ways, errors, deadlines, bounds, reconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
import uvloop
from aiohttp import ClientConnectionResetError, ClientSession, web

from base.errors import (
    BadRequest,
    DeadlineExceeded,
    NotOwner,
    Overloaded,
    PeerUnavailable,
    RemoteProtocolError,
    RoadsteadError,
    TooLarge,
    UnknownMethod,
)
from base.http import HttpServer
from base.metrics import Metrics
from base.peer import Method, PeerClient, PeerServer, PeerStream
from base.peer.link import StreamLimits
from base.peer.server import PEER_PATH
from base.peer.upgrade import PROTOCOL, connect
from base.peer.wire import FRAME_BYTES_MAX, Push, Request
from base.trust import Trust


class Ask(msgspec.Struct, array_like=True):
    text: str


class Answer(msgspec.Struct, array_like=True):
    text: str
    peer: str = ""


ECHO = Method("test.echo", Ask, Answer)
SLOW = Method("test.slow", Ask, Answer)
FAIL = Method("test.fail", Ask, Answer)
BUG = Method("test.bug", Ask, Answer)
ABSENT = Method("test.absent", Ask, Answer)
TELL = Method("test.tell", Ask, Answer)
HUGE = Method("test.huge", Ask, Answer)
ABUG = Method("test.abug", Ask, Answer)
LATER = Method("test.later", Ask, Answer)
WRONG = Method("test.echo", Answer, Ask)
MISREAD = Method("test.echo", Ask, int)


class Served:
    """A server with a few methods, and what it saw."""

    def __init__(self, limits: StreamLimits | None = None) -> None:
        self.told: list[str] = []
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.peers = PeerServer(trust=Trust.of_key("key"), limits=limits)
        self.peers.serve(ECHO, lambda ask, peer: Answer(ask.text, peer))
        self.peers.serve(SLOW, self._slow)
        self.peers.serve(FAIL, self._fail)
        self.peers.serve(BUG, lambda _ask, _peer: 1 / 0)
        self.peers.serve(TELL, self._tell)
        self.peers.serve(ABUG, self._abug)
        self.peers.serve(LATER, self._later)
        self.owed: asyncio.Queue[asyncio.Future[Answer]] = asyncio.Queue()
        self.peers.serve(HUGE, lambda _ask, _peer: Answer("x" * FRAME_BYTES_MAX))
        self.url = ""

    def _tell(self, ask: Ask, _peer: str) -> Answer:
        self.told.append(ask.text)
        return Answer("")

    async def _slow(self, ask: Ask, _peer: str) -> Answer:
        self.entered.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Answer(ask.text)

    def _later(self, _ask: Ask, _peer: str) -> asyncio.Future[Answer]:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.owed.put_nowait(future)
        return future

    async def _abug(self, _ask: Ask, _peer: str) -> Answer:
        raise RuntimeError("a bug")

    def _fail(self, _ask: Ask, _peer: str) -> Answer:
        raise NotOwner("not mine", owner="status-2", epoch=7)


@asynccontextmanager
async def serving(limits: StreamLimits | None = None, port: int = 0) -> AsyncIterator[Served]:
    served = Served(limits)
    server = HttpServer("node", Metrics("node"), statistics=dict)
    server.app.router.add_get(PEER_PATH, served.peers.handle)
    served.url = await server.listen("127.0.0.1", port)
    try:
        yield served
    finally:
        served.release.set()
        await served.peers.close()
        await server.close()


@asynccontextmanager
async def connected(
    url: str, *, key: str = "key", limits: StreamLimits | None = None, run: bool = True
) -> AsyncIterator[PeerClient]:
    client = PeerClient(url, peer="server", node="tester", trust=Trust.of_key(key), limits=limits)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(client.run() if run else asyncio.sleep(0))
        try:
            yield client
        finally:
            running.cancel()


async def test_a_call_gets_its_reply_and_the_callers_name_arrives() -> None:
    """The first call also waits for the stream."""
    async with serving() as served, connected(served.url) as client:
        assert await client.call(ECHO, Ask("hi"), deadline_ms=2_000) == Answer("hi", "tester")
        assert client.is_connected


async def test_a_call_that_waits_for_a_peer_which_has_gone_fails_at_once() -> None:
    """It does not sit out its deadline: nothing was sent, and nothing will be."""
    client = PeerClient("http://127.0.0.1:1", peer="server", node="tester", trust=Trust.of_key("key"))
    running = asyncio.ensure_future(client.run())
    call = asyncio.ensure_future(client.call(ECHO, Ask("hi"), deadline_ms=60_000))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(PeerUnavailable, match="has gone"):
        await asyncio.wait_for(call, 5)
    with pytest.raises(PeerUnavailable, match="has gone"):
        await client.wait_connected(deadline_ms=60_000)


async def test_many_calls_share_the_stream_and_answers_find_their_callers() -> None:
    """A slow call does not hold up the quick ones behind it."""
    async with serving() as served, connected(served.url) as client, asyncio.TaskGroup() as tasks:
        slow = tasks.create_task(client.call(SLOW, Ask("slow"), deadline_ms=5_000))
        quick = [tasks.create_task(client.call(ECHO, Ask(str(n)), deadline_ms=5_000)) for n in range(200)]
        assert [(await task).text for task in quick] == [str(n) for n in range(200)]
        assert not slow.done()
        served.release.set()
        assert (await slow).text == "slow"


async def test_a_servers_error_arrives_typed_with_its_fields() -> None:
    """Code and detail cross the wire."""
    async with serving() as served, connected(served.url) as client:
        with pytest.raises(NotOwner) as caught:
            await client.call(FAIL, Ask(""), deadline_ms=2_000)
        assert caught.value.detail == {"owner": "status-2", "epoch": 7}


@pytest.mark.parametrize("method", [BUG, ABUG])
async def test_a_servers_bug_is_told_without_its_traceback(method: Method[Ask, Answer]) -> None:
    """The other side learns that it was internal, and nothing about our code; the stream lives on."""
    async with serving() as served, connected(served.url) as client:
        with pytest.raises(RoadsteadError) as caught:
            await client.call(method, Ask(""), deadline_ms=2_000)
        assert str(caught.value) == f"{method.name}: internal error"
        assert (await client.call(ECHO, Ask("still"), deadline_ms=2_000)).text == "still"


async def test_unknown_methods_and_wrong_types_are_refused_by_name() -> None:
    """Neither ends the stream."""
    async with serving() as served, connected(served.url) as client:
        with pytest.raises(UnknownMethod, match="absent"):
            await client.call(ABSENT, Ask(""), deadline_ms=2_000)
        with pytest.raises(RemoteProtocolError, match="bad request"):
            await client.call(WRONG, Answer(3), deadline_ms=2_000)  # type: ignore[arg-type]
        with pytest.raises(RemoteProtocolError, match="bad reply"):
            await client.call(MISREAD, Ask(""), deadline_ms=2_000)


async def test_a_call_without_reply_ends_at_its_deadline() -> None:
    """The outcome is unknown, and the late reply is dropped in silence."""
    async with serving() as served, connected(served.url) as client:
        await client.call(ECHO, Ask(""), deadline_ms=2_000)
        with pytest.raises(DeadlineExceeded):
            await client.call(SLOW, Ask(""), deadline_ms=30)
        served.release.set()
        assert (await client.call(ECHO, Ask("on"), deadline_ms=2_000)).text == "on"


async def test_a_call_to_nobody_ends_at_its_deadline() -> None:
    """No listener: the client keeps trying, the call does not wait for ever."""
    async with connected("http://127.0.0.1:9") as client:
        with pytest.raises(DeadlineExceeded):
            await client.call(ECHO, Ask(""), deadline_ms=50)
        with pytest.raises(PeerUnavailable):
            client.push(ECHO, Ask(""))


async def test_a_connection_lost_during_the_upgrade_is_no_bug_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The HTTP library says so when it writes the 101; to all others that is a peer that is not there."""
    prepare = web.StreamResponse.prepare

    async def lost(response: web.StreamResponse, request: web.BaseRequest) -> object:
        if response.status == 101:
            raise ClientConnectionResetError("Cannot write to closing transport")
        return await prepare(response, request)

    monkeypatch.setattr(web.StreamResponse, "prepare", lost)
    async with serving() as served:
        with pytest.raises(PeerUnavailable, match="503"):
            await connect(served.url, node="n", trust=Trust.of_key("key"))


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://a:99999", "http://a:b", "http://a\x01b", f"http://{'a' * 64}", "http://a..b"]
)
async def test_an_address_that_is_none_is_an_unreachable_peer(url: str) -> None:
    """Others registered it: who connects to many must not end by one."""
    with pytest.raises(PeerUnavailable):
        await connect(url, node="n", trust=Trust.of_key("key"))


async def test_a_stream_without_the_peer_key_is_refused() -> None:
    """401 before the upgrade, whatever else the request says; the client keeps trying."""
    async with serving() as served, ClientSession() as session, connected(served.url, key="wrong") as client:
        headers = {"Authorization": "Bearer wrong", "Connection": "Upgrade", "Upgrade": PROTOCOL}
        async with session.get(served.url + PEER_PATH, headers=headers) as answer:
            assert answer.status == 401
        with pytest.raises(DeadlineExceeded):
            await client.call(ECHO, Ask(""), deadline_ms=50)
        assert not client.is_connected


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"Upgrade": PROTOCOL},
        {"Connection": "Upgrade"},
        {"Connection": "Upgrade", "Upgrade": "roadstead.peer.v1"},
        {"Connection": "Upgrade", "Upgrade": "websocket"},
    ],
)
async def test_another_protocol_is_refused_by_naming_ours(asked: dict[str, str]) -> None:
    """426 says what to upgrade to, and the port goes on to serve."""
    async with serving() as served, ClientSession(headers={"Authorization": "Bearer key"}) as session:
        async with session.get(served.url + PEER_PATH, headers=asked) as answer:
            assert (answer.status, answer.headers["Upgrade"]) == (426, PROTOCOL)
            assert (await answer.json())["error"]["name"] == "bad_request"
        async with session.get(served.url + "/healthz") as answer:
            assert answer.status == 200


async def test_pushes_arrive_in_order() -> None:
    """A push has no reply; a call behind it shows that it was served."""
    async with serving() as served, connected(served.url) as client:
        await client.call(ECHO, Ask(""), deadline_ms=2_000)
        for number in range(50):
            client.push(TELL, Ask(str(number)))
        client.push(ABSENT, Ask(""))
        client.push(BUG, Ask(""))
        client.push(ABUG, Ask(""))
        await client.call(ECHO, Ask(""), deadline_ms=2_000)
        assert served.told == [str(number) for number in range(50)]


async def test_a_full_queue_refuses_instead_of_growing() -> None:
    """What does not fit is refused before it is sent."""
    async with serving() as served, connected(served.url, limits=StreamLimits(queue_bytes_max=1_000)) as client:
        await client.call(ECHO, Ask(""), deadline_ms=2_000)
        client.push(TELL, Ask("x" * 900))
        with pytest.raises(Overloaded):
            client.push(TELL, Ask("x" * 900))


async def test_too_many_requests_at_once_are_refused() -> None:
    """inflight_max bounds what one stream can make the server hold."""
    async with serving(StreamLimits(inflight_max=2)) as served, connected(served.url) as client:
        async with asyncio.TaskGroup() as tasks:
            held = [tasks.create_task(client.call(SLOW, Ask("a"), deadline_ms=5_000)) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await client.call(SLOW, Ask("b"), deadline_ms=5_000)
            served.release.set()
        assert [task.result().text for task in held] == ["a", "a"]


async def test_a_future_is_answered_when_it_is_done_and_takes_no_task() -> None:
    """In any order, by a reply or a failure, which all arrive as those of other handlers do."""
    async with serving(StreamLimits(inflight_max=1)) as served, connected(served.url) as client:
        await client.call(ECHO, Ask(""), deadline_ms=2_000)
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(_outcome(client.call(LATER, Ask(""), deadline_ms=5_000))) for _ in range(5)]
            owed = [await served.owed.get() for _ in calls]
            assert stream_of(served).statistics()["inflight"] == 5
            owed[4].set_result(Answer("x" * FRAME_BYTES_MAX))
            owed[3].set_exception(NotOwner("not mine", owner="status-2", epoch=7))
            owed[2].set_exception(ZeroDivisionError())
            owed[1].cancel()
            owed[0].set_result(Answer("done"))
        outcomes = [call.result() for call in calls]
        assert outcomes[0] is None
        assert [type(outcome) for outcome in outcomes[1:]] == [PeerUnavailable, RoadsteadError, NotOwner, TooLarge]
        assert stream_of(served).statistics()["inflight"] == 0


async def test_too_many_futures_at_once_are_refused() -> None:
    """owed_max bounds them, whatever tasks there may be."""
    async with serving(StreamLimits(owed_max=2)) as served, connected(served.url) as client:
        await client.call(ECHO, Ask(""), deadline_ms=2_000)
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(client.call(LATER, Ask(""), deadline_ms=5_000)) for _ in range(2)]
            owed = [await served.owed.get() for _ in calls]
            with pytest.raises(Overloaded):
                await client.call(LATER, Ask(""), deadline_ms=5_000)
            for number, future in enumerate(owed):
                future.set_result(Answer(str(number)))
        assert [call.result().text for call in calls] == ["0", "1"]


async def test_a_future_outlives_the_stream_that_its_answer_was_for() -> None:
    """It is the handler's own. What becomes of it interests nobody, a failure neither."""
    async with serving() as served, asyncio.TaskGroup() as tasks:
        async with connected(served.url) as client:
            calls = [tasks.create_task(_outcome(client.call(LATER, Ask(""), deadline_ms=5_000))) for _ in range(2)]
            owed = [await served.owed.get() for _ in calls]
            stream = stream_of(served)
        assert [type(await call) for call in calls] == [PeerUnavailable] * 2
        assert not any(future.done() for future in owed)
        owed[0].set_result(Answer("too late"))
        owed[1].set_exception(NotOwner("not mine", owner="status-2", epoch=7))
        await asyncio.sleep(0)
        assert stream.statistics() == {"queue_bytes": 0, "waiting": 0, "inflight": 0}


async def test_a_broken_stream_fails_its_calls_and_comes_back() -> None:
    """Waiting calls learn that the outcome is unknown; the next call uses the new stream."""
    async with serving() as served:
        port = int(served.url.rsplit(":", 1)[1])
        async with connected(served.url) as client, asyncio.TaskGroup() as tasks:
            await client.call(ECHO, Ask(""), deadline_ms=2_000)
            waiting = tasks.create_task(_outcome(client.call(SLOW, Ask(""), deadline_ms=5_000)))
            await asyncio.sleep(0)
            await served.peers.close()
            assert isinstance(await waiting, PeerUnavailable)
            assert (await client.call(ECHO, Ask("back"), deadline_ms=5_000)).text == "back"
            assert port > 0


async def _outcome(call: object) -> BaseException | None:
    try:
        await call  # type: ignore[misc]
    except RoadsteadError as error:
        return error
    return None


async def test_calls_are_served_in_their_order() -> None:
    """However they gather into batches."""
    async with serving() as served, connected(served.url) as client, asyncio.TaskGroup() as tasks:
        await client.call(ECHO, Ask(""), deadline_ms=5_000)
        for number in range(300):
            tasks.create_task(client.call(TELL, Ask(str(number)), deadline_ms=5_000))
            if number % 7 == 0:
                await asyncio.sleep(0)
    assert served.told == [str(number) for number in range(300)]


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_messages_of_any_size_pass_or_are_refused(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Up to the longest frame, on either event loop; what is longer is refused where it starts."""

    async def scenario() -> None:
        async with serving() as served, connected(served.url) as client:
            for size in (0, 1, 70_000, 1_000_000, FRAME_BYTES_MAX - 100):
                text = "x" * size
                assert (await client.call(ECHO, Ask(text), deadline_ms=20_000)).text == text
            async with asyncio.TaskGroup() as tasks:
                for _ in range(7):
                    tasks.create_task(client.call(ECHO, Ask("y" * 2_000_000), deadline_ms=20_000))
            with pytest.raises(TooLarge):
                await client.call(ECHO, Ask("x" * FRAME_BYTES_MAX), deadline_ms=20_000)
            with pytest.raises(TooLarge):
                await client.call(HUGE, Ask(""), deadline_ms=20_000)
            assert (await client.call(ECHO, Ask("on"), deadline_ms=20_000)).text == "on"

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())


# ---------------------------------------------------------------- from the accepting side


def stream_of(served: Served, node: str = "tester") -> PeerStream:
    stream = served.peers.stream_of(node)
    assert stream is not None
    return stream


async def test_the_accepting_side_calls_and_pushes_over_the_same_stream() -> None:
    """Both ends are alike once the stream is up."""
    heard: list[tuple[str, str]] = []
    async with serving() as served, connected(served.url, run=False) as client, asyncio.TaskGroup() as tasks:
        client.serve(ECHO, lambda ask, peer: Answer(ask.text, peer))
        client.serve(TELL, lambda ask, peer: heard.append((ask.text, peer)))
        running = tasks.create_task(client.run())
        await client.call(ECHO, Ask(""), deadline_ms=2_000)
        stream = stream_of(served)
        for number in range(3):
            stream.push(TELL, Ask(str(number)))
        assert await stream.call(ECHO, Ask("back"), deadline_ms=2_000) == Answer("back", "server")
        assert heard == [("0", "server"), ("1", "server"), ("2", "server")]
        with pytest.raises(UnknownMethod):
            await stream.call(SLOW, Ask(""), deadline_ms=2_000)
        running.cancel()


async def test_the_newest_stream_of_a_node_counts() -> None:
    """A node that reconnects is found at once, though its old stream may take a while to die."""
    async with serving() as served, connected(served.url) as first:
        await first.call(ECHO, Ask(""), deadline_ms=2_000)
        old = stream_of(served)
        async with connected(served.url) as second:
            await second.call(ECHO, Ask(""), deadline_ms=2_000)
            assert stream_of(served) is not old
            assert served.peers.statistics() == {"tester": {"queue_bytes": 0, "waiting": 0, "inflight": 0}}
            await stream_of(served).close()
            assert stream_of(served) is old
        await old.close()
        assert served.peers.stream_of("nobody") is None


async def test_a_push_may_be_served_by_a_task() -> None:
    """An awaitable is awaited, its failure is ours to log, and inflight_max bounds how many there are."""
    async with serving(StreamLimits(inflight_max=2)) as served, connected(served.url) as client:
        await client.call(ECHO, Ask(""), deadline_ms=2_000)
        for _ in range(3):
            client.push(SLOW, Ask(""))
        with pytest.raises(Overloaded):
            await client.call(ECHO, Ask(""), deadline_ms=2_000)
        assert stream_of(served).statistics()["inflight"] == 2
        served.release.set()
        assert (await client.call(SLOW, Ask("on"), deadline_ms=2_000)).text == "on"


async def test_what_is_being_served_is_cancelled_when_the_stream_ends() -> None:
    """Nobody is left to answer to."""
    async with serving() as served, asyncio.TaskGroup() as tasks:
        async with connected(served.url) as client:
            call = tasks.create_task(_outcome(client.call(SLOW, Ask(""), deadline_ms=5_000)))
            await served.entered.wait()
        assert isinstance(await call, PeerUnavailable)
        async with asyncio.timeout(2):
            await served.cancelled.wait()


async def test_a_request_that_comes_with_the_end_of_its_stream_is_dropped() -> None:
    """It was never begun, and nothing of it is left to be warned of."""
    async with serving() as served, connected(served.url) as client:
        await client.call(ECHO, Ask(""), deadline_ms=2_000)
        stream = stream_of(served)
        for envelope in (
            Request(9, SLOW.name, 2_000, msgspec.Raw(b"\x91\xa0")),
            Push(SLOW.name, msgspec.Raw(b"\x91\xa0")),
        ):
            stream._receive([envelope])
        assert stream.statistics()["inflight"] == 2
        await stream.close()
        assert stream.statistics()["inflight"] == 0
        assert not served.entered.is_set()


def test_bad_request_is_a_callers_bug() -> None:
    """The error class used for refused arguments says never to retry."""
    assert BadRequest().retry.value == "never"
