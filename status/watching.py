"""The owner's side of watches: viewers at access nodes are told what they see of the users of this node.

Every change of a watched user is looked at as a viewer would, and `core.watches` decides what is told and when. What
changes without anything happening is noticed by the tick: a lease of an access node that ended or came back, a
partition that is known again. A look costs about ten microseconds, so that a tick takes a bounded number of them.

Everything leaves as pushes on the stream that the access node opened, snapshots too, which makes them arrive in the
order in which they were made. A push that cannot leave means that the access node may have missed something: then all
that it watches here is forgotten, and nothing more is taken from it until it has said everything anew, as its next
request, assertion or stream makes it do. The same ends the watches of an access node that is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

from base.clock import Instant
from base.errors import LimitExceeded, RoadsteadError
from base.ids import Epoch, NodeId, entropy
from base.log import logger
from base.peer import PeerServer
from base.site import Site
from status.api import NOTICE, WATCH, WATCHED, Notices, Watch, Watched, WatchedReply, WatchReply
from status.core.ownership import Change, Ownership, Turn
from status.core.partitions import TableDiff, partition_of
from status.core.visibility import Sight
from status.core.watches import Notice, WatchTable
from status.metrics import PresenceMetrics
from status.sights import Sights, is_unknown
from status.table import TableFollower

__all__ = ["Watching"]

LOOKS_PER_TICK = 1_000
UNSURE_LOOKS_PER_TICK = 100
NOTICES_PER_PUSH = 500
FORGET_MS = 15_000
"""An access node that asserted nothing for so long is gone, or watches nothing: three of its rounds."""


class Watching:
    """See the module. A listener of the status node, which also ticks it."""

    def __init__(
        self,
        site: Site,
        ownership: Ownership,
        sights: Sights,
        table: TableFollower,
        *,
        peers: PeerServer,
        observe: Callable[[], Instant],
        metrics: PresenceMetrics,
        grace_ms: int,
        jitter_ms: int,
    ) -> None:
        """Serve watches.

        Args:
            site: this node.
            ownership: what it knows.
            sights: what viewers see of that.
            table: the newest partition table.
            peers: where access nodes ask, and whose streams carry the notices.
            observe: brings `ownership` up to the present, and its listeners.
            metrics: what is counted.
            grace_ms: how long the news that somebody went offline waits for a return.
            jitter_ms: up to how much longer, so that the users of a dead access node do not go all at once.
        """
        self._ownership = ownership
        self._sights = sights
        metrics.show_watches(self.statistics)
        self._table = table
        self._peers = peers
        self._observe = observe
        self._metrics = metrics
        self._watches = WatchTable(entropy(), grace_ms=grace_ms, jitter_ms=jitter_ms)
        # Watched users by partition; those whom nobody watches any more go when the partition is looked at.
        self._users: dict[int, dict[str, None]] = {}
        self._heard: dict[NodeId, Instant] = {}
        self._silent: frozenset[NodeId] = frozenset()
        self._to_look: dict[str, None] = {}
        self._unsure: dict[str, None] = {}
        self._log = logger(node=site.name)
        peers.serve(WATCH, self._watch)
        peers.serve(WATCHED, self._watched)

    def changed(self, now: Instant, turns: Sequence[Turn], changes: Sequence[Change]) -> None:
        """Take note of partitions that this node serves from now on, or not any more, and of sessions that changed."""
        for turn in turns:
            users = self._users.get(turn.partition)
            if users is None:
                continue
            if turn.is_served:
                self._to_look.update(users)
            else:
                self._watches.forget_users(users)
                del self._users[turn.partition]
        is_watched = self._watches.is_watched
        watched = dict.fromkeys(user for _, user, _, _ in changes if is_watched(user))
        for user in watched:
            self._watches.changed(now, user, self._look(now, user))
        if watched:
            self._tell(now)

    def tick(self, now: Instant) -> None:
        """Notice what changed by time alone, and tell what is due."""
        silent = self._ownership.silent(now)
        if silent != self._silent:
            self._silent = silent
            self._to_look = dict.fromkeys(self._watches.watched())
        # The oldest first: whoever stays unknown goes to the end, and holds up nobody.
        for user in list(islice(self._unsure, UNSURE_LOOKS_PER_TICK)):
            del self._unsure[user]
            self._to_look[user] = None
        for _ in range(min(LOOKS_PER_TICK, len(self._to_look))):
            user = self._to_look.popitem()[0]
            if self._watches.is_watched(user):
                self._watches.changed(now, user, self._look(now, user))
        self._tell(now)
        for node in [node for node, heard_at in self._heard.items() if heard_at + FORGET_MS < now]:
            self._forget(node)

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes."""
        return {**self._watches.statistics(), "to_look": len(self._to_look), "unsure": len(self._unsure)}

    # ---------------------------------------------------------------- peer methods

    def _watch(self, watch: Watch, peer: str) -> WatchReply:
        now = self._observe()
        node = NodeId(peer)
        if watch.is_anew:
            self._forget(node)
        elif node not in self._heard:
            # "All viewers" would mean others to it than to us: somebody could be told what is denied.
            return WatchReply([], [], self._newer(watch.epoch), is_known=False)
        self._heard[node] = now
        for user, viewers in watch.removed.items():
            self._watches.unwatch(node, user, viewers)
        refused: list[str] = []
        limited: list[str] = []
        snapshots: list[Notice] = []
        for user, viewers in watch.added.items():
            partition = partition_of(user)
            if not self._may_take(partition, watch.epoch):
                refused.append(user)
                continue
            try:
                snapshots.append(self._watches.watch(node, user, viewers, self._look(now, user)))
            except LimitExceeded as error:
                self._log.warning("watch_refused", peer=node, error=str(error))
                limited.append(user)
            else:
                self._note(partition, user)
        self._push(node, snapshots)
        return WatchReply(refused, limited, self._newer(watch.epoch))

    def _watched(self, watched: Watched, peer: str) -> WatchedReply:
        now = self._observe()
        node = NodeId(peer)
        newer = self._newer(watched.epoch)
        table = self._table.table
        is_comparable = table is not None and table.epoch == watched.epoch
        is_right = node in self._heard and (not is_comparable or self._watches.digest(node) == watched.digest)
        if node in self._heard:
            self._heard[node] = now
        if not is_right:
            self._metrics.watch_mismatches.inc()
        return WatchedReply(is_right, newer)

    def _may_take(self, partition: int, epoch: int) -> bool:
        """Return whether the partition is here, and the sender knows since when: watches of before were forgotten."""
        table = self._table.table
        if table is None or self._ownership.store(partition) is None:
            return False
        return epoch >= table.owner_epoch(partition)

    def _newer(self, epoch: int) -> TableDiff | None:
        table = self._table.table
        return self._table.diff_from(Epoch(epoch)) if table is not None and epoch < table.epoch else None

    # ---------------------------------------------------------------- inside

    def _look(self, now: Instant, user: str) -> Sight:
        seen = self._sights.sight(now, user)
        if is_unknown(seen):
            self._unsure[user] = None
        return seen

    def _note(self, partition: int, user: str) -> None:
        users = self._users.setdefault(partition, {})
        if user not in users:
            for gone in [one for one in users if not self._watches.is_watched(one)]:
                del users[gone]
            users[user] = None

    def _tell(self, now: Instant) -> None:
        by_node: dict[NodeId, list[Notice]] = {}
        for notice in self._watches.due(now):
            by_node.setdefault(notice.node, []).append(notice)
        for node, notices in by_node.items():
            self._push(node, notices)

    def _push(self, node: NodeId, notices: Sequence[Notice]) -> None:
        stream = self._peers.stream_of(node)
        try:
            for start in range(0, len(notices) if stream is not None else 0, NOTICES_PER_PUSH):
                assert stream is not None
                stream.push(NOTICE, Notices(list(notices[start : start + NOTICES_PER_PUSH])))
        except RoadsteadError as error:
            self._log.info("notice_lost", peer=node, error=str(error))
            stream = None
        if stream is None:
            self._metrics.notices_lost.inc(len(notices))
            self._forget(node)
        else:
            self._metrics.notices.inc(len(notices))

    def _forget(self, node: NodeId) -> None:
        self._heard.pop(node, None)
        self._watches.forget_node(node)
