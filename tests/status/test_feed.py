"""The session event feed of a running cluster: read, followed, resumed; while its nodes move, restart and go."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
import pytest

from base.clock import Instant, SystemClock, Timestamp
from base.errors import BadRequest, Draining, NotFound, Overloaded, PermissionDenied
from base.ids import Epoch, Incarnation, NodeId
from base.metrics import Metrics
from roadstead.api import call_api
from status import events_api, feed_reader
from status.api import SessionView, UserStatus, status_of
from status.core.events import CURSOR_NODES_MAX, START, Place, SessionEvent
from status.core.ownership import Ownership, Turn
from status.core.records import Kind, Merged, PartitionRecords, packed
from status.core.visibility import Audience
from status.feed import EventFeed
from status.metrics import FeedMetrics
from status.peers import EventsAsk, EventsEndAsk, Snapshot
from tests.status.event_cluster import KEY, SETTLE_S, VIEWER_KEY, Access, Cluster, Reader, eventually, without_cluster


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with asyncio.TaskGroup() as tasks:
        made = Cluster(tasks)
        for name in ("status-1", "status-2", "status-3"):
            await made.start_node(name)
        try:
            async with asyncio.timeout(SETTLE_S):
                for node, _ in made.nodes.values():
                    await node._table.wait_newer(0)
            yield made
        finally:
            await made.stop()


@pytest.fixture
async def access(cluster: Cluster) -> Access:
    return await cluster.start_access()


@pytest.fixture
async def reader(cluster: Cluster) -> Reader:
    made = Reader(cluster)
    await made.until(lambda: len(made.newest) == 4_096)
    await made.read_all()
    return made


# ---------------------------------------------------------------- reading


async def test_a_session_is_told_from_its_connect_to_its_disconnect(access: Access, reader: Reader):
    """With all that is known of it, and sequences that grow."""
    await access.connect("alice")
    await reader.until(lambda: "alice" in reader.open)
    (connect,) = reader.pages[-1][1]
    assert {name: connect[name] for name in ("kind", "user", "session", "device", "platform", "node", "state")} == {
        "kind": "connect",
        "user": "alice",
        "session": "alice/1",
        "device": "phone",
        "platform": "ios",
        "node": "access-1",
        "state": "online",
    }
    assert abs(connect["at"] - SystemClock().realtime()) < 60_000
    access.change("alice")
    await reader.until(lambda: reader.open == {"alice": "away"})
    access.disconnect("alice")
    await reader.until(lambda: not reader.open)
    assert reader.told == [("connect", "alice"), ("state", "alice"), ("disconnect", "alice")]
    sequences = [event["user_seq"] for _, page in reader.pages for event in page if event.get("user") == "alice"]
    assert sequences == sorted(set(sequences))
    assert {len(sequence) for sequence in sequences} == {28}


async def test_every_cursor_is_good_for_all_that_came_after_it(cluster: Cluster, access: Access, reader: Reader):
    """At least once, through any node, with pages of any size."""
    users = [f"user-{number}" for number in range(12)]
    for user in users:
        await access.connect(user)
    for user in users[:6]:
        access.disconnect(user)
    began = len(reader.pages)

    async def small_pages() -> bool:
        await reader.read_all(limit=3)
        return len(reader.told) == 18

    await eventually(small_pages)
    for number, (cursor, _) in enumerate(reader.pages[began:], began):
        again = Reader(cluster, cursor)
        again.node = "status-2"
        await again.read_all(limit=random.choice([1, 4, 100]))
        after = [event for _, page in reader.pages[number:] for event in page if event["kind"] != "resync"]
        repeated = [event for _, page in again.pages for event in page]
        assert all(event in repeated for event in after)
    late = Reader(cluster)
    await late.read_all()
    assert late.open == reader.open == dict.fromkeys(users[6:], "online")


async def test_from_now_on_begins_with_a_cursor(cluster: Cluster, access: Access, reader: Reader):
    """And with nothing of before."""
    await access.connect("alice")
    await reader.until(lambda: bool(reader.open))
    page = await cluster.events()
    assert (page["events"], page["is_at_end"], page["missing"]) == ([], True, [])
    await access.connect("bob")
    late = Reader(cluster, page["cursor"])
    await late.until(lambda: bool(late.told))
    assert late.told == [("connect", "bob")]


async def test_a_dead_access_nodes_sessions_end(cluster: Cluster, reader: Reader):
    """Nobody said goodbye: each gets a disconnect once the lease is over, and the others stay."""
    dying, other = await cluster.start_access("access-1"), await cluster.start_access("access-2")
    for number in range(20):
        await dying.connect(f"user-{number}")
    await other.connect("other")
    await reader.until(lambda: len(reader.open) == 21)
    await dying.kill()
    await reader.until(lambda: len(reader.open) == 1)
    assert sorted(user for kind, user in reader.told if kind == "disconnect") == sorted(
        f"user-{number}" for number in range(20)
    )
    assert set(reader.open) == {"other"}


# ---------------------------------------------------------------- waiting


async def test_a_long_poll_returns_when_something_happens(cluster: Cluster, access: Access, reader: Reader):
    """At once, wherever it happens: these users have owners on both nodes."""
    for number in range(8):
        waiting = asyncio.create_task(cluster.events(reader.cursor, wait_ms=25_000))
        await eventually(lambda: waits(cluster))
        await access.connect(f"user-{number}")
        async with asyncio.timeout(5):
            page = await waiting
        assert [(event["kind"], event["user"]) for event in page["events"]] == [("connect", f"user-{number}")]
        reader.cursor = page["cursor"]


async def waits(cluster: Cluster) -> bool:
    """Whether a reader waits, and every node is asked to tell when its log goes on."""
    asked = [node.statistics()["events"]["waits"] for node, _ in cluster.nodes.values()]
    return cluster.nodes["status-1"][0]._feed_reader._readers == 1 and all(asked)


async def test_a_long_poll_ends_empty_when_nothing_happens(cluster: Cluster, reader: Reader):
    """With a cursor that is as good as the one before."""
    page = await cluster.events(reader.cursor, wait_ms=50)
    assert (page["events"], page["cursor"], page["is_at_end"]) == ([], reader.cursor, True)


async def test_too_many_readers_are_sent_away(cluster: Cluster, reader: Reader, monkeypatch: pytest.MonkeyPatch):
    """With the time to come back; whoever need not wait is served."""
    monkeypatch.setattr(feed_reader, "READERS_MAX", 1)
    waiting = asyncio.create_task(cluster.events(reader.cursor, wait_ms=25_000))
    await eventually(lambda: waits(cluster))
    with pytest.raises(Overloaded, match="too many readers") as refused:
        await cluster.events(reader.cursor, wait_ms=1)
    assert refused.value.detail == {"what": "event_readers", "retry_after_ms": 1_000}
    assert (await cluster.events(reader.cursor))["events"] == []
    assert (await cluster.events("start", wait_ms=1))["events"]
    await cluster.nodes["status-1"][0].drain()
    assert (await waiting)["events"] == []


async def test_a_node_that_does_not_answer_is_missing_and_loses_nothing(
    cluster: Cluster, access: Access, reader: Reader
):
    """What it did not tell, the resyncs of whoever owns its partitions next do; a waiting reader sees them come."""
    for number in range(8):
        await access.connect(f"user-{number}")
    await reader.until(lambda: len(reader.open) == 8)
    await cluster.kill_node("status-2")
    assert (await reader.read(wait_ms=10))["missing"] == ["status-2"]
    for number in range(4):
        access.disconnect(f"user-{number}")
    await reader.until(lambda: set(reader.open) == set(access.open))
    await cluster.start_node("status-2")
    await reader.until(lambda: not reader.is_missing_any)


async def test_a_node_that_restarts_speaks_anew_for_what_it_kept(cluster: Cluster, access: Access, reader: Reader):
    """The table is the same one, so that only the node's life makes its sequences greater."""
    for number in range(8):
        await access.connect(f"user-{number}")
    await reader.until(lambda: len(reader.open) == 8)
    before = dict(reader.newest)
    table = cluster.nodes["status-1"][0]._table.table
    assert table is not None
    kept = [partition for partition, owner in enumerate(table.owners) if table.nodes[owner] == "status-2"]
    await cluster.kill_node("status-2")
    for number in range(4):
        access.disconnect(f"user-{number}")
    await cluster.start_node("status-2")
    await reader.until(lambda: all(reader.newest[partition] > before[partition] for partition in kept))
    assert cluster.nodes["status-1"][0]._table.table == table
    await reader.until(lambda: set(reader.open) == set(access.open))
    assert all(reader.newest[partition] >= before[partition] for partition in before)


# ---------------------------------------------------------------- moves


async def test_a_resize_under_load_loses_no_event(cluster: Cluster, access: Access, reader: Reader):
    """A node comes, another goes; whoever followed from any cursor knows exactly who is there."""
    await cluster.start_node("status-4")
    dice = random.Random(5)
    is_over = False

    async def load() -> None:
        number = 0
        while not is_over:
            number += 1
            await access.connect(f"user-{number}")
            if len(access.open) > 30:
                access.disconnect(dice.choice(sorted(access.open)))
            if dice.random() < 0.2:
                access.change(dice.choice(sorted(access.open)))

    async def follow() -> None:
        while not is_over:
            await reader.read(wait_ms=200, limit=500)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load())
        tasks.create_task(follow())
        for weights in (
            dict.fromkeys(("status-1", "status-2", "status-3", "status-4"), 1),
            dict.fromkeys(("status-1", "status-3", "status-4"), 1),
        ):
            await cluster.wish(weights)

            async def is_resized(weights: dict[str, int] = weights) -> bool:
                table = cluster.nodes["status-1"][0]._table.table
                return table is not None and not table.moves and set(table.nodes) == set(weights)

            await eventually(is_resized)
        is_over = True
    truth = {user: opened.state for user, opened in access.open.items()}
    assert len(truth) >= 30

    async def knows() -> bool:
        await reader.read_all()
        return reader.open == truth

    await eventually(knows)
    for number in dice.sample(range(len(reader.pages)), 5):
        again = Reader(cluster, reader.pages[number][0])
        for _, page in reader.pages[:number]:
            for event in page:
                again.take(event)
        await again.read_all()
        assert again.open == truth
    late = Reader(cluster)
    await late.read_all()
    assert late.open == truth


# ---------------------------------------------------------------- streams


class Frame(dict[str, str]):
    """One server-sent event: its fields; a comment is the field without a name."""


@asynccontextmanager
async def stream(cluster: Cluster, **headers: str) -> AsyncIterator[AsyncIterator[Frame]]:
    async def frames(response: aiohttp.ClientResponse) -> AsyncIterator[Frame]:
        frame = Frame()
        async for line in response.content:
            text = line.decode().rstrip("\n")
            if text:
                name, _, value = text.partition(":")
                frame[name] = value.strip()
            else:
                yield frame
                frame = Frame()

    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}", **headers}) as session,
        session.get(f"{cluster.url()}/v1/events/stream") as response,
        asyncio.timeout(SETTLE_S),
    ):
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream"
        yield frames(response)


async def test_a_stream_goes_on_after_the_last_id(cluster: Cluster, access: Access, reader: Reader):
    """It begins with the cursor of now, which a client keeps though it is shown nothing."""
    async with stream(cluster) as frames:
        first = await anext(frames)
        assert set(first) == {"id"}
        await access.connect("alice")
        alice = await anext(frames)
        assert (alice["event"], json.loads(alice["data"])["user"]) == ("connect", "alice")
    await access.connect("bob")
    access.disconnect("alice")
    await reader.until(lambda: "bob" in reader.open and "alice" not in reader.open)
    for last_id, users in ((alice["id"], ["alice", "bob"]), (first["id"], ["alice", "alice", "bob"])):
        async with stream(cluster, **{"Last-Event-ID": last_id}) as frames:
            told = [json.loads((await anext(frames))["data"])["user"] for _ in users]
        assert sorted(told) == users


async def test_only_the_last_event_of_a_page_has_an_id(cluster: Cluster, reader: Reader):
    """Or a client that is cut off within a page would miss the rest of it."""
    del reader
    async with stream(cluster, **{"Last-Event-ID": "start"}) as frames:
        seen = [await anext(frames) for _ in range(1_500)]
    ids = [number for number, frame in enumerate(seen) if "id" in frame]
    assert ids[0] in range(300, 1_001)
    assert {frame["event"] for frame in seen} == {"resync"}


async def test_a_silent_stream_is_kept_alive(cluster: Cluster, reader: Reader, monkeypatch: pytest.MonkeyPatch):
    """By a comment, which is no event."""
    del reader
    monkeypatch.setattr(events_api, "KEEPALIVE_MS", 20)
    async with stream(cluster) as frames:
        assert set(await anext(frames)) == {"id"}
        assert await anext(frames) == {"": "keepalive"}


async def test_a_draining_node_ends_its_streams_and_takes_no_new_ones(cluster: Cluster, reader: Reader):
    """In order, so that the client comes back with its last id, elsewhere."""
    del reader
    async with stream(cluster) as frames:
        await anext(frames)
        await cluster.nodes["status-1"][0].drain()
        async for frame in frames:
            assert frame == {"": "keepalive"}
    with pytest.raises(Draining):
        await call_api("GET", f"{cluster.url()}/v1/events/stream", credential=KEY)


async def test_a_reader_that_takes_no_data_is_cut_off(monkeypatch: pytest.MonkeyPatch):
    """What is not read must not pile up here."""
    monkeypatch.setattr(events_api, "WRITE_TIMEOUT_S", 0.01)
    aborted: list[bool] = []
    request: Any = SimpleNamespace(transport=SimpleNamespace(abort=lambda: aborted.append(True)))
    with pytest.raises(ConnectionError):
        await events_api._taken(request, asyncio.Event().wait())  # type: ignore[arg-type]
    assert aborted == [True]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"cursor": "nonsense!"}, "not one that was given out"),
        ({"limit": "0"}, "limit must be a number from 1 to 1000, not '0'"),
        ({"limit": "1001"}, "limit must be"),
        ({"limit": "1_0"}, "limit must be"),
        ({"limit": "x" * 50}, "limit must be a number from 1 to 1000, not 'x{40}'"),
        ({"wait_ms": "25001"}, "wait_ms must be a number from 0 to 25000"),
        ({"wait_ms": "-1"}, "wait_ms must be"),
        ({"since": "5"}, "unknown query parameters: since"),
    ],
)
async def test_bad_questions_get_a_clear_answer(cluster: Cluster, params: dict[str, str], message: str):
    """One sentence that says what is wrong with which parameter."""
    with pytest.raises(BadRequest, match=message):
        await call_api("GET", f"{cluster.url()}/v1/events", credential=KEY, params=params)


async def test_a_stream_refuses_before_it_begins(cluster: Cluster):
    """So that a bad cursor is a 400, and not the end of a stream."""
    url = f"{cluster.url()}/v1/events/stream"
    for params in ({"cursor": "nonsense!"}, {"limit": "5"}):
        with pytest.raises(BadRequest):
            await call_api("GET", url, credential=KEY, params=params)
    for path in ("", "/stream"):
        with pytest.raises(PermissionDenied, match="backend"):
            await call_api("GET", f"{cluster.url()}/v1/events{path}", credential=VIEWER_KEY)


async def test_peers_are_held_to_the_bounds(cluster: Cluster):
    """A node of another version may have others."""
    feed = cluster.nodes["status-1"][0]._feed
    for limit in (0, 1_001):
        with pytest.raises(BadRequest, match="1 to 1000"):
            feed._read(EventsAsk(None, limit), "status-2")
    with pytest.raises(BadRequest, match="0 to 25000"):
        await feed._await_end(EventsEndAsk(Place("f", 0), 25_001), "status-2")


async def test_without_our_cluster_there_is_no_feed():
    """And the answer says which backend has one."""
    async with without_cluster() as url:
        for path in ("", "/stream"):
            with pytest.raises(NotFound, match=r"no session events; status\.backend = cluster has them"):
                await call_api("GET", f"{url}/v1/events{path}", credential=KEY)


# ---------------------------------------------------------------- one node's log


def feed_of(*partitions: int) -> EventFeed:
    site: Any = SimpleNamespace(name=NodeId("s"), incarnation=Incarnation(1), clock=SystemClock())
    ownership = Ownership(NodeId("s"), Incarnation(1), (), is_leased=lambda _at, _by: True)
    feed = EventFeed(site, ownership, FeedMetrics(Metrics("s")), catch_up=lambda: None)
    feed.listen(Instant(0), [Turn(partition, Epoch(1), is_served=True) for partition in partitions], [])
    return feed


async def test_so_many_nodes_may_wait_for_a_log():
    """The one that is too many is refused; when something happens all others are answered."""
    feed = feed_of(7)
    end = Place("s.1", 1)
    waiting = [asyncio.create_task(feed.wait_beyond(end, 25_000)) for _ in range(CURSOR_NODES_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="too many nodes"):
        await feed.wait_beyond(end, 25_000)
    feed.listen(Instant(0), [], [(7, "alice", b"packed", Merged.OPENED)])
    assert set(await asyncio.gather(*waiting)) == {Place("s.1", 2)}
    assert await feed.wait_beyond(Place("s.1", 2), 1) == Place("s.1", 2)
    assert feed.statistics()["waits"] == 0


async def test_nobody_waits_for_a_node_that_ends():
    """Nor asks again and again."""
    feed = feed_of(7)
    feed.close()
    assert await feed.wait_beyond(Place("s.1", 0), 25_000) == Place("s.1", 1)
    with pytest.raises(Draining):
        await feed.wait_beyond(Place("s.1", 1), 25_000)


def test_what_is_read_has_no_long_audience():
    """A page of them would be longer than a message may be, and its reader would come no further."""
    feed = feed_of(7)
    audience = Audience("listed", tuple(f"{number:0128d}" for number in range(125)))
    view = SessionView("s", "phone", "ios", NodeId("gate"), "online", Timestamp(7), Timestamp(8), audience)
    entry = packed(1, 1, Kind.HIDDEN, msgspec.msgpack.encode(view))
    feed.listen(Instant(0), [], [(7, "alice", bytes(2) + entry, Merged.CHANGED)])
    (event,) = feed.read(Place("s.1", 1), 10).items
    store = PartitionRecords()
    store.merge(Instant(0), "alice", bytes(2) + entry)
    feed._ownership = SimpleNamespace(store=lambda _: store)  # type: ignore[assignment]
    (resync,) = feed.read(START, 1).items
    assert isinstance(event, SessionEvent)
    assert isinstance(resync, Snapshot)
    assert resync.sessions == [("alice", event.entry)]
    assert status_of(event.entry) == UserStatus("online", (msgspec.structs.replace(view, audience=None),))


def test_a_partition_that_is_lost_is_not_spoken_for():
    """Its later news are the next owner's."""
    feed = feed_of(7, 8)
    feed.listen(Instant(0), [Turn(7, Epoch(2), is_served=False)], [(7, "alice", b"packed", Merged.CLOSED)])
    assert feed.read(Place("s.1", 2), 10).items == []
    assert feed.statistics() == {"head": 2, "events": 2, "partitions": 1, "waits": 0}
