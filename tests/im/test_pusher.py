"""Pushes to access nodes: who is told what, in which order, and what becomes of whoever cannot be told now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from access.api import InboxEntry
from base.clock import Timestamp
from base.errors import Unavailable
from im import pusher
from im.core.commands import Delivery
from im.core.model import Form, Message
from im.followed import BYTES_PER_PUSH
from tests.im.cluster import TIMEOUT_S, Cluster, running


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path) as made:
        yield made


async def becomes(look: Callable[[], object]) -> None:
    """For facts that arrive by themselves, soon."""
    async with asyncio.timeout(TIMEOUT_S):
        while not look():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)


def body_of(entry: InboxEntry) -> Any:
    return msgspec.json.decode(entry.data)["body"]["text"]


def missed(cluster: Cluster) -> list[tuple[str, str]]:
    """What the offline feed has: user, and key of the message."""
    page = cluster.service._offline.read("", limit=1_000)
    assert page is not None
    return [(item.user, item.message.client_msg_id) for item in page.items]


@pytest.mark.spec("PP-01", "OR-08")
async def test_all_devices_of_both_sides_are_told_in_order(cluster: Cluster):
    """Each access node once for all its sessions, with the offset in the user's own timeline."""
    one, other = await cluster.start_access(), await cluster.start_access("access-2")
    cluster.statuses.online = {"ann": ("access-1",), "bob": ("access-1", "access-2", "access-2")}
    for n in range(5):
        await one.send("ann", "bob", f"k{n}")
    entries = await one.inbox(10)
    for user in ("ann", "bob"):
        mine = [entry for entry in entries if entry.user == user]
        assert [(entry.offset, body_of(entry)) for entry in mine] == [(n + 1, f"k{n}") for n in range(5)]
    assert [(entry.user, entry.offset) for entry in await other.inbox(5)] == [("bob", n) for n in range(1, 6)]
    assert missed(cluster) == []


async def test_who_is_offline_is_in_the_feed_and_its_sender_is_not(cluster: Cluster):
    """Nobody is told of the own messages, of edits, or of notes."""
    end = await cluster.start_access()
    await end.send("ann", "bob", "k1")
    await end.call("ann", "edit", cid="1", seq=1, client_msg_id="e", body=2)
    await end.call("bob", "mark", cid="1", read_seq=1)
    await end.send("bob", "ann", "k2")
    await becomes(lambda: len(missed(cluster)) == 2)
    assert missed(cluster) == [("bob", "k1"), ("ann", "k2")]


async def test_who_cannot_be_looked_up_is_told_later_how_far_the_timeline_goes(cluster: Cluster):
    """One entry without data for all that was missed: the access node fetches it."""
    end = await cluster.start_access()
    cluster.statuses.unknown = {"bob"}
    for n in range(3):
        await end.send("ann", "bob", f"k{n}")
    await becomes(lambda: cluster.shard.statistics()["push_behind"] == 1)
    cluster.statuses.online, cluster.statuses.unknown = {"bob": ("access-1",)}, set()
    assert (await end.inbox(1))[0] == InboxEntry("bob", 3, b"")
    assert missed(cluster) == []
    await end.send("ann", "bob", "k3")
    assert (await end.inbox(1))[0].offset == 4


async def test_who_could_not_be_looked_up_and_is_offline_is_in_the_feed(cluster: Cluster):
    """With everything from the first message on that could not be pushed; not with what was before, nor twice."""
    end = await cluster.start_access()
    cluster.statuses.online = {"bob": ("access-1",)}
    await end.send("ann", "bob", "before")
    await end.inbox(1)
    cluster.statuses.online, cluster.statuses.unknown = {}, {"bob"}
    for n in range(3):
        await end.send("ann", "bob", f"k{n}")
        await becomes(lambda: cluster.shard.statistics()["push_behind"] == 1)
    await end.send("bob", "ann", "own")
    await becomes(lambda: missed(cluster) == [("ann", "own")])
    cluster.statuses.unknown = set()
    await becomes(lambda: len(missed(cluster)) >= 4)
    assert missed(cluster)[1:] == [("bob", "k0"), ("bob", "k1"), ("bob", "k2")]
    assert cluster.shard.statistics()["push_behind"] == 0


async def test_who_was_at_a_node_that_crashed_is_in_the_feed_with_everything(cluster: Cluster):
    """Though the hints fail as well, for as long as the status cluster takes it for alive."""
    end = await cluster.start_access()
    cluster.statuses.online = {"bob": ("access-1",)}
    end.failure = Unavailable("crashed")
    for n in range(3):
        await end.send("ann", "bob", f"k{n}")
    failures = cluster.service._metrics.push_failures._value
    await becomes(lambda: failures.get() >= 5)
    cluster.statuses.online = {}
    await becomes(lambda: len(missed(cluster)) >= 3)
    assert missed(cluster) == [("bob", "k0"), ("bob", "k1"), ("bob", "k2")]
    assert cluster.shard.statistics()["push_behind"] == 0


async def test_what_finds_its_receiver_offline_behind_what_waits_is_in_the_feed_once_and_in_its_place(cluster: Cluster):
    """Nobody is notified twice of what came between the end of a crashed node's lease and the next hint."""
    end = await cluster.start_access()
    cluster.statuses.online = {"bob": ("access-1",)}
    end.failure = Unavailable("crashed")
    await end.send("ann", "bob", "k0")
    await becomes(lambda: cluster.shard.statistics()["push_behind"] == 1)
    cluster.statuses.online = {}
    await end.send("ann", "bob", "k1")
    await end.send("ann", "bob", "k2")
    await becomes(lambda: ("bob", "k2") in missed(cluster))
    await end.send("ann", "bob", "k3")
    await becomes(lambda: ("bob", "k3") in missed(cluster))
    assert missed(cluster) == [("bob", f"k{n}") for n in range(4)]
    assert cluster.shard.statistics()["push_behind"] == 0


async def test_a_hint_that_fails_does_not_tell_again_of_what_came_meanwhile(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    """It ends where it ended; what found its receiver offline while it was under way was told at once."""
    end = await cluster.start_access()
    cluster.statuses.unknown = {"bob"}
    await end.send("ann", "bob", "k0")
    await becomes(lambda: cluster.shard.statistics()["push_behind"] == 1)
    fails = asyncio.Event()

    async def call(*_request: object, **_options: object) -> None:
        await fails.wait()
        raise Unavailable("crashed")

    monkeypatch.setattr(cluster.shard._pusher._pool.get("access-1"), "call", call)
    cluster.statuses.online, cluster.statuses.unknown = {"bob": ("access-1",)}, set()
    await becomes(lambda: cluster.shard.statistics()["push_behind"] == 0)
    cluster.statuses.online = {}  # while the hint is under way
    await end.send("ann", "bob", "k1")
    await becomes(lambda: missed(cluster) == [("bob", "k1")])
    fails.set()
    await becomes(lambda: len(missed(cluster)) >= 2)
    assert missed(cluster) == [("bob", "k1"), ("bob", "k0")]


async def test_what_a_hint_told_of_is_not_missed(cluster: Cluster):
    """Only what could not be pushed after it."""
    end = await cluster.start_access()
    cluster.statuses.online = {"bob": ("access-1",)}
    end.failure = Unavailable("not now")
    await end.send("ann", "bob", "k1")
    await becomes(lambda: cluster.shard.statistics()["push_behind"] == 1)
    end.failure = None
    assert (await end.inbox(1))[0] == InboxEntry("bob", 1, b"")
    cluster.statuses.unknown = {"bob"}
    await end.send("ann", "bob", "k2")
    await becomes(lambda: cluster.shard.statistics()["push_behind"] == 1)
    cluster.statuses.online, cluster.statuses.unknown = {}, set()
    await becomes(lambda: missed(cluster))
    assert missed(cluster) == [("bob", "k2")]


async def test_a_push_that_fails_is_told_again_until_it_is_taken(cluster: Cluster):
    """As a hint, never twice in full."""
    end = await cluster.start_access()
    cluster.statuses.online = {"bob": ("access-1",)}
    end.failure = Unavailable("not now")
    await end.send("ann", "bob", "k1")
    await becomes(lambda: cluster.service._metrics.push_failures._value.get() >= 2)
    end.failure = None
    assert (await end.inbox(1))[0] == InboxEntry("bob", 1, b"")


async def test_senders_are_told_when_the_pushes_have_left(cluster: Cluster):
    """Or soon, if statuses are not to be had."""
    end = await cluster.start_access()
    cluster.statuses.online = {"bob": ("access-1",)}
    told: list[int] = []
    cluster.shard._pusher.committed([delivery(1, "bob")], lambda: told.append(1))
    assert told == []
    await end.inbox(1)
    await becomes(lambda: told[:1] == [1])
    cluster.statuses.is_stuck = True
    cluster.shard._pusher.committed([delivery(2, "bob")], lambda: told.append(2))
    await becomes(lambda: 2 in told)


async def test_what_does_not_fit_waits_nowhere(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    """Its users are behind, and hear of it; so many may be, and the audits of the access nodes find the others."""
    monkeypatch.setattr(pusher, "QUEUE_MAX", 2)
    end = await cluster.start_access()
    cluster.statuses.online = {f"u{n}": ("access-1",) for n in range(6)}
    cluster.shard._pusher.committed([delivery(n, f"u{n}") for n in range(1, 6)])
    found = {entry.user: entry for entry in await end.inbox(5)}
    assert [bool(found[f"u{n}"].data) for n in range(1, 6)] == [True, True, False, False, False]


def delivery(n: int, user: str, *, size: int = 2) -> Delivery:
    body = b'"%s"' % (b"x" * size)
    at = Timestamp(1)
    message = Message(n, n, 1, 1, n, "ann", "phone", user, f"k{n}", Form.MESSAGE, "text", 0, body, b"", at)
    return Delivery(message, ((user, 1),), "write")


async def test_a_large_batch_goes_in_parts(cluster: Cluster):
    """Else one call would be too long for a stream, and everybody in it behind."""
    end = await cluster.start_access()
    cluster.statuses.online = {f"u{n}": ("access-1",) for n in range(200)}
    cluster.shard._pusher.committed([delivery(n, f"u{n}", size=60_000) for n in range(200)])
    pushes = []
    while sum(map(len, pushes)) < 200:
        pushes.append((await end.inbox_push()).entries)
    assert [entry.user for part in pushes for entry in part] == [f"u{n}" for n in range(200)]
    assert all(sum(len(entry.data) for entry in part) <= BYTES_PER_PUSH for part in pushes)


async def test_small_conversations_with_read_fan_out_are_pushed_with_versions(tmp_path: Path):
    """Offset 0, since they are in no timeline, and the version that the receiver should have after it."""
    async with running(tmp_path, preset="qq") as cluster:
        end = await cluster.start_access()
        cluster.statuses.online = {"bob": ("access-1",)}
        await end.send("ann", "bob", "k1")
        (entry,) = await end.inbox(1)
        assert (entry.offset, body_of(entry)) == (0, "k1")
        assert b"sync_version" not in entry.data, "nobody has asked for it yet"
        assert (await end.im.heads(["bob"])).versions == {"bob": 1}
        await end.send("ann", "bob", "k2")
        (entry,) = await end.inbox(1)
        assert msgspec.json.decode(entry.data)["sync_version"] == 2
        await becomes(lambda: missed(cluster) == [])
        cluster.statuses.online = {}
        await end.send("ann", "bob", "k3")
        await becomes(lambda: missed(cluster) == [("bob", "k3")])


async def test_versions_count_what_is_not_pushed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A full queue loses pushes; whoever compares versions afterwards finds out."""
    async with running(tmp_path, preset="qq") as cluster:
        end = await cluster.start_access()
        await end.send("ann", "bob", "k1")
        assert (await end.im.heads(["bob"])).versions == {"bob": 1}
        monkeypatch.setattr(pusher, "QUEUE_MAX", 0)
        await end.send("ann", "bob", "k2")
        assert (await end.im.heads(["bob"])).versions == {"bob": 2}
        assert (await end.call("bob", "conversations"))["sync_version"] == 2


async def test_something_of_the_moment_goes_to_who_is_online_or_nowhere(cluster: Cluster):
    """With the offset 0; it is neither kept nor told again."""
    end = await cluster.start_access()
    await end.send("ann", "bob", "k1")
    cluster.statuses.online = {"ann": ("access-1",)}
    await end.call("bob", "typing", cid="1")
    (entry,) = await end.inbox(1)
    assert (entry.user, entry.offset) == ("ann", 0)
    cluster.statuses.online, cluster.statuses.unknown = {}, {"ann"}
    await end.call("bob", "typing", cid="1")
    cluster.statuses.unknown = set()
    await end.call("bob", "typing", cid="1")
    await end.send("bob", "ann", "k2")
    await becomes(lambda: ("ann", "k2") in missed(cluster))
    assert missed(cluster) == [("bob", "k1"), ("ann", "k2")]
    assert cluster.shard.statistics()["push_behind"] == 0
