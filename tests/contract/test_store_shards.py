"""What a store has of other shards, run on every adapter: entries for their timelines, and theirs for timelines here.

Each store is shard 0 of 2, whose users are ann, eve and zoe; bob, cleo and dan are the other one's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from base.errors import StoreUnavailable
from im.core.commands import Delivery, Mark, Outgoing, Receive, Received, Sent, Trim, Trimmed
from im.core.ledger import LedgerSettings
from im.core.model import Form, Message, Overlay
from im.core.shards import CID_STRIDE
from im.ports import MessageStore
from tests.contract.stores import (
    NOW,
    append,
    carry_out,
    change,
    draft,
    drafts,
    finish,
    group_of,
    make_group,
    make_steps_small,
    open_store,
    push_out_of_memory,
    revise,
    whole,
)

SETTINGS = LedgerSettings(shard=0, shards=2)
HERE, THERE = 0, 1
FOREIGN = 7 * CID_STRIDE + THERE
"""A conversation of the other shard."""


@pytest.fixture
async def store(kind: str, tmp_path: Path) -> AsyncIterator[MessageStore]:
    opened = await open_store(kind, tmp_path, SETTINGS)
    yield opened
    await opened.close()


def entry(position: int, *users: str, form: Form = Form.MESSAGE, ref: int = 0, body: bytes = b"{}") -> Outgoing:
    """The entry of the foreign conversation with this seq; bob's, to its users or to ann."""
    kinds = {Form.MESSAGE: "text", Form.EDIT: "edit", Form.RECALL: "recall", Form.EVENT: "group", Form.NOTE: "read"}
    message = Message(
        900 + position, FOREIGN, position, position, 7, "bob", "phone", "ann", f"f{position}", form, kinds[form],
        ref, body, b"", NOW,
    )  # fmt: skip
    return Outgoing(position, HERE, message, users or ("ann",))


async def receive(store: MessageStore, *entries: Outgoing) -> int:
    """Return up to where it is taken over."""
    [outcome] = await carry_out(store, Receive(THERE, entries))
    assert isinstance(outcome, Received)
    return outcome.through


async def seqs(store: MessageStore, user: str) -> list[tuple[int, int]]:
    return [(one.message.cid, one.message.seq) for one in await whole(store, user)]


async def positions(store: MessageStore, *, after: int = 0, limit: int = 100) -> list[int]:
    found = await store.outgoing(THERE, after=after, limit=limit)
    assert [one.shard for one in found] == [THERE] * len(found)
    return [one.position for one in found]


# ---------------------------------------------------------------- taken over


@pytest.mark.spec("HS-02")
@pytest.mark.parametrize("since_then", [0, 20])
async def test_what_is_taken_over_is_in_timelines_once(store: MessageStore, since_then: int):
    """Among entries of logs that are here, in the order of coming; another time it is passed over."""
    await append(store, draft("eve", "ann", "k1"))
    executed = await store.execute([Receive(THERE, (entry(1), entry(2, "ann", "eve")))])
    assert executed.outcomes == [Received(2)]
    assert [(one.message.seq, one.positions, one.is_first) for one in executed.deliveries] == [
        (1, (("ann", 2),), False), (2, (("ann", 3), ("eve", 2)), False),
    ]  # fmt: skip
    await append(store, draft("eve", "ann", "k2"))
    await push_out_of_memory(store, since_then)
    assert await receive(store, entry(1), entry(2, "ann", "eve"), entry(5)) == 5
    assert await receive(store) == 5
    single = 1 * CID_STRIDE
    assert await seqs(store, "ann") == [(single, 1), (FOREIGN, 1), (FOREIGN, 2), (single, 2), (FOREIGN, 5)]
    assert await seqs(store, "eve") == [(single, 1), (FOREIGN, 2), (single, 2)]
    read = (await whole(store, "ann"))[1].message
    assert read == replace(entry(1).message, n=read.n, origin=1 + THERE)


@pytest.mark.spec("HS-01")
@pytest.mark.parametrize("since_then", [0, 20])
async def test_a_copy_is_in_nothing_but_timelines(store: MessageStore, since_then: int):
    """In no conversation, list, log or search, and known by no key: it is where its log is."""
    await receive(store, *(entry(n) for n in range(1, 9)))
    await push_out_of_memory(store, since_then)
    assert await store.conversation_heads([FOREIGN]) == [0]
    assert (await store.conversation(FOREIGN, since=0, limit=9)).messages == ()
    assert (await store.conversation_before(FOREIGN, before=9, limit=9)).messages == ()
    assert (await store.messages(FOREIGN, [1, 2])).messages == ()
    assert await store.membership(FOREIGN, "ann") is None
    assert await store.conversations("ann") == await store.conversations("bob") == []
    assert await store.listed("ann", [FOREIGN]) == []
    assert await store.views(FOREIGN, read_from=1, limit=9) == []
    assert FOREIGN not in {message.cid for message in await store.log(after=0, limit=1_000)}
    [mine] = await append(store, draft("bob", "ann", "f1"))  # a key that a copy has
    assert mine.cid != FOREIGN
    assert len(await whole(store, "ann")) == 9


@pytest.mark.parametrize("since_then", [0, 20])
async def test_copies_read_as_they_are_now(store: MessageStore, since_then: int):
    """Edited, edited again and recalled; before and after they leave memory, and where the edit comes long after."""
    await receive(store, *(entry(n) for n in (1, 2, 3)))
    await push_out_of_memory(store, since_then)
    await receive(store, entry(4, form=Form.EDIT, ref=1, body=b"[4]"), entry(5, form=Form.EDIT, ref=2, body=b"[5]"))
    await push_out_of_memory(store, since_then)
    await receive(store, entry(6, form=Form.EDIT, ref=2, body=b"[6]"), entry(7, form=Form.RECALL, ref=3, body=b""))
    covered = {
        1: Overlay(FOREIGN, 1, 4, False, 0, b"[4]", b""),
        2: Overlay(FOREIGN, 2, 6, False, 0, b"[6]", b""),
        3: Overlay(FOREIGN, 3, 7, True, 0, b"", b""),
        5: Overlay(FOREIGN, 5, 6, False, 0, b"", b""),
    }
    for count in (0, since_then):
        await push_out_of_memory(store, count)
        page = await store.timeline("ann", since=0, limit=9)
        assert page.overlays == {(FOREIGN, seq): one for seq, one in covered.items()}
    page = await store.timeline("ann", since=1, limit=2)
    assert page.overlays == {(FOREIGN, seq): covered[seq] for seq in (2, 3)}


async def test_timelines_of_copies_are_trimmed(store: MessageStore):
    """As any others."""
    await receive(store, *(entry(n) for n in range(1, 31)))
    assert await carry_out(store, Trim("ann", 25)) == [Trimmed(25)]
    await push_out_of_memory(store)
    page = await store.timeline("ann", since=0, limit=2)
    assert (page.head, page.floor, [one.message.seq for one in page.entries]) == (30, 25, [26, 27])
    assert await receive(store, entry(31)) == 31
    assert await store.heads(["ann"]) == [31]


# ---------------------------------------------------------------- going out


async def test_what_is_for_others_goes_out_with_the_log(store: MessageStore):
    """Told with the commit, and there until it is said to be taken over; pages are by position."""
    executed = await store.execute([group_of("bob", "cleo", "eve"), draft("ann", "eve", "k1")])
    cid = 1 * CID_STRIDE
    await store.execute([draft("ann", key="k2", cid=cid), Mark("bob", "phone", cid, NOW, read_seq=2)])
    found = await store.outgoing(THERE, after=0, limit=9)
    assert [(one.position, one.message.kind, one.users) for one in found] == [
        (1, "group", ("bob", "cleo")), (2, "text", ("bob", "cleo")), (3, "read", ("bob",)),
    ]  # fmt: skip
    assert list(executed.outgoing) == found[:1]
    assert found[1].message == (await store.messages(cid, [2])).messages[0]
    assert await store.outgoing(HERE, after=0, limit=9) == await store.outgoing(5, after=0, limit=9) == []
    assert await store.heads(["bob", "cleo"]) == [0, 0]
    assert (await positions(store, limit=2), await positions(store, after=1), await positions(store, after=3)) == (
        [1, 2], [2, 3], [],
    )  # fmt: skip
    await push_out_of_memory(store)
    assert await store.outgoing(THERE, after=0, limit=9) == found
    assert await carry_out(store, Sent(THERE, 2), Sent(HERE, 9)) == [Received(2), Received(9)]
    assert await positions(store) == [3]
    await carry_out(store, Sent(THERE, 1))  # an answer that comes late
    assert await positions(store) == [3]


async def test_a_fan_out_goes_out_in_steps(store: MessageStore, monkeypatch: pytest.MonkeyPatch):
    """Each user of each shard once, and after the message before."""
    make_steps_small(monkeypatch)
    users = [f"u{n}" for n in range(12)]
    cid = await make_group(store, group_of(*users))
    for n in (1, 2):
        await store.execute([draft("ann", key=f"k{n}", cid=cid)])
    assert await finish(store) > 1
    told: dict[str, list[int]] = {}
    for one in await store.outgoing(THERE, after=0, limit=100):
        for user in one.users:
            told.setdefault(user, []).append(one.message.seq)
    assert 0 < len(told) < 12
    for user in users:
        mine = [seq for _, seq in await seqs(store, user)]
        assert (told.get(user, []), mine) in [([1, 2, 3], []), ([], [1, 2, 3])]


async def test_what_was_committed_by_several_shards_is_told_to_each(tmp_path: Path):
    """Under positions over all of them."""
    store = await open_store("sqlite", tmp_path, LedgerSettings(shard=0, shards=4))  # cleo's is 3, zoe's 2
    await make_group(store, group_of("bob", "cleo", "zoe"))
    found = [await store.outgoing(shard, after=0, limit=9) for shard in range(4)]
    assert [[one.users for one in some] for some in found] == [[], [("bob",)], [("zoe",)], [("cleo",)]]
    assert sorted(one.position for some in found for one in some) == [1, 2, 3]
    await store.close()


# ---------------------------------------------------------------- the next life


@pytest.mark.parametrize("kind", ["sqlite", "sqlite-merging"])
async def test_the_next_life_goes_on_with_all_positions(kind: str, tmp_path: Path):
    """Also where nothing is left in the outbox: what was given before would be passed over there."""
    store = await open_store(kind, tmp_path, SETTINGS)
    await append(store, *drafts(3, sender="ann", to="bob"))
    assert await receive(store, entry(1), entry(4)) == 4
    await carry_out(store, Sent(THERE, 2))
    await store.close()
    for last in (3, 4):
        store = await open_store(kind, tmp_path, SETTINGS)
        assert await positions(store) == [last]
        assert await receive(store, entry(1), entry(4)) == 4
        await carry_out(store, Sent(THERE, last))
        await store.close()
        store = await open_store(kind, tmp_path, SETTINGS)
        assert await positions(store) == []
        executed = await store.execute([draft("ann", "bob", f"next-{last}")])
        assert [one.position for one in executed.outgoing] == [last + 1]
        await push_out_of_memory(store)
        await store.close()


@pytest.mark.parametrize("kind", ["sqlite", "sqlite-merging"])
async def test_the_next_life_has_numbers_of_this_shard_alone(kind: str, tmp_path: Path):
    """A copy's conversation, whose number is greater, counts for nothing."""
    store = await open_store(kind, tmp_path, SETTINGS)
    await append(store, draft("ann", "eve", "k1"))
    await receive(store, entry(1))
    await carry_out(store, Mark("bob", "phone", CID_STRIDE, NOW, is_muted=True))  # refused: he is not in it
    for n in (2, 3):
        await store.close()
        store = await open_store(kind, tmp_path, SETTINGS)
        cid = await make_group(store, group_of(key=f"g{n}"))
        assert cid == n * CID_STRIDE
        await push_out_of_memory(store, 0 if n == 2 else 20)
    await store.close()


@pytest.mark.parametrize("kind", ["sqlite", "sqlite-merging"])
async def test_copies_read_the_same_in_the_next_life(kind: str, tmp_path: Path):
    """Those that are not indexed are found anew, with what became of them."""
    store = await open_store(kind, tmp_path, SETTINGS)
    await receive(store, entry(1, "ann", "eve"), entry(2), entry(3, form=Form.EDIT, ref=1, body=b"[3]"))
    before = [await store.timeline(user, since=0, limit=9) for user in ("ann", "eve")]
    await store.close()
    store = await open_store(kind, tmp_path, SETTINGS)
    assert [await store.timeline(user, since=0, limit=9) for user in ("ann", "eve")] == before
    assert await store.conversation_heads([FOREIGN]) == [0]
    await store.close()


@pytest.mark.spec("FO-06")
async def test_a_fan_out_that_a_crash_cut_off_goes_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each step is one transaction with what goes out by it."""
    make_steps_small(monkeypatch)
    users = [f"u{n}" for n in range(12)]
    store = await open_store("sqlite", tmp_path, SETTINGS)
    cid = await make_group(store, group_of(*users))
    await store.execute([draft("ann", key="k1", cid=cid)])
    while store.has_work:
        await store.close()
        store = await open_store("sqlite", tmp_path, SETTINGS)
        await store.execute([])
    told = [
        user for one in await store.outgoing(THERE, after=0, limit=100) if one.message.seq == 2 for user in one.users
    ]
    here = [user for user in users if await store.heads([user]) == [2]]
    assert sorted(told + here) == sorted(users)
    assert told
    assert here
    await store.close()


# ---------------------------------------------------------------- failures and ends


async def test_a_batch_is_told_what_it_did_and_no_other(store: MessageStore):
    """What goes out is told once; what was passed over is no delivery."""
    first = await store.execute([draft("ann", "bob", "k1")])
    assert isinstance(first.deliveries[0], Delivery)
    assert len(first.outgoing) == 1
    again = await store.execute([draft("ann", "bob", "k1")])
    assert list(again.outgoing) == []
    await receive(store, entry(1))
    executed = await store.execute([Receive(THERE, (entry(1),))])
    assert (executed.deliveries, executed.outgoing) == ([], [])


async def test_a_change_of_a_group_goes_out_to_who_left(store: MessageStore):
    """It is the last entry that they get."""
    cid = await make_group(store, group_of("bob", "cleo"))
    await store.execute([change("bob", cid, "leave"), draft("ann", key="k1", cid=cid)])
    sent: Sequence[Outgoing] = await store.outgoing(THERE, after=0, limit=9)
    assert [(one.message.seq, one.users) for one in sent] == [
        (1, ("bob", "cleo")),
        (2, ("bob", "cleo")),
        (3, ("cleo",)),
    ]


async def test_revisions_go_out_as_they_are_in_the_log(store: MessageStore):
    """With the body that they gave the message, and none for a recall."""
    await append(store, draft("ann", "bob", "k1"))
    await append(store, revise("ann", CID_STRIDE, 1, "e", b"[2]"), revise("ann", CID_STRIDE, 1, "r", recall=True))
    sent = await store.outgoing(THERE, after=1, limit=9)
    assert [(one.message.form, one.message.ref, one.message.body) for one in sent] == [
        (Form.EDIT, 1, b"[2]"), (Form.RECALL, 1, b""),
    ]  # fmt: skip


async def test_a_closed_store_shows_nothing_that_goes_out(store: MessageStore):
    await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.outgoing(THERE, after=0, limit=1)
