"""Messages, edits and recalls: each promise by itself; random ones are in `test_ledger`."""

from __future__ import annotations

import pytest

from im.core import timelines
from im.core.commands import Appended, Cause, KeyConflict, Queued, Refused
from im.core.ledger import LedgerSettings
from im.core.model import Form
from tests.im.core.ledger_world import World, change, draft, edit, group, recall

NO_CONVERSATION = Refused(Cause.NO_CONVERSATION)
NO_MESSAGE = Refused(Cause.NO_MESSAGE)


def with_group(*members: str) -> tuple[World, int]:
    world = World()
    return world, world.cid_of(world.one(group("own", members)))


# ---------------------------------------------------------------- where a message goes


@pytest.mark.spec("CC-03")
def test_the_first_message_makes_the_conversation():
    """Whoever sends it: both users have it, and it is the same one from both sides, and by its number."""
    world = World()
    first, second, third = world.run(draft("a", "b", "k1"), draft("b", "a", "k1"), draft("a", 1, "k2"))
    assert [world.cid_of(outcome) for outcome in (first, second, third)] == [1, 1, 1]
    assert world.told("a") == world.told("b") == [(1, 1), (1, 2), (1, 3)]
    assert [message.recipient for message in world.logs[1]] == ["b", "a", "b"]


def test_one_talks_with_oneself():
    """An entry once, in the one timeline."""
    world = World()
    assert world.cid_of(world.one(draft("a", "a", "k1"))) == 1
    assert world.told("a") == [(1, 1)]
    assert world.logs[1][0].recipient == "a"
    world.restart()
    assert world.cid_of(world.one(draft("a", "a", "k2"))) == 1


def test_strangers_and_who_left_send_nothing_by_number():
    """To them there is no such conversation."""
    world, cid = with_group("b")
    assert world.run(draft("x", cid, "k1"), draft("x", 99, "k2"), change("b", cid, "leave"), draft("b", cid, "k3")) == [
        NO_CONVERSATION, NO_CONVERSATION, world.changes.outcomes[2], NO_CONVERSATION,
    ]  # fmt: skip
    world.run(draft("a", "b", "k4"))
    assert world.one(draft("x", 2, "k5")) == NO_CONVERSATION


@pytest.mark.parametrize("is_queued", [False, True])
def test_nothing_is_added_while_too_much_is_to_be_told(*, is_queued: bool, monkeypatch: pytest.MonkeyPatch):
    """Who is in it may come again a moment later, with the same key; others do not learn that there is something."""
    monkeypatch.setattr(timelines, "WAITING_ENTRIES_MAX", 2 * (timelines.AT_ONCE_MAX + 1))
    world, cid = with_group(*(f"u{n}" for n in range(timelines.AT_ONCE_MAX)))
    world.run(draft("own", cid, "first"))
    outcomes = world.run(
        *(draft("own", cid, f"k{n}") for n in range(2)),
        draft("own", cid, "one more", is_queued=is_queued),
        draft("own", cid, "first"),
        edit("own", cid, 2, "e"),
        recall("own", cid, 2, "r"),
        draft("x", cid, "k"),
        draft("own", "u1", "elsewhere"),
    )
    *stored, busy, repeated, edited, recalled, strange, elsewhere = outcomes
    assert all(isinstance(one, Appended) for one in (*stored, elsewhere))
    assert [one.cause for one in (busy, edited, recalled)] == [Cause.BUSY] * 3  # type: ignore[union-attr]
    assert isinstance(repeated, Appended)
    assert not repeated.is_new
    assert strange == NO_CONVERSATION
    world.drain()
    later = world.one(draft("own", cid, "one more", is_queued=is_queued))
    assert isinstance(later, Queued if is_queued else Appended)


def test_who_is_muted_sends_nothing():
    """Nor may an edit say what a message may not."""
    world, cid = with_group("b")
    world.run(draft("b", cid, "k1"), change("own", cid, "mute", "b", value="2000000"))
    muted = Refused(Cause.MUTED, {"until": 2_000_000})
    assert world.run(draft("b", cid, "k2"), edit("b", cid, 2, "k3")) == [muted, muted]
    assert isinstance(world.one(recall("b", cid, 2, "k4")), Appended)


def test_a_reply_is_to_something_that_its_sender_sees():
    """Not beyond the end, not before one came; with nobody whom one never talked to."""
    world, cid = with_group("b")
    world.run(draft("own", cid, "k1"), change("own", cid, "invite", "c"), draft("own", cid, "k2"))
    outcomes = world.run(*(draft("c", cid, f"r{seq}", ref=seq) for seq in (2, 3, 4, 6, 8)))
    assert [isinstance(outcome, Appended) for outcome in outcomes] == [False, True, True, True, False]
    assert outcomes[0] == NO_MESSAGE
    assert world.one(draft("a", "z", "k1", ref=1)) == NO_MESSAGE


@pytest.mark.spec("CC-03")
def test_a_refused_first_message_makes_no_conversation():
    """Or its number would be given away, and given again after a crash, with what was written under it meanwhile."""
    world = World()
    assert world.one(draft("a", "z", "k1", ref=1)) == NO_MESSAGE
    assert world.run(draft("a", 1, "k2"), change("", 1, "fan_out", value="read")) == [NO_CONVERSATION] * 2
    assert not world.changes
    assert world.cid_of(world.one(draft("a", "b", "k3"))) == 1


# ---------------------------------------------------------------- keys


def test_a_retry_gets_the_first_place_and_anything_else_a_conflict():
    """Also in the same batch, by number instead of by user, and from another device or later."""
    world = World()
    world.run(draft("x", "y", "k1"))
    first, again = world.run(draft("a", "b", "k1", mentions=b'["b"]'), draft("a", "b", "k1", mentions=b'["b"]', at=9))
    assert isinstance(first, Appended)
    repeated = Appended(first.message, is_new=False)
    assert again == repeated
    assert world.one(draft("a", 2, "k1", mentions=b'["b"]')) == repeated
    conflict = KeyConflict(first.message)
    same = {"mentions": b'["b"]'}
    assert world.run(
        draft("a", "b", "k1", "2", **same), draft("a", "c", "k1", **same), draft("a", 1, "k1", **same),
        draft("a", "b", "k1"), draft("a", "b", "k1", ref=1, **same), edit("a", 2, 1, "k1"), group("a", [], "k1"),
    ) == [conflict] * 7  # fmt: skip
    assert len(world.log) == 2


def test_a_key_of_an_edit_or_a_group_is_no_messages():
    """One key, one thing."""
    world, cid = with_group("b")
    world.run(draft("own", cid, "k1"), edit("own", cid, 2, "k2", "1"))
    assert world.one(draft("own", cid, "k2")) == KeyConflict(world.logs[cid][2])
    assert world.one(draft("own", cid, "g")) == KeyConflict(world.logs[cid][0])
    assert world.one(edit("own", cid, 2, "k2", "1")) == Appended(world.logs[cid][2], is_new=False)
    again = (edit("own", cid, 2, "k2", "2"), recall("own", cid, 2, "k2"), edit("own", cid, 1, "k2", "1"))
    assert world.run(*again) == [KeyConflict(world.logs[cid][2])] * 3


def test_a_failed_draft_keeps_its_key():
    """Its retry is told the failure; it does not succeed later on. Elsewhere the key is a conflict."""
    world, cid = with_group("b")
    assert world.one(draft("x", cid, "k1", is_queued=True)) == Queued(7, is_new=True)
    world.run()
    ((kind, said),) = world.notes("x")
    assert (kind, said["cause"]) == ("failure", "NO_CONVERSATION")
    world.run(change("own", cid, "invite", "x"))
    note = world.keys["x", "k1"]
    assert world.run(draft("x", cid, "k1"), draft("x", "b", "k1"), edit("x", cid, 1, "k1"), group("x", [], "k1")) == [
        NO_CONVERSATION,
        *[KeyConflict(note)] * 3,
    ]


def test_a_failure_tells_again_what_it_told():
    """With its details."""
    world, cid = with_group("b")
    world.run(change("own", cid, "mute", "b", value="2000000"), draft("b", cid, "k1", is_queued=True))
    world.run()
    world.restart()
    assert world.one(draft("b", cid, "k1")) == Refused(Cause.MUTED, {"until": 2_000_000})


# ---------------------------------------------------------------- edits and recalls


def test_an_edit_covers_the_message_until_a_later_one():
    """Each is an entry of its own; what was written stays as it was."""
    world = World()
    world.run(draft("a", "b", "k1"), edit("a", 1, 1, "k2", "2"), edit("a", 1, 1, "k3", "3"))
    covered = world.overlays[1, 1]
    assert (covered.version, covered.body, covered.is_recalled, covered.cseq) == (3, b"3", False, 1)
    assert [(entry.form, entry.ref, entry.cseq, entry.body) for entry in world.logs[1]] == [
        (Form.MESSAGE, 0, 1, b"1"), (Form.EDIT, 1, 1, b"2"), (Form.EDIT, 1, 1, b"3"),
    ]  # fmt: skip
    assert world.told("b") == [(1, 1), (1, 2), (1, 3)]


@pytest.mark.parametrize("is_apart", [False, True])
def test_a_recalled_message_is_neither_edited_nor_recalled(*, is_apart: bool):
    """Whether it was recalled in this batch or in an earlier one."""
    world = World()
    world.run(draft("a", "b", "k1"), recall("a", 1, 1, "k2"))
    later = (edit("a", 1, 1, "k3"), recall("a", 1, 1, "k4"))
    if is_apart:
        world.restart()
        assert world.run(*later) == [Refused(Cause.RECALLED)] * 2
    else:
        world = World()
        assert world.run(draft("a", "b", "k1"), recall("a", 1, 1, "k2"), *later)[2:] == [Refused(Cause.RECALLED)] * 2
    assert world.overlays[1, 1].is_recalled
    assert world.overlays[1, 1].body == b""


def test_who_may_not_see_a_message_does_not_touch_it():
    """Nor what is none."""
    world, cid = with_group("b")
    world.run(draft("b", cid, "k1"), change("own", cid, "invite", "c"))
    assert world.run(
        recall("x", cid, 2, "x1"), recall("c", cid, 2, "c1"), edit("b", cid, 9, "b1"), edit("b", cid, 0, "b2"),
        edit("own", cid, 2, "o1"), edit("b", 99, 1, "b3"),
    ) == [NO_CONVERSATION, NO_MESSAGE, NO_MESSAGE, NO_MESSAGE, Refused(Cause.NOT_YOURS), NO_CONVERSATION]  # fmt: skip
    assert isinstance(world.one(recall("own", cid, 2, "o2")), Appended)


def test_windows_close_for_the_sender():
    """Each has its own."""
    world = World(LedgerSettings(recall_window_ms=10, edit_window_ms=20))
    world.run(draft("a", "b", "k1", at=100))
    assert world.one(recall("a", 1, 1, "k2", at=111)) == Refused(Cause.WINDOW_CLOSED, {"window_ms": 10})
    assert world.one(edit("a", 1, 1, "k3", at=121)) == Refused(Cause.WINDOW_CLOSED, {"window_ms": 20})
    assert isinstance(world.one(edit("a", 1, 1, "k4", at=120)), Appended)
    assert isinstance(world.one(recall("a", 1, 1, "k5", at=110)), Appended)


# ---------------------------------------------------------------- mentions


def test_who_is_mentioned_is_remembered_where_the_message_is():
    """Members but its sender, and everybody; an edit mentions at the message's place."""
    world, cid = with_group("b", "c")
    world.run(draft("b", cid, "k1", mentions=b'["b","c","x","*"]'), edit("b", cid, 2, "k2", mentions=b'["own"]'))
    assert world.mentions == {(cid, "c", 2), (cid, "*", 2), (cid, "own", 2)}
    world.run(draft("a", "b", "k1", mentions=b'["b","a","c"]'))
    assert {mention for mention in world.mentions if mention[0] != cid} == {(2, "b", 1)}
