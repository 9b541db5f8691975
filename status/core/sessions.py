"""What a status node knows: the sessions of its partitions, and whether their access nodes are alive.

No user is kept alive by writing it again and again. Each access node holds one lease here; a session counts as online
only while the lease of the very life (incarnation) that reported it is valid. So a dead access node's users are offline
at the instant its lease ends, in O(1), and one beat a second keeps any number of users online.

An access node's state arrives as a *generation*: a first full synchronisation, then deltas, numbered without a gap.
After a gap or a lost lease the receiver asks for a new generation; what the new one does not mention is dropped when it
is complete, so that nobody flickers meanwhile.

"Offline" is a claim that needs proof: it is made only when every access node that could know the user has told
everything. Until then the answer is *unknown* (I3).

Invariants:
    I1  A session is shown iff its access node's lease is valid for the incarnation that reported it.
    I2  Per session the record with the greatest conn_seq wins, in whatever order deltas arrive.
    I3  "Offline" is never said while an awaited or unfinished access node may know the user as online.
    I4  The records indexed by user and by access node are the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from base.clock import Instant
from base.core import lease
from base.ids import Incarnation, NodeId
from status.api import OFFLINE, UNKNOWN, Beat, Closed, Opened, SessionView, UserStatus

__all__ = ["BeatOutcome", "SessionTable"]

_RANK = {"busy": 3, "online": 2, "away": 1, "invisible": 0}


@dataclass(frozen=True, slots=True)
class BeatOutcome:
    """What to answer. `is_fenced`: a newer life of this access node is known, so the sender must stop."""

    needs_resync: bool = False
    is_fenced: bool = False


@dataclass(slots=True)
class _Record:
    opened: Opened
    node: NodeId
    incarnation: Incarnation
    generation: int


@dataclass(slots=True)
class _Link:
    """One access node's state here."""

    incarnation: Incarnation
    generation: int = 0
    seq: int = 0
    is_complete: bool = False
    last: Beat | None = None
    """The last beat applied: only its like is a repeat."""
    sessions: dict[str, str] = field(default_factory=dict)
    """session -> user: what to drop when the node goes."""


class SessionTable:
    """The state of one status node. Time comes with each call; batches in, plain values out."""

    def __init__(self, *, lease_ms: int) -> None:
        """`lease_ms`: how long an access node's sessions stay online without a beat."""
        self.lease_ms = lease_ms
        self._leases = lease.LeaseTable()
        self._links: dict[NodeId, _Link] = {}
        # The last generation of links that ended, with its life: what is left of it on the way must not begin anew.
        self._ended: dict[NodeId, tuple[Incarnation, int]] = {}
        self._users: dict[str, dict[str, _Record]] = {}
        self._awaited: dict[NodeId, Instant] = {}
        self._unfinished = 0

    def await_nodes(self, now: Instant, nodes: Iterable[NodeId]) -> None:
        """Take note of access nodes that were alive before this table: for a lease's time they may know users (I3)."""
        for node in nodes:
            if node not in self._links:
                self._awaited[node] = Instant(now + self.lease_ms)

    def beat(self, now: Instant, beat: Beat) -> BeatOutcome:
        """Apply one beat: renew the sender's lease, then its deltas, if none before them is missing."""
        node, life = NodeId(beat.node), Incarnation(beat.incarnation)
        effects = self._leases.step(now, lease.Acquire(node, node, life, self.lease_ms))
        self._end(effects)
        if any(isinstance(effect, lease.Refused) for effect in effects):
            return BeatOutcome(is_fenced=True)
        link = self._links.get(node)
        if link is None:
            ended_life, generation = self._ended.get(node, (life, 0))
            link = self._links[node] = _Link(life, generation if ended_life == life else 0)
            self._unfinished += 1
        if beat.generation > link.generation and beat.seq == 1:
            self._start_generation(link, beat.generation)
        elif beat.generation != link.generation or link.last is None or beat.seq != link.seq + 1:
            # A repeat was applied, only its reply was lost. Anything else leaves a gap, even under a number that was
            # seen before: a sender may begin anew without knowing its last generation.
            return BeatOutcome(needs_resync=beat != link.last)
        link.seq, link.last = beat.seq, beat
        for delta in beat.deltas:
            if isinstance(delta, Opened):
                self._open(node, link, delta)
            else:
                self._close(link, delta)
        if beat.is_complete and not link.is_complete:
            self._finish_generation(node, link)
        return BeatOutcome()

    def lookup(self, now: Instant, users: Iterable[str]) -> list[UserStatus]:
        """Return each user's status now. Costs a dictionary look a user, and a view a session."""
        self.expire(now)
        absent = UNKNOWN if self._unfinished or self._awaited else OFFLINE
        statuses: list[UserStatus] = []
        for user in users:
            records = self._users.get(user)
            if records is None:
                statuses.append(absent)
                continue
            views = tuple(
                SessionView(
                    r.opened.session, r.opened.device, r.opened.platform, r.node, r.opened.state, r.opened.since
                )
                for r in records.values()  # each of a valid lease: `expire` dropped the others (I1)
            )
            best = max((view.state for view in views), key=_RANK.__getitem__)
            statuses.append(UserStatus(best, views))
        return statuses

    def expire(self, now: Instant) -> None:
        """End leases that are over and stop waiting for nodes that did not come back."""
        self._end(self._leases.step(now, lease.Tick()))
        for node in [node for node, until in self._awaited.items() if until <= now]:
            del self._awaited[node]

    def stalled(self, lag_ms: int) -> None:
        """This node did not run for `lag_ms`: the silence was its own, so nobody is convicted for it."""
        self._leases.step(Instant(0), lease.Stalled(lag_ms))
        self._awaited = {node: Instant(until + lag_ms) for node, until in self._awaited.items()}

    @property
    def is_recovering(self) -> bool:
        """Whether a user that is not found is unknown rather than offline."""
        return bool(self._unfinished or self._awaited)

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes."""
        return {
            "users": len(self._users),
            "sessions": sum(len(link.sessions) for link in self._links.values()),
            "access_nodes": len(self._links),
            "awaited": len(self._awaited),
            "unfinished": self._unfinished,
        }

    def check_invariants(self) -> None:
        """Assert I4 and the count behind I3."""
        by_user = {(r.node, s): user for user, records in self._users.items() for s, r in records.items()}
        by_node = {(node, s): user for node, link in self._links.items() for s, user in link.sessions.items()}
        assert by_user == by_node, "I4"
        lives = {(r.node, r.incarnation) for records in self._users.values() for r in records.values()}
        assert lives <= {(node, link.incarnation) for node, link in self._links.items()}, "I1"
        assert self._unfinished == sum(not link.is_complete for link in self._links.values()), "I3"
        assert all(self._users.values()), "I4"
        assert set(self._links) == {lease.resource for lease in self._leases.leases()}, "I1"
        self._leases.check_invariants()

    # ---------------------------------------------------------------- generations

    def _start_generation(self, link: _Link, generation: int) -> None:
        if link.is_complete:
            self._unfinished += 1
        link.generation, link.seq, link.is_complete = generation, 0, False

    def _finish_generation(self, node: NodeId, link: _Link) -> None:
        for session, user in list(link.sessions.items()):
            if self._users[user][session].generation != link.generation:
                self._drop(link, user, session)
        link.is_complete = True
        self._unfinished -= 1
        self._awaited.pop(node, None)

    # ---------------------------------------------------------------- records

    def _open(self, node: NodeId, link: _Link, delta: Opened) -> None:
        user = link.sessions.get(delta.session)
        if user is not None and user != delta.user:
            self._drop(link, user, delta.session)
        records = self._users.setdefault(delta.user, {})
        current = records.get(delta.session)
        if current is not None and current.node != node:
            del self._links[current.node].sessions[delta.session]  # one session is at one node: it moved (I4)
        elif current is not None and current.opened.conn_seq > delta.conn_seq:
            return  # I2
        records[delta.session] = _Record(delta, node, link.incarnation, link.generation)
        link.sessions[delta.session] = delta.user

    def _close(self, link: _Link, delta: Closed) -> None:
        if link.sessions.get(delta.session) != delta.user:
            return  # not open, or not this node's
        if self._users[delta.user][delta.session].opened.conn_seq <= delta.conn_seq:
            self._drop(link, delta.user, delta.session)

    def _drop(self, link: _Link, user: str, session: str) -> None:
        del link.sessions[session]
        records = self._users[user]
        del records[session]
        if not records:
            del self._users[user]

    def _end(self, effects: list[lease.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, lease.Ended):
                node = NodeId(effect.lease.resource)
                link = self._links.pop(node)
                self._ended[node] = (link.incarnation, link.generation)
                for session, user in list(link.sessions.items()):
                    self._drop(link, user, session)
                if not link.is_complete:
                    self._unfinished -= 1
