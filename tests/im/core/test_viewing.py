"""Marks: pointers and settings one by one, at their borders; random ones are in `test_ledger`."""

from __future__ import annotations

from typing import Any

import pytest

from im.core.commands import Cause, Marked, Refused
from im.core.model import View
from tests.im.core.ledger_world import AT, World, change, draft, edit, group, mark

NO_CONVERSATION = Refused(Cause.NO_CONVERSATION)


def talk(count: int = 4) -> World:
    """Conversation 1 of `a` and `b`: messages 1 to `count`, then an edit."""
    world = World()
    world.run(*(draft("a", "b", f"k{n}") for n in range(count)), edit("a", 1, 1, "e"))
    return world


def marked(world: World, user: str = "b", cid: int = 1, **fields: Any) -> View:
    outcome = world.one(mark(user, cid, **fields))
    assert isinstance(outcome, Marked)
    assert outcome.is_new == bool(world.changes.views)
    return outcome.view


@pytest.mark.parametrize(
    ("seq", "read"), [(-1, (0, 0)), (0, (0, 0)), (1, (1, 1)), (4, (4, 4)), (5, (5, 4)), (99, (5, 4))]
)
def test_one_reads_up_to_the_end_at_most(seq: int, read: tuple[int, int]):
    """A position knows how many messages there are up to it."""
    view = marked(talk(), read_seq=seq)
    assert (view.read_seq, view.read_cseq) == read


def test_pointers_go_forward_only():
    """Marks may come late, or twice: then nothing is written, and nobody is told."""
    world = talk()
    marked(world, read_seq=3, delivered_seq=4)
    view = marked(world, read_seq=2, delivered_seq=-1)
    assert (view.read_seq, view.read_cseq, view.delivered_seq) == (3, 3, 4)
    assert not world.changes
    assert marked(world, delivered_seq=99).delivered_seq == 5


@pytest.mark.parametrize("read_seq", [4, 5, 6, 7, 99])
def test_reading_to_the_end_and_on_while_it_moves(read_seq: int):
    """What was the end when the batch began is none when the mark's turn comes."""
    world = talk()
    _, outcome = world.run(draft("a", "b", "k9"), mark("b", 1, read_seq=read_seq))
    assert isinstance(outcome, Marked)
    assert outcome.view.read_seq == min(read_seq, 6)
    assert outcome.view.read_cseq == (4 if read_seq < 6 else 5)


def test_reading_takes_back_the_mark_by_hand():
    """Even if it reads nothing new; both at once leave it marked."""
    world = talk()
    assert marked(world, is_marked_unread=True).is_marked_unread
    assert not marked(world, read_seq=0).is_marked_unread
    assert marked(world, read_seq=2, is_marked_unread=True).is_marked_unread
    assert not marked(world, is_marked_unread=False).is_marked_unread


def test_a_pin_keeps_its_time():
    """Pinning again does not reorder the list."""
    world = talk()
    assert marked(world, is_pinned=True).pinned_at == AT
    assert world.one(mark("b", 1, is_pinned=True)).is_new is False
    assert marked(world, is_pinned=False).pinned_at == 0
    assert marked(world, is_muted=True).is_muted


def test_what_is_hidden_counts_as_read_and_stays_read():
    """Listed again, it is not unread again; to list what is listed changes nothing."""
    world = talk()
    assert marked(world, is_hidden=False) == View("b", 1)
    view = marked(world, is_hidden=True)
    assert (view.hidden_seq, view.hidden_cseq, view.read_seq) == (5, 4, 0)
    view = marked(world, is_hidden=False)
    assert (view.hidden_seq, view.hidden_cseq, view.read_seq, view.read_cseq) == (0, 0, 5, 4)


@pytest.mark.parametrize("is_hidden", [True, False])
def test_what_is_read_in_the_same_mark_is_not_lost(*, is_hidden: bool):
    """A mark may do both: the further one counts."""
    world = talk()
    marked(world, is_hidden=True)
    world.run(draft("a", "b", "k8"), draft("a", "b", "k9"))
    view = marked(world, read_seq=6, is_hidden=is_hidden)
    assert (view.read_seq, view.read_cseq, view.hidden_seq) == (6, 5, 7 if is_hidden else 0)


def test_the_users_other_devices_are_told_what_is_so_now():
    """By notes in the user's own timeline: one about reading, one about settings, none about what was delivered."""
    world = talk()
    before = len(world.told("a"))
    marked(world, read_seq=2, is_muted=True, is_pinned=True)
    marked(world, delivered_seq=3)
    assert world.notes("b") == [
        ("read", {"read_seq": 2, "is_marked_unread": False}),
        ("settings", {"is_muted": True, "pinned_at": AT, "hidden_seq": 0}),
    ]
    assert len(world.told("a")) == before


def test_marks_of_one_batch_add_up():
    """Each begins with what the one before it made."""
    world = talk()
    world.run(mark("b", 1, read_seq=3), mark("b", 1, is_muted=True), mark("b", 1, read_seq=2))
    assert world.views["b", 1] == View("b", 1, read_seq=3, read_cseq=3, is_muted=True)


def test_strangers_mark_nothing():
    """Neither in a conversation of others nor where there is none."""
    world = talk()
    assert world.run(mark("x", 1, is_muted=True), mark("a", 9, read_seq=1)) == [NO_CONVERSATION] * 2
    assert not world.changes


@pytest.mark.parametrize("is_apart", [False, True])
def test_who_left_reads_no_further_but_has_settings(*, is_apart: bool):
    """Whether it left in this batch or in an earlier one."""
    world = World()
    world.run(group("own", ["b"]))
    commands = [change("b", 1, "leave"), mark("b", 1, is_hidden=True), mark("b", 1, read_seq=1)]
    commands.append(mark("b", 1, delivered_seq=1))
    outcomes = [world.one(command) for command in commands] if is_apart else world.run(*commands)
    assert isinstance(outcomes[1], Marked)
    assert outcomes[2:] == [NO_CONVERSATION] * 2
    assert world.views["b", 1].hidden_seq == 2


@pytest.mark.parametrize(("size", "is_told"), [(99, True), (100, False)])
def test_a_receipt_is_for_the_others_if_they_are_few(size: int, *, is_told: bool):
    """Who is there at the mark's place in the log; nobody of a setting, or of a mark that changes nothing."""
    world = World()
    others = tuple(f"u{number:03}" for number in range(size - 1))
    world.run(group("a", ["gone", *others], "k1"), change("gone", 1, "leave"), change("a", 1, "invite", "z"))

    def receivers(**fields: Any) -> tuple[str, ...]:
        outcome = world.one(mark("a", 1, **fields))
        assert isinstance(outcome, Marked)
        return outcome.receivers

    assert receivers(read_seq=2) == ((*others, "z") if is_told else ())
    assert receivers(delivered_seq=2) == ((*others, "z") if is_told else ())
    assert receivers(read_seq=1) == ()
    assert receivers(is_muted=True) == ()
