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
from itertools import islice

import msgspec

from base.clock import Instant
from base.core import lease
from base.ids import Incarnation, NodeId
from status.api import OFFLINE, UNKNOWN, Beat, Closed, Opened, SessionView, State, UserStatus

__all__ = ["BeatOutcome", "SessionTable"]

FORGET_SESSIONS = 2_000
"""How many sessions of dead access nodes one call forgets: a millisecond or two."""

_RANK: dict[State, int] = {"busy": 3, "online": 2, "away": 1, "invisible": 0}


@dataclass(frozen=True, slots=True)
class BeatOutcome:
    """What to answer. `is_fenced`: a newer life of this access node is known, so the sender must stop."""

    needs_resync: bool = False
    is_fenced: bool = False


@dataclass(slots=True)
class _Link:
    """One life of an access node, as it is known here."""

    node: NodeId
    incarnation: Incarnation
    generation: int = 0
    is_live: bool = True
    """Whether its lease is valid. After that nobody sees its sessions, and they are forgotten bit by bit."""
    seq: int = 0
    is_complete: bool = False
    last: Beat | None = None
    """The last beat applied: only its like is a repeat."""
    sessions: dict[str, str] = field(default_factory=dict)
    """session -> user: what to drop when the node goes."""


class _Record(msgspec.Struct, gc=False):
    """One session, as readers see it. The collector need not look at it: it is in no cycle, and there are a million."""

    view: SessionView
    link: _Link
    conn_seq: int
    generation: int


class SessionTable:
    """The state of one status node. Time comes with each call; batches in, plain values out."""

    def __init__(self, *, lease_ms: int) -> None:
        """`lease_ms`: how long an access node's sessions stay online without a beat."""
        self.lease_ms = lease_ms
        self._leases = lease.LeaseTable()
        self._links: dict[NodeId, _Link] = {}
        # The last generation of links that ended, with its life: what is left of it on the way must not begin anew.
        self._ended: dict[NodeId, tuple[Incarnation, int]] = {}
        self._dead: list[_Link] = []
        # Nearly every user has one session; only the others pay for a dict of them.
        self._users: dict[str, _Record | dict[str, _Record]] = {}
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
            link = self._links[node] = _Link(node, life, generation if ended_life == life else 0)
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
                self._open(link, delta)
            else:
                self._close(link, delta)
        if beat.is_complete and not link.is_complete:
            self._finish_generation(link)
        return BeatOutcome()

    def lookup(self, now: Instant, users: Iterable[str]) -> list[UserStatus]:
        """Return each user's status now. Costs a dictionary look a user, and a flag a session."""
        self.expire(now)
        absent = UNKNOWN if self._unfinished or self._awaited else OFFLINE
        statuses: list[UserStatus] = []
        find = self._users.get
        for user in users:
            found = find(user)
            if found is None:
                statuses.append(absent)
            elif isinstance(found, _Record):
                view = found.view
                statuses.append(UserStatus(view.state, (view,)) if found.link.is_live else absent)
            else:
                views = tuple(record.view for record in found.values() if record.link.is_live)
                statuses.append(UserStatus(_best(views), views) if views else absent)
        return statuses

    def expire(self, now: Instant) -> None:
        """End leases that are over, forget some of the dead, stop waiting for nodes that did not come back."""
        self._end(self._leases.step(now, lease.Tick()))
        self._forget(FORGET_SESSIONS)
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
        """Assert I4, and of I1 and I3 what one state shows."""
        links = [*self._links.values(), *self._dead]
        by_user = {
            (id(record.link), session): user
            for user, found in self._users.items()
            for session, record in (found.items() if isinstance(found, dict) else [(found.view.session, found)])
        }
        by_link = {(id(link), session): user for link in links for session, user in link.sessions.items()}
        assert by_user == by_link, "I4"
        assert all(len(found) > 1 for found in self._users.values() if isinstance(found, dict)), "one needs no dict"
        assert self._unfinished == sum(not link.is_complete for link in self._links.values()), "I3"
        assert set(self._links) == {lease.resource for lease in self._leases.leases()}, "I1"
        assert all(link.is_live for link in self._links.values()), "I1"
        assert not any(link.is_live for link in self._dead), "I1"
        self._leases.check_invariants()

    # ---------------------------------------------------------------- generations

    def _start_generation(self, link: _Link, generation: int) -> None:
        if link.is_complete:
            self._unfinished += 1
        link.generation, link.seq, link.is_complete = generation, 0, False

    def _finish_generation(self, link: _Link) -> None:
        for session, user in list(link.sessions.items()):
            if self._record(user, session).generation != link.generation:
                self._drop(link, user, session)
        link.is_complete = True
        self._unfinished -= 1
        self._awaited.pop(link.node, None)

    # ---------------------------------------------------------------- records

    def _open(self, link: _Link, delta: Opened) -> None:
        user = link.sessions.get(delta.session)
        if user is not None and user != delta.user:
            self._drop(link, user, delta.session)
        found = self._users.get(delta.user)
        current = found.get(delta.session) if isinstance(found, dict) else found
        if current is not None and current.view.session == delta.session:
            if current.link is not link:
                del current.link.sessions[delta.session]  # one session is at one node: it moved (I4)
            elif current.conn_seq > delta.conn_seq:
                return  # I2
        view = SessionView(delta.session, delta.device, delta.platform, link.node, delta.state, delta.since)
        record = _Record(view, link, delta.conn_seq, link.generation)
        link.sessions[delta.session] = delta.user
        if isinstance(found, dict):
            found[delta.session] = record
        elif found is None or found.view.session == delta.session:
            self._users[delta.user] = record
        else:
            self._users[delta.user] = {found.view.session: found, delta.session: record}

    def _close(self, link: _Link, delta: Closed) -> None:
        if link.sessions.get(delta.session) != delta.user:
            return  # not open, or not this node's
        if self._record(delta.user, delta.session).conn_seq <= delta.conn_seq:
            self._drop(link, delta.user, delta.session)

    def _record(self, user: str, session: str) -> _Record:
        """The record of a session that some link has."""
        found = self._users[user]
        return found[session] if isinstance(found, dict) else found

    def _drop(self, link: _Link, user: str, session: str) -> None:
        del link.sessions[session]
        found = self._users[user]
        if isinstance(found, dict):
            del found[session]
            if len(found) == 1:
                (self._users[user],) = found.values()
        else:
            del self._users[user]

    # ---------------------------------------------------------------- the dead

    def _end(self, effects: list[lease.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, lease.Ended):
                link = self._links.pop(NodeId(effect.lease.resource))
                self._ended[link.node] = (link.incarnation, link.generation)
                link.is_live = False
                self._dead.append(link)
                if not link.is_complete:
                    self._unfinished -= 1

    def _forget(self, sessions: int) -> None:
        """Drop up to so many sessions of dead links: a node with a hundred thousand must not stop everybody else."""
        while self._dead and sessions > 0:
            link = self._dead[-1]
            for session, user in list(islice(link.sessions.items(), sessions)):
                self._drop(link, user, session)
                sessions -= 1
            if not link.sessions:
                self._dead.pop()


def _best(views: Iterable[SessionView]) -> State:
    """The state that stands for a user with several sessions."""
    return max((view.state for view in views), key=_RANK.__getitem__)
