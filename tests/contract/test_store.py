"""One suite for the message store port, run on every adapter.

`sqlite-merging` is the SQLite store with bounds so small that it merges, forgets and reads its indexes all the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from base.clock import Timestamp
from base.errors import StoreUnavailable
from im.core.commands import (
    Appended,
    Cause,
    Draft,
    GroupChanged,
    KeyConflict,
    Mark,
    Queued,
    Refused,
    Trim,
    Trimmed,
)
from im.core.fan_out import PRESETS
from im.core.ledger import LedgerSettings
from im.core.model import Conversation, Form, Member, Message, Overlay, Role, View
from im.ports import ConversationPage, MessageStore, Page, TimelineEntry, Visible
from tests.contract.stores import (
    NOW,
    USERS,
    append,
    carry_out,
    change,
    draft,
    drafts,
    finish,
    group_of,
    listing,
    make_group,
    make_steps_small,
    open_store,
    push_out_of_memory,
    revise,
    texts,
    whole,
    whole_conversation,
)

BOTH = (("ann", "bob"), ("bob", "ann"))


@pytest.fixture
async def read_store(kind: str, tmp_path: Path) -> AsyncIterator[MessageStore]:
    """A store in which even two users read their log."""
    opened = await open_store(kind, tmp_path, LedgerSettings(policy=PRESETS["qq"]))
    yield opened
    await opened.close()


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make fan-outs go on over many transactions with few users."""
    make_steps_small(monkeypatch)


# ---------------------------------------------------------------- places


@pytest.mark.spec("CC-02")
@pytest.mark.parametrize("mid", [2**63 - 1, "0123", "1e5", "018f-é"])
async def test_a_message_reads_back_as_it_was_stored(store: MessageStore, mid: int | str):
    """Every field, whatever its text; an id that looks like a number stays text."""
    sent = Draft(
        mid,
        "ann ☂",
        "téléphone",
        "bob\u2019",
        0,
        "κ-1",
        "image",
        b'{"text":"\xe2\x98\x82\x00"}',
        Timestamp(5),
        mentions=b'["bob\xe2\x80\x99"]',
    )
    [first] = await append(store, sent)
    [reply] = await append(store, replace(sent, client_msg_id="κ-2", ref=1))
    expected = Message(
        first.n,
        first.cid,
        1,
        1,
        mid,
        "ann ☂",
        "téléphone",
        "bob\u2019",
        "κ-1",
        Form.MESSAGE,
        "image",
        0,
        sent.body,
        sent.mentions,
        Timestamp(5),
    )
    again = replace(expected, n=reply.n, seq=2, cseq=2, client_msg_id="κ-2", ref=1)
    await push_out_of_memory(store)
    for user in ("ann ☂", "bob\u2019"):
        page = await store.timeline(user, since=0, limit=9)
        assert page == Page(2, 0, (TimelineEntry(1, expected), TimelineEntry(2, again)), {})
    assert await store.conversation(first.cid, since=0, limit=9) == ConversationPage(2, (expected, again), {})
    assert await carry_out(store, sent) == [Appended(expected, is_new=False)]


async def test_all_entries_of_a_conversation_share_one_numbering(store: MessageStore):
    """Messages of both, edits and recalls, over calls and within one; only messages count in `cseq`."""
    messages = await append(store, draft(), draft("bob", "ann"), draft(key="k2"))
    messages += await append(store, revise("ann", 1, 1, "e1"), draft("bob", "ann", "k2"))
    messages += await append(store, revise("ann", 1, 3, "r1", recall=True), draft(key="k3"))
    assert [(one.seq, one.cseq) for one in messages] == [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (6, 4), (7, 5)]
    await push_out_of_memory(store)
    assert await whole_conversation(store, 1, limit=3) == messages


async def test_conversations_are_independent(store: MessageStore):
    """Each has its own cid and its own numbers; cids increase in the order of first messages."""
    messages = await append(store, *drafts(4), *drafts(4, to="cleo", first=5), *drafts(2, first=9))
    by_cid: dict[int, list[int]] = {}
    for one in messages:
        by_cid.setdefault(one.cid, []).append(one.seq)
    assert by_cid == {1: [1, 2, 3, 4, 5, 6], 2: [1, 2, 3, 4]}


@pytest.mark.spec("CC-11", "MI-03")
async def test_a_timeline_is_numbered_over_all_conversations(store: MessageStore):
    """Each message has an entry in its sender's and its recipient's timeline, in order of commit."""
    executed = await store.execute([draft(), draft(to="cleo", key="k2"), draft("bob", "cleo")])
    assert [delivery.positions for delivery in executed.deliveries] == [
        (("ann", 1), ("bob", 1)),
        (("ann", 2), ("cleo", 1)),
        (("bob", 2), ("cleo", 2)),
    ]
    messages = [delivery.message for delivery in executed.deliveries]
    assert [entry.message for entry in await whole(store, "ann")] == messages[:2]
    assert [entry.message for entry in await whole(store, "bob")] == [messages[0], messages[2]]
    assert [entry.message for entry in await whole(store, "cleo")] == messages[1:]


async def test_a_message_to_oneself_has_one_entry(store: MessageStore):
    """One user, one timeline, one place in it."""
    await append(store, *drafts(2, to="ann"))
    await push_out_of_memory(store)
    assert [entry.message.seq for entry in await whole(store, "ann")] == [1, 2]
    [listed] = (await listing(store, "ann")).values()
    assert (listed.conversation.lo, listed.conversation.hi, listed.members) == ("ann", "ann", 1)


async def test_a_batch_of_nothing_is_nothing(store: MessageStore):
    """No outcome, no harm."""
    executed = await store.execute([])
    assert (executed.outcomes, executed.deliveries, store.has_work) == ([], [], False)


@pytest.mark.spec("CC-03", "MI-05", "CI-04", "DT-02")
async def test_callers_at_the_same_time_share_one_numbering(store: MessageStore):
    """A thousand first messages of a pair at the same time make one conversation, with every number once."""
    async with asyncio.TaskGroup() as callers:
        tasks = [
            callers.create_task(append(store, *(draft(*pair, f"k{caller}-{n}") for pair in BOTH for n in range(10))))
            for caller in range(50)
        ]
    found = [message for task in tasks for message in task.result()]
    assert {one.cid for one in found} == {1}
    assert sorted(one.seq for one in found) == list(range(1, 1_001))
    assert (await store.timeline("bob", since=999, limit=5)).head == 1_000


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize("since_then", [0, 2, 20])
async def test_a_retry_returns_the_original_place(store: MessageStore, since_then: int):
    """From another device, later, with a new message id; and nothing is written."""
    [first] = await append(store, draft())
    for one in drafts(since_then, first=2):
        await append(store, one)
    again = replace(draft(), device="laptop", at=Timestamp(9_000), mid=8)
    assert await carry_out(store, again) == [Appended(first, is_new=False)]
    assert await store.heads(["ann", "bob"]) == [1 + since_then] * 2


@pytest.mark.parametrize("since_then", [0, 20])
@pytest.mark.parametrize("changed", [{"to": "cleo"}, {"kind": "image"}, {"body": b"[]"}])
async def test_a_key_with_another_payload_is_a_conflict(store: MessageStore, changed: dict, since_then: int):
    """The first message is returned, and nothing is written."""
    [first] = await append(store, draft())
    for one in drafts(since_then, first=2):
        await append(store, one)
    assert await carry_out(store, replace(draft(), **changed)) == [KeyConflict(first)]
    assert await store.heads(["ann", "cleo"]) == [1 + since_then, 0]


async def test_a_batch_may_repeat_its_own_keys(store: MessageStore):
    """A repeat gets the first one's place, another payload a conflict; the rest goes on without a hole."""
    outcomes = await carry_out(store, draft(), draft(), draft(body=b"[]"), draft(key="k2"))
    first, last = outcomes[0], outcomes[3]
    assert isinstance(first, Appended)
    assert isinstance(last, Appended)
    assert outcomes[1:3] == [Appended(first.message, is_new=False), KeyConflict(first.message)]
    assert last.message.seq == 2


@pytest.mark.parametrize("since_then", [0, 20])
async def test_making_a_group_twice_makes_one(store: MessageStore, since_then: int):
    """Its key is an idempotency key as well, in memory and in the index."""
    cid = await make_group(store, group_of("bob"))
    await push_out_of_memory(store, since_then)
    [again] = await carry_out(store, group_of("bob"))
    assert isinstance(again, GroupChanged)
    assert (again.conversation.cid, again.is_new) == (cid, False)
    assert (await listing(store, "ann")).keys() == {cid}


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("limit", [1, 3, 7, 30, 31])
async def test_paging_shows_every_entry_once(store: MessageStore, limit: int):
    """Over what is old and what is new, in one call or one by one."""
    for begin in range(1, 31, 3):
        await append(store, *drafts(3, first=begin))
    expected = [f"k{n}" for n in range(1, 31)]
    assert [entry.message.client_msg_id for entry in await whole(store, "bob", limit=limit)] == expected
    assert [message.client_msg_id for message in await whole_conversation(store, 1, limit=limit)] == expected


@pytest.mark.parametrize("since", [3, 4, 1_000, 2**63 - 1, 2**80])
async def test_reading_past_the_head_is_an_empty_page(store: MessageStore, since: int):
    """It still tells the head: a client that is ahead of us learns that it is."""
    await append(store, *drafts(3))
    assert await store.timeline("bob", since=since, limit=5) == Page(3, 0, (), {})
    assert await store.conversation(1, since=since, limit=5) == ConversationPage(3, (), {})


@pytest.mark.parametrize("before", [0, 1, 2, 8, 9, 1_000, 2**80])
async def test_reading_back_ends_at_the_beginning(store: MessageStore, before: int):
    """The last ones before `before`, as many as there are."""
    messages = await append(store, *drafts(8))
    await push_out_of_memory(store, 7)
    page = await store.conversation_before(1, before=before, limit=5)
    assert page == ConversationPage(8, tuple(messages[: max(0, before - 1)][-5:]), {})


async def test_single_entries_are_found_by_seq(store: MessageStore):
    """Ascending, each once, and only those that there are."""
    messages = await append(store, *drafts(9))
    assert await store.messages(1, [9, 2, 2, 0, 10, 2**70]) == ConversationPage(9, (messages[1], messages[8]), {})
    assert await store.messages(1, []) == ConversationPage(9, (), {})
    assert await store.messages(2, [1]) == ConversationPage(0, (), {})


async def test_what_does_not_exist_is_empty(store: MessageStore):
    """Nobody registers users, and nobody said anything in these conversations."""
    await append(store, *drafts(8))
    assert await store.timeline("nobody", since=0, limit=5) == Page(0, 0, (), {})
    assert await store.conversations("nobody") == []
    for cid in (2, 2**63 - 1):
        assert await store.conversation(cid, since=0, limit=5) == ConversationPage(0, (), {})
        assert await store.conversation_before(cid, before=9, limit=5) == ConversationPage(0, (), {})
        assert await store.conversation_heads([cid]) == [0]
        assert await store.listed("ann", [cid]) == []
        assert await store.members(cid, after="", limit=5) == []
        assert list(await store.users(cid, at_most=5)) == []
        assert await store.views(cid, read_from=1, limit=5) == []
        assert [await store.membership(cid, user) for user in (*USERS, "")] == [None] * 5


async def test_heads_come_in_the_order_of_the_question(store: MessageStore):
    """Unknown ones have 0, and any may be asked for twice."""
    await append(store, *drafts(20), draft("ann", "cleo", "k99"))
    assert await store.heads(["cleo", "nobody", "ann", "bob", "ann"]) == [1, 0, 21, 20, 21]
    assert await store.heads([f"user-{n}" for n in range(1_000)]) == [0] * 1_000
    assert await store.heads([]) == []
    assert await store.conversation_heads([2, 7, 1, 1]) == [1, 0, 20, 20]
    assert await store.conversation_heads(range(3, 1_003)) == [0] * 1_000
    assert await store.conversation_heads([]) == []


async def test_the_log_shows_all_conversations_in_order_of_commit(store: MessageStore):
    """Without notes, whose numbers are passed over."""
    messages = await append(store, draft(), draft("cleo", "bob"), revise("ann", 1, 1, "e1"))
    await carry_out(store, Mark("bob", "phone", 1, NOW, read_seq=1))
    messages += await append(store, draft(key="k2"))
    assert await store.log(after=0, limit=9) == messages
    assert await store.log(after=messages[0].n, limit=2) == messages[1:3]
    assert await store.log(after=messages[3].n, limit=2) == []
    assert messages[3].n > messages[2].n + 1, "there was a note"


# ---------------------------------------------------------------- edits and recalls


@pytest.mark.parametrize("since_then", [0, 20])
async def test_pages_come_with_what_became_of_their_messages(store: MessageStore, since_then: int):
    """The newest edit, or the recall; the entries themselves stay as they were, but that an old edit says nothing."""
    messages = await append(store, *drafts(3), revise("ann", 1, 1, "e1", b"1"), revise("ann", 1, 1, "e2", b"2"))
    await push_out_of_memory(store, since_then)
    messages += await append(store, revise("ann", 1, 2, "r1", recall=True))
    overlays = {
        (1, 1): Overlay(1, 1, 5, is_recalled=False, cseq=1, body=b"2", mentions=b""),
        (1, 2): Overlay(1, 2, 6, is_recalled=True, cseq=2, body=b"", mentions=b""),
        (1, 4): Overlay(1, 4, 5, is_recalled=False, cseq=1, body=b"", mentions=b""),
    }
    assert await store.conversation(1, since=0, limit=9) == ConversationPage(6, tuple(messages), overlays)
    assert await store.conversation_before(1, before=4, limit=9) == ConversationPage(
        6, tuple(messages[:3]), {place: overlays[place] for place in [(1, 1), (1, 2)]}
    )
    assert (await store.messages(1, [2, 3])).overlays == {(1, 2): overlays[1, 2]}
    page = await store.timeline("bob", since=1, limit=3)
    assert ([entry.message for entry in page.entries], page.overlays) == (
        messages[1:4],
        {place: overlays[place] for place in [(1, 2), (1, 4)]},
    )
    [refused] = await carry_out(store, revise("ann", 1, 2, "e3"))
    assert refused == Refused(Cause.RECALLED)


# ---------------------------------------------------------------- groups


@pytest.mark.usefixtures("small_steps")
async def test_a_fan_out_that_takes_many_transactions_reaches_everybody_once(store: MessageStore):
    """In the log's order for each, beside other groups and single conversations."""
    cids = [await make_group(store, group_of("bob", "cleo", "dan", key=f"g{n}")) for n in range(2)]
    await finish(store)
    for n in range(6):
        await append(store, draft("bob", cid=cids[n % 2], key=f"m{n}"), draft("cleo", "dan", f"s{n}"))
    assert store.has_work
    assert await finish(store) > 2
    for user in USERS:
        entries = [entry.message for entry in await whole(store, user)]
        for cid in cids:
            assert [one for one in entries if one.cid == cid] == await whole_conversation(store, cid)
    assert [one for one in await texts(store, "dan") if one.startswith("s")] == [f"s{n}" for n in range(6)]


async def test_a_switch_of_strategy_is_an_entry_of_the_log(store: MessageStore):
    """What follows is in the log only, until it is switched back; two users may be switched too."""
    cid = await make_group(store, group_of("bob"))
    single = (await append(store, draft("cleo", "dan")))[0].cid
    for of in (cid, single):
        await carry_out(store, change("", of, "fan_out", value="read"))
        await append(store, draft("ann" if of == cid else "cleo", cid=of, key="in the log"))
        await carry_out(store, change("", of, "fan_out", value="write"))
        await append(store, draft("ann" if of == cid else "cleo", cid=of, key="told"))
    await push_out_of_memory(store)
    assert await texts(store, "bob") == ["g1", "group", "group", "told"]
    assert await texts(store, "dan") == ["k1", "group", "group", "told"]
    assert [one.client_msg_id for one in await whole_conversation(store, single)] == [
        "k1",
        "",
        "in the log",
        "",
        "told",
    ]
    assert await store.membership(single, "dan") == Visible(1, 0, Role.MEMBER)
    assert (await listing(store, "dan"))[single].conversation == Conversation(single, "single", "write", "cleo", "dan")


async def test_two_users_may_read_their_log(read_store: MessageStore):
    """Where the policy says so: no timeline, and the conversation is listed all the same."""
    messages = await append(read_store, *drafts(5))
    await push_out_of_memory(read_store)
    assert await read_store.heads(["ann", "bob"]) == [0, 0]
    assert await whole_conversation(read_store, 1) == messages
    [listed] = await read_store.conversations("bob")
    assert listed.conversation == Conversation(1, "single", "read", "ann", "bob")
    [answer] = await append(read_store, draft("bob", "ann"))
    assert (answer.cid, answer.seq) == (1, 6)


# ---------------------------------------------------------------- views and lists


@pytest.mark.parametrize("since_then", [0, 20])
async def test_a_list_shows_each_conversation_as_its_user_has_it(store: MessageStore, since_then: int):
    """Groups, single conversations, those that were left; heads, ends and what counts."""
    cid = await make_group(store, group_of("bob", "cleo"))
    await append(store, draft(cid=cid, key="m1"), draft("bob", "cleo", "s1"), draft("cleo", "ann", "s2"))
    await carry_out(store, change("bob", cid, "leave"))
    [edited, _] = await append(store, draft(cid=cid, key="m2"), revise("ann", cid, 2, "e1", b"new"))
    await carry_out(store, Mark("bob", "phone", 2, NOW, read_seq=1, is_muted=True))
    await push_out_of_memory(store, since_then)
    bob, ann = await listing(store, "bob"), await listing(store, "ann")
    assert bob.keys() == {cid, 2}
    assert ann.keys() == {cid, 3}
    left, single, own = bob[cid], bob[2], ann[cid]
    assert left.member == Member(cid, "bob", Role.MEMBER, 1, 1, 0, leave_seq=3)
    assert (left.max_seq, left.max_cseq, left.head and left.head.seq, left.members) == (3, 1, 3, 2)
    assert single.view == View("bob", 2, read_seq=1, read_cseq=1, sent_seq=1, sent_cseq=1, is_muted=True)
    assert (single.member, single.members, single.max_seq) == (None, 2, 1)
    assert (own.max_seq, own.max_cseq, own.head, own.head_overlay) == (5, 2, edited, None)
    assert own.view == View("ann", cid, sent_seq=4, sent_cseq=2)
    assert [one.conversation.cid for one in await store.listed("ann", [3, 2, 9, cid, 3])] in ([3, cid], [cid, 3])


@pytest.mark.parametrize("since_then", [0, 20])
async def test_a_list_shows_the_newest_message_as_it_is_now(store: MessageStore, since_then: int):
    """Not the edit or the recall itself; the end is counted with them."""
    [first, *_] = await append(
        store, draft(), revise("ann", 1, 1, "e1"), revise("ann", 1, 1, "e2"), revise("ann", 1, 1, "r1", recall=True)
    )
    await push_out_of_memory(store, since_then)
    [listed] = await store.conversations("bob")
    assert (listed.head, listed.max_seq, listed.max_cseq, listed.recalled) == (first, 4, 1, 1)
    assert listed.head_overlay == Overlay(1, 1, 4, is_recalled=True, cseq=1, body=b"", mentions=b"")


@pytest.mark.parametrize("since_then", [0, 20])
async def test_only_what_is_unread_counts_as_recalled_or_mentioned(store: MessageStore, since_then: int):
    """After the greatest of what was read, sent, hidden and where the user joined."""
    cid = await make_group(store, group_of("bob", "cleo", history="all"))
    mention = replace(draft(cid=cid), mentions=b'["bob"]')
    everybody = replace(draft(cid=cid), mentions=b'["*"]')
    await append(store, *(replace(mention, client_msg_id=f"a{n}") for n in range(4)))
    await append(store, replace(everybody, client_msg_id="b1"), replace(mention, client_msg_id="b2"))
    await append(store, *(revise("ann", cid, seq, f"r{seq}", recall=True) for seq in (2, 4, 7)))
    await carry_out(store, change("ann", cid, "invite", "dan"))
    await push_out_of_memory(store, since_then)

    async def counts(user: str) -> tuple[int, int]:
        [listed] = await store.listed(user, [cid])
        return listed.recalled, listed.mentioned_seq

    assert [await counts(user) for user in USERS] == [(0, 0), (3, 6), (3, 6), (0, 0)]
    await carry_out(store, Mark("bob", "phone", cid, NOW, read_seq=3), Mark("cleo", "phone", cid, NOW, read_seq=6))
    assert [await counts(user) for user in ("bob", "cleo")] == [(2, 6), (1, 0)]
    await append(store, draft("bob", cid=cid, key="own"))
    assert await counts("bob") == (0, 0)
    await carry_out(store, Mark("cleo", "phone", cid, NOW, is_hidden=True))
    assert await counts("cleo") == (0, 0)


@pytest.mark.parametrize("since_then", [0, 20])
async def test_readers_are_those_who_read_so_far_or_answered(store: MessageStore, since_then: int):
    """By name, up to the limit; present members only, and of them who were there when it was said."""
    cid = await make_group(store, group_of("bob", "cleo", "dan"))
    await append(store, *(draft(cid=cid, key=f"m{n}") for n in range(5)), draft("cleo", cid=cid))
    await carry_out(
        store,
        Mark("bob", "phone", cid, NOW, read_seq=4),
        Mark("dan", "phone", cid, NOW, read_seq=6, delivered_seq=7),
        change("dan", cid, "leave"),
        change("ann", cid, "invite", "eve", "fay"),
        Mark("eve", "phone", cid, NOW, read_seq=9),
        draft("fay", cid=cid),
    )
    await push_out_of_memory(store, since_then)
    cleo = View("cleo", cid, sent_seq=7, sent_cseq=6)
    bob = View("bob", cid, read_seq=4, read_cseq=3)
    ann = View("ann", cid, sent_seq=6, sent_cseq=5)
    assert [view.user for view in await store.views(cid, read_from=9, limit=9)] == ["eve", "fay"]
    assert await store.views(cid, read_from=7, limit=9) == [cleo]
    assert await store.views(cid, read_from=4, limit=9) == [ann, bob, cleo]
    assert await store.views(cid, read_from=1, limit=2) == [ann, bob]
    single = (await append(store, draft("cleo", "dan", "s1")))[0].cid
    await push_out_of_memory(store, since_then)
    assert await store.views(single, read_from=1, limit=9) == [View("cleo", single, sent_seq=1, sent_cseq=1)]


# ---------------------------------------------------------------- trimming


@pytest.mark.spec("CC-11")
@pytest.mark.parametrize("since_then", [0, 20])
async def test_a_trimmed_timeline_begins_after_its_floor(store: MessageStore, since_then: int):
    """Whoever is behind is told so; the head, the log and the others' timelines stay."""
    for one in drafts(30):
        await append(store, one)
    assert await carry_out(store, Trim("bob", 25)) == [Trimmed(25)]
    await push_out_of_memory(store, since_then)
    page = await store.timeline("bob", since=3, limit=3)
    assert (page.head, page.floor, [entry.offset for entry in page.entries]) == (30, 25, [26, 27, 28])
    assert (await store.timeline("bob", since=25, limit=3)).floor == 0
    assert len(await whole(store, "ann")) == len(await whole_conversation(store, 1)) == 30
    assert await carry_out(store, Trim("bob", 99)) == [Trimmed(30)]
    await carry_out(store, Trim("bob", 7))  # which it is long ago
    await push_out_of_memory(store, since_then)
    assert await store.timeline("bob", since=0, limit=3) == Page(30, 30, (), {})
    assert await store.heads(["bob"]) == [30]
    await append(store, draft(key="after"))
    assert [entry.offset for entry in await whole(store, "bob")] == [31]
    assert await carry_out(store, Trim("nobody", 5)) == [Trimmed(0)]


# ---------------------------------------------------------------- queued drafts


async def test_a_queued_draft_becomes_an_entry_or_a_failure(store: MessageStore):
    """In the sender's order; until then its key is known, and afterwards too."""
    cid = await make_group(store, group_of("bob"))
    batch = [replace(one, is_queued=True) for one in (draft(key="a"), draft("cleo", cid=cid, key="b"), draft(key="c"))]
    assert await carry_out(store, *batch) == [Queued(7, is_new=True)] * 3
    assert await store.heads(["bob", "cleo"]) == [1, 0]
    assert store.has_work
    outcomes = await carry_out(store, batch[0], replace(batch[2], body=b"[]"), batch[1], draft(key="d"))
    assert [type(outcome) for outcome in outcomes] == [Appended, KeyConflict, Refused, Appended]
    assert not store.has_work
    assert await texts(store, "bob") == ["g1", "a", "c", "d"]
    assert [entry.message.kind for entry in await whole(store, "cleo")] == ["failure"]
    await push_out_of_memory(store)
    [repeated, failed] = await carry_out(store, *batch[:2])
    assert repeated == Appended((await whole(store, "bob"))[1].message, is_new=False)
    assert failed == Refused(Cause.NO_CONVERSATION)


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
    for call in (
        store.execute([draft(key="k2")]),
        store.timeline("ann", since=0, limit=1),
        store.heads(["ann"]),
        store.conversation(1, since=0, limit=1),
        store.conversation_before(1, before=9, limit=1),
        store.messages(1, [1]),
        store.conversation_heads([1]),
        store.membership(1, "ann"),
        store.conversations("ann"),
        store.listed("ann", [1]),
        store.members(1, after="", limit=1),
        store.views(1, read_from=0, limit=1),
        store.log(after=0, limit=1),
    ):
        with pytest.raises(StoreUnavailable, match="closed"):
            await call
