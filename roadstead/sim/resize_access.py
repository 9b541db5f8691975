"""Where the truth of the resize history is, and who asks for it: access nodes with their sessions, and readers.

An access node opens and closes sessions by chance, tells each status node the news of the partitions that it routes
there, keeps what was not confirmed, and says for each partition until when it believes that its sessions are vouched
for. A reader asks the owner in the newest table that somebody gave it, which may be an old one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from base.clock import Instant, Timestamp
from base.ids import Epoch, Incarnation, NodeId
from roadstead.sim.host import Host
from roadstead.sim.resize_messages import Beat, BeatReply, Lookup, TableIs
from status.api import Opened
from status.core.ownership import Told
from status.core.partitions import PartitionTable
from status.core.records import Floor, Record, digest_of

__all__ = ["USERS", "AccessNode", "Reader"]

USERS = 12
BEAT_MS = 500
CHANGE_MS_MIN, CHANGE_MS_MAX = 150, 900
LOOKUP_MS_MIN, LOOKUP_MS_MAX = 40, 160
DRIFT_PERCENT = 10


@dataclass(slots=True)
class _Link:
    """What an access node knows of one status node."""

    echo: tuple[Incarnation, Instant] = (Incarnation(0), Instant(0))
    number: int = 0


class AccessNode:
    """Holds sessions. `confirmed` and `believes_until` are what the referee compares answers with."""

    def __init__(self, host: Host, table: PartitionTable, on_closed: Callable[[str], None]) -> None:
        self._host = host
        self._on_closed = on_closed
        self.node = NodeId(host.name)
        self.table = table
        self.sessions: dict[str, Record] = {}
        self.confirmed: set[str] = set()
        self.closed_confirmed: set[str] = set()
        self.believes_until: dict[int, Instant] = {}
        self.is_quiet = False
        self._seq = 0
        self._pending: dict[int, dict[str, Record]] = {partition: {} for partition in range(len(table.owners))}
        self._full: set[int] = set(self._pending)
        self._links: dict[NodeId, _Link] = {}
        self._asked: dict[tuple[str, int], tuple[Instant, dict[int, int]]] = {}
        self._beat_at = self._change_at = Instant(0)

    def start(self, now: Instant) -> None:
        """Begin with no sessions: those of the former life broke with their sockets."""
        self._beat_at = self._change_at = now

    def receive(self, now: Instant, source: str, message: object) -> None:
        """Take an answer to a beat."""
        if not isinstance(message, BeatReply) or message.access_incarnation != self._host.incarnation:
            return
        if message.table is not None and message.table.epoch > self.table.epoch:
            self.table = message.table
            self._beat_at = now
        link = self._links[NodeId(source)]
        link.echo = max(link.echo, message.stamp)
        asked = self._asked.pop((source, message.number), None)
        if asked is None:
            return
        asked_at, told = asked
        until = Instant(asked_at + message.left_ms - message.left_ms * DRIFT_PERCENT // 100)
        for partition, seq in told.items():
            if partition in message.refused:
                continue
            self.believes_until[partition] = max(until, self.believes_until.get(partition, until))
            self._confirm(partition, seq)
        for partition in message.mismatched:
            self._full.add(partition)
            self._beat_at = now

    def wake(self, now: Instant) -> None:
        """Change something, beat."""
        if now >= self._change_at:
            self._change_at = Instant(now + self._host.dice.between(CHANGE_MS_MIN, CHANGE_MS_MAX))
            if not self.is_quiet:
                self._change()
                self._beat_at = now
        if now >= self._beat_at:
            self._beat_at = Instant(now + BEAT_MS)
            self._beat(now)

    def next_deadline(self) -> Instant | None:
        """Return the next beat or change."""
        return min(self._beat_at, self._change_at)

    def open_in(self, partition: int) -> list[Record]:
        """Return the open sessions of one partition."""
        size = len(self.table.owners)
        return [record for record in self.sessions.values() if int(record.user) % size == partition]

    def _change(self) -> None:
        dice = self._host.dice
        self._seq += 1
        if self.sessions and dice.chance(500):
            session = dice.pick(sorted(self.sessions))
            old = self.sessions[session]
            is_closing = dice.chance(600)
            opened = None if is_closing else old.opened
            record = Record(old.user, session, self.node, self._host.incarnation, self._seq, opened)
        else:
            user = str(dice.between(0, USERS - 1))
            session = f"{self.node}.{self._host.incarnation}.{self._seq}"
            opened = Opened(user, session, self._seq, "d", "p", "online", Timestamp(0))
            record = Record(user, session, self.node, self._host.incarnation, self._seq, opened)
        if record.opened is None:
            del self.sessions[session]
            self._on_closed(session)
        else:
            self.sessions[session] = record
        self._pending[int(record.user) % len(self.table.owners)][session] = record

    def _beat(self, now: Instant) -> None:
        routed: dict[NodeId, list[int]] = {node: [] for node in self.table.nodes}
        for partition in self._pending:
            routed[self.table.owner(partition)].append(partition)
        for node, partitions in routed.items():
            link = self._links.setdefault(node, _Link())
            link.number += 1
            told = tuple(self._tell(partition) for partition in partitions)
            self._asked[node, link.number] = (now, dict.fromkeys(partitions, self._seq))
            self._asked.pop((node, link.number - 8), None)
            self._host.send(node, Beat(link.number, self._host.incarnation, self.table.epoch, link.echo, told))

    def _tell(self, partition: int) -> Told:
        records = self.open_in(partition)
        if partition in self._full:
            self._full.discard(partition)
            floor = Floor(self.node, self._host.incarnation, self._seq)
            pending = [record for record in self._pending[partition].values() if record.opened is None]
            return Told(partition, (*records, *pending), digest_of(records), floor)
        return Told(partition, tuple(self._pending[partition].values()), digest_of(records))

    def _confirm(self, partition: int, seq: int) -> None:
        pending = self._pending[partition]
        for session, record in list(pending.items()):
            if record.conn_seq <= seq:
                del pending[session]
                (self.closed_confirmed if record.opened is None else self.confirmed).add(session)


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
        partition = user % len(self._table.owners)
        owner = self._table.owner(partition)
        if self._host.dice.chance(200):
            owner = self._host.dice.pick(self._table.nodes)
        self._host.send(owner, Lookup(partition, str(user), Epoch(self._table.epoch)))

    def next_deadline(self) -> Instant | None:
        """Return the next lookup."""
        return self._due
