"""Where each timeline ends, and the write fan-outs that take more than one transaction.

A message for a few users is put into their timelines at once. One for many goes on in *steps*, each a transaction's
worth, so that nobody waits for a big group: conversations take turns, and within one its entries go in the order of
their seqs. How far a fan-out is, is stored with each step, so that after a crash it goes on where it was.

Invariants:
    I1  Offsets of a timeline are given in order, without a hole or a repeat.
    I2  A fan-out gives each of its users one entry, and within a conversation no user gets an entry before one with a
        smaller seq: while one goes on, later entries of the conversation queue up behind it.
    I3  Who is in a conversation does not change while a fan-out of it goes on: whoever changes that calls `finish`.
        So the users that are left are the present members behind `Pending.after`, in this life or the next.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from im.core.commands import Delivery
from im.core.facts import Changes
from im.core.model import Message, Pending

__all__ = ["AT_ONCE_MAX", "STEP_MAX", "TURN_MAX", "Timelines"]

AT_ONCE_MAX = 32
"""Users who get a message in its own transaction."""
STEP_MAX = 512
"""Entries of one step, of all conversations."""
TURN_MAX = 128
"""Entries of one conversation until it is the next one's turn."""


@dataclass(slots=True)
class _FanOut:
    message: Message
    users: Sequence[str]
    done: int = 0


class Timelines:
    """The ends of timelines that are known, and the fan-outs that go on."""

    def __init__(self, pendings: Iterable[tuple[Pending, Message]] = ()) -> None:
        """`pendings`: fan-outs of an earlier life, in the order of their messages. `resume` has to follow."""
        self.heads: dict[str, int] = {}
        """The newest offset of each user that is known, 0 of a new one."""
        self._going: dict[int, deque[_FanOut]] = {}
        self._resumed: dict[int, list[tuple[Pending, Message]]] = {}
        for pending, message in pendings:
            self._resumed.setdefault(pending.cid, []).append((pending, message))

    @property
    def has_work(self) -> bool:
        """Whether a fan-out goes on."""
        return bool(self._going or self._resumed)

    def is_going(self, cid: int) -> bool:
        """Return whether a fan-out of the conversation goes on."""
        return cid in self._going

    def to_resume(self) -> Sequence[int]:
        """Return the conversations whose members must be told to `resume`."""
        return tuple(self._resumed)

    def resume(self, cid: int, users: Sequence[str]) -> None:
        """Go on with an earlier life's fan-outs of the conversation; `users` are its members, in order."""
        waiting = self._going.setdefault(cid, deque())
        for pending, message in self._resumed.pop(cid, ()):
            waiting.append(_FanOut(message, users, bisect_right(users, pending.after)))

    def users_of_next_step(self) -> Iterable[str]:
        """Return the users whose heads the next step, or `finish`, may need."""
        for waiting in self._going.values():
            first = waiting[0]
            # Those who have the first one may get the next one in the same step.
            yield from first.users[first.done :] if len(waiting) == 1 else first.users
            for later in waiting:
                if later.users is not first.users:
                    yield from later.users

    def forget(self) -> None:
        """Forget the heads. They can be asked for again."""
        self.heads.clear()

    def give(self, users: Iterable[str]) -> tuple[tuple[str, int], ...]:
        """Return an entry for each user, at its next offset. Their heads must be known."""
        heads = self.heads
        positions = []
        for user in users:
            offset = heads[user] = heads[user] + 1
            positions.append((user, offset))
        return tuple(positions)

    def spread(self, message: Message, users: Sequence[str], changes: Changes) -> None:
        """Tell the users of a new message: at once if they are few, else beginning with the next step."""
        if len(users) <= AT_ONCE_MAX and message.cid not in self._going:
            positions = self.give(users)
        else:
            positions = ()
            self._going.setdefault(message.cid, deque()).append(_FanOut(message, users))
            changes.pendings[message.n] = Pending(message.n, message.cid, message.seq, "")
        changes.messages.append((message, positions))
        changes.deliveries.append(Delivery(message, positions, "write"))

    def step(self, changes: Changes) -> None:
        """Take the fan-outs a step further."""
        room = STEP_MAX
        while room > 0 and self._going:
            cid, waiting = next(iter(self._going.items()))
            room -= self._turn(waiting, min(TURN_MAX, room), changes)
            del self._going[cid]
            if waiting:
                self._going[cid] = waiting  # behind the others

    def finish(self, cid: int, changes: Changes) -> None:
        """Bring the conversation's fan-outs to their end."""
        waiting = self._going.pop(cid, ())
        while waiting:
            self._turn(waiting, len(waiting[0].users), changes)

    def _turn(self, waiting: deque[_FanOut], room: int, changes: Changes) -> int:
        """Give up to `room` entries of the first fan-out that waits; return how many."""
        fan_out = waiting[0]
        message = fan_out.message
        users = fan_out.users[fan_out.done : fan_out.done + room]
        positions = self.give(users)
        changes.entries.extend((user, offset, message) for user, offset in positions)
        changes.deliveries.append(Delivery(message, positions, "write", is_first=False))
        fan_out.done += len(users)
        if fan_out.done == len(fan_out.users):
            waiting.popleft()
            changes.pendings[message.n] = None
        else:
            changes.pendings[message.n] = Pending(message.n, message.cid, message.seq, users[-1])
        return len(users)

    def check_invariants(self) -> None:
        """Assert what can be read off one state (I2, I3); tests call it after every step."""
        for cid, waiting in self._going.items():
            assert waiting, "what is done is not kept"
            seqs = [fan_out.message.seq for fan_out in waiting]
            assert seqs == sorted(set(seqs)), "I2"
            for fan_out in waiting:
                assert fan_out.message.cid == cid
                assert fan_out.done < len(fan_out.users)
                assert list(fan_out.users) == sorted(fan_out.users), "I3: in the order of names"
