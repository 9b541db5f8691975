"""A status node: the shell around its partitions.

Start: listen, read the partition table, and learn from the registry which access nodes are alive, since each of them
may know users that this life of the node has not heard of.
Run: serve beats and lookups as they come (both are plain functions on memory, no task a call), ask for leases and copy
what moves here (`member`), stand for leader, and every TICK_MS end what is over. Whatever runs first after a gap in the
ticks notices this node's own stall, so that nobody is convicted for it.
Stop: deregister, close.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from base.clock import Instant
from base.errors import BadRequest, LimitExceeded, NotReady, StaleEpoch
from base.faultpoint import reach
from base.ids import NodeId
from base.node import Node
from base.registry import follow_services
from base.site import Site
from status.admin import ResizeApi
from status.api import (
    BEAT,
    LOOKUP,
    LOOKUP_USERS_MAX,
    REFUSED,
    SERVICE,
    Beat,
    BeatReply,
    Lookup,
    LookupReply,
    pack_partitions,
    unpack_partitions,
)
from status.asking import wait_for
from status.census import CensusTaker
from status.client import StatusClient
from status.config import StatusConfig
from status.core.faultpoints import crossed_by_node
from status.core.handoff import PARK_MS, Parking
from status.core.ownership import Change, Turn
from status.core.partitions import PartitionTable
from status.core.policy import DevicePolicy
from status.core.serving import Granter
from status.devices import Devices
from status.events_api import EventsApi
from status.feed import EventFeed
from status.feed_reader import FeedReader
from status.leader import Leader
from status.lookup_api import LookupApi
from status.member import Member
from status.metrics import FeedMetrics, PresenceMetrics, ServingMetrics, StatusMetrics
from status.ports import Contacts, NoContacts
from status.rollcall import RollCall
from status.rollcall_api import RollCallApi
from status.sights import Sights
from status.table import TableFollower
from status.taking_over import TakingOver
from status.watching import Watching

__all__ = ["StatusNode"]

ACCESS_SERVICE = "access"
TICK_MS = 100
STALL_MS = 300
NEWER_TABLE_MS = 200
"""How long a request by a newer table than ours waits for it: the answer will say what this node knows."""


Listener = Callable[[Instant, Sequence[Turn], Sequence[Change]], None]
"""Told what changed at this node: partitions that it began or ceased to serve, then sessions."""


class _Parked(NamedTuple):
    """A lookup that waits for its partitions."""

    partitions: Sequence[int]
    woken: asyncio.Future[None]

    def wake(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)


class StatusNode:
    """One node of the cluster. Its HTTP port carries the API, health, metrics and the peer streams."""

    def __init__(self, config: StatusConfig, site: Site, *, contacts: Contacts | None = None) -> None:
        """`contacts`: who has whom among the contacts, nobody if None."""
        self.node = Node(site, SERVICE, statistics=self.statistics)
        self._site = site
        self._clock = site.clock
        self._table = TableFollower(site)
        self._leader = Leader(site, self._table, bootstrap_nodes=config.bootstrap_nodes)
        self._member = Member(site, self._table, self._leader, lease_ms=config.lease_ms, observe=self._observe)
        self._ownership = self._member.ownership
        self._table.on_change(self._adopt)
        self._client = StatusClient(site, table=self._table)
        self._taking_over = TakingOver(self._ownership, self._member.pool, catch_up=self._catch_up)
        self._parking: Parking[_Parked] = Parking()
        self._metrics = StatusMetrics(self.node.metrics, self._ownership.statistics)
        self._lease_ms = config.lease_ms
        self._handover_ms = config.stop_handover_ms
        self.node.drain_deadline_s += config.stop_handover_ms / 1000
        self._listeners: list[Listener] = []
        self._observed = site.clock.monotonic()
        self.node.peers.serve(BEAT, self._beat)
        self.node.peers.serve(LOOKUP, self._lookup)
        self._member.serve(self.node.peers)
        self._taking_over.serve(self.node.peers)
        census = CensusTaker(self._ownership, self._table, self._member.pool)
        census.serve(self.node.peers)
        LookupApi(self._client, site.credentials).add_to(self.node.http.app.router)
        ResizeApi(site, self._table, census).add_to(self.node.http.app.router)
        rollcall = RollCall(site, self._ownership, self._table, self._member.pool, observe=self._catch_up)
        rollcall.serve(self.node.peers)
        RollCallApi(rollcall, site.credentials).add_to(self.node.http.app.router)
        ServingMetrics(
            self.node.metrics,
            granter=self._granter,
            is_registry_reachable=lambda: self._table.is_registry_reachable,
        )
        metrics = FeedMetrics(self.node.metrics)
        self._feed = EventFeed(site, self._ownership, metrics, catch_up=self._catch_up)
        self._feed.serve(self.node.peers)
        self._listeners.append(self._feed.listen)
        self._feed_reader = FeedReader(site, self._table, self._feed, self._member.pool, metrics)
        EventsApi(self._feed_reader, site.credentials).add_to(self.node.http.app.router)
        self._sights = Sights(self._ownership, contacts or NoContacts())
        presence_metrics = PresenceMetrics(self.node.metrics)
        self._watching = Watching(
            site,
            self._ownership,
            self._sights,
            self._table,
            peers=self.node.peers,
            observe=self._catch_up,
            metrics=presence_metrics,
            grace_ms=config.offline_grace_ms,
            jitter_ms=config.offline_jitter_ms,
        )
        policy = DevicePolicy(config.device_policy, config.device_winner)
        self._devices = Devices(site, policy, self._ownership, peers=self.node.peers, metrics=presence_metrics)
        self._listeners += [self._devices.changed, self._watching.changed]

    async def start(self) -> None:
        """Listen, join; before that, read what the registry knows."""
        await self.node.listen()
        # A table that comes from elsewhere may be older than this node's promises in its former life.
        await self._table.read()
        if self._table.table is None:
            self._member.expect_first_table()
        alive = (await self._site.registry.services(ACCESS_SERVICE)).items
        self._ownership.access = frozenset(NodeId(instance.id) for instance in alive)
        await self.node.join()

    async def run(self) -> None:
        """Follow the table, take part, stand for leader, end what is over."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._table.run())
            tasks.create_task(self._client.run())
            tasks.create_task(self._leader.run())
            tasks.create_task(self._member.run())
            tasks.create_task(self._feed_reader.run())
            tasks.create_task(self.node.run())
            tasks.create_task(self._follow_access())
            tasks.create_task(self._tick())

    async def drain(self) -> None:
        """Hand its partitions over, as a resize would, if that is wanted; then take no new work."""
        self.node.http.is_ready = False
        if self._handover_ms:
            try:
                async with asyncio.timeout(self._handover_ms / 1000):
                    is_done = await self._member.leave()
            except TimeoutError:
                is_done = False
            self.node.log.info("handed_over" if is_done else "not_handed_over")
        self._feed.close()
        self._feed_reader.close()

    async def stop(self) -> None:
        """Deregister and close."""
        await self.node.close()

    def statistics(self) -> dict[str, Any]:
        """Return a snapshot for `/debug/statistics`."""
        table = self._table.table
        return {
            "epoch": table.epoch if table else 0,
            "partitions": table.counts().get(self._site.name, 0) if table else 0,
            "moves": len(table.moves) if table else 0,
            "is_leading": self._leader.is_leading,
            "granter": self._granter().name.lower(),
            "is_registry_reachable": self._table.is_registry_reachable,
            "table": self._ownership.statistics(),
            "events": self._feed.statistics(),
            "watches": self._watching.statistics(),
            "streams": self.node.peers.statistics(),
        }

    # ---------------------------------------------------------------- peer methods

    def _beat(self, beat: Beat, peer: str) -> BeatReply | Awaitable[BeatReply]:
        table = self._table.table
        is_ahead = table is not None and beat.epoch > table.epoch
        if is_ahead or self._ownership.shares(_told_of(beat)):
            return self._beat_later(beat, NodeId(peer))
        return self._take_beat(beat, NodeId(peer))

    async def _beat_later(self, beat: Beat, peer: NodeId) -> BeatReply:
        await wait_for(self._table, beat.epoch, NEWER_TABLE_MS)
        await self._taking_over.wait(_told_of(beat))
        return self._take_beat(beat, peer)

    def _take_beat(self, beat: Beat, node: NodeId) -> BeatReply:
        now = self._observe()
        try:
            heard = self._ownership.heard(now, node, beat, self._clock.realtime())
        except ValueError as error:
            raise BadRequest(f"bad beat: {error}") from error
        if heard.is_fenced:
            raise StaleEpoch(f"a newer life of {node} than {beat.incarnation} is known here")
        table = self._table.table
        epoch = table.epoch if table is not None else beat.epoch
        self._note_access(now, node, beat)
        self._tell(now)
        self._metrics.beats.inc()
        if beat.entries:
            self._metrics.changes.inc(len(beat.entries))
        if heard.mismatched:
            self._metrics.mismatches.inc(len(heard.mismatched))
        return BeatReply(
            heard.is_heard,
            self._ownership.stamp(now, node),
            epoch,
            self._ownership.left_ms(now, node, beat.incarnation, beat.epoch),
            pack_partitions(heard.refused),
            pack_partitions(heard.mismatched),
            self._table.diff_from(beat.epoch) if beat.epoch < epoch else None,
        )

    def _note_access(self, now: Instant, node: NodeId, beat: Beat) -> None:
        """Remember which tables access nodes know: a resize waits for all of them."""
        epochs = self._member.access_epochs
        known = epochs.get(node)
        epochs[node] = (Instant(now + self._lease_ms), beat.epoch)
        if known is None or known[1] != beat.epoch:
            self._member.report_soon()

    def _lookup(self, lookup: Lookup, _peer: str) -> LookupReply | Awaitable[LookupReply]:
        if len(lookup.users) > LOOKUP_USERS_MAX:
            raise LimitExceeded("too many users in one lookup", what="users", limit=LOOKUP_USERS_MAX)
        table = self._table.table
        if table is None:
            raise NotReady("no partition table yet", retry_after_ms=TICK_MS)
        try:
            partitions = unpack_partitions(lookup.partitions)
        except ValueError as error:
            raise BadRequest(f"bad lookup: {error}") from error
        if len(partitions) != len(lookup.users) or max(partitions, default=0) >= len(table.owners):
            raise BadRequest("bad lookup: a partition for each user is needed")
        self._metrics.lookups.inc(len(partitions))
        reply = self._answer(lookup, partitions)
        if lookup.epoch > table.epoch or self._ownership.has_sealed(partitions):
            late = [place for place, one in enumerate(reply.shown) if one is REFUSED]
            if late:
                return self._answer_later(lookup, reply, late)
        return reply

    async def _answer_later(self, lookup: Lookup, reply: LookupReply, late: Sequence[int]) -> LookupReply:
        """Answer also those who were refused, once the table has come by which it was asked, and they are not sealed.

        What could be answered was, at once: among many users there is nearly always one whose partition is sealed just
        now, and when that is over another one is.
        """
        of_all = unpack_partitions(lookup.partitions)
        partitions = [of_all[place] for place in late]
        await wait_for(self._table, lookup.epoch, NEWER_TABLE_MS)
        sealed = [partition for partition in partitions if self._ownership.has_sealed([partition])]
        if sealed:
            parked = _Parked(sealed, asyncio.get_running_loop().create_future())
            self._metrics.parked.inc()
            began = self._clock.stopwatch()
            if self._parking.park(self._observe(), parked):
                asyncio.get_running_loop().call_later(PARK_MS / 1000, self._unpark)
                await parked.woken
                self._metrics.park_time.observe(self._clock.stopwatch() - began)
        users = [lookup.users[place] for place in late]
        again = self._answer(Lookup(lookup.epoch, pack_partitions(partitions), users, lookup.viewer), partitions)
        return reply.completed(late, again)

    def _answer(self, lookup: Lookup, partitions: Sequence[int]) -> LookupReply:
        now = self._observe()
        table = self._table.table
        assert table is not None
        shown = self._ownership.lookup(now, partitions, lookup.users)
        newer = self._table.diff_from(lookup.epoch) if lookup.epoch < table.epoch else None
        if lookup.viewer is None:
            return LookupReply(table.epoch, shown, newer)
        seen = [
            self._sights.seen_by(now, lookup.viewer, user, partition, one)
            for user, partition, one in zip(lookup.users, partitions, shown, strict=True)
        ]
        return LookupReply(table.epoch, [REFUSED if one is REFUSED else None for one in shown], newer, seen)

    # ---------------------------------------------------------------- background

    def _adopt(self, table: PartitionTable) -> None:
        now = self._observe()
        old = self._ownership.table
        for point in crossed_by_node(old.epoch, table, self._site.name) if old is not None else ():
            reach(point)
        if self._ownership.adopt(now, table):
            self._member.adopted(table)
            self._taking_over.begin()
            self._wake()

    async def _follow_access(self) -> None:
        keep_ms = self._site.config.registration_ttl_ms
        async for instances in follow_services(self._site.registry, ACCESS_SERVICE, self._clock, keep_ms=keep_ms):
            self._ownership.access = frozenset(NodeId(instance.id) for instance in instances)

    async def _tick(self) -> None:
        while True:
            now = self._observe()
            self._tell(now)
            self._devices.tick(now)
            self._watching.tick(now)
            await asyncio.sleep(TICK_MS / 1000)

    def _granter(self) -> Granter:
        return self._member.lease.granter(self._clock.monotonic(), self._table.table)

    def _wake(self) -> None:
        for parked in self._parking.release(lambda one: self._ownership.has_sealed(one.partitions)):
            parked.wake()

    def _unpark(self) -> None:
        for parked in self._parking.expire(self._clock.monotonic()):
            parked.wake()  # still sealed: it is refused

    def _tell(self, now: Instant) -> None:
        """Tell whoever is interested what changed since the last time: partitions first, then sessions."""
        turns, changes = self._ownership.take_turns(), self._ownership.take_changes()
        if turns:
            self._member.report_soon()
            self._taking_over.done()
            self._wake()
        if turns or changes:
            for listener in self._listeners:
                listener(now, turns, changes)

    def _catch_up(self) -> Instant:
        """Bring the partitions up to the present, and whoever listens."""
        now = self._observe()
        self._tell(now)
        return now

    def _observe(self) -> Instant:
        """Read the clock and step the partitions; if this process did not run since the last tick, say so first."""
        now = self._clock.monotonic()
        lag_ms = now - self._observed - TICK_MS
        if lag_ms > STALL_MS:
            self._ownership.stalled(lag_ms)
            self._metrics.stalls.inc(lag_ms)
            self.node.log.warning("stall_noticed", lag_ms=lag_ms)
        self._observed = now
        self._ownership.step(now, self._clock.realtime())
        return now


def _told_of(beat: Beat) -> set[int]:
    """Return the partitions that a beat has news of; none where they cannot be read, which is told later."""
    try:
        return {*unpack_partitions(beat.partitions), *unpack_partitions(beat.floors)}
    except ValueError:
        return set()
