"""Where the truth of the resize history is, and who asks for it: access nodes with their sessions, and readers.

An access node opens and closes sessions by chance, reports them as every access node does (`status.core.publisher`),
and says for each partition until when it believes that its sessions are shown. A reader asks the owner in the newest
table that somebody gave it, which may be an old one.
"""

from __future__ import annotations

from collections.abc import Callable

from base.clock import Instant, Timestamp
from base.ids import Epoch, NodeId
from roadstead.sim.dice import Dice
from roadstead.sim.host import Host
from roadstead.sim.resize_messages import Answering, Beating, Lookup, Read, TableIs
from status.api import Beat, Closed, Opened
from status.core.faultpoints import crossed_by_all
from status.core.partitions import PartitionTable, partition_of
from status.core.publisher import Publisher

__all__ = ["USERS", "AccessNode", "Reader", "partition_in"]

USERS = 12
BEAT_DEADLINE_MS = 700
CHANGE_MS_MIN, CHANGE_MS_MAX = 150, 900
LOOKUP_MS_MIN, LOOKUP_MS_MAX = 40, 160


def partition_in(table: PartitionTable, user: str) -> int:
    """Return the user's partition in a table of few partitions."""
    return partition_of(user) % len(table.owners)


class _Jitter:
    def __init__(self, dice: Dice) -> None:
        self._dice = dice

    def randrange(self, stop: int, /) -> int:
        return self._dice.between(0, stop - 1)


class AccessNode:
    """Holds sessions. `confirmed` and `believes_until` are what the referee compares answers with."""

    def __init__(self, host: Host, table: PartitionTable, on_closed: Callable[[str], None]) -> None:
        self._host = host
        self._on_closed = on_closed
        self._first_table = table
        self.node = NodeId(host.name)
        self.sessions: dict[str, Opened] = {}
        self.confirmed: set[str] = set()
        self.closed_confirmed: set[str] = set()
        self.believes_until: dict[int, Instant] = {}
        self.is_quiet = False
        self.publisher: Publisher
        self._seq = 0
        self._number = 0
        self._asked: dict[int, tuple[NodeId, Beat, Instant]] = {}
        self._change_at = Instant(0)

    def start(self, now: Instant) -> None:
        """Begin with no sessions: those of the former life broke with their sockets."""
        self.publisher = Publisher(
            self.node,
            self._host.incarnation,
            _Jitter(self._host.dice),
            partitions=len(self._first_table.owners),
        )
        self.publisher.adopt(now, self._first_table)
        self._change_at = now

    def receive(self, now: Instant, source: str, message: object) -> None:
        """Take an answer to a beat, or the table that was asked for."""
        if isinstance(message, TableIs):
            self._adopt(now, message.table)
            self._send(now)
        if not isinstance(message, Answering) or message.incarnation != self._host.incarnation:
            return
        asked = self._asked.pop(message.number, None)
        if asked is None:
            return
        node, beat, _ = asked
        answered = self.publisher.answered(now, node, beat, message.reply)
        if answered.table is not None:
            self._adopt(now, answered.table)
        elif message.reply.epoch > beat.epoch:
            self._host.send("registry", Read())
        self.confirmed.update(answered.opened)
        self.closed_confirmed.update(answered.closed)
        for partition in self.publisher.relies_on(NodeId(source)) if answered.until > now else ():
            self.believes_until[partition] = max(answered.until, self.believes_until.get(partition, answered.until))
        self._send(now)

    def wake(self, now: Instant) -> None:
        """Change something, beat."""
        if now >= self._change_at:
            self._change_at = Instant(now + self._host.dice.between(CHANGE_MS_MIN, CHANGE_MS_MAX))
            if not self.is_quiet:
                self._change()
        for number, (node, beat, give_up) in list(self._asked.items()):
            if now >= give_up:
                del self._asked[number]
                self.publisher.failed(now, node, beat)
        self._send(now)

    def next_deadline(self) -> Instant | None:
        """Return the next beat or change."""
        due = self.publisher.next_deadline()
        give_up = min((give_up for _, _, give_up in self._asked.values()), default=self._change_at)
        return min(self._change_at, give_up, due if due is not None else self._change_at)

    def open_in(self, partition: int) -> list[bytes]:
        """Return the packed entries of the open sessions of one partition."""
        return self.publisher.sessions(partition)

    def _adopt(self, now: Instant, table: PartitionTable) -> None:
        assert self.publisher.table is not None
        for point in crossed_by_all("access", self.publisher.table.epoch, table):
            self._host.reach(point)
        self.publisher.adopt(now, table)

    def _change(self) -> None:
        dice = self._host.dice
        self._seq += 1
        if self.sessions and dice.chance(500):
            session = dice.pick(sorted(self.sessions))
            opened = self.sessions[session]
            if dice.chance(600):
                del self.sessions[session]
                self._on_closed(session)
                self.publisher.close(Closed(opened.user, session, opened.conn_seq), Timestamp(1))
            else:
                self.publisher.open(opened)
        else:
            user = str(dice.between(0, USERS - 1))
            session = f"{self.node}.{self._host.incarnation}.{self._seq}"
            self.sessions[session] = Opened(user, session, self._seq, "d", "p", "online", Timestamp(0))
            self.publisher.open(self.sessions[session])

    def _send(self, now: Instant) -> None:
        for node, beat in self.publisher.beats(now):
            self._number += 1
            self._asked[self._number] = (node, beat, Instant(now + BEAT_DEADLINE_MS))
            self._host.send(node, Beating(self._number, beat))


class Reader:
    """Looks users up all the time."""

    def __init__(self, host: Host, table: PartitionTable) -> None:
        self._host = host
        self._table = table
        self._due = Instant(0)

    def start(self, now: Instant) -> None:
        """Begin soon."""
        self._due = now

    def receive(self, now: Instant, source: str, message: object) -> None:
        """Take a newer table."""
        del now, source
        if isinstance(message, TableIs) and message.table.epoch > self._table.epoch:
            self._table = message.table

    def wake(self, now: Instant) -> None:
        """Ask for somebody; now and then somebody who need not know, as when the reader's table is very old."""
        self._due = Instant(now + self._host.dice.between(LOOKUP_MS_MIN, LOOKUP_MS_MAX))
        user = self._host.dice.between(0, USERS - 1)
        partition = partition_in(self._table, str(user))
        owner = self._table.owner(partition)
        if self._host.dice.chance(200):
            owner = self._host.dice.pick(self._table.nodes)
        self._host.send(owner, Lookup(partition, str(user), Epoch(self._table.epoch)))

    def next_deadline(self) -> Instant | None:
        """Return the next lookup."""
        return self._due
