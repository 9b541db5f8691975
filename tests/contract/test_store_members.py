"""Who is in a conversation, and what of it each sees: one suite for the message store port, run on every adapter."""

from __future__ import annotations

from im.core.model import Member, Role
from im.ports import MessageStore, Visible
from tests.contract.stores import (
    append,
    carry_out,
    change,
    draft,
    group_of,
    make_group,
    push_out_of_memory,
    texts,
    whole,
    whole_conversation,
)


async def test_a_member_sees_exactly_what_came_while_it_was_in(store: MessageStore):
    """From the event that let it in to the one that removed it, both included; again after coming back."""
    cid = await make_group(store, group_of("bob"))
    await append(store, draft(cid=cid, key="m1"))
    await carry_out(store, change("ann", cid, "invite", "cleo"))
    await append(store, draft(cid=cid, key="m2"))
    await carry_out(store, change("ann", cid, "kick", "cleo"))
    await append(store, draft(cid=cid, key="m3"))
    assert await store.membership(cid, "cleo") == Visible(3, 5, Role.MEMBER)
    await carry_out(store, change("bob", cid, "invite", "cleo"))
    await append(store, draft("cleo", cid=cid, key="m4"))
    await push_out_of_memory(store)
    assert await store.membership(cid, "ann") == Visible(1, 0, Role.OWNER)
    assert await store.membership(cid, "cleo") == Visible(7, 0, Role.MEMBER)
    assert await store.membership(cid, "dan") is None
    assert await texts(store, "cleo") == ["group", "m2", "group", "group", "m4"]
    assert await texts(store, "bob") == ["g1", "m1", "group", "m2", "group", "m3", "group", "m4"]
    assert [entry.message for entry in await whole(store, "bob")] == await whole_conversation(store, cid)


async def test_members_are_listed_by_name_in_pages(store: MessageStore):
    """Only those who are in it now."""
    cid = await make_group(store, group_of("dan", "cleo", "bob"))
    await carry_out(store, change("ann", cid, "role", "cleo", value="admin"), change("dan", cid, "leave"))
    members = [
        Member(cid, "ann", Role.OWNER, 1, 1, 0),
        Member(cid, "bob", Role.MEMBER, 1, 1, 0),
        Member(cid, "cleo", Role.ADMIN, 1, 1, 0),
    ]
    assert await store.members(cid, after="", limit=9) == members
    assert await store.members(cid, after="ann", limit=1) == members[1:2]
    [listed] = await store.listed("bob", [cid])
    assert listed.members == 3


async def test_users_are_those_who_are_there_now_if_they_are_few(store: MessageStore):
    """Of single conversations and of groups, new ones and those that are out of memory."""
    await append(store, draft("bob", "ann"), draft("dan", "dan"))
    cid = await make_group(store, group_of("dan", "cleo", "bob"))
    await carry_out(store, change("dan", cid, "leave"))
    for _ in range(2):
        assert [list(await store.users(one, at_most=3)) for one in (1, 2, cid)] == [
            ["ann", "bob"], ["dan"], ["ann", "bob", "cleo"],
        ]  # fmt: skip
        assert [list(await store.users(one, at_most=2)) for one in (1, 2, cid)] == [["ann", "bob"], ["dan"], []]
        await push_out_of_memory(store)
