"""The view of who is put out of a group and comes back while its client is behind: only the timeline has all of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.clock import Instant
from roadstead.client.rows import Shown
from roadstead.client.view import PAGE, AskList
from tests.roadstead.view_world import CID, ME, NOW, Log, begun, feed, note, seen


def _away(log: Log, missed: int) -> None:
    """The user is put out, misses so many messages, comes back, and may not read what was before."""
    log.event("kick", ME)
    for _ in range(missed):
        log.message()
    log.event("invite", ME)
    log.first_seq = len(log.entries)


@pytest.mark.parametrize("appends", [True, False])
def test_what_the_timeline_brings_of_an_earlier_membership_is_shown_after_a_later_one(appends: bool) -> None:  # noqa: FBT001
    """Pages have none of it any more: at the end of the window that is open, in its place in the next one."""
    log = Log(is_group=True)
    log.message()
    view, server = begun(log, appends=appends)
    conversation = view.conversation(CID)
    assert conversation is not None
    view.open(conversation)
    for _ in range(4):
        log.message()
    _away(log, 3)
    log.message()
    view.ask_list()
    server.answer([AskList()], NOW)
    server.settle(NOW)
    assert [row.seq for row in conversation.rows()] == ([1, 11, 10] if appends else [1, 10, 11])
    before = [row.seq for row in conversation.rows()]
    unread = view.total_unread()
    effects = feed(view, *log.entries[1:6], *log.entries[1:6], *log.entries[9:])
    assert [effect.row.seq for effect in effects] == [2, 3, 4, 5, 6], "each is told once"
    assert [row.seq for row in conversation.rows()] == [*before, 2, 3, 4, 5, 6]
    conversation.close()
    assert [seq for seq, _ in seen(view)] == [*range(1, 7), 10, 11]
    assert view.total_unread() == unread
    assert view.due is None


def test_a_long_stretch_of_an_earlier_membership_is_kept_while_the_gap_before_it_waits() -> None:
    """Put out, back, put out and back again, while the client catches up: the page begins with the last membership."""
    log = Log(is_group=True)
    log.message()
    view, server = begun(log, entries_max=PAGE)
    _away(log, 3)
    back = len(log.entries)
    for _ in range(PAGE + 20):
        log.message()
    _away(log, 3)
    again = len(log.entries)
    log.message()
    told = [*log.entries[:2], *log.entries[back - 1 : again - 4], *log.entries[again - 1 :]]
    feed(view, *told)
    server.settle(NOW)
    conversation = view.conversation(CID)
    assert conversation is not None
    kept = [entry["seq"] for entry in told if entry["seq"] >= conversation.lo]
    assert [seq for seq, _ in seen(view)] == kept
    assert len(kept) >= PAGE
    assert conversation.lo >= back
    assert view.total_unread() == 1


def test_an_earlier_membership_makes_room_as_everything_does() -> None:
    """The oldest goes, and what is older than that is not shown."""
    log = Log(is_group=True)
    log.message()
    view, server = begun(log, entries_max=PAGE)
    for _ in range(PAGE - 10):
        log.message()
    _away(log, 3)
    for _ in range(PAGE - 10):
        log.message()
    view.heard_of(CID, len(log.entries), NOW)
    server.settle(NOW)
    feed(view, *log.entries[PAGE // 2 : PAGE - 8], *log.entries[: PAGE // 2])
    conversation = view.conversation(CID)
    assert conversation is not None
    assert conversation.lo > 1
    visible = [*range(1, PAGE - 7), *range(log.first_seq, len(log.entries) + 1)]
    assert [seq for seq, _ in seen(view)] == [seq for seq in visible if seq >= conversation.lo]


class Membership(Log):
    """A group's log, of which the user's timeline has what came while it was in."""

    def __init__(self) -> None:
        super().__init__(is_group=True)
        self.timeline = [self.message()]

    def unread(self) -> int:
        since = [entry for entry in self.entries if entry["seq"] > max(self.first_seq, self.read_seq)]
        return sum(entry["kind"] == "message" for entry in since)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["talk", "talk", "away", "tell", "read", "list", "wait"]), st.integers(1, 60))
    ),
    appends=st.booleans(),
)
def test_all_memberships_are_shown_however_far_the_client_is_behind(
    steps: list[tuple[str, int]],
    appends: bool,  # noqa: FBT001
) -> None:
    """Lists and pages know only the last one; the timeline brings all, late."""
    log = Membership()
    view, server = begun(log, entries_max=PAGE, appends=appends)
    conversation = view.conversation(CID)
    assert conversation is not None
    now, position = NOW, 1
    for step, count in [*steps, ("tell", len(steps) * 60), ("list", 1), ("wait", 1)]:
        now = Instant(now + 100)
        if step == "talk":
            log.timeline += [log.message() for _ in range(count)]
        elif step == "away":
            _away(log, count)
            log.timeline += [log.entries[-count - 2], log.entries[-1]]
        elif step == "tell":
            effects = feed(view, *log.timeline[position : position + count], now=now)
            server.effects += effects
            position = min(position + count, len(log.timeline))
        elif step == "read":
            log.read_seq = max(log.read_seq, len(log.entries) - count)
            feed(view, note("read", read_seq=log.read_seq), now=now)
        elif step == "list":
            server.answer(view.ask_list(), now)
        else:
            now = server.settle(now)
    shown = [effect.row.seq for effect in server.effects if isinstance(effect, Shown)]
    assert len(shown) == len(set(shown)), "each is told once"
    assert [seq for seq, _ in seen(view)] == [e["seq"] for e in log.timeline if e["seq"] >= conversation.lo]
    assert conversation.hi == len(log.entries)
    assert view.total_unread() == log.unread()
