"""Histories of message stores: random ones against the twin and against what the log says, and many at once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from im.core.commands import (
    Appended,
    Command,
    Delivery,
    Executed,
    GroupChanged,
    Mark,
    Outcome,
    Trim,
)
from im.core.fan_out import PRESETS
from im.core.ledger import LedgerSettings
from im.core.model import Form, Message
from im.ports import MessageStore
from im.store.memory import MemoryMessageStore
from im.store.sqlite import SqliteMessageStore
from tests.contract.stores import (
    NOW,
    USERS,
    append,
    change,
    draft,
    drafts,
    finish,
    group_of,
    listing,
    make_group,
    make_steps_small,
    open_store,
    revise,
    whole,
    whole_conversation,
)

CIDS = range(1, 9)
KEYS = st.text("ab", min_size=1, max_size=3)
USER = st.sampled_from(USERS)
CID = st.integers(1, 6)
SEQ = st.integers(0, 9)
BODIES = st.sampled_from([b"{}", b"[]"])
MENTIONS = st.sampled_from([b"", b"", b'["bob"]', b'["*"]', b'["cleo","ann"]'])

SENDS = st.builds(
    lambda sender, to, key, body, mentions, is_queued: replace(
        draft(sender, to, key, body), mentions=mentions, is_queued=is_queued
    ),
    *(USER, USER, KEYS, BODIES, MENTIONS, st.booleans()),
)
POSTS = st.builds(
    lambda sender, cid, key, mentions, ref: replace(draft(sender, key=key, cid=cid), mentions=mentions, ref=ref),
    *(USER, CID, KEYS, MENTIONS, st.sampled_from([0, 0, 1])),
)
REVISES = st.builds(
    lambda sender, cid, seq, key, recall: revise(sender, cid, seq, key, recall=recall),
    *(USER, CID, SEQ, KEYS, st.booleans()),
)
MARKS = st.builds(
    lambda user, cid, read, delivered, flags: Mark(user, "phone", cid, NOW, read, delivered, *flags),
    *(USER, CID, st.none() | SEQ, st.none() | SEQ),
    st.tuples(*[st.sampled_from([None, None, True, False])] * 4),
)
GROUPS = st.builds(
    lambda owner, members, key, history: group_of(*members, owner=owner, key=key, history=history),
    *(USER, st.lists(USER, max_size=3), KEYS, st.sampled_from(["joined", "all"])),
)
CHANGES = st.builds(
    lambda by, cid, action, user: change(by, cid, action[0], user, value=action[1]),
    st.sampled_from([*USERS, "", ""]),
    CID,
    st.sampled_from(
        [
            ("invite", ""),
            ("invite", ""),
            ("kick", ""),
            ("leave", ""),
            ("role", "admin"),
            ("mute", "5000"),
            ("rename", "foes"),
            ("transfer", ""),
            ("dissolve", ""),
            ("fan_out", "read"),
            ("fan_out", "write"),
        ]
    ),
    USER,
)
TRIMS = st.builds(Trim, USER, SEQ)
BATCHES = st.lists(st.one_of(SENDS, SENDS, POSTS, POSTS, REVISES, MARKS, GROUPS, CHANGES, TRIMS), max_size=6)


def settled(executed: Executed) -> tuple[list[Outcome], list[Delivery]]:
    """Return what was answered and is to be told, without the order in which a group's members are named."""
    outcomes = [
        replace(one, members=tuple(sorted(one.members, key=lambda member: member.user)))
        if isinstance(one, GroupChanged)
        else one
        for one in executed.outcomes
    ]
    return outcomes, [replace(one, removed=tuple(sorted(one.removed))) for one in executed.deliveries]


async def everything(store: MessageStore, *, limit: int) -> dict[str, object]:
    """Return all that can be read of a store, in pages of `limit`."""
    seen: dict[str, object] = {"heads": await store.heads(USERS), "ends": await store.conversation_heads(CIDS)}
    for user in USERS:
        seen[f"{user}'s timeline"] = await whole(store, user, limit=limit)
        pages = [await store.timeline(user, since=since, limit=limit) for since in (0, 3)]
        seen[f"{user}'s pages"] = pages
        seen[f"{user}'s list"] = await listing(store, user)
        seen[f"{user}'s part"] = sorted(await store.listed(user, CIDS), key=lambda one: one.conversation.cid)
        seen[f"{user}'s places"] = [await store.membership(cid, user) for cid in CIDS]
    for cid in CIDS:
        seen[f"{cid}'s log"] = await whole_conversation(store, cid, limit=limit)
        seen[f"{cid}'s pages"] = await store.conversation(cid, since=1, limit=limit)
        seen[f"{cid}'s end"] = await store.conversation_before(cid, before=5, limit=limit)
        seen[f"{cid}'s entries"] = await store.messages(cid, [1, 3, 4])
        seen[f"{cid}'s members"] = await store.members(cid, after="ann", limit=limit)
        seen[f"{cid}'s readers"] = [await store.views(cid, read_from=seq, limit=limit) for seq in (0, 2)]
    seen["log"] = await store.log(after=1, limit=100 * limit)
    return seen


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.one_of(BATCHES, BATCHES, BATCHES, st.just("restart")), max_size=10),
    lag_max=st.sampled_from([1, 2, 5, 1_000]),
    remembered_max=st.sampled_from([0, 2, 1_000]),
    policy=st.sampled_from(["hybrid", "qq"]),
    is_slow=st.booleans(),
    limit=st.integers(1, 5),
)
async def test_sqlite_does_what_the_twin_does(
    steps: Sequence[list[Command] | str],
    lag_max: int,
    remembered_max: int,
    policy: str,
    limit: int,
    *,
    is_slow: bool,
):
    """The same outcomes, deliveries and reads after any history of batches and restarts."""
    decided_by = LedgerSettings(policy=PRESETS[policy], remembered_max=remembered_max)
    twin = MemoryMessageStore(decided_by)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        if is_slow:
            make_steps_small(patch)
        path = Path(folder) / "messages.db"
        store = await SqliteMessageStore.open(path, settings=decided_by, readers=1, lag_max=lag_max)
        try:
            for step in steps:
                if not isinstance(step, str):
                    assert settled(await store.execute(step)) == settled(await twin.execute(step))
                    continue
                while is_slow and twin.has_work:  # in which turns fan-outs go on does not outlive a process
                    assert await store.execute([]) == await twin.execute([])
                await store.close()
                store = await SqliteMessageStore.open(path, settings=decided_by, readers=1, lag_max=lag_max)
                assert store.has_work == twin.has_work
            assert await everything(store, limit=limit) == await everything(twin, limit=limit)
        finally:
            await store.close()


@pytest.mark.parametrize("kind", ["sqlite", "sqlite-merging"])
async def test_a_restart_keeps_everything(kind: str, tmp_path: Path):
    """All that can be read, whether it is indexed or not, and the epoch; numbers go on where they were."""
    store = await open_store(kind, tmp_path)
    cid = await make_group(store, group_of("bob", "cleo", history="all"))
    mention = replace(draft("bob", cid=cid, key="m1"), mentions=b'["*"]')
    await append(store, mention, draft("bob", cid=cid, key="m2"), *drafts(5), draft("cleo", "ann", "s1"))
    await append(store, revise("ann", 2, 2, "e1"), revise("ann", 2, 3, "r1", recall=True), revise("bob", cid, 3, "e2"))
    marks = [Mark("ann", "phone", cid, NOW, read_seq=2), Mark("bob", "phone", 2, NOW, is_pinned=True)]
    await store.execute([*marks, change("ann", cid, "kick", "cleo"), change("", cid, "fan_out", value="read")])
    await store.execute([Trim("ann", 3), draft("ann", cid=cid, key="m3"), draft("dan", "dan", "d1")])
    before = [await everything(store, limit=limit) for limit in (2, 100)]
    await store.close()

    again = await open_store(kind, tmp_path)
    assert again.epoch == store.epoch
    assert [await everything(again, limit=limit) for limit in (2, 100)] == before
    head = (await again.heads(["ann"]))[0]
    executed = await again.execute([draft(key="k3"), draft(key="k9"), draft("bob", "cleo", "new")])
    repeated, new, other = executed.outcomes
    assert isinstance(repeated, Appended)
    assert isinstance(new, Appended)
    assert isinstance(other, Appended)
    assert (repeated.is_new, repeated.message.seq) == (False, 3)
    assert (new.message.seq, new.message.cseq, other.message.cid) == (8, 6, 5)
    assert executed.deliveries[0].positions[0] == ("ann", head + 1)
    await again.close()


ACTS = st.sampled_from(
    [*[("say", user) for user in USERS], *[(way, user) for way in ("invite", "kick") for user in USERS]]
)


@pytest.mark.spec("CC-04", "HS-02")
@settings(max_examples=25, deadline=None)
@given(acts=st.lists(st.lists(ACTS, max_size=4), max_size=15), is_slow=st.booleans())
async def test_a_member_sees_exactly_what_the_log_says_it_may(acts: list[list[tuple[str, str]]], *, is_slow: bool):
    """Whoever comes and goes while fan-outs go on: each entry once for each who was in, in the log's order."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        if is_slow:
            make_steps_small(patch)
        store = await SqliteMessageStore.open(Path(folder) / "messages.db", readers=1, lag_max=2)
        try:
            cid = await make_group(store, group_of("bob"))
            for n, batch in enumerate(acts):
                commands = [
                    draft(user, cid=cid, key=f"k{n}-{at}") if way == "say" else change("", cid, way, user)
                    for at, (way, user) in enumerate(batch)
                ]
                await store.execute(commands)
            await finish(store)
            seen: dict[str, list[Message]] = {user: [] for user in USERS}
            present: set[str] = set()
            for entry in await whole_conversation(store, cid):
                before = set(present)
                if entry.form == Form.EVENT:
                    event = msgspec.json.decode(entry.body)
                    present = present - set(event["users"]) if event["event"] == "kick" else present | {*event["users"]}
                for user in before | present:
                    seen[user].append(entry)
            for user in USERS:
                assert [entry.message for entry in await whole(store, user)] == seen[user]
                visible = await store.membership(cid, user)
                last = seen[user][-1] if seen[user] else None
                assert (visible is None) == (last is None)
                assert visible is None or user in present or visible.last_seq == last.seq
        finally:
            await store.close()


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Let threads take turns every few microseconds, so that races that there are come out."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.00001)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.spec("CC-11", "MI-03", "MI-05", "PP-02", "DT-02")
@pytest.mark.usefixtures("eager_threads")
@pytest.mark.parametrize("kind", ["memory", "sqlite", "sqlite-merging"])
async def test_a_reader_never_sees_a_position_below_a_head_that_it_knows(kind: str, tmp_path: Path):
    """Closed positions: whoever reads on from where it was misses nothing, while commands are carried out."""
    store = await open_store(kind, tmp_path)
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
            for listed in await store.conversations("bob"):
                assert listed.max_seq == listed.max_cseq >= (known_head if listed.conversation.cid == 1 else 0)
            seen += count
            known_head = head
            await asyncio.sleep(0)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for limit in (1, 5, 1_000):
            tasks.create_task(read(limit))
            tasks.create_task(read_conversation(limit))
        tasks.create_task(write())
    await store.close()
