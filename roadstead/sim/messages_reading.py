"""What the message services of a simulated history answer to who only reads: from the rows, as of now.

Counters of unread messages and sync versions are the real ones, and compared with the rows whenever they are asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from im.core.commands import GroupChanged, Marked
from im.core.facts import Changes
from im.core.model import Form
from im.core.unread import Pointers, UnreadCounters, unread
from im.core.versions import Versions
from roadstead.client.rows import Publication
from roadstead.client.view import PAGE
from roadstead.sim.messages_guards import Guards
from roadstead.sim.messages_link import Answer, Call
from roadstead.sim.messages_store import Rows

__all__ = ["READINGS", "Reading"]

PARTS_MAX = 200


class Reading:
    """The readings of one life of the services, until a transaction fails."""

    def __init__(self, rows: Rows, guards: Guards, counts: Counter[str]) -> None:
        self.versions = Versions(is_on=True)
        self._rows = rows
        self._guards = guards
        self._counts = counts
        self._counters = UnreadCounters(parts_max=PARTS_MAX)

    def committed(self, changes: Changes) -> None:
        """Take what became durable: counters and versions are kept up to it."""
        for delivery in changes.deliveries:
            message = delivery.message
            if delivery.is_first:
                self._counters.applied(message)
            self.versions.changed(user for user, _ in delivery.positions)
            if message.form == Form.EVENT:
                for user, _ in delivery.positions:
                    self.versions.forget(user)
        for outcome in changes.outcomes:
            if isinstance(outcome, Marked):
                self._counters.applied(outcome.view)
            elif isinstance(outcome, GroupChanged):
                for member in outcome.members:
                    self._counters.applied(member)

    def timeline(self, call: Call) -> Answer:
        """Answer an access node: entries after a position, none if they are not all kept."""
        user, since, limit = call.arguments
        entries = self._rows.timeline(user, since, limit) if since >= self._rows.floors[user] else []
        return Answer(call.id, (self._rows.heads[user], entries))

    def heads(self, call: Call) -> Answer:
        """Answer an access node: how far each user's timeline goes, and its sync version."""
        users = call.arguments
        heads = {user: self._rows.heads[user] for user in users}
        return Answer(call.id, (heads, {user: self._version(user) for user in users}))

    def _version(self, user: str) -> int:
        version = self.versions.known(user)
        if version is None:
            ticket = self.versions.begin(user)
            version = self.versions.loaded(user, self._rows.sync_version(user), ticket)
        assert version == self._rows.sync_version(user), "a version is what the rows say"
        return version

    def sync(self, call: Call) -> Answer:
        """Return a page of the caller's timeline; None instead of entries if what follows was trimmed."""
        since, limit = call.arguments
        head = self._rows.heads[call.user]
        if since > head:
            return Answer(call.id, error="beyond")
        if since < self._rows.floors[call.user]:
            return Answer(call.id, (head, None))
        return Answer(call.id, (head, self._rows.timeline(call.user, since, limit)))

    def history(self, call: Call) -> Answer:
        """Return a stretch of a conversation, as far as the caller may see it, with its ends."""
        cid, after, before = call.arguments
        visible = self._rows.visible(cid, call.user)
        if visible is None:
            return Answer(call.id, error="no_conversation")
        first, last = visible if self._guards.boundaries else (1, self._rows.ends[cid].seq)
        if after is None:
            end = min(before, last + 1)
            seqs = range(max(first, end - PAGE), end)
        else:
            begin = max(after + 1, first)
            seqs = range(begin, min(begin + PAGE, last + 1))
        return Answer(call.id, (last, first, self._told(cid, seqs)))

    def _told(self, cid: int, seqs: range) -> list[Publication]:
        if self._guards.overlays:
            return self._rows.log(cid, seqs)
        log = self._rows.logs[cid]
        return [self._rows.told(log[seq], is_new=True) for seq in seqs]

    def list_of(self, call: Call) -> Answer:
        """Return the caller's list, and where its timeline was before; with it where all of its conversations end."""
        timeline = self._rows.heads[call.user]
        parts = self._rows.parts(call.user)
        total = sum(self._counted(call.user, parts).values())
        ends = {part.cid: part.max_seq for part in parts}
        counted = self._rows.sync_version(call.user) - timeline
        return Answer(call.id, (timeline, counted, total, self._rows.listed(call.user), ends))

    def unread_of(self, call: Call) -> Answer:
        """Return how much the caller has not read."""
        return Answer(call.id, sum(self._counted(call.user, self._rows.parts(call.user)).values()))

    def _counted(self, user: str, parts: list[Pointers]) -> dict[int, int]:
        """Return what is unread; the counters say what the pointers say, or nothing."""
        right = {part.cid: unread(part) for part in parts}
        counted = self._counters.unread(user)
        if counted is None:
            self._counters.learn(user, parts, since=self._counters.position)
        else:
            self._counts["counted"] += 1
            assert {part.cid: part.unread for part in counted if part.unread} == {
                cid: number for cid, number in right.items() if number
            }, "counters say what pointers say"
        return right


READINGS: Final[Mapping[str, Callable[[Reading, Call], Answer]]] = {
    "timeline": Reading.timeline,
    "heads": Reading.heads,
    "sync": Reading.sync,
    "history": Reading.history,
    "list": Reading.list_of,
    "unread": Reading.unread_of,
}
