"""The device policy, carried out by the owner of the user: which connections have to go, and telling them so.

Decided whenever a connection opens for a user who has another one, in the same step in which it is taken in, and for
whole partitions when this node begins to serve them. An access node that does not close a loser at once, since the push
was lost or the node is away for a moment, is told again every second for as long as the session is shown.

Only what is shown counts: the session of an access node that fell silent neither wins nor loses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from base.clock import Instant
from base.errors import RoadsteadError
from base.ids import NodeId
from base.log import logger
from base.peer import PeerServer
from base.site import Site
from status.api import EVICT, Evict, status_of
from status.core.ownership import Change, Ownership, Turn
from status.core.partitions import partition_of
from status.core.policy import DevicePolicy, Seat, losers
from status.core.records import Merged, conn_of
from status.metrics import PresenceMetrics

__all__ = ["Devices"]

REPEAT_MS = 1_000
REPEATS_MAX = 30
"""Whoever does not close a session for so long has another fault; the next connection of the user begins anew."""
EVICTING_MAX = 10_000
PARTITIONS_PER_TICK = 64
UNDECIDED_PER_TICK = 200
UNDECIDED_MAX = 10_000
REASON = "connected on another device"


@dataclass(slots=True)
class _Going:
    """A session that has to go."""

    user: str
    session: str
    repeats: int
    due_at: Instant


class Devices:
    """See the module. A listener of the status node, which also ticks it."""

    def __init__(
        self,
        site: Site,
        policy: DevicePolicy,
        ownership: Ownership,
        *,
        peers: PeerServer,
        metrics: PresenceMetrics,
    ) -> None:
        """`peers`: whose streams carry what the access nodes are told."""
        self._policy = policy
        self._ownership = ownership
        self._peers = peers
        self._metrics = metrics
        self._going: dict[tuple[NodeId, str], _Going] = {}
        self._to_check: dict[int, None] = {}
        # Users with connections that are not shown, yet or any more: they are decided on again until all are.
        self._undecided: dict[str, None] = {}
        self._log = logger(node=site.name)

    def changed(self, now: Instant, turns: Sequence[Turn], changes: Sequence[Change]) -> None:
        """Decide for the users who have a new connection; take note of partitions that this node serves now."""
        if self._policy.allows == "all":
            return
        for turn in turns:
            if turn.is_served:
                self._to_check[turn.partition] = None
            else:
                self._to_check.pop(turn.partition, None)
        for user in dict.fromkeys(user for _, user, _, merged in changes if merged is Merged.OPENED):
            self._decide(now, user)

    def tick(self, now: Instant) -> None:
        """Tell again who was told and is still there; decide for partitions that came here, some at a time."""
        for (node, session), going in list(self._going.items()):
            if going.due_at <= now:
                self._repeat(now, node, session, going)
        for partition in list(self._to_check)[:PARTITIONS_PER_TICK] if self._has_room() else ():
            del self._to_check[partition]
            store = self._ownership.store(partition)
            users = store.users if store is not None else {}
            for user in [user for user, found in users.items() if isinstance(found, tuple)]:
                self._decide(now, user)
        for user in list(islice(self._undecided, UNDECIDED_PER_TICK)):
            del self._undecided[user]
            self._decide(now, user)

    # ---------------------------------------------------------------- inside

    def _shown(self, now: Instant, user: str) -> dict[Seat, str]:
        """Return the seats that are shown, if there are several, with their sessions."""
        (shown,) = self._ownership.lookup(now, [partition_of(user)], [user])
        seats: dict[Seat, str] = {}
        for entry in shown if isinstance(shown, tuple) else ():
            (view,) = status_of(entry).sessions
            life = self._ownership.sources.life(entry[:2])
            seats[Seat(life.node, life.incarnation, conn_of(entry), view.platform, view.since)] = view.session
        return seats

    def _decide(self, now: Instant, user: str) -> None:
        store = self._ownership.store(partition_of(user))
        opened = len(store.open_of(user)) if store is not None else 0
        if opened < 2:
            return
        seats = self._shown(now, user)
        is_decided = len(seats) == opened
        for seat in losers(self._policy, seats):
            key = (seat.node, seats[seat])
            if key in self._going:
                continue
            if len(self._going) >= EVICTING_MAX:
                is_decided = False
                break
            self._metrics.evictions.inc()
            self._log.info("session_evicted", user=user, session=seats[seat], peer=seat.node)
            self._going[key] = _Going(user, seats[seat], REPEATS_MAX, now)
            self._repeat(now, *key, self._going[key])
        if not is_decided:
            self._decide_later(user)

    def _decide_later(self, user: str) -> None:
        if len(self._undecided) < UNDECIDED_MAX:
            self._undecided[user] = None
        else:
            self._to_check[partition_of(user)] = None

    def _has_room(self) -> bool:
        """Return whether all losers of a partition are likely to find room."""
        return len(self._going) < EVICTING_MAX and len(self._undecided) < UNDECIDED_MAX

    def _repeat(self, now: Instant, node: NodeId, session: str, going: _Going) -> None:
        """Tell the access node, unless the session is gone, or allowed by now, or the node was told often enough."""
        seats = self._shown(now, going.user)
        if not any(seats[seat] == session for seat in losers(self._policy, seats)):
            del self._going[node, session]
        elif going.repeats == 0:
            del self._going[node, session]
            self._metrics.evictions_unheard.inc()
            self._log.warning("eviction_unheard", user=going.user, session=session, peer=node)
        else:
            going.repeats -= 1
            going.due_at = Instant(now + REPEAT_MS)
            stream = self._peers.stream_of(node)
            try:
                if stream is not None:
                    stream.push(EVICT, Evict(going.user, session, REASON))
            except RoadsteadError as error:
                self._log.info("eviction_unsent", peer=node, error=str(error))
