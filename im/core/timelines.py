"""Where each timeline ends, and the write fan-outs that take more than one transaction.

An entry for a timeline that is in another shard is not given an offset here: it goes out, numbered over all that goes
out, and gets its offset there.

A message for a few users is put into their timelines at once. One for many goes on in *steps*, each a transaction's
worth, so that nobody waits for a big group: conversations take turns, and within one its entries go in the order of
their seqs. How far a fan-out is, is stored with each step, so that after a crash it goes on where it was.

Invariants:
    I1  Offsets of a timeline are given in order, without a hole or a repeat.
    I2  A fan-out gives each of its users one entry, and within a conversation no user gets an entry before one with a
        smaller seq: while one goes on, later entries of the conversation queue up behind it.
    I3  Who is in a conversation does not change while a fan-out of it goes on: whoever changes that calls `finish`.
        So the users that are left are the present members behind `Pending.after`, in this life or the next.
    I4  Nobody is known to be here and in another shard.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from im.core.commands import Delivery, Outgoing
from im.core.facts import Changes
from im.core.model import Message, Pending
from im.core.shards import shard_of_user

__all__ = ["AT_ONCE_MAX", "STEP_MAX", "TURN_MAX", "WAITING_ENTRIES_MAX", "Timelines"]

AT_ONCE_MAX = 32
"""Users who get a message in its own transaction."""
STEP_MAX = 512
"""Entries of one step, of all conversations."""
TURN_MAX = 128
"""Entries of one conversation until it is the next one's turn."""
WAITING_ENTRIES_MAX = 32_768
"""Entries of one conversation that wait while nothing is added: `finish` writes all in one transaction, in 0.3 s.

Where fewer wait one more fan-out may be added, of however many users.
"""


@dataclass(slots=True)
class _FanOut:
    message: Message
    users: Sequence[str]
    done: int = 0


class Timelines:
    """The ends of timelines that are known, and the fan-outs that go on."""

    def __init__(
        self,
        pendings: Iterable[tuple[Pending, Message]] = (),
        *,
        shard: int = 0,
        shards: int = 1,
        last_out: int = 0,
    ) -> None:
        """Know nothing yet of any timeline.

        Args:
            pendings: fan-outs of an earlier life, in the order of their messages. `resume` has to follow.
            shard: of the timelines that are here, one of `shards`.
            shards: how many there are.
            last_out: the greatest position that an outgoing entry was given.
        """
        self.heads: dict[str, int] = {}
        """The newest offset of each user that is known, 0 of a new one."""
        self._away: dict[str, int] = {}
        """The shard of each user that is known to be of another one."""
        self._shard = shard
        self._shards = shards
        self._last_out = last_out
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

    def is_full(self, cid: int) -> bool:
        """Return whether so much of the conversation waits to be fanned out that nothing should be added just now."""
        waiting = self._going.get(cid)
        if waiting is None:
            return False
        first = waiting[0]  # the others have as many users (I3)
        return len(waiting) * len(first.users) - first.done >= WAITING_ENTRIES_MAX

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

    @property
    def known(self) -> int:
        """Of how many users something is remembered."""
        return len(self.heads) + len(self._away)

    def forget(self) -> None:
        """Forget the heads. They can be asked for again."""
        self.heads.clear()
        self._away.clear()

    def needs(self, user: str) -> bool:
        """Return whether the user's head must be asked for: it is not known, and the timeline is here."""
        if user in self.heads or user in self._away:
            return False
        if self._shards == 1 or (shard := shard_of_user(user, self._shards)) == self._shard:
            return True
        self._away[user] = shard
        return False

    def give(self, message: Message, users: Iterable[str], changes: Changes) -> tuple[tuple[str, int], ...]:
        """Give each user an entry: return those of timelines here, at their next offsets; the others go out.

        `needs` must have been asked for each user, and what it wanted be known.
        """
        heads = self.heads
        positions = []
        away: list[str] = []
        for user in users:
            if (head := heads.get(user)) is not None:
                offset = heads[user] = head + 1
                positions.append((user, offset))
            else:
                away.append(user)
        if away:
            self._send_out(message, away, changes)
        return tuple(positions)

    def gave(self, position: int) -> None:
        """Go on behind a position: another shard has taken it over, though it was not known here.

        Only a store that was put back to an older state hears of such a one.
        """
        self._last_out = max(self._last_out, position)

    def _send_out(self, message: Message, users: Iterable[str], changes: Changes) -> None:
        by_shard: dict[int, list[str]] = {}
        for user in users:
            by_shard.setdefault(self._away[user], []).append(user)
        for shard, others in by_shard.items():
            self._last_out += 1
            changes.outgoing.append(Outgoing(self._last_out, shard, message, tuple(others)))

    def spread(self, message: Message, users: Sequence[str], changes: Changes) -> None:
        """Tell the users of a new message: at once if they are few, else beginning with the next step."""
        if len(users) <= AT_ONCE_MAX and message.cid not in self._going:
            positions = self.give(message, users, changes)
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
        positions = self.give(message, users, changes)
        changes.entries.extend((user, offset, message) for user, offset in positions)
        if positions:
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
        assert self.heads.keys().isdisjoint(self._away), "I4"
        for cid, waiting in self._going.items():
            assert waiting, "what is done is not kept"
            seqs = [fan_out.message.seq for fan_out in waiting]
            assert seqs == sorted(set(seqs)), "I2"
            for fan_out in waiting:
                assert fan_out.message.cid == cid
                assert fan_out.done < len(fan_out.users)
                assert list(fan_out.users) == sorted(fan_out.users), "I3: in the order of names"
