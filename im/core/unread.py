"""How many messages a user has not read: by conversation, and in total.

Unread is a function of pointers, which are the truth: the messages after the furthest of what the user read, sent, hid
and came in at, less those that were recalled. `unread` is that function. Counting each message as it comes would be
quicker to ask for, and drift: by a message counted twice, or one's own, or a recalled one.

`UnreadCounters` keeps the pointers of users who asked lately, so that asking again needs no store. Where a conversation
ends is kept once for all its users: a message costs the same however many they are, and a total is added up when it is
asked for. Whatever cannot be followed (a hole, a membership that changes, a mark in the midst of recalled messages)
makes a user forgotten, so that the next question goes to the store: the counters say what is so, or nothing.

A store is read while messages come. So whoever reads takes `position` before, and hands it in with what was read: what
came since is applied to it again, which changes nothing where it was in it already.

Invariants:
    I1  What is said about a user is what its pointers give, as of all that was applied.
    I2  Applying an event again changes nothing, if those after it are applied again too.
    I3  At most `parts_max` conversations of users, and as many users, are kept; the ones least asked for go first.
    I4  A conversation's end is kept exactly while a user's part refers to it.
    I5  A total is the sum of its parts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from im.core.model import Form, Member, Message, View

__all__ = ["Pointers", "Total", "Unread", "UnreadCounters", "pointers", "total", "unread"]

RECALLS_MAX = 256
"""Recalls remembered of a conversation since its end is kept; then its users are asked for anew."""


class Pointers(msgspec.Struct, frozen=True, gc=False):
    """Where a conversation ends, and up to where it counts as read for one user."""

    cid: int
    max_seq: int
    max_cseq: int
    floor_seq: int
    floor_cseq: int
    recalled: int = 0
    """Messages after the floor that were recalled."""
    is_left: bool = False
    is_marked_unread: bool = False
    is_muted: bool = False


class Unread(msgspec.Struct, frozen=True, gc=False):
    """What a user has not read of a conversation."""

    cid: int
    unread: int
    is_muted: bool


class Total(msgspec.Struct, frozen=True, gc=False):
    """What a user has not read at all. `muted` of it is in conversations that the user muted."""

    unread: int
    muted: int


def pointers(view: View, member: Member | None, *, max_seq: int, max_cseq: int, recalled: int) -> Pointers:
    """Return what counts of a conversation as one user has it.

    Args:
        view: with `sent_seq` and `sent_cseq`.
        member: None in a single conversation.
        max_seq: the conversation's end.
        max_cseq: the messages up to there.
        recalled: messages after all the view's pointers, and after joining, that were recalled.
    """
    joined = (member.join_seq, member.join_cseq) if member is not None else (0, 0)
    floor_seq, floor_cseq = max(joined, _floor(view))
    return Pointers(
        view.cid,
        max_seq,
        max_cseq,
        floor_seq,
        floor_cseq,
        recalled,
        is_left=member is not None and member.leave_seq > 0,
        is_marked_unread=view.is_marked_unread,
        is_muted=view.is_muted,
    )


def unread(part: Pointers) -> int:
    """Return how many messages are unread; at least 1 if marked so by hand, 0 in a group that the user left."""
    if part.is_left:
        return 0
    return max(part.max_cseq - part.floor_cseq - part.recalled, 1 if part.is_marked_unread else 0)


def total(parts: Iterable[Pointers]) -> Total:
    """Add up a user's conversations."""
    return _sum(Unread(part.cid, unread(part), part.is_muted) for part in parts)


def _sum(parts: Iterable[Unread]) -> Total:
    count = muted = 0
    for part in parts:
        count += part.unread
        if part.is_muted:
            muted += part.unread
    return Total(count, muted)


def _floor(view: View) -> tuple[int, int]:
    return max((view.read_seq, view.read_cseq), (view.sent_seq, view.sent_cseq), (view.hidden_seq, view.hidden_cseq))


class _Entry(msgspec.Struct, frozen=True, gc=False):
    """What counts of an entry, without its body."""

    cid: int
    seq: int
    cseq: int
    sender: str
    recipient: str
    form: int
    ref: int


@dataclass(slots=True)
class _End:
    """Where a conversation ends, for all users kept."""

    max_seq: int
    max_cseq: int
    parts: int = 0
    recalls: list[tuple[int, int]] = field(default_factory=list)
    """(seq of the recall, seq of what it recalled), in order."""
    is_lost: bool = False
    """Entries were missed: no part that refers to this can be told."""


@dataclass(slots=True)
class _Part:
    """A conversation as one user has it. `learned` is how it was read, but for its floor and flags."""

    end: _End
    learned: Pointers
    floor_seq: int
    floor_cseq: int
    is_marked_unread: bool
    is_muted: bool

    def raise_floor(self, seq: int, cseq: int) -> bool:
        """Count everything up to `seq` as read. False: it cannot be told what is left."""
        if seq <= self.floor_seq:
            return True
        self.floor_seq, self.floor_cseq = seq, cseq
        learned = self.learned
        if learned.recalled:
            if seq < learned.max_seq:
                return False  # how many were recalled is known, but not which
            self.learned = msgspec.structs.replace(learned, recalled=0)
        return seq <= max(self.end.max_seq, learned.max_seq)

    def now(self) -> Pointers:
        """Return the pointers as of all that was applied."""
        learned, end = self.learned, self.end
        recalls = [ref for seq, ref in end.recalls if seq > learned.max_seq and ref > self.floor_seq]
        return Pointers(
            learned.cid,
            max(end.max_seq, learned.max_seq),
            max(end.max_cseq, learned.max_cseq),
            self.floor_seq,
            self.floor_cseq,
            learned.recalled + len(recalls),
            is_marked_unread=self.is_marked_unread,
            is_muted=self.is_muted,
        )


Event = Message | View | Member


class UnreadCounters:
    """See the module. One for all that is committed: what is committed elsewhere is not in it."""

    def __init__(self, *, parts_max: int, events_max: int = 4_096) -> None:
        """Keep nothing yet.

        Args:
            parts_max: conversations of users to keep; also users, who may have none.
            events_max: how many events may be applied while a store is read, for that reading to be kept.
        """
        assert parts_max > 0
        assert events_max > 0
        self._parts_max = parts_max
        self._users: dict[str, dict[int, _Part]] = {}
        """The ones least asked for first."""
        self._ends: dict[int, _End] = {}
        self._parts = 0
        self._events: deque[_Entry | View | Member] = deque(maxlen=events_max)
        self._position = 0

    def __len__(self) -> int:
        """Return how many conversations of users are kept."""
        return self._parts

    @property
    def users(self) -> int:
        """How many users are kept, those without a conversation among them."""
        return len(self._users)

    @property
    def position(self) -> int:
        """How many events were applied. To be taken before a store is read for `learn`."""
        return self._position

    def learn(self, user: str, parts: Iterable[Pointers], *, since: int) -> bool:
        """Keep a user's pointers: all conversations, as read after `since`, which was the `position` then.

        Returns False if nothing is kept: there are too many, or what happened meanwhile cannot be followed.
        """
        self.forget(user)
        # A group that the user left goes on, and counts nothing.
        learned = [part for part in parts if not part.is_left]
        missed = self._position - since
        assert missed >= 0
        if missed > len(self._events) or len(learned) > self._parts_max:
            return False
        self._users[user] = {}
        for part in learned:
            self._keep(user, part)
        for event in list(islice(self._events, len(self._events) - missed, None)):
            if isinstance(event, _Entry):
                self._advance(event)
                if user in (event.sender, event.recipient):
                    self._said(user, event)
            elif event.user == user:
                self._changed(event)
        self._trim()
        return user in self._users

    def applied(self, event: Event) -> None:
        """Take what became durable, in that order: each entry, views as they are now, members that joined or left."""
        if isinstance(event, Message):
            if event.form == Form.NOTE:
                return
            entry = _Entry(event.cid, event.seq, event.cseq, event.sender, event.recipient, event.form, event.ref)
            self._remember(entry)
            self._advance(entry)
            self._said(entry.sender, entry)
            if entry.recipient:
                self._said(entry.recipient, entry)
        else:
            self._remember(event)
            self._changed(event)

    def unread(self, user: str) -> list[Unread] | None:
        """Return what the user has not read of each conversation, all at one instant; None: ask the store."""
        parts = self._users.pop(user, None)
        if parts is None:
            return None
        self._users[user] = parts  # asked for last
        if any(part.end.is_lost for part in parts.values()):
            self.forget(user)
            return None
        now = [part.now() for part in parts.values()]
        return [Unread(part.cid, unread(part), part.is_muted) for part in now]

    def total(self, user: str) -> Total | None:
        """Return what the user has not read at all; None: ask the store."""
        parts = self.unread(user)
        return None if parts is None else _sum(parts)

    def reconcile(self, user: str, parts: Iterable[Pointers], *, since: int) -> int | None:
        """Learn a user anew, and return in how many conversations the counters were wrong: not 0 is our own bug.

        Arguments as of `learn`; moreover all that was read must have been applied by now. None: nothing to compare.
        """
        before = self.unread(user)
        if before is None or not self.learn(user, parts, since=since):
            return None
        after = self.unread(user)
        return None if after is None else len({part.cid for part in {*before} ^ {*after}})

    def forget(self, user: str) -> None:
        """Keep nothing about the user, whom nothing need be known about."""
        for cid, part in self._users.pop(user, {}).items():
            self._parts -= 1
            part.end.parts -= 1
            if part.end.parts == 0 and self._ends.get(cid) is part.end:
                del self._ends[cid]

    def check_invariants(self) -> None:
        """Assert I3 and I4."""
        kept = [(cid, part) for parts in self._users.values() for cid, part in parts.items()]
        assert self._parts == len(kept) <= self._parts_max, "I3"
        assert len(self._users) <= self._parts_max, "I3"
        assert {cid for cid, part in kept if not part.end.is_lost} == set(self._ends), "I4"
        for cid, end in self._ends.items():
            referring = [part for of, part in kept if of == cid and part.end is end]
            assert end.parts == len(referring) > 0, "I4"
            assert not end.is_lost

    def _remember(self, event: _Entry | View | Member) -> None:
        self._events.append(event)
        self._position += 1

    def _keep(self, user: str, learned: Pointers) -> None:
        cid = learned.cid
        end = self._ends.get(cid)
        if end is None:
            end = self._ends[cid] = _End(learned.max_seq, learned.max_cseq)
        end.parts += 1
        self._parts += 1
        self._users[user][cid] = _Part(
            end, learned, learned.floor_seq, learned.floor_cseq, learned.is_marked_unread, learned.is_muted
        )

    def _advance(self, entry: _Entry) -> None:
        """The conversation goes on to this entry."""
        end = self._ends.get(entry.cid)
        if end is None or entry.seq <= end.max_seq:
            return
        if entry.form == Form.RECALL:
            end.recalls.append((entry.seq, entry.ref))
        if entry.seq > end.max_seq + 1 or len(end.recalls) > RECALLS_MAX:
            end.is_lost = True
            del self._ends[entry.cid]
        end.max_seq, end.max_cseq = entry.seq, entry.cseq

    def _said(self, user: str, entry: _Entry) -> None:
        """One of the two of a single conversation, or who said it in a group."""
        parts = self._users.get(user)
        if parts is None:
            return
        if entry.cid not in parts:
            if entry.seq > 1 or not entry.recipient:
                self.forget(user)
                return
            self._keep(user, Pointers(entry.cid, 1, entry.cseq, 0, 0))
        if user == entry.sender and entry.form == Form.MESSAGE:
            self._raise_floor(user, entry.cid, entry.seq, entry.cseq)
        self._trim()

    def _changed(self, event: View | Member) -> None:
        if event.user not in self._users:
            return
        part = self._users[event.user].get(event.cid)
        if part is None or isinstance(event, Member):
            self.forget(event.user)
            return
        part.is_marked_unread, part.is_muted = event.is_marked_unread, event.is_muted
        self._raise_floor(event.user, event.cid, *_floor(event))

    def _trim(self) -> None:
        while self._parts > self._parts_max or len(self._users) > self._parts_max:
            self.forget(next(iter(self._users)))

    def _raise_floor(self, user: str, cid: int, seq: int, cseq: int) -> None:
        if not self._users[user][cid].raise_floor(seq, cseq):
            self.forget(user)
