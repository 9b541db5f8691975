"""Unread: the formula as a table, then counters against an oracle that scans whole logs."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from base.clock import Timestamp
from im.core.model import Form, Member, Message, View
from im.core.unread import RECALLS_MAX, Pointers, Total, Unread, UnreadCounters, pointers, total, unread


def entry(  # noqa: PLR0917 - as short as the tables need
    cid: int, seq: int, cseq: int, sender: str, recipient: str = "", form: int = Form.MESSAGE, ref: int = 0
) -> Message:
    return Message(0, cid, seq, cseq, 1, sender, "phone", recipient, "", form, "text", ref, b"", b"", Timestamp(0))


def said(seq: int, sender: str = "bob", recipient: str = "ann", cid: int = 1) -> Message:
    """A message of a conversation that has nothing else."""
    return entry(cid, seq, seq, sender, recipient)


def counters(*parts: Pointers, parts_max: int = 100, events_max: int = 100) -> UnreadCounters:
    """Of ann."""
    kept = UnreadCounters(parts_max=parts_max, events_max=events_max)
    assert kept.learn("ann", parts, since=0)
    kept.check_invariants()
    return kept


def count(kept: UnreadCounters, user: str = "ann") -> int | None:
    kept.check_invariants()
    found = kept.total(user)
    return None if found is None else found.unread


# ---------------------------------------------------------------- the formula


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ({}, 10),
        ({"read_seq": 6, "read_cseq": 4}, 6),
        ({"sent_seq": 6, "sent_cseq": 4}, 6),
        ({"hidden_seq": 6, "hidden_cseq": 4}, 6),
        ({"read_seq": 6, "read_cseq": 4, "sent_seq": 9, "sent_cseq": 7, "hidden_seq": 7, "hidden_cseq": 5}, 3),
        ({"delivered_seq": 13}, 10),
        ({"read_seq": 13, "read_cseq": 10}, 0),
        ({"read_seq": 13, "read_cseq": 10, "is_marked_unread": True}, 1),
        ({"is_marked_unread": True}, 10),
    ],
)
def test_the_furthest_pointer_counts(view: dict[str, Any], expected: int):
    """Of what was read, sent and hid; what was delivered is not read. Marked by hand shows as one."""
    part = pointers(View("ann", 1, **view), None, max_seq=13, max_cseq=10, recalled=0)
    assert unread(part) == expected


def test_what_was_before_joining_never_counts():
    """Though it may be seen, and whether or not the conversation was ever opened."""
    member = Member(1, "ann", 0, 1, 8, 6)
    part = pointers(View("ann", 1), member, max_seq=13, max_cseq=10, recalled=0)
    assert (unread(part), part.floor_seq) == (4, 8)


def test_recalled_messages_do_not_count():
    """All of them may be."""
    for recalled, expected in ((0, 4), (1, 3), (4, 0)):
        part = pointers(View("ann", 1, 8, 6), None, max_seq=13, max_cseq=10, recalled=recalled)
        assert unread(part) == expected


def test_a_group_that_was_left_counts_nothing():
    """Even if marked by hand."""
    member = Member(1, "ann", 0, 1, 1, 0, leave_seq=13)
    part = pointers(View("ann", 1, is_marked_unread=True), member, max_seq=13, max_cseq=10, recalled=0)
    assert unread(part) == 0


@pytest.mark.spec("UN-01")
def test_a_total_is_the_sum_of_its_parts():
    """What is muted is in it, and told apart."""
    parts = [Pointers(1, 9, 9, 4, 4), Pointers(2, 9, 9, 2, 2, is_muted=True), Pointers(3, 9, 9, 9, 9)]
    assert total(parts) == Total(12, 7)
    assert total([]) == Total(0, 0)


# ---------------------------------------------------------------- counters by example


def test_who_never_asked_is_not_known():
    """Nor is anything kept of what is said to strangers."""
    kept = UnreadCounters(parts_max=10)
    kept.applied(said(1))
    assert count(kept) is None
    assert len(kept) == 0
    kept.forget("ann")


def test_messages_count_once():
    """Repeats are known by their seq (I2), and one's own count as read."""
    kept = counters(Pointers(1, 2, 2, 1, 1))
    assert count(kept) == 1
    for _ in range(2):
        kept.applied(said(3))
    assert count(kept) == 2
    kept.applied(said(4, "ann", "bob"))
    assert count(kept) == 0
    assert kept.unread("ann") == [Unread(1, 0, is_muted=False)]


def test_a_first_message_makes_its_conversation_known():
    """To whom it is sent, to who sends it, and to both who are one."""
    kept = counters()
    assert kept.learn("bob", [], since=0)
    kept.applied(said(1))
    kept.applied(said(1, "ann", "ann", cid=2))
    assert (count(kept), count(kept, "bob")) == (1, 0)
    kept.applied(said(2))
    assert (count(kept), count(kept, "bob")) == (2, 0)


@pytest.mark.parametrize("message", [said(2), entry(1, 1, 1, "ann")])
def test_a_conversation_of_which_the_beginning_was_missed_makes_forgotten(message: Message):
    """A single one's first message, or having joined the group."""
    kept = counters()
    kept.applied(message)
    assert count(kept) is None


def test_a_hole_makes_forgotten():
    """I1: all whom it concerns, and only those."""
    kept = counters(Pointers(1, 2, 2, 1, 1))
    assert kept.learn("bob", [Pointers(1, 2, 2, 2, 2)], since=0)
    assert kept.learn("cleo", [Pointers(2, 5, 5, 4, 4)], since=0)
    kept.applied(said(4))
    kept.check_invariants()
    assert (count(kept), count(kept, "bob"), count(kept, "cleo")) == (None, None, 1)


def test_who_asks_anew_after_a_hole_is_not_mixed_with_those_before():
    """I4: the conversation has another end then."""
    kept = counters(Pointers(1, 2, 2, 1, 1))
    kept.applied(said(4))
    assert kept.learn("bob", [Pointers(1, 4, 4, 4, 4)], since=kept.position)
    kept.applied(said(5, "ann", "bob"))
    assert (count(kept), count(kept, "bob")) == (None, 1)


def test_recalls_uncount_what_was_not_read():
    """Only that, and only once."""
    kept = counters(Pointers(1, 4, 4, 2, 2))
    kept.applied(entry(1, 5, 4, "bob", "ann", Form.RECALL, ref=2))
    assert count(kept) == 2
    for _ in range(2):
        kept.applied(entry(1, 6, 4, "bob", "ann", Form.RECALL, ref=3))
    assert count(kept) == 1
    kept.applied(View("ann", 1, read_seq=3, read_cseq=3))
    assert count(kept) == 1
    kept.applied(View("ann", 1, read_seq=6, read_cseq=4))
    assert count(kept) == 0


def test_a_mark_in_the_midst_of_recalled_messages_makes_forgotten():
    """Which of them it leaves is not known; one up to where they were read leaves none."""
    for read_seq, expected in ((3, None), (5, 0)):
        kept = counters(Pointers(1, 5, 5, 1, 1, recalled=1))
        kept.applied(View("ann", 1, read_seq=read_seq, read_cseq=read_seq))
        assert count(kept) == expected


def test_too_many_recalls_make_forgotten():
    """They are kept for all users of a conversation, so their number is bounded."""
    kept = counters(Pointers(1, 1, 1, 0, 0))
    for number in range(RECALLS_MAX):
        kept.applied(entry(1, 2 + number, 1, "bob", "ann", Form.RECALL, ref=1))
    assert count(kept) is not None
    kept.applied(entry(1, 2 + RECALLS_MAX, 1, "bob", "ann", Form.RECALL, ref=1))
    assert count(kept) is None


def test_edits_events_and_notes_count_nothing():
    """But edits and events are entries: without them there would be holes."""
    kept = counters(Pointers(1, 2, 2, 1, 1))
    position = kept.position
    kept.applied(entry(1, 0, 0, "ann", form=Form.NOTE))
    assert kept.position == position
    kept.applied(entry(1, 3, 2, "bob", "ann", Form.EDIT, ref=2))
    kept.applied(entry(1, 4, 2, "ann", "bob", Form.EDIT, ref=1))
    kept.applied(entry(1, 5, 2, "", "", Form.EVENT))
    assert count(kept) == 1


def test_marks_by_hand_and_mutes_are_followed():
    """As the view is now."""
    kept = counters(Pointers(1, 2, 2, 2, 2))
    kept.applied(View("ann", 1, is_marked_unread=True, is_muted=True))
    assert kept.total("ann") == Total(1, 1)
    kept.applied(View("ann", 1))
    kept.applied(View("bob", 1, is_muted=True))
    assert kept.total("ann") == Total(0, 0)


def test_a_mark_beyond_the_end_that_is_known_makes_forgotten():
    """Messages were missed."""
    kept = counters(Pointers(1, 2, 2, 1, 1))
    kept.applied(View("ann", 1, read_seq=3, read_cseq=3))
    assert count(kept) is None


@pytest.mark.parametrize("event", [View("ann", 9), Member(1, "ann", 0, 1, 1, 0, leave_seq=3)])
def test_unknown_conversations_and_changed_membership_make_forgotten(event: View | Member):
    """Both are rare; the store knows."""
    kept = counters(Pointers(1, 2, 2, 1, 1))
    kept.applied(event)
    assert count(kept) is None


def test_a_group_that_was_left_is_not_followed():
    """It goes on without the user, whom its entries do not make forgotten."""
    kept = counters(Pointers(1, 2, 2, 1, 1, is_left=True), Pointers(2, 2, 2, 1, 1))
    kept.applied(entry(1, 9, 9, "bob"))
    assert (count(kept), len(kept)) == (1, 1)


def test_what_came_while_the_store_was_read_is_not_lost():
    """Whether it was in what was read or not."""
    for read in (Pointers(1, 2, 2, 1, 1), Pointers(1, 3, 3, 1, 1), Pointers(1, 4, 4, 3, 3)):
        kept = UnreadCounters(parts_max=10)
        since = kept.position
        kept.applied(said(3))
        kept.applied(View("bob", 1, is_muted=True))
        kept.applied(View("ann", 1, read_seq=3, read_cseq=3))
        kept.applied(said(1, "cleo", "ann", cid=2))
        kept.applied(said(1, "cleo", "bob", cid=3))
        assert kept.learn("ann", [read], since=since)
        kept.applied(said(4))
        assert count(kept) == 2


def test_what_was_read_ahead_of_what_was_applied_counts():
    """The store commits first, and tells then."""
    kept = UnreadCounters(parts_max=10)
    assert kept.learn("bob", [Pointers(1, 2, 2, 2, 2)], since=0)
    assert kept.learn("ann", [Pointers(1, 4, 3, 2, 2, recalled=1)], since=0)
    assert (count(kept), count(kept, "bob")) == (0, 0)
    kept.applied(said(3))
    kept.applied(entry(1, 4, 3, "bob", "ann", Form.RECALL, ref=3))
    assert (count(kept), count(kept, "bob")) == (0, 0)
    kept.applied(entry(1, 5, 4, "bob", "ann"))
    assert count(kept) == 1


def test_a_reading_that_took_too_long_is_not_kept():
    """More happened than is remembered; or the user's groups changed."""
    kept = UnreadCounters(parts_max=10, events_max=2)
    for seq in range(1, 4):
        kept.applied(said(seq, "x", "y"))
    assert not kept.learn("ann", [], since=0)
    assert kept.learn("ann", [], since=1)
    kept.applied(Member(1, "ann", 0, 1, 1, 0))
    assert not kept.learn("ann", [], since=3)


def test_the_one_who_asked_longest_ago_is_forgotten_first():
    """I3: asking is what keeps."""
    kept = counters(Pointers(1, 2, 2, 1, 1), Pointers(2, 2, 2, 1, 1), parts_max=5)
    assert kept.learn("bob", [Pointers(1, 2, 2, 2, 2), Pointers(3, 2, 2, 2, 2)], since=0)
    assert count(kept) == 2
    assert kept.learn("cleo", [Pointers(3, 2, 2, 0, 0), Pointers(4, 2, 2, 2, 2)], since=0)
    assert (count(kept, "cleo"), count(kept, "bob"), count(kept)) == (2, None, 2)
    assert not kept.learn("dan", [Pointers(cid, 1, 1, 0, 0) for cid in range(6)], since=0)
    for cid in (11, 12):
        kept.applied(said(1, "eve", "ann", cid=cid))
        kept.check_invariants()
    assert (count(kept), count(kept, "cleo")) == (4, None)
    for cid in (13, 14):
        kept.applied(said(1, "eve", "ann", cid=cid))
    assert count(kept) is None, "too much for all the room there is"


def test_users_without_conversations_are_bounded_as_well():
    """Whoever asks for the first time has none, and anybody may ask."""
    kept = counters(Pointers(1, 2, 2, 1, 1), parts_max=3)
    for n in range(5):
        assert kept.learn(f"user{n}", [], since=kept.position)
        kept.check_invariants()
    assert (kept.users, len(kept)) == (3, 0)
    assert [kept.total(f"user{n}") for n in (1, 2)] == [None, Total(0, 0)]


@pytest.mark.spec("UN-06")
def test_drift_is_found_and_repaired():
    """UN-06: the counters say in how many conversations they were wrong."""
    right = Pointers(1, 2, 2, 1, 1), Pointers(2, 2, 2, 1, 1)
    kept = counters(right[0], replace(right[1], floor_cseq=0))
    assert count(kept) == 3
    assert kept.reconcile("ann", right, since=kept.position) == 1
    assert count(kept) == 2
    assert kept.reconcile("ann", right, since=kept.position) == 0


def test_there_is_no_drift_in_what_is_not_known():
    """Nor in what cannot be learned, or is lost at once."""
    kept = UnreadCounters(parts_max=2, events_max=3)
    assert kept.reconcile("ann", [], since=0) is None
    assert kept.learn("ann", [], since=0)
    assert kept.reconcile("ann", [Pointers(cid, 1, 1, 1, 1) for cid in range(3)], since=0) is None
    assert kept.learn("ann", [], since=0)
    assert kept.learn("bob", [], since=0)
    kept.applied(said(7, "x", "y"))
    assert kept.reconcile("bob", [Pointers(1, 5, 5, 5, 5)], since=0) is None


@pytest.mark.spec("UN-04")
def test_devices_that_replay_the_same_events_agree_and_one_that_lost_some_does_not():
    """UN-04: marks are events. A device that loses one shows another number until it asks for the pointers."""
    start = Pointers(1, 3, 3, 0, 0)
    phone, laptop, broken = (counters(start) for _ in range(3))
    events = [View("ann", 1, read_seq=3, read_cseq=3), said(4), View("ann", 1, 3, 3, is_marked_unread=True), said(5)]
    for event in events:
        phone.applied(event)
    for event in [*events[:2], *events]:
        laptop.applied(event)
    for event in events[1:2] + events[3:]:
        broken.applied(event)
    assert (count(phone), count(laptop), count(broken)) == (2, 2, 5)
    assert broken.reconcile("ann", [Pointers(1, 5, 5, 3, 3)], since=broken.position) == 1
    assert count(broken) == 2


# ---------------------------------------------------------------- against an oracle

USERS = ("ann", "bob", "cleo")
GROUP = 9
PAIRS = {("ann", "bob"): 1, ("ann", "cleo"): 2, ("bob", "cleo"): 3, ("ann", "ann"): 4}


class Oracle:
    """Whole logs, and what each user did, scanned for every answer."""

    def __init__(self) -> None:
        self.logs: dict[int, list[Message]] = {GROUP: []}
        self.views: dict[tuple[str, int], View] = {}
        self.members: dict[str, Member] = {}

    def append(self, cid: int, sender: str, recipient: str, form: int = Form.MESSAGE, ref: int = 0) -> Message:
        log = self.logs.setdefault(cid, [])
        cseq = sum(one.form == Form.MESSAGE for one in log) + (form == Form.MESSAGE)
        log.append(entry(cid, len(log) + 1, cseq, sender, recipient, form, ref))
        return log[-1]

    def cids(self, user: str) -> list[int]:
        direct = [cid for pair, cid in PAIRS.items() if user in pair and cid in self.logs]
        return direct + ([GROUP] if user in self.members else [])

    def view(self, user: str, cid: int) -> View:
        return self.views.get((user, cid), View(user, cid))

    def floor(self, user: str, cid: int) -> int:
        view = self.view(user, cid)
        own = [one.seq for one in self.logs[cid] if one.sender == user and one.form == Form.MESSAGE]
        joined = self.members[user].join_seq if cid == GROUP else 0
        return max(view.read_seq, view.hidden_seq, max(own, default=0), joined)

    def recalled(self, cid: int) -> set[int]:
        return {one.ref for one in self.logs[cid] if one.form == Form.RECALL}

    def unread(self, user: str, cid: int) -> int:
        if cid == GROUP and self.members[user].leave_seq:
            return 0
        after = [one.seq for one in self.logs[cid] if one.form == Form.MESSAGE and one.seq > self.floor(user, cid)]
        left = len(set(after) - self.recalled(cid))
        return max(left, 1 if self.view(user, cid).is_marked_unread else 0)

    def read(self, user: str) -> list[Pointers]:
        """As a store answers."""
        parts = []
        for cid in self.cids(user):
            log, view = self.logs[cid], self.view(user, cid)
            own = [one for one in log if one.sender == user and one.form == Form.MESSAGE]
            if own:
                view = replace(view, sent_seq=own[-1].seq, sent_cseq=own[-1].cseq)
            recalled = sum(ref > self.floor(user, cid) for ref in self.recalled(cid))
            member = self.members[user] if cid == GROUP else None
            parts.append(pointers(view, member, max_seq=len(log), max_cseq=log[-1].cseq, recalled=recalled))
        return parts


DEEDS = ("send", "send", "recall", "read", "read", "mark", "mute", "hide", "join or leave")


class History:
    """Events are applied later than they are stored; users are read before, between and after."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.oracle = Oracle()
        self.kept = UnreadCounters(parts_max=9, events_max=12)
        self.stored: list[Message | View | Member] = []

    def happen(self) -> None:
        what = self.random.choice(DEEDS)
        user = self.random.choice(USERS)
        index, back = self.random.randrange(5), self.random.randrange(6)
        if what == "send":
            self.send(user, index)
        elif what == "join or leave":
            self.join_or_leave(user)
        else:
            cids = self.oracle.cids(user)
            if cids and what == "recall":
                self.recall(cids[index % len(cids)], back)
            elif cids:
                self.change_view(user, cids[index % len(cids)], back, what)

    def send(self, user: str, index: int) -> None:
        pairs = [(cid, pair) for pair, cid in PAIRS.items() if user in pair]
        if index < len(pairs):
            cid, (one, other) = pairs[index]
            self.stored.append(self.oracle.append(cid, user, other if user == one else one))
        elif user in self.oracle.members and not self.oracle.members[user].leave_seq:
            self.stored.append(self.oracle.append(GROUP, user, ""))

    def join_or_leave(self, user: str) -> None:
        event = self.oracle.append(GROUP, user, "", Form.EVENT)
        member = self.oracle.members.get(user)
        if member is None or member.leave_seq:
            member = Member(GROUP, user, 0, event.seq, event.seq, event.cseq)
        else:
            member = replace(member, leave_seq=event.seq)
        self.oracle.members[user] = member
        self.stored += [event, member]

    def recall(self, cid: int, back: int) -> None:
        log = self.oracle.logs[cid]
        left = [one for one in log if one.form == Form.MESSAGE and one.seq not in self.oracle.recalled(cid)]
        if left:
            target = left[-1 - back % len(left)]
            self.stored.append(self.oracle.append(cid, target.sender, target.recipient, Form.RECALL, target.seq))

    def change_view(self, user: str, cid: int, back: int, what: str) -> None:
        log, view = self.oracle.logs[cid], self.oracle.view(user, cid)
        at = log[max(len(log) - 1 - back, 0)]
        if what == "read":
            read = max((view.read_seq, view.read_cseq), (at.seq, at.cseq))
            view = replace(view, read_seq=read[0], read_cseq=read[1], is_marked_unread=False)
        elif what == "mark":
            view = replace(view, is_marked_unread=True)
        elif what == "mute":
            view = replace(view, is_muted=not view.is_muted)
        else:
            view = replace(view, hidden_seq=log[-1].seq, hidden_cseq=log[-1].cseq)
        self.oracle.views[user, cid] = view
        self.stored.append(view)

    def apply(self, how_many: int) -> None:
        for event in self.stored[:how_many]:
            self.kept.applied(event)
            self.kept.check_invariants()
        del self.stored[:how_many]

    def learn(self) -> None:
        user = self.random.choice(USERS)
        for one in USERS:
            if self.random.random() < 0.5:
                self.kept.forget(one)
        since = self.kept.position
        self.apply(self.random.randrange(3))
        parts = self.oracle.read(user)
        for _ in range(self.random.randrange(4)):
            self.happen()
        self.apply(self.random.randrange(8))
        self.kept.learn(user, parts, since=since)

    def settle(self) -> int:
        """Apply all, compare, and return how many users could be told."""
        self.apply(len(self.stored))
        told = [(user, parts) for user in USERS if (parts := self.kept.unread(user)) is not None]
        for user, parts in told:
            expected = {cid: self.oracle.unread(user, cid) for cid in self.oracle.cids(user)}
            assert {one.cid: one.unread for one in parts if one.unread} == {c: n for c, n in expected.items() if n}
            muted = sum(n for cid, n in expected.items() if self.oracle.view(user, cid).is_muted)
            assert self.kept.total(user) == Total(sum(expected.values()), muted), "UN-01"
            assert total(self.oracle.read(user)) == self.kept.total(user)
            assert self.kept.reconcile(user, self.oracle.read(user), since=self.kept.position) == 0, "UN-06: no drift"
        return len(told)


@pytest.mark.spec("UN-01", "UN-06")
@pytest.mark.parametrize("seed", range(40))
def test_counters_say_what_an_oracle_says_or_nothing(seed: int):
    """UN-01, UN-04, UN-06, I1 to I5: seeded histories of three users, six conversations, and a store that is ahead."""
    history = History(seed)
    told = 0
    for _ in range(50):
        for _ in range(history.random.randrange(6)):
            history.happen()
        history.learn()
        told += history.settle() if history.random.random() < 0.7 else 0
    assert told > 10, "they are worth having"
