"""One suite for the message store port, run on every adapter.

`sqlite-merging` is the SQLite store with bounds so small that it merges, forgets and reads its indexes all the time.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from base.clock import Timestamp
from base.errors import StoreUnavailable
from im.memory import MemoryMessageStore
from im.ports import Appended, ConversationPage, Draft, KeyConflict, Message, MessageStore, Page, TimelineEntry
from im.sqlite import SqliteMessageStore

USERS = ("ann", "bob", "cleo")


async def open_store(kind: str, folder: Path) -> MessageStore:
    match kind:
        case "memory":
            return MemoryMessageStore()
        case "sqlite":
            return await SqliteMessageStore.open(folder / "messages.db")
        case _:
            return await SqliteMessageStore.open(folder / "messages.db", lag_max=3, hot_max=1)


@pytest.fixture(params=["memory", "sqlite", "sqlite-merging"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MessageStore]:
    opened = await open_store(request.param, tmp_path)
    yield opened
    await opened.close()


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Let threads take turns every few microseconds, so that races that there are come out."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.00001)
    yield
    sys.setswitchinterval(interval)


def draft(sender: str = "ann", recipient: str = "bob", key: str = "k1", body: bytes = b"{}") -> Draft:
    return Draft(7, sender, "phone", recipient, key, "text", body, Timestamp(1_000))


def drafts(count: int, *, sender: str = "ann", recipient: str = "bob", first: int = 1) -> list[Draft]:
    return [draft(sender, recipient, f"k{n}") for n in range(first, first + count)]


async def append(store: MessageStore, *batch: Draft) -> list[Appended]:
    """Append drafts that are not expected to conflict."""
    outcomes = await store.append(batch)
    assert all(isinstance(outcome, Appended) for outcome in outcomes)
    return [outcome for outcome in outcomes if isinstance(outcome, Appended)]


async def whole(store: MessageStore, user: str, *, limit: int = 100) -> list[TimelineEntry]:
    """Read a timeline from its beginning, page by page, as a client does."""
    entries: list[TimelineEntry] = []
    while True:
        since = entries[-1].offset if entries else 0
        page = await store.timeline(user, since=since, limit=limit)
        assert [entry.offset for entry in page.entries] == list(range(since + 1, since + 1 + len(page.entries)))
        entries.extend(page.entries)
        if len(page.entries) < limit:
            assert page.head == len(entries)
            return entries


async def whole_conversation(store: MessageStore, cid: int, *, limit: int = 100) -> list[Message]:
    """Read a conversation from its beginning, page by page."""
    messages: list[Message] = []
    while True:
        since = len(messages)
        page = await store.conversation(cid, since=since, limit=limit)
        assert [(one.cid, one.seq) for one in page.messages] == [
            (cid, seq) for seq in range(since + 1, since + 1 + len(page.messages))
        ]
        messages.extend(page.messages)
        if len(page.messages) < limit:
            assert page.head == len(messages)
            return messages


# ---------------------------------------------------------------- places


async def test_a_message_reads_back_as_it_was_stored(store: MessageStore):
    """Every field, whatever its text."""
    sent = Draft(
        2**63 - 1, "ann ☂", "téléphone", "bob\u2019", "κ-1", "image", b'{"text":"\xe2\x98\x82\x00"}', Timestamp(5)
    )
    [appended] = await append(store, sent)
    assert appended.message == Message(
        appended.message.cid, 1, sent.mid, "ann ☂", "téléphone", "bob\u2019", "κ-1", "image", sent.body, Timestamp(5)
    )
    for user in ("ann ☂", "bob\u2019"):
        assert await store.timeline(user, since=0, limit=9) == Page(1, (TimelineEntry(1, appended.message),))


async def test_a_conversation_is_numbered_without_a_hole(store: MessageStore):
    """Both directions count as one, over calls and within one."""
    appended = await append(store, *drafts(5))
    appended += await append(store, *drafts(5, sender="bob", recipient="ann"))
    appended += await append(store, draft("ann", "bob", "k9"), draft("bob", "ann", "k9"))
    assert [one.message.seq for one in appended] == list(range(1, 13))
    assert len({one.message.cid for one in appended}) == 1


async def test_conversations_are_independent(store: MessageStore):
    """Each has its own cid and its own numbers; cids increase in the order of first messages."""
    appended = await append(store, *drafts(4), *drafts(4, recipient="cleo", first=5), *drafts(2, first=9))
    by_cid: dict[int, list[int]] = {}
    for one in appended:
        by_cid.setdefault(one.message.cid, []).append(one.message.seq)
    assert list(by_cid.values()) == [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4]]
    assert sorted(by_cid) == list(by_cid)


async def test_a_timeline_is_numbered_over_all_conversations(store: MessageStore):
    """Each message has an entry in its sender's and its recipient's timeline, in order of commit."""
    appended = await append(store, draft(), draft(recipient="cleo", key="k2"), draft("bob", "cleo"))
    assert [one.positions for one in appended] == [
        (("ann", 1), ("bob", 1)),
        (("ann", 2), ("cleo", 1)),
        (("bob", 2), ("cleo", 2)),
    ]
    messages = [one.message for one in appended]
    assert [entry.message for entry in await whole(store, "ann")] == messages[:2]
    assert [entry.message for entry in await whole(store, "bob")] == [messages[0], messages[2]]
    assert [entry.message for entry in await whole(store, "cleo")] == messages[1:]


async def test_a_message_to_oneself_has_one_entry(store: MessageStore):
    """One user, one timeline, one place in it."""
    [first, second] = await append(store, *drafts(2, recipient="ann"))
    assert (first.positions, second.positions) == ((("ann", 1),), (("ann", 2),))
    assert second.message.seq == 2
    assert len(await whole(store, "ann")) == 2


async def test_a_batch_keeps_its_order(store: MessageStore):
    """What is first in the batch is first in the timeline."""
    batch = [draft("ann", ("bob", "cleo")[n % 2], f"k{n}") for n in range(40)]
    await append(store, *batch)
    assert [entry.message.client_msg_id for entry in await whole(store, "ann")] == [f"k{n}" for n in range(40)]


async def test_an_empty_batch_is_nothing(store: MessageStore):
    """No outcome, no harm."""
    assert await store.append([]) == []


async def test_callers_at_the_same_time_share_one_numbering(store: MessageStore):
    """Ten callers, one conversation: every number once."""
    async with asyncio.TaskGroup() as callers:
        tasks = [callers.create_task(append(store, *drafts(7, first=100 * n))) for n in range(10)]
    seqs = sorted(one.message.seq for task in tasks for one in task.result())
    assert seqs == list(range(1, 71))
    assert len(await whole(store, "bob")) == 70


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize("since_then", [0, 2, 20])
async def test_a_retry_returns_the_original_place(store: MessageStore, since_then: int):
    """From another device, later, with a new message id; and nothing is written."""
    [first] = await append(store, draft())
    for one in drafts(since_then, first=2):
        await append(store, one)
    [again] = await append(store, replace(draft(), device="laptop", at=Timestamp(9_000), mid=8))
    assert again == Appended(first.message, is_new=False, positions=())
    assert await store.heads(["ann", "bob"]) == [1 + since_then] * 2


@pytest.mark.parametrize("since_then", [0, 20])
@pytest.mark.parametrize("changed", [{"recipient": "cleo"}, {"kind": "image"}, {"body": b"[]"}])
async def test_a_key_with_another_payload_is_a_conflict(store: MessageStore, changed: dict, since_then: int):
    """The first message is returned, and nothing is written."""
    [first] = await append(store, draft())
    for one in drafts(since_then, first=2):
        await append(store, one)
    assert await store.append([replace(draft(), **changed)]) == [KeyConflict(first.message)]
    assert await store.heads(["ann", "cleo"]) == [1 + since_then, 0]


async def test_keys_of_different_senders_do_not_meet(store: MessageStore):
    """Client message ids need to be unique for their sender only."""
    appended = await append(store, draft("ann", "bob"), draft("bob", "ann"), draft("cleo", "ann"))
    assert all(one.is_new for one in appended)


async def test_a_batch_may_repeat_its_own_keys(store: MessageStore):
    """A repeat gets the first one's place, another payload a conflict; the rest goes on without a hole."""
    outcomes = await store.append([draft(), draft(), draft(body=b"[]"), draft(key="k2")])
    first, last = outcomes[0], outcomes[3]
    assert isinstance(first, Appended)
    assert isinstance(last, Appended)
    assert outcomes[1:3] == [Appended(first.message, is_new=False, positions=()), KeyConflict(first.message)]
    assert (last.message.seq, last.positions) == (2, (("ann", 2), ("bob", 2)))


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("limit", [1, 3, 7, 30, 31])
async def test_paging_shows_every_entry_once(store: MessageStore, limit: int):
    """Over what is old and what is new, in one call or one by one."""
    for begin in range(1, 31, 3):
        await append(store, *drafts(3, first=begin))
    entries = await whole(store, "bob", limit=limit)
    assert [entry.message.client_msg_id for entry in entries] == [f"k{n}" for n in range(1, 31)]


@pytest.mark.parametrize("since", [3, 4, 1_000, 2**63 - 1, 2**80])
async def test_reading_past_the_head_is_an_empty_page(store: MessageStore, since: int):
    """It still tells the head: a client that is ahead of us learns that it is."""
    await append(store, *drafts(3))
    assert await store.timeline("bob", since=since, limit=5) == Page(3, ())


async def test_an_unknown_user_has_an_empty_timeline(store: MessageStore):
    """Nobody registers users here."""
    assert await store.timeline("nobody", since=0, limit=5) == Page(0, ())


async def test_heads_come_in_the_order_of_the_question(store: MessageStore):
    """Unknown users have 0, and a user may be asked for twice."""
    await append(store, *drafts(20), draft("ann", "cleo", "k99"))
    assert await store.heads(["cleo", "nobody", "ann", "bob", "ann"]) == [1, 0, 21, 20, 21]
    assert await store.heads([f"user-{n}" for n in range(1_000)]) == [0] * 1_000
    assert await store.heads([]) == []


# ---------------------------------------------------------------- conversations


async def test_a_conversation_shows_both_directions(store: MessageStore):
    """Every message of the two in order of commit, and no other."""
    appended = []
    for n in range(1, 12):
        appended += await append(
            store,
            draft(key=f"k{n}"),
            draft("bob", "ann", f"k{n}"),
            draft("bob", "cleo", f"l{n}"),
            draft("ann", "ann", f"m{n}"),
        )
    by_cid: dict[int, list[Message]] = {}
    for one in appended:
        by_cid.setdefault(one.message.cid, []).append(one.message)
    assert [len(messages) for messages in by_cid.values()] == [22, 11, 11]
    for cid, messages in by_cid.items():
        assert await whole_conversation(store, cid) == messages
        assert await whole_conversation(store, cid, limit=3) == messages


@pytest.mark.parametrize("limit", [1, 3, 7, 30, 31])
async def test_paging_through_a_conversation_shows_every_message_once(store: MessageStore, limit: int):
    """Over what is old and what is new, in one call or one by one."""
    for begin in range(1, 31, 3):
        await append(store, *drafts(3, first=begin))
    messages = await whole_conversation(store, 1, limit=limit)
    assert [message.client_msg_id for message in messages] == [f"k{n}" for n in range(1, 31)]


@pytest.mark.parametrize("since", [3, 4, 1_000, 2**63 - 1, 2**80])
async def test_reading_past_the_end_of_a_conversation_is_an_empty_page(store: MessageStore, since: int):
    """It still tells the head."""
    await append(store, *drafts(3))
    assert await store.conversation(1, since=since, limit=5) == ConversationPage(3, ())


async def test_a_conversation_that_does_not_exist_is_empty_and_has_no_members(store: MessageStore):
    """Nobody said anything in it."""
    await append(store, *drafts(8))
    for cid in (2, 2**63 - 1):
        assert await store.conversation(cid, since=0, limit=5) == ConversationPage(0, ())
        assert await store.conversation_heads([cid]) == [0]
        assert not any([await store.is_member(cid, user) for user in (*USERS, "")])


async def test_heads_of_conversations_come_in_the_order_of_the_question(store: MessageStore):
    """What does not exist has 0, and a conversation may be asked for twice."""
    await append(store, *drafts(20), draft("ann", "cleo", "k99"))
    assert await store.conversation_heads([2, 7, 1, 1]) == [1, 0, 20, 20]
    assert await store.conversation_heads(range(3, 1_003)) == [0] * 1_000
    assert await store.conversation_heads([]) == []


@pytest.mark.parametrize("since_then", [0, 2, 20])
async def test_the_two_users_of_a_direct_conversation_are_its_members(store: MessageStore, since_then: int):
    """Whoever wrote first, and nobody else; in a chat with oneself, oneself."""
    await append(store, draft("bob", "ann"), draft("cleo", "cleo"))
    await append(store, *drafts(since_then, recipient="dora"))
    members = {cid: [user for user in (*USERS, "dora") if await store.is_member(cid, user)] for cid in (1, 2)}
    assert members == {1: ["ann", "bob"], 2: ["cleo"]}


@pytest.mark.usefixtures("eager_threads")
async def test_a_reader_never_sees_a_position_below_a_head_that_it_knows(store: MessageStore):
    """Closed positions: whoever reads on from where it was misses nothing, while appends run."""
    total = 120
    done = 0

    async def write() -> None:
        nonlocal done
        for begin in range(1, total + 1, 4):
            await append(store, *drafts(2, first=begin), *drafts(2, sender="cleo", first=begin))
            done += 4

    async def read(limit: int) -> None:
        seen = known_head = 0
        while seen < total:
            committed = done
            page = await store.timeline("bob", since=seen, limit=limit)
            [head] = await store.heads(["bob"])
            assert head >= page.head >= max(known_head, committed)
            count = min(limit, page.head - seen)
            assert [entry.offset for entry in page.entries] == list(range(seen + 1, seen + 1 + count))
            seen += count
            known_head = head
            await asyncio.sleep(0)  # the twin answers without ever letting the writer run

    async def read_conversation(limit: int) -> None:
        seen = known_head = 0
        while seen < total // 2:
            committed = done // 2
            page = await store.conversation(1, since=seen, limit=limit)
            [head] = await store.conversation_heads([1])
            assert head >= page.head >= max(known_head, committed)
            count = min(limit, page.head - seen)
            assert [message.seq for message in page.messages] == list(range(seen + 1, seen + 1 + count))
            seen += count
            known_head = head
            await asyncio.sleep(0)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for limit in (1, 5, 1_000):
            tasks.create_task(read(limit))
            tasks.create_task(read_conversation(limit))
        tasks.create_task(write())


# ---------------------------------------------------------------- life


async def test_an_epoch_names_one_life(store: MessageStore, tmp_path: Path):
    """It is there, it stays, and another store has another."""
    epoch = store.epoch
    await append(store, draft())
    assert epoch == store.epoch != ""
    (tmp_path / "other").mkdir()
    for kind in ("memory", "sqlite"):
        other = await open_store(kind, tmp_path / "other")
        assert other.epoch != epoch
        await other.close()


async def test_a_closed_store_refuses_everything(store: MessageStore):
    """Closing twice does no harm."""
    await append(store, draft())
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.append([draft(key="k2")])
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.timeline("ann", since=0, limit=1)
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.heads(["ann"])
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.conversation(1, since=0, limit=1)
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.conversation_heads([1])
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.is_member(1, "ann")


@pytest.mark.parametrize("kind", ["sqlite", "sqlite-merging"])
async def test_a_restart_keeps_everything(kind: str, tmp_path: Path):
    """Places, keys, timelines and the epoch; numbers go on where they were."""
    before = await open_store(kind, tmp_path)
    for n in range(10):
        await append(before, draft(key=f"k{n}"), draft("cleo", "ann", f"k{n}"))
    timelines = {user: await whole(before, user) for user in USERS}
    conversations = [await whole_conversation(before, cid) for cid in (1, 2)]
    await before.close()

    after = await open_store(kind, tmp_path)
    assert after.epoch == before.epoch
    assert {user: await whole(after, user) for user in USERS} == timelines
    assert [await whole_conversation(after, cid) for cid in (1, 2)] == conversations
    assert [await after.is_member(2, user) for user in USERS] == [True, False, True]
    [repeat, new, other] = await append(after, draft(key="k3"), draft(key="k10"), draft("bob", "cleo"))
    assert repeat == Appended(timelines["bob"][3].message, is_new=False, positions=())
    assert (new.message.seq, new.positions) == (11, (("ann", 21), ("bob", 11)))
    assert (other.message.cid, other.message.seq) == (3, 1)
    await after.close()


CIDS = range(1, 8)  # three users have six conversations, with themselves and each other

BATCHES = st.lists(
    st.builds(
        draft,
        sender=st.sampled_from(USERS),
        recipient=st.sampled_from(USERS),
        key=st.text("ab", min_size=1, max_size=3),
        body=st.sampled_from([b"{}", b"[]"]),
    ),
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.one_of(BATCHES, st.just("restart")), max_size=12),
    lag_max=st.sampled_from([1, 2, 5, 1_000]),
    hot_max=st.sampled_from([0, 2, 1_000]),
    limit=st.integers(1, 5),
)
async def test_sqlite_does_what_the_twin_does(steps: list, lag_max: int, hot_max: int, limit: int):
    """The same outcomes, pages and heads after any history of batches and restarts."""
    twin = MemoryMessageStore()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "messages.db"
        store = await SqliteMessageStore.open(path, readers=1, lag_max=lag_max, hot_max=hot_max)
        try:
            for step in steps:
                if step == "restart":
                    await store.close()
                    store = await SqliteMessageStore.open(path, readers=1, lag_max=lag_max, hot_max=hot_max)
                else:
                    assert await store.append(step) == await twin.append(step)
                assert await store.heads(USERS) == await twin.heads(USERS)
                for user in USERS:
                    assert await whole(store, user, limit=limit) == await whole(twin, user, limit=limit)
                assert await store.conversation_heads(CIDS) == await twin.conversation_heads(CIDS)
                for cid in CIDS:
                    expected = await whole_conversation(twin, cid, limit=limit)
                    assert await whole_conversation(store, cid, limit=limit) == expected
                    for user in USERS:
                        assert await store.is_member(cid, user) == await twin.is_member(cid, user)
        finally:
            await store.close()
