"""Conversations as access nodes read and follow them: a real message service and a node's end, over real streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from base.clock import SimClock, Timestamp
from base.errors import BadRequest, LimitExceeded, NotMember, Unavailable
from im.api import (
    CONVERSATION,
    CONVERSATION_HEADS,
    FOLLOW,
    Conversation,
    ConversationHeads,
    Follow,
    FollowReply,
)
from im.core.commands import Delivery, Draft
from im.core.followers import LEASE_MS
from im.core.model import Form, Message
from im.followed import BYTES_PER_PUSH, ENTRIES_PER_PUSH
from tests.im.cluster import TIMEOUT_S, Cluster, running


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path) as made:
        yield made


def delivery(seq: int, *, cid: int = 1, body: bytes = b"{}") -> Delivery:
    """Make what a store says of a message; nobody's timelines have it."""
    at = Timestamp(1_000)
    message = Message(seq, cid, seq, seq, 7, "ann", "phone", "bob", f"k{seq}", Form.MESSAGE, "text", 0, body, b"", at)
    return Delivery(message, (), "read")


# ---------------------------------------------------------------- reading


async def test_a_member_reads_a_conversation(cluster: Cluster):
    """Publications by their seqs, as they are in timelines too, from both sides."""
    end = await cluster.start_access()
    for n in range(1, 4):
        await end.send("ann", "bob", f"k{n}")
        await end.send("bob", "ann", f"k{n}")
        await end.send("ann", "cleo", f"l{n}")
    timeline = await end.im.timeline("bob", since=0, limit=100, bytes_max=1_000_000)
    for user in ("ann", "bob"):
        page = await end.im.conversation("1", user=user, since=0, limit=100, bytes_max=1_000_000)
        assert (page.epoch, page.head) == (cluster.store.epoch, 6)
        assert page.entries == timeline.entries
        assert [json["cid"] for json in map(msgspec.json.decode, (data for _, data in page.entries))] == ["1"] * 6


async def test_a_page_is_bounded_by_entries_and_bytes(cluster: Cluster):
    """One entry comes however long it is; with no entries wanted the head comes alone."""
    end = await cluster.start_access()
    for n in range(1, 6):
        await end.send("ann", "bob", f"k{n}")

    async def seqs(since: int, limit: int, bytes_max: int) -> list[int]:
        page = await end.im.conversation("1", user="ann", since=since, limit=limit, bytes_max=bytes_max)
        assert page.head == 5
        return [seq for seq, _ in page.entries]

    [(_, data)] = (await end.im.conversation("1", user="ann", since=0, limit=1, bytes_max=1)).entries
    assert await seqs(0, 3, 10_000) == [1, 2, 3]
    assert await seqs(3, 3, 10_000) == [4, 5]
    assert await seqs(0, 5, 2 * len(data)) == [1, 2]
    assert await seqs(0, 5, 2 * len(data) - 1) == [1]
    assert await seqs(0, 5, 0) == [1]
    assert await seqs(0, 0, 10_000) == await seqs(5, 5, 10_000) == await seqs(99, 5, 10_000) == []


async def test_a_page_never_has_over_a_thousand_entries(cluster: Cluster):
    """Whatever limit is asked for."""
    end = await cluster.start_access()
    await cluster.store.execute(
        [Draft(n, "ann", "phone", "bob", 0, f"k{n}", "text", b"{}", Timestamp(1_000)) for n in range(1_002)]
    )
    page = await end.im.conversation("1", user="ann", since=0, limit=10_000, bytes_max=10_000_000)
    assert ([seq for seq, _ in page.entries], page.head) == (list(range(1, 1_001)), 1_002)


@pytest.mark.parametrize("limit", [0, 10])
async def test_who_is_no_member_cannot_find_out_what_there_is(cluster: Cluster, limit: int):
    """A conversation of others and one that does not exist are refused in the same words."""
    end = await cluster.start_access()
    await end.send("ann", "bob", "k1")
    said = []
    for cid, user in (("1", "cleo"), ("2", "cleo"), ("2", "ann"), (str(2**63 - 1), "ann"), ("1", "")):
        with pytest.raises(NotMember) as caught:
            await end.im.conversation(cid, user=user, since=0, limit=limit, bytes_max=1_000)
        said.append((caught.value.message, caught.value.detail))
    assert len({repr(one) for one in said}) == 1


@pytest.mark.parametrize(
    "request_",
    [Conversation("01", "ann", 0, 1, 1), Conversation("1", "ann", -1, 1, 1), Conversation("1", "ann", 0, -1, 1)],
)
async def test_a_malformed_question_is_refused(cluster: Cluster, request_: Conversation):
    """By name or number, before anything is looked up."""
    peer = await cluster.peer()
    with pytest.raises(BadRequest):
        await peer.call(CONVERSATION, request_, deadline_ms=5_000)


async def test_heads_tell_how_far_conversations_go(cluster: Cluster):
    """Of any number of them; what does not exist has 0."""
    end = await cluster.start_access()
    for n in range(3):
        await end.send("ann", "bob", f"k{n}")
    await end.send("ann", "cleo", "k3")
    cids = [str(cid) for cid in range(1, 2_502)]
    assert await end.im.conversation_heads(cids) == {**dict.fromkeys(cids, 0), "1": 3, "2": 1}
    assert await end.im.conversation_heads([]) == {}
    peer = await cluster.peer()
    with pytest.raises(LimitExceeded):
        await peer.call(CONVERSATION_HEADS, ConversationHeads(["1"] * 1_001), deadline_ms=5_000)
    with pytest.raises(BadRequest):
        await peer.call(CONVERSATION_HEADS, ConversationHeads(["1", "one"]), deadline_ms=5_000)


# ---------------------------------------------------------------- following


async def test_who_follows_is_pushed_what_is_stored_after_the_next_read(cluster: Cluster):
    """Nothing is missing between the two, and nothing of other conversations comes."""
    end, sender = await cluster.start_access(), await cluster.start_access("access-2")
    await sender.send("ann", "bob", "k1")
    await sender.send("ann", "cleo", "l1")
    end.im.follow(["1"])
    page = await end.im.conversation("1", user="bob", since=0, limit=10, bytes_max=10_000)
    assert [seq for seq, _ in page.entries] == [1]
    await sender.send("ann", "cleo", "l2")
    await sender.send("bob", "ann", "k2")
    push = await end.pushed()
    assert push.epoch == cluster.store.epoch
    page = await end.im.conversation("1", user="bob", since=1, limit=10, bytes_max=10_000)
    assert [(entry.cid, entry.seq, entry.data) for entry in push.entries] == [
        ("1", seq, data) for seq, data in page.entries
    ]
    assert [entry.seq for entry in push.entries] == [2]


async def test_every_node_that_follows_is_told(cluster: Cluster):
    """Until it takes that back."""
    one, other = await cluster.start_access(), await cluster.start_access("access-2")
    await one.send("ann", "bob", "k1")
    one.im.follow(["1"])
    other.im.follow(["1", "2"])
    await cluster.followed(3)
    await one.send("ann", "bob", "k2")
    assert (await one.pushed()).entries == (await other.pushed()).entries
    one.im.unfollow(["1"])
    await cluster.followed(2)
    await one.send("ann", "bob", "k3")
    one.im.follow(["1"])
    await cluster.followed(3)
    await one.send("ann", "bob", "k4")
    assert [entry.seq for entry in await one.entries(1)] == [4]
    assert [entry.seq for entry in await other.entries(2)] == [3, 4]


async def test_messages_come_in_their_order(cluster: Cluster):
    """Whoever sends them at the same time."""
    end = await cluster.start_access()
    end.im.follow(["1"])
    await cluster.followed(1)
    async with asyncio.TaskGroup() as senders:
        for n in range(200):
            senders.create_task(end.send("ann", "bob", f"k{n}"))
    assert [entry.seq for entry in await end.entries(200)] == list(range(1, 201))


async def test_a_status_that_cannot_be_looked_up_delays_no_push_to_who_follows(cluster: Cluster):
    """It is not needed for that."""
    cluster.statuses.is_stuck = True
    end = await cluster.start_access()
    end.im.follow(["1"])
    for n in (1, 2):
        await end.send("ann", "bob", f"k{n}")
        assert [entry.seq for entry in await end.entries(1)] == [n]


async def test_a_push_that_is_refused_is_not_repeated(cluster: Cluster):
    """The next one shows that one is missing, and so do the heads."""
    end = await cluster.start_access()
    end.im.follow(["1"])
    await end.send("ann", "bob", "k1")
    await end.entries(1)
    end.failure = Unavailable("not now")
    await end.send("ann", "bob", "k2")
    failures = cluster.service._metrics.conversation_push_failures
    async with asyncio.timeout(TIMEOUT_S):
        while failures._value.get() != 1:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)
    end.failure = None
    await end.send("ann", "bob", "k3")
    assert [entry.seq for entry in await end.entries(1)] == [3]
    assert await end.im.conversation_heads(["1"]) == {"1": 3}


async def test_a_large_batch_is_pushed_in_parts(cluster: Cluster):
    """By number and by bytes, in order, and a message over the bound goes alone."""
    end = await cluster.start_access()
    end.im.follow(["1", "2"])
    await cluster.followed(2)
    count = 2 * ENTRIES_PER_PUSH + 1
    cluster.shard._pusher.committed([delivery(seq) for seq in range(1, count + 1)])
    parts = [(await end.pushed()).entries for _ in range(3)]
    assert [len(part) for part in parts] == [ENTRIES_PER_PUSH, ENTRIES_PER_PUSH, 1]
    assert [entry.seq for part in parts for entry in part] == list(range(1, count + 1))
    sizes = [BYTES_PER_PUSH + 1, BYTES_PER_PUSH // 2, BYTES_PER_PUSH // 3, BYTES_PER_PUSH // 3]
    cluster.shard._pusher.committed(
        [delivery(seq, cid=2, body=b'"%s"' % (b"x" * size)) for seq, size in enumerate(sizes, 1)]
    )
    assert [[entry.seq for entry in (await end.pushed()).entries] for _ in range(3)] == [[1], [2, 3], [4]]


async def test_a_malformed_name_follows_nothing(cluster: Cluster):
    """Here, before it is told to anybody, and there."""
    end, peer = await cluster.start_access(), await cluster.peer()
    with pytest.raises(BadRequest):
        end.im.follow(["1", "01"])
    end.im.follow(["2"])
    end.im.unfollow(["one"])
    await cluster.followed(1)
    for follow in (Follow(1, ["1", "01"], []), Follow(1, ["1"], ["x"])):
        with pytest.raises(BadRequest):
            await peer.call(FOLLOW, follow, deadline_ms=5_000)
    with pytest.raises(LimitExceeded):
        await peer.call(FOLLOW, Follow(1, ["1"] * 501, ["2"] * 500), deadline_ms=5_000)
    assert cluster.service.statistics()["followed"] == 1


async def test_a_service_says_when_something_is_missing(cluster: Cluster):
    """So that the sender says everything anew; what it said is taken."""
    peer = await cluster.peer()

    async def told(follow: Follow) -> bool:
        return (await peer.call(FOLLOW, follow, deadline_ms=5_000)) == FollowReply(is_whole=True)

    assert await told(Follow(1, ["1", "2"], [], is_first=True, is_last=True))
    assert await told(Follow(2, ["3"], []))
    assert not await told(Follow(4, ["4"], []))
    assert cluster.service.statistics()["followed"] == 4
    assert await told(Follow(5, ["1"], [], is_first=True, is_last=True))
    assert cluster.service.statistics()["followed"] == 1


async def test_too_many_are_refused_and_counted(tmp_path: Path):
    """Over all nodes; the others are followed."""
    async with running(tmp_path, followed_max=3) as cluster:
        one, other = await cluster.start_access(), await cluster.start_access("access-2")
        one.im.follow(["1", "2"])
        await cluster.followed(2)
        other.im.follow(["1", "2"])
        await cluster.followed(3)
        await one.send("ann", "bob", "k1")
        assert (await one.pushed()).entries == (await other.pushed()).entries
        assert cluster.service._metrics.follows_refused._value.get() == 1


# ---------------------------------------------------------------- ends and beginnings


async def test_a_node_whose_stream_ended_is_forgotten(cluster: Cluster):
    """The others are not."""
    one, other = await cluster.start_access(), await cluster.start_access("access-2")
    one.im.follow(["1", "2"])
    other.im.follow(["2"])
    await cluster.followed(3)
    await cluster.stop("access-1")
    await cluster.followed(1)


async def test_a_node_that_fell_silent_is_forgotten(tmp_path: Path):
    """Though its stream lives: it says everything anew three times in that while."""
    clock = SimClock()
    async with running(tmp_path, clock=clock) as cluster:
        peer = await cluster.peer()
        await peer.call(FOLLOW, Follow(1, ["1"], [], is_first=True, is_last=True), deadline_ms=5_000)
        clock.advance(LEASE_MS - 1)
        cluster.shard._pusher.committed([delivery(1)])
        assert cluster.service.statistics()["followed"] == 1
        clock.advance(1)
        await cluster.followed(0)


async def test_a_service_that_forgot_is_told_again(cluster: Cluster):
    """Once a change shows that it did."""
    end = await cluster.start_access()
    end.im.follow(["1", "2"])
    await cluster.followed(2)
    cluster.shard._pusher._followed._followers.forget("access-1")
    end.im.follow(["3"])
    await cluster.followed(3)


async def test_a_change_that_cannot_be_told_is_made_good(cluster: Cluster):
    """By the next stream."""
    end = await cluster.start_access()
    end.im.follow(["1", "2"])
    await cluster.followed(2)
    await cluster.service.node.peers.close()
    end.im.follow(["3"])
    end.im.unfollow(["1", "2"])
    await cluster.followed(1)
    await end.send("ann", "bob", "k1")
    await end.send("ann", "cleo", "k2")
    await end.send("bob", "cleo", "k3")
    assert [entry.cid for entry in await end.entries(1)] == ["3"]


async def test_a_new_life_of_a_service_is_told_what_is_followed(cluster: Cluster):
    """All of it, in several pages, and without anybody asking for it."""
    end = await cluster.start_access()
    cids = [str(cid) for cid in range(1, 2_502)]
    end.im.follow(cids)
    await cluster.followed(2_501)
    await cluster.stop("im-1")
    end.im.unfollow(cids[1:3])
    await cluster.start_service(life=2)
    await cluster.followed(2_499)
    await end.send("ann", "bob", "k1")
    assert [entry.seq for entry in await end.entries(1)] == [1]


async def test_what_is_followed_before_there_is_a_service_is_told_to_the_first(cluster: Cluster):
    """Whoever follows need not know."""
    await cluster.stop("im-1")
    end = await cluster.start_access()
    end.im.follow(["1", "2"])
    await cluster.start_service(life=2)
    await cluster.followed(2)
