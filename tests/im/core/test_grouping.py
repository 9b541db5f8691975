"""Groups in the ledger: who is told what by which way, and batches that change the same group several times.

Who may do what is in `test_groups`, random histories in `test_ledger`.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from im.core import timelines
from im.core.commands import Cause, GroupChanged, KeyConflict, Refused
from im.core.fan_out import FanOutPolicy
from im.core.grouping import removed_by
from im.core.ledger import LedgerSettings
from im.core.model import Conversation, Member, Role
from tests.im.core.ledger_world import World, change, draft, group, mark, small_bounds

READ = FanOutPolicy(single="read", write_members_max=0, members_max=10)
HYBRID = FanOutPolicy(single="write", write_members_max=4, members_max=10)


@pytest.fixture(autouse=True)
def _small_bounds() -> Any:
    with small_bounds():
        yield


def made(*members: str, policy: FanOutPolicy = HYBRID, groups_max: int = 9) -> World:
    """Group 1 of `own` and the members."""
    world = World(LedgerSettings(policy=policy, groups_of_user_max=groups_max))
    world.run(group("own", members))
    return world


def told_last(world: World) -> tuple[set[str], set[str]]:
    """Who was told of the last message that began: by an entry, and directly."""
    last = [one for one in world.changes.deliveries if one.is_first][-1]
    return {user for user, _ in last.positions}, set(last.members)


# ---------------------------------------------------------------- made once


def test_a_group_begins_with_the_event_that_makes_it():
    """All its members are told by an entry, whatever the strategy."""
    world = made("b", "c", "b", policy=READ)
    (event,) = world.logs[1]
    assert msgspec.json.decode(event.body) == {
        "event": "create", "users": ["own", "b", "c"], "value": "club", "fan_out": "read", "name": "club",
    }  # fmt: skip
    assert world.told("own") == world.told("b") == world.told("c") == [(1, 1)]
    assert world.members[1, "own"] == Member(1, "own", Role.OWNER, 1, 1, 0)
    assert world.conversations[1].group is not None
    assert world.conversations[1].group.version == 1


@pytest.mark.parametrize("is_apart", [False, True])
def test_a_repeated_creation_gets_the_group_as_it_is_now(*, is_apart: bool):
    """In the same batch, or after a crash, when the group has another name and other members."""
    world = World()
    first = world.one(group("own", ["b"], history="all"))
    world.run(change("own", 1, "rename", value="new"), change("own", 1, "invite", "c"))
    if is_apart:
        world.restart()
    again = world.one(group("own", ["own", "b"], history="all"))
    assert again == GroupChanged(world.conversations[1], first.message, is_new=False)
    assert again.conversation.group.name == "new"


def test_a_creation_with_a_used_key_and_another_meaning_is_a_conflict():
    """Another name, other members, other settings, or the key of a message."""
    world = World()
    event = world.one(group("own", ["b"], history="all")).message
    conflict = KeyConflict(event)
    assert world.run(
        group("own", ["b"], name="x", history="all"), group("own", ["c"], history="all"), group("own", ["b"]),
        group("own", ["b"], history="joined"),
    ) == [conflict] * 4  # fmt: skip
    message = world.one(draft("own", "b", "k1")).message
    assert world.one(group("own", ["b"], "k1")) == KeyConflict(message)


def test_what_cannot_be_made_is_refused():
    """And gives no number away."""
    world = made("b", groups_max=1)
    assert world.run(group("x", ["b"], "k1"), group("x", "cdefghijkl", "k2"), group("x", [], "k3", history="some")) == [
        Refused(Cause.TOO_MANY_GROUPS, {"user": "b", "limit": 1}),
        Refused(Cause.GROUP_FULL, {"limit": 10}),
        Refused(Cause.BAD_CHANGE, {"setting": "history"}),
    ]
    assert not world.changes
    assert world.cid_of(world.one(group("x", [], "k1"))) == 2


# ---------------------------------------------------------------- counting a user's groups


def test_a_batch_cannot_put_a_user_into_too_many_groups():
    """Each command counts for the next one."""
    world = made(groups_max=2)
    outcomes = world.run(group("x", ["b"], "k1"), group("x", ["b"], "k2"), change("own", 1, "invite", "c", "b"))
    assert outcomes[2] == Refused(Cause.TOO_MANY_GROUPS, {"user": "b", "limit": 2})
    assert (1, "c") not in world.members


def test_a_stranger_cannot_take_all_places_of_a_user():
    """The last ones are for groups that the user makes or joins, and for operators and backends."""
    world = made(groups_max=20)
    assert all(one.is_new for one in world.run(*(group("x", ["b"], f"k{n}") for n in range(18))))
    for command in (group("x", ["b"], "k"), change("own", 1, "invite", "b")):
        assert world.one(command) == Refused(Cause.TOO_MANY_GROUPS, {"user": "b", "limit": 18})
    assert world.one(group("b", ["c"], "mine")).is_new
    assert world.one(change("", 1, "invite", "b")).is_new
    other = world.cid_of(world.one(group("own", [], "other")))
    for command in (group("b", [], "more"), change("", other, "invite", "b")):
        assert world.one(command) == Refused(Cause.TOO_MANY_GROUPS, {"user": "b", "limit": 20})


def test_a_group_that_was_left_counts_no_more():
    """Also in the batch in which it was left."""
    world = made("b", groups_max=1)
    left, joined = world.run(change("b", 1, "leave"), group("x", ["b"], "k1"))
    assert left.is_new
    assert joined.is_new


# ---------------------------------------------------------------- who is told


def test_with_write_fan_out_everybody_is_told_also_who_goes():
    """It is the last entry that whoever is removed gets."""
    world = made("b", "c")
    outcome = world.one(change("own", 1, "kick", "b"))
    assert told_last(world) == ({"own", "b", "c"}, set())
    assert world.changes.deliveries[-1].removed == ("b",)
    assert outcome.members == (world.members[1, "b"],)
    world.run(draft("own", 1, "k1"))
    world.drain()
    assert (world.told("b"), world.told("c")) == ([(1, 1), (1, 2)], [(1, 1), (1, 2), (1, 3)])


def test_a_stored_entry_says_who_left_by_it():
    """As its delivery does; but who was in a dissolved group is not written there."""
    world = made("b", "c", "d")
    for by, action, users in [
        ("own", "kick", ("b", "x", "c")), ("d", "leave", ()), ("own", "invite", ("b",)), ("own", "rename", ()),
        ("own", "dissolve", ()),
    ]:  # fmt: skip
        world.run(change(by, 1, action, *users, value="new"))
    world.run(draft("own", "b", "k1"))
    assert [removed_by(entry) for entry in world.logs[1]] == [[], ["b", "c"], ["d"], [], [], []]
    assert world.changes.deliveries[-1].message.cid == 2
    assert [removed_by(entry) for entry in world.logs[2]] == [[]]


@pytest.mark.spec("MI-04")
def test_with_read_fan_out_only_those_it_is_about_get_an_entry():
    """In a small group the others are told directly, so that nobody waits for news that came."""
    world = made("b", policy=READ)
    world.run(change("own", 1, "rename", value="new"))
    assert told_last(world) == (set(), {"own", "b"})
    world.run(change("own", 1, "invite", "c"))
    assert told_last(world) == ({"c"}, {"own", "b"})
    world.run(change("own", 1, "role", "c", value="admin"))
    assert told_last(world) == ({"c"}, {"own", "b"})


def test_in_a_large_group_with_read_fan_out_the_others_read_the_log():
    """They follow the conversation."""
    world = made(*"bcdefgh", policy=READ)
    world.run(change("own", 1, "invite", "i"))
    assert told_last(world) == ({"i"}, set())
    world.run(change("own", 1, "rename", value="new"))
    assert told_last(world) == (set(), set())


def test_who_was_told_directly_learns_that_it_is_over():
    """When the group becomes too large for it, or small enough: in one batch as well as in several."""
    world = made("b", "c", policy=READ)
    world.run(change("own", 1, "invite", "d"))
    assert told_last(world) == (set("bcd") | {"own"}, set())
    world.restart()
    world.run(change("own", 1, "invite", "e"), change("own", 1, "kick", "e"), change("own", 1, "kick", "d"))
    assert told_last(world) == (set("bcd") | {"own"}, set())
    world.run(change("own", 1, "rename", value="new"))
    assert told_last(world) == (set(), {"b", "c", "own"})


@pytest.mark.spec("FO-07")
def test_growing_beyond_what_is_written_switches_in_the_same_change():
    """While a fan-out goes on: it is finished first, so that nobody has a hole; and everybody is told."""
    world = made("b", "c", "d")
    world.run(draft("b", 1, "k1"), draft("c", 1, "k2"))
    assert world.ledger.has_work
    world.run(change("own", 1, "invite", "e", "f"))
    assert not world.ledger.has_work
    assert world.conversations[1].fan_out == "read"
    assert world.told("b") == [(1, 1), (1, 2), (1, 3), (1, 4)]
    assert world.told("e") == [(1, 4)]
    world.run(draft("b", 1, "k3"))
    assert told_last(world) == (set(), set())


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize(("by", "action", "users", "value"), [
    ("own", "dissolve", "", ""), ("", "fan_out", "", "write"), ("", "transfer", "b", ""), ("own", "transfer", "b", ""),
    ("", "kick", "b", ""), ("own", "mute", "bc", "2000000"),
])  # fmt: skip
def test_changes_of_a_large_group_know_whom_they_tell(
    by: str, action: str, users: str, value: str, *, is_restarted: bool
):
    """Its members' timelines are not known, since nothing is written into them: they are asked for when they matter."""
    world = made(*"bcdefghi", policy=READ)
    if is_restarted:
        world.restart()
    assert world.one(change(by, 1, action, *users, value=value)).is_new
    entries, _ = told_last(world)
    others = {"dissolve": {"own", *"bcdefghi"}, "fan_out": {"own", *"bcdefghi"}, "transfer": {"own"}}
    assert entries == set(users) | others.get(action, set())


def test_a_change_of_no_members_is_told_as_a_message_is():
    """In steps, behind what goes on: to rename a large group is no large transaction."""
    world = made("b", "c", "d")
    world.run(
        draft("b", 1, "k1"), change("own", 1, "rename", value="new"), change("own", 1, "role", "b", value="admin")
    )
    assert told_last(world) == (set(), set())
    assert [world.told(user)[-1] for user in ("b", "own")] == [(1, 2), (1, 1)]
    world.drain()
    assert all(world.told(user) == [(1, 1), (1, 2), (1, 3), (1, 4)] for user in ("own", "b", "c", "d"))


# ---------------------------------------------------------------- lives of a member


def test_only_a_change_of_members_is_carried_out_while_too_much_is_to_be_told(monkeypatch: pytest.MonkeyPatch):
    """It brings all of it to an end; any other one would only add to it."""
    monkeypatch.setattr(timelines, "WAITING_ENTRIES_MAX", 3 * 3)
    world = made("b", "c")
    renamed, left = (change("own", 1, "rename", value="x"), change("b", 1, "leave"))
    *_, busy, done, later = world.run(*(draft("own", 1, f"k{n}") for n in range(3)), renamed, left, renamed)
    assert isinstance(busy, Refused)
    assert busy.cause is Cause.BUSY
    assert isinstance(done, GroupChanged)
    assert isinstance(later, GroupChanged)
    assert world.told("b") == [(1, seq) for seq in range(1, 6)]


def test_one_who_comes_again_sees_from_there_on():
    """A second life: what came between is not seen, and earlier messages never count as unread."""
    world = made("b", "c")
    world.run(change("b", 1, "leave"), draft("c", 1, "k1"), change("own", 1, "invite", "b"), draft("c", 1, "k2"))
    world.drain()
    assert world.told("b") == [(1, 1), (1, 2), (1, 4), (1, 5)]
    assert world.members[1, "b"] == Member(1, "b", Role.MEMBER, 4, 4, 1)


def test_kicked_and_invited_in_one_batch():
    """The row of the last life counts."""
    world = made("b")
    world.run(
        change("own", 1, "role", "b", value="admin"), change("own", 1, "kick", "b"), change("own", 1, "invite", "b")
    )
    assert world.members[1, "b"] == Member(1, "b", Role.MEMBER, 4, 4, 0)
    world.restart()
    assert isinstance(world.one(change("b", 1, "leave")), GroupChanged)


@pytest.mark.spec("CC-04")
def test_newcomers_see_everything_where_the_group_says_so():
    """But they are not told of it: they read it."""
    world = made("b")
    world.run(draft("b", 1, "k1"), change("own", 1, "settings", history="all"), change("own", 1, "invite", "c"))
    assert world.members[1, "c"] == Member(1, "c", Role.MEMBER, 1, 4, 1)
    assert world.told("c") == [(1, 4)]


def test_a_group_changed_several_times_in_a_batch_is_as_after_the_last():
    """Each sees what the one before it made."""
    world = made("b")
    outcomes: list[Any] = world.run(
        change("own", 1, "transfer", "b"), change("own", 1, "transfer", "b"), change("b", 1, "rename", value="new"),
        change("own", 1, "leave"), change("b", 1, "leave"), change("b", 1, "dissolve"), change("b", 1, "leave"),
        change("x", 1, "join"), mark("b", 1, is_muted=True),
    )  # fmt: skip
    dissolved, unknown = Refused(Cause.DISSOLVED), Refused(Cause.NO_CONVERSATION)
    expected = [True, False, True, True, True, False, dissolved, unknown, True]
    assert [getattr(outcome, "is_new", outcome) for outcome in outcomes] == expected
    assert world.conversations[1].group is not None
    assert world.conversations[1].group.is_dissolved
    assert not [member for member in world.members.values() if not member.leave_seq]


# ---------------------------------------------------------------- single conversations


def test_of_a_single_conversation_the_operator_changes_the_strategy():
    """Both users are told of it by an entry; its messages go the new way."""
    world = World(LedgerSettings(policy=READ))
    world.run(draft("a", "b", "k1"))
    assert told_last(world) == (set(), {"a", "b"})
    world.restart()
    assert world.one(change("", 1, "fan_out", value="write")).conversation == Conversation(
        1, "single", "write", "a", "b"
    )
    assert told_last(world) == ({"a", "b"}, set())
    assert world.one(change("", 1, "fan_out", value="write")) == GroupChanged(
        world.conversations[1], None, is_new=False
    )
    world.run(draft("a", "b", "k2"))
    assert world.told("b") == [(1, 2), (1, 3)]


def test_nobody_else_learns_that_there_is_a_single_conversation():
    """Whatever is tried with its number."""
    world = World()
    world.run(draft("a", "b", "k1"))
    for action, value in (("fan_out", "read"), ("join", ""), ("invite", ""), ("rename", "x")):
        assert world.one(change("x", 1, action, "x", value=value)) == Refused(Cause.NO_CONVERSATION)
    assert world.run(
        change("a", 1, "rename", value="x"), change("", 1, "kick", "a"), change("a", 1, "fan_out", value="read"),
        change("", 1, "fan_out", value="push"),
    ) == [
        Refused(Cause.BAD_CHANGE), Refused(Cause.BAD_CHANGE), Refused(Cause.NOT_ALLOWED),
        Refused(Cause.BAD_CHANGE, {"value": "push"}),
    ]  # fmt: skip
    assert world.one(change("", 99, "fan_out", value="read")) == Refused(Cause.NO_CONVERSATION)
    assert not world.changes
