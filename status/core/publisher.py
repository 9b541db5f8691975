"""What an access node tells the status nodes: each session to the owner of its user, in beats, one in flight a node.

Waiting changes go into the next beat together, so that a storm of connects costs a beat, not a beat each. Merging is
idempotent at the other end, so a change simply stays *pending* until a beat that carried it was answered, whatever
became of the beats before, and whoever owns the partition by then. Of a session only the newest change is told.

Some partitions must be told *in full*: those of a status node that does not know this life (it started, or had given us
up), and those in which it has something else. A full list carries a floor, the number up to which it is all. To find
out cheaply what differs, beats also carry *audits*: the digests of a group of partitions together, in turn, and at
once of partitions that came to a new owner.

Invariants:
    I1  At most one beat a status node is in flight.
    I2  A session's newest change is confirmed by its partition's owner, or pending for it, or in flight to it.
    I3  A partition is relied on only by an answer of its owner in the newest table, while nothing of it is pending and
        neither a full list nor an audit of it outstanding.
    I4  A partition's digest is that of its open sessions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice
from typing import Protocol

import msgspec
from xxhash import xxh3_64_intdigest

from base.clock import Instant, Timestamp
from base.errors import Overloaded
from base.ids import Incarnation, NodeId
from status.api import Audit, Beat, BeatReply, Closed, Opened, SessionView, Stamp, pack_partitions, unpack_partitions
from status.core.partitions import PARTITIONS, PartitionTable, Stage, partition_of, patched
from status.core.records import Digest, Kind, body_of, digest_of, kind_of, packed

__all__ = ["BEAT_MS", "Answered", "Publisher"]

BEAT_MS = 1_000
SPREAD_MS = BEAT_MS // 10
RETRY_MS = 100
ENTRIES_PER_BEAT = 2_000
BYTES_PER_BEAT = 1_000_000
"""A beat ends after the partition, or the change, that reaches one of these."""
LISTED_BYTES_MAX = 4_000_000
"""No audience makes the entries of a partition longer together: it is told whole, in one message of 8 MB at most."""
ROOM_AFTER_MS = 1_000
"""When to ask again for room, which there is as others go or list fewer users."""
PENDING_MAX = 20_000
"""More changes than this do not wait for an owner that does not answer: it is told everything instead."""
AUDIT_PARTITIONS = 64
"""How many partitions one audit covers."""
AUDITS_PER_BEAT = 16
DRIFT_PPM = 100_000

_UNVOUCHED_STAGES = frozenset({Stage.SEAL, Stage.RECOVER})

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(SessionView).decode
_OPEN, _HIDDEN = int(Kind.OPEN), int(Kind.HIDDEN)


class _Session(msgspec.Struct, gc=False, eq=False):
    """A session as it was last reported. Closed ones are kept until that is confirmed."""

    user: str
    name: str
    partition: int
    conn: int
    conn_seq: int
    seq: int
    entry: bytes
    is_open: bool = True


class _Random(Protocol):
    def randrange(self, stop: int, /) -> int: ...


@dataclass(slots=True)
class _InFlight:
    """A beat on its way, and what it says."""

    beat: Beat
    asked_at: Instant
    told: list[_Session]
    seqs: list[int]
    """The change of each told session that the beat says."""
    full: frozenset[int]
    audited: frozenset[int]


@dataclass(slots=True)
class _Link:
    """What there is to tell one status node."""

    owned: set[int] = field(default_factory=set)
    pending: dict[str, _Session] = field(default_factory=dict)
    full: set[int] = field(default_factory=set)
    audits: set[int] = field(default_factory=set)
    """Partitions that came to this owner, to be audited before it is relied on."""
    turn: list[int] = field(default_factory=list)
    """What is left of this turn of the regular audit."""
    audit_at: Instant = Instant(0)
    """When to go on with it: under load there are many beats a second."""
    stamp: Stamp = field(default_factory=Stamp)
    """The last one that it gave."""
    unshown: dict[_Session, int] = field(default_factory=dict)
    """Sessions, with the change, that it took in, but not yet with a beat that vouches for them."""
    is_told: bool = False
    """Whether, since the receiver knows this life, everything was told once."""
    due_at: Instant = Instant(0)
    not_before: Instant = Instant(0)
    in_flight: _InFlight | None = None

    def has_news(self) -> bool:
        return bool(self.pending or self.full or self.audits)


@dataclass(frozen=True, slots=True)
class Answered:
    """What an answer brought: sessions whose newest change is shown, or whose end is known, and a newer table, if any.

    Until `until` the receiver shows the sessions of the partitions that `relies_on` names.
    """

    opened: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    table: PartitionTable | None = None
    until: Instant = Instant(0)


class Publisher:
    """The reporting side of one life of an access node. Its shell sends what `beats` returns, and steps what comes."""

    def __init__(self, node: NodeId, incarnation: Incarnation, rng: _Random, *, partitions: int = PARTITIONS) -> None:
        """`partitions`: how many every table has."""
        self.table: PartitionTable | None = None
        self._node = node
        self._incarnation = incarnation
        self._rng = rng
        self._size = partitions
        # By partition: the open sessions, their digest (None: to be computed), and whom to tell (empty: nobody yet).
        self._members: list[dict[str, _Session]] = [{} for _ in range(partitions)]
        self._digests: list[Digest | None] = [None] * partitions
        self._link_of: list[_Link] = []
        self._links: dict[NodeId, _Link] = {}
        self._seq = 0

    # ---------------------------------------------------------------- sessions

    def open(self, opened: Opened) -> None:
        """Report a session that was opened or changed. An older connection of the same session changes nothing.

        Raises Overloaded, and changes nothing, if there is no room now for the users whom its audience lists. For what
        the session listed before there always is.
        """
        user, name = opened.user, opened.session
        partition = partition_of(user) % self._size
        members = self._members[partition]
        session = members.get(name)
        if session is not None and opened.conn_seq < session.conn_seq:
            return
        seq = self._seq + 1
        view = (name, opened.device, opened.platform, self._node, opened.state, opened.since, opened.last_active)
        if opened.audience is None and opened.state != "invisible":  # nearly all
            kind, body = _OPEN, _encode(view)
        else:
            kind = _OPEN if opened.leaves_trace() else _HIDDEN
            body = _encode((*view, opened.audience))
            if opened.audience is not None and opened.audience.users:
                self._check_room(members, opened, len(body))
        self._seq = seq
        if session is None:
            entry = packed(seq, seq, kind, body)
            session = members[name] = _Session(user, name, partition, seq, opened.conn_seq, seq, entry)
        else:
            session.entry = packed(session.conn, seq, kind, body)
            session.seq, session.conn_seq = seq, opened.conn_seq
        self._digests[partition] = None
        if self._link_of:
            self._link_of[partition].pending[name] = session

    def close(self, closed: Closed, at: Timestamp) -> None:
        """Report that a session ended, `at` ms since the Unix epoch. A later connection of it is not hidden.

        Of one that was hidden nobody is told when.
        """
        partition = partition_of(closed.user) % self._size
        session = self._members[partition].get(closed.session)
        if session is None or closed.conn_seq < session.conn_seq:
            return
        del self._members[partition][closed.session]
        self._digests[partition] = None
        self._seq += 1
        session.seq, session.is_open = self._seq, False
        told_at = at if kind_of(bytes(2) + session.entry) is Kind.OPEN else 0
        session.entry = packed(session.conn, session.seq, Kind.CLOSED, _encode(told_at))
        self._put(session)

    # ---------------------------------------------------------------- tables

    def adopt(self, now: Instant, table: PartitionTable) -> bool:
        """Route by a newer table; return whether it was newer."""
        old = self.table
        if old is not None and table.epoch <= old.epoch:
            return False
        assert len(table.owners) == self._size
        self.table = table
        if old is None:
            came: Iterable[int] = range(self._size)
            pending = [session for members in self._members for session in members.values()]
        elif table.restored > old.epoch:  # what was known of owners may never have been
            came = range(self._size)
            pending = self._unroute(frozenset(came))
        else:
            # Also what came back to the same owner: it may have lost it in between.
            came = [partition for partition, epoch in enumerate(table.owned_since) if epoch > old.epoch]
            pending = self._unroute(frozenset(came))
        self._links = {node: self._links.get(node, _Link()) for node in table.nodes}
        if not self._link_of:
            self._link_of = [_Link()] * self._size
        for partition in came:
            link = self._link_of[partition] = self._links[table.owner(partition)]
            link.owned.add(partition)
            (link.audits if link.stamp.incarnation else link.full).add(partition)
        for link in self._links.values():
            link.due_at = link.not_before = now
        for session in pending:
            self._put(session)
        return True

    def _unroute(self, partitions: frozenset[int]) -> list[_Session]:
        """Take partitions from the links that they had; return the sessions whose newest change is to be told anew."""
        pending: list[_Session] = []
        for link in self._links.values():
            lost = link.owned & partitions
            if not lost:
                continue
            link.owned -= lost
            link.full -= lost
            link.audits -= lost
            moved = [key for key, session in link.pending.items() if session.partition in lost]
            pending += [link.pending.pop(key) for key in moved]
            # Taken in, and copied on; but the new owner is the one to say that it shows them.
            unshown = [session for session in link.unshown if session.partition in lost]
            pending += [session for session in unshown if link.unshown.pop(session) == session.seq]
            if not link.owned and link.in_flight is not None:
                # The node may have left the table, and then nobody waits for its answer.
                pending += [session for session in link.in_flight.told if session.partition in lost]
        return pending

    # ---------------------------------------------------------------- beats

    def beats(self, now: Instant) -> list[tuple[NodeId, Beat]]:
        """Return the beats to send now: at their regular times, and at once where there is news and none in flight."""
        if self.table is None:
            return []
        return [
            (node, self._beat(now, link, self.table))
            for node, link in self._links.items()
            if link.in_flight is None and now >= link.not_before and (now >= link.due_at or link.has_news())
        ]

    def answered(self, now: Instant, node: NodeId, beat: Beat, reply: BeatReply) -> Answered:
        """Take note of the answer to a beat."""
        link = self._links.get(node)
        if link is None or link.in_flight is None or link.in_flight.beat is not beat:
            return Answered()
        assert self.table is not None
        newer = patched(self.table, reply.table) if reply.table is not None else None
        if not reply.is_heard:
            self.failed(now, node, beat)
            return Answered(table=newer)
        flight, link.in_flight = link.in_flight, None
        refused = frozenset(unpack_partitions(reply.refused))
        link.due_at = Instant(now + BEAT_MS - SPREAD_MS + self._rng.randrange(2 * SPREAD_MS + 1))
        if (reply.stamp.incarnation, reply.stamp.since) != (link.stamp.incarnation, link.stamp.since):
            # What was told before this beat is not known there.
            link.full |= link.owned - flight.full
            link.unshown.clear()
            link.is_told = False
        if self.table.epoch > beat.epoch:
            link.due_at = now  # all wait to hear that this node knows the newer table
        if not link.is_told:
            link.due_at = now
            link.is_told = not link.full
        link.stamp = reply.stamp
        link.full |= link.owned & (flight.full & refused | frozenset(unpack_partitions(reply.mismatched)))
        if refused and newer is None:
            link.not_before = Instant(now + RETRY_MS)  # it cannot take them yet, or the newer table is on its way
        taken, closed = self._confirm(flight, refused)
        link.unshown.update(taken)
        opened: list[str] = []
        if (beat.echo.incarnation, beat.echo.since) == (reply.stamp.incarnation, reply.stamp.since):
            opened = [session.name for session, seq in link.unshown.items() if session.seq == seq]
            link.unshown.clear()
        until = Instant(flight.asked_at + reply.left_ms - reply.left_ms * DRIFT_PPM // 1_000_000)
        return Answered(tuple(opened), tuple(closed), newer, until)

    def relies_on(self, node: NodeId) -> frozenset[int]:
        """Return the partitions of which, by its last answer, the status node shows all sessions (I3)."""
        link = self._links.get(node)
        if link is None or self.table is None or (link.in_flight is not None and link.in_flight.full):
            return frozenset()
        waiting = {session.partition for session in link.pending.values()}
        closed = {move.partition for move in self.table.moves if move.stage in _UNVOUCHED_STAGES}
        return frozenset(link.owned - waiting - link.full - link.audits - closed)

    def failed(self, now: Instant, node: NodeId, beat: Beat) -> None:
        """Take note that no answer came: what the beat said may or may not have been taken in, and is told again."""
        link = self._links.get(node)
        if link is None or link.in_flight is None or link.in_flight.beat is not beat:
            return
        flight, link.in_flight = link.in_flight, None
        link.full |= flight.full & link.owned
        link.audits |= flight.audited & link.owned
        link.not_before = Instant(now + RETRY_MS)
        link.due_at = now
        for session, seq in zip(flight.told, flight.seqs, strict=True):
            if session.seq == seq:
                self._put(session)
        if len(link.pending) > PENDING_MAX:
            # It may be away for long, and closed sessions are kept for nothing else. The floor says the same of them.
            link.full |= {session.partition for session in link.pending.values()}
            link.pending.clear()

    def next_deadline(self) -> Instant | None:
        """Return when `beats` has something to do; None when it waits for answers only."""
        return min(
            (
                max(link.not_before, Instant(0) if link.has_news() else link.due_at)
                for link in self._links.values()
                if link.in_flight is None
            ),
            default=None,
        )

    def sessions(self, partition: int) -> list[bytes]:
        """Return the packed entries of the partition's open sessions."""
        return [session.entry for session in self._members[partition].values()]

    def digest(self) -> Digest:
        """Return the digest of all open sessions together. Computes anew only what changed since it was last asked."""
        count = xor = 0
        for partition in range(self._size):
            entries, hashes = self._digest(partition)
            count, xor = count + entries, xor ^ hashes
        return Digest(count, xor)

    def statistics(self) -> dict[str, dict[str, int]]:
        """Return a snapshot of what waits for each status node."""
        return {
            node: {"pending": len(link.pending), "full": len(link.full), "partitions": len(link.owned)}
            for node, link in sorted(self._links.items())
        }

    def check_invariants(self) -> None:
        """Assert what one state shows."""
        for partition, members in enumerate(self._members):
            hashes = [xxh3_64_intdigest(session.entry) for session in members.values()]
            xor = 0
            for one in hashes:
                xor ^= one
            assert self._digest(partition) == (len(hashes), xor), "I4"
        for link in self._links.values():
            assert all(session.partition in link.owned for session in link.pending.values()), "I2"
            assert link.full <= link.owned, "I2"

    # ---------------------------------------------------------------- inside

    @staticmethod
    def _check_room(members: dict[str, _Session], opened: Opened, size: int) -> None:
        """Raise Overloaded if an entry of that size makes a partition too long by an audience that is longer than was.

        Who lists nobody is never refused, so that a partition may be too long without anybody's audience being so.
        """
        former = members.get(opened.session)
        seen = size + sum([len(session.entry) for session in members.values() if session is not former])
        if seen > LISTED_BYTES_MAX and (former is None or len(_encode(opened.audience)) > _audience_bytes(former)):
            message = "audiences that list users take too much room now"
            raise Overloaded(message, what="partition_bytes", retry_after_ms=ROOM_AFTER_MS)

    def _put(self, session: _Session) -> None:
        """Make the session's newest change pending for whoever owns its partition."""
        if not self._link_of:
            return  # of the open ones everything will be told, and of the closed ones nobody ever heard
        pending = self._link_of[session.partition].pending
        if session.is_open:
            pending[session.name] = session
        else:
            if pending.get(session.name) is session:
                del pending[session.name]
            # A closed session and a new one of the same name are two.
            pending[f"{session.name}\0{session.conn}"] = session

    def _beat(self, now: Instant, link: _Link, table: PartitionTable) -> Beat:
        full: list[int] = []
        sessions: list[_Session] = []
        size = 0
        for partition in link.full:
            if len(sessions) >= ENTRIES_PER_BEAT or size >= BYTES_PER_BEAT:
                break
            full.append(partition)
            members = self._members[partition].values()
            sessions.extend(members)
            size += sum([len(session.entry) for session in members])
        link.full.difference_update(full)
        listed = frozenset(full)
        covered = [key for key, session in link.pending.items() if session.partition in listed] if listed else []
        told = [link.pending.pop(key) for key in covered]
        if link.pending:
            news = self._take_news(link, max(0, ENTRIES_PER_BEAT - len(sessions)), max(0, BYTES_PER_BEAT - size))
            sessions += news
            told += news
        asked = self._due_audits(now, link)
        beat = Beat(
            self._incarnation,
            table.epoch,
            link.stamp if link.is_told else Stamp(),
            pack_partitions([session.partition for session in sessions]),
            [session.user for session in sessions],
            [session.entry for session in sessions],
            pack_partitions(full),
            self._seq,
            tuple(self._audit(group) for group in asked),
        )
        seqs = [session.seq for session in told]
        link.in_flight = _InFlight(beat, now, told, seqs, listed, frozenset(chain.from_iterable(asked)))
        return beat

    @staticmethod
    def _take_news(link: _Link, entries_max: int, bytes_max: int) -> list[_Session]:
        """Take waiting changes, the oldest first: as many as the beat has room for, the last one may exceed it."""
        if not (entries_max and bytes_max):
            return []
        waiting = link.pending
        news = list(islice(waiting.values(), entries_max))
        ends = list(accumulate([len(session.entry) for session in news]))
        if ends and ends[-1] > bytes_max:
            del news[bisect_left(ends, bytes_max) + 1 :]
        link.pending = dict(islice(waiting.items(), len(news), None)) if len(news) < len(waiting) else {}
        return news

    @staticmethod
    def _due_audits(now: Instant, link: _Link) -> list[list[int]]:
        """Return the partitions to audit now, in groups: those that came here, and the next in turn.

        Not while changes wait, since the digests count them.
        """
        if link.pending:
            return []
        came = sorted(link.audits - link.full)[: AUDITS_PER_BEAT * AUDIT_PARTITIONS]
        link.audits.difference_update(came)
        groups = [came[start : start + AUDIT_PARTITIONS] for start in range(0, len(came), AUDIT_PARTITIONS)]
        if now < link.audit_at:
            return groups
        link.audit_at = Instant(now + BEAT_MS - SPREAD_MS)
        if not link.turn:
            link.turn = sorted(link.owned)
        turn = [one for one in link.turn[:AUDIT_PARTITIONS] if one in link.owned and one not in link.full]
        del link.turn[:AUDIT_PARTITIONS]
        return [*groups, turn] if turn else groups

    def _audit(self, partitions: Collection[int]) -> Audit:
        count = xor = 0
        digests = self._digests
        for partition in partitions:
            entries, hashes = digests[partition] or self._digest(partition)
            count += entries
            xor ^= hashes
        return Audit(pack_partitions(partitions), count, xor)

    def _confirm(self, flight: _InFlight, refused: frozenset[int]) -> tuple[dict[_Session, int], list[str]]:
        """Return the sessions whose newest change was taken in, with its number, and those whose end was."""
        opened: dict[_Session, int] = {}
        closed: list[str] = []
        for session, seq in zip(flight.told, flight.seqs, strict=True):
            if session.seq != seq:
                continue  # changed since; that is pending on its own
            if session.partition in refused:
                self._put(session)
            elif session.is_open:
                opened[session] = seq
            else:
                closed.append(session.name)
        told = {session.name for session in flight.told} if flight.full else set()
        for partition in flight.full - refused:
            for name, session in self._members[partition].items():
                if session.seq <= flight.beat.floor and name not in told:
                    opened[session] = session.seq
        return opened, closed

    def _digest(self, partition: int) -> Digest:
        """Return the digest of the partition's open sessions; computed when asked for, kept until one changes."""
        known = self._digests[partition]
        if known is None:
            known = self._digests[partition] = digest_of(self.sessions(partition))
        return known


def _audience_bytes(session: _Session) -> int:
    """Return how long the audience is in the session's entry."""
    return len(_encode(_decode(body_of(bytes(2) + session.entry)).audience))
