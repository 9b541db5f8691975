"""How others use the status cluster: `StatusClient` asks, `StatusPublisher` reports, `StatusWatches` is told.

Both route by the partition table, which they follow in the registry and in the answers of status nodes that are ahead,
and keep working on the last one they saw when the registry is away. Neither ever says "offline" for a node that it
could not ask.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TypedDict

import msgspec

from base.clock import Instant
from base.errors import PeerUnavailable, RoadsteadError, StaleEpoch, TooLarge
from base.faultpoint import reach
from base.ids import Epoch, NodeId, entropy
from base.log import logger
from base.peer import PeerPool
from base.site import Site
from status.api import (
    BEAT,
    EVICT,
    LOOKUP,
    LOOKUP_USERS_MAX,
    PLAIN_BYTES_MAX,
    REFUSED,
    SERVICE,
    UNKNOWN_SHOWN,
    Beat,
    BeatReply,
    Closed,
    Evict,
    Lookup,
    Opened,
    Shown,
    UserStatus,
    pack_partitions,
    status_of,
    unpack_partitions,
)
from status.core.faultpoints import crossed_by_all
from status.core.partitions import PartitionTable, partition_of
from status.core.publisher import Publisher
from status.core.records import Digest
from status.core.visibility import checked_audience
from status.core.watches import GRACE_MS
from status.link import StatusLink
from status.ports import SessionReports, StatusLookups
from status.table import TableFollower
from status.watcher import StatusWatches

__all__ = ["SessionReports", "StatusClient", "StatusLookups", "StatusPublisher", "StatusWatches", "Statuses"]
__all__ += ["StatusSide", "checked_audience", "status_side"]

LOOKUP_DEADLINE_MS = 1_000
CONNECT_MS = 250
"""The same for an owner to whom there is no stream: the dead must not hold up each lookup for so long."""
NEWER_TABLE_MS = 250
"""How long a refused lookup waits for the table by which it was refused."""
ASKED_AGAIN_MAX = 4
"""A partition may be sealed for longer than its owner parks, and then be committed while it is asked for once more."""
BEAT_DEADLINE_MS = 1_000


@lru_cache(maxsize=65_536)
def _status_of(entry: bytes) -> UserStatus:
    """Unpack the one session of a user: the same bytes at each look, until it changes.

    About 700 bytes each. Those that list users in an audience are not kept: 100 times as much would be.
    """
    return status_of(entry)


class Statuses(Mapping[str, UserStatus]):
    """The status of each user that was asked for. Unpacked when looked at: most callers look at few."""

    def __init__(self, shown: dict[str, Shown | UserStatus]) -> None:
        self._shown = shown

    def __getitem__(self, user: str) -> UserStatus:
        """Return the user's status."""
        shown = self._shown[user]
        if isinstance(shown, bytes) and len(shown) <= PLAIN_BYTES_MAX:
            return _status_of(shown)
        return shown if isinstance(shown, UserStatus) else status_of(shown)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the users, in the order asked."""
        return iter(self._shown)

    def __len__(self) -> int:
        """Return how many users were asked for."""
        return len(self._shown)


class StatusClient:
    """Lookups, batched per owner. `run` keeps the streams and the table."""

    def __init__(self, site: Site, *, table: TableFollower | None = None, link: StatusLink | None = None) -> None:
        """`table`: a follower that somebody else runs; `link`: the same with the streams. None to have its own."""
        self._is_following = table is None and link is None
        self._is_linked = link is not None
        self._table = link.table if link is not None else table or TableFollower(site)
        self._pool = link.pool if link is not None else PeerPool(site, SERVICE)

    async def run(self) -> None:
        """Keep the table and the streams until cancelled, as far as they are its own."""
        async with asyncio.TaskGroup() as tasks:
            if self._is_following:
                tasks.create_task(self._table.run())
            if not self._is_linked:
                tasks.create_task(self._pool.run())

    async def wait_ready(self) -> None:
        """Return once there is a table to route by."""
        await self._table.wait_newer(0)

    async def lookup(self, users: Sequence[str], *, viewer: str | None = None) -> Statuses:
        """Return the status of each user, to the viewer; `unknown` for whoever's owner could not be asked in time."""
        table = self._table.table
        if table is None:
            return Statuses(dict.fromkeys(users, UNKNOWN_SHOWN))
        shown = await self._ask(table, users, viewer)
        for _ in range(ASKED_AGAIN_MAX):
            if REFUSED not in shown.values():
                break
            newer = await self._newer(table.epoch)
            if newer is None:
                break
            table = newer
            refused = [user for user, one in shown.items() if one is REFUSED]
            shown.update(await self._ask(table, refused, viewer))
        return Statuses(shown)

    async def _newer(self, epoch: Epoch) -> PartitionTable | None:
        try:
            async with asyncio.timeout(NEWER_TABLE_MS / 1000):
                return await self._table.wait_newer(epoch)
        except TimeoutError:
            return None

    async def _ask(
        self, table: PartitionTable, users: Sequence[str], viewer: str | None
    ) -> dict[str, Shown | UserStatus]:
        """Ask each owner for its users, all at once. Whoever could not be asked about is unknown."""
        owners = table.owners
        routed: list[tuple[list[int], list[str]]] = [([], []) for _ in table.nodes]
        appends = [(partitions.append, mine.append) for partitions, mine in routed]
        for user in users:
            partition = partition_of(user)
            append_partition, append_user = appends[owners[partition]]
            append_partition(partition)
            append_user(user)
        asks = [
            self._ask_owner(
                table.nodes[owner],
                Lookup(
                    table.epoch,
                    pack_partitions(partitions[start:][:LOOKUP_USERS_MAX]),
                    mine[start:][:LOOKUP_USERS_MAX],
                    viewer,
                ),
            )
            for owner, (partitions, mine) in enumerate(routed)
            for start in range(0, len(mine), LOOKUP_USERS_MAX)
        ]
        if len(asks) == 1:
            return await asks[0]
        shown: dict[str, Shown | UserStatus] = dict.fromkeys(users)
        async with asyncio.TaskGroup() as tasks:
            parts = [tasks.create_task(ask) for ask in asks]
        for part in parts:
            shown.update(part.result())
        return shown

    async def _ask_owner(self, owner: NodeId, request: Lookup) -> dict[str, Shown | UserStatus]:
        is_connected = False
        try:
            peer = self._pool.get(owner)
            is_connected = peer.is_connected
            deadline_ms = LOOKUP_DEADLINE_MS if is_connected else CONNECT_MS
            reply = await peer.call(LOOKUP, request, deadline_ms=deadline_ms)
        except RoadsteadError as error:
            if isinstance(error, TooLarge) and len(request.users) > 1:
                return await self._ask_halves(owner, request)
            # Who is dead is replaced sooner or later: as by a refusal, a newer table is waited for, and asked by.
            is_dead = not is_connected or isinstance(error, PeerUnavailable)
            return dict.fromkeys(request.users, REFUSED if is_dead else UNKNOWN_SHOWN)
        self._table.offer_diff(reply.table)
        shown: dict[str, Shown | UserStatus] = dict(zip(request.users, reply.shown, strict=True))
        if request.viewer is not None:
            for user, seen in zip(request.users, reply.seen or (), strict=True):
                if shown[user] is not REFUSED:
                    shown[user] = UserStatus(seen.state, (), seen.last_seen)
        return shown

    async def _ask_halves(self, owner: NodeId, request: Lookup) -> dict[str, Shown | UserStatus]:
        """Ask for one half after the other: all of them together do not fit in a message, with their audiences."""
        shown: dict[str, Shown | UserStatus] = {}
        middle = len(request.users) // 2
        partitions = unpack_partitions(request.partitions)
        for part in (slice(middle), slice(middle, None)):
            half = msgspec.structs.replace(
                request, partitions=pack_partitions(partitions[part]), users=request.users[part]
            )
            shown.update(await self._ask_owner(owner, half))
        return shown


class StatusPublisher:
    """An access node's reports to all status nodes: a lease and the sessions of each one's partitions.

    `open` returns once the owner knows the session, so that whoever looks the user up afterwards finds it.
    """

    def __init__(self, site: Site) -> None:
        self.link = StatusLink(site)
        """For others of the same access node to share; it runs with this."""
        self._site = site
        self._clock = site.clock
        self._table = self.link.table
        self._table.on_change(self._adopt)
        self._pool = self.link.pool
        self._core = Publisher(site.name, site.incarnation, entropy())
        self._ended: asyncio.Future[None] | None = None
        self._is_beat_soon = False
        self._timer: asyncio.TimerHandle | None = None
        self._due: Instant | None = None
        self._confirming: dict[str, list[asyncio.Future[None]]] = {}
        self._log = logger(node=site.name)

    async def run(self) -> None:
        """Keep streams, table and beats going until cancelled.

        There is no task for the beats, which spares an idle node three wake-ups each: the event loop calls when one is
        due, or was answered. Raises StaleEpoch when a newer life of this node is known.
        """
        self._ended = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.link.run())
                self._beat_soon()
                await self._ended
        finally:
            self._ended = None
            self._set_timer(None)

    async def wait_ready(self) -> None:
        """Return once there is a table to route by."""
        await self._table.wait_newer(0)

    async def open(self, opened: Opened, *, deadline_ms: int) -> bool:
        """Report a session; True once its owner confirmed it, False if that took too long (it is still reported).

        Raises Overloaded as `report` does.
        """
        confirmed = asyncio.get_running_loop().create_future()
        self._confirming.setdefault(opened.session, []).append(confirmed)
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                self.report(opened)
                await confirmed
        except TimeoutError:
            return False
        finally:
            waiting = self._confirming[opened.session]
            waiting.remove(confirmed)
            if not waiting:
                del self._confirming[opened.session]
        return True

    def report(self, opened: Opened) -> None:
        """Report a session, or a change of it, without waiting for its owner.

        Raises Overloaded, and nothing is reported, if there is no room now for the users whom its audience lists.
        """
        self._core.open(opened)
        if not self._is_beat_soon:
            self._beat_soon()

    def close(self, closed: Closed) -> None:
        """Report that a session ended; told with the next beat, which leaves at once."""
        self._core.close(closed, self._clock.realtime())
        self._beat_soon()

    def on_evict(self, listener: Callable[[Evict], None]) -> None:
        """Call the listener for each session that the device policy wants closed. Before `run`."""

        def evict(message: Evict, _node: str) -> None:
            listener(message)

        self._pool.serve(EVICT, evict)

    def digest(self) -> Digest:
        """Return the digest of all open sessions."""
        return self._core.digest()

    def statistics(self) -> dict[str, dict[str, int]]:
        """Return a snapshot of each link."""
        return self._core.statistics()

    # ---------------------------------------------------------------- inside

    def _adopt(self, table: PartitionTable) -> None:
        for point in crossed_by_all("access", self._core.table.epoch, table) if self._core.table else ():
            reach(point)
        self._core.adopt(self._clock.monotonic(), table)
        self._beat_soon()

    def _beat_soon(self) -> None:
        """Look for beats to send after this step of the event loop: what else it reports goes with them."""
        if not self._is_beat_soon and self._ended is not None:
            self._is_beat_soon = True
            asyncio.get_running_loop().call_soon(self._beat)

    def _beat(self) -> None:
        self._is_beat_soon = False
        if self._ended is None:
            return
        now = self._clock.monotonic()
        for owner, beat in self._core.beats(now):
            self._send(owner, beat)
        self._set_timer(self._core.next_deadline())

    def _set_timer(self, due: Instant | None) -> None:
        if due == self._due and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due, self._timer = due, None
        if due is not None:
            # A millisecond late rather than early, or it would find nothing to do and come back.
            wait_ms = max(0, due - self._clock.monotonic()) + 1
            self._timer = asyncio.get_running_loop().call_later(wait_ms / 1000, self._timed)

    def _timed(self) -> None:
        self._timer = None
        self._beat()

    def _send(self, owner: NodeId, beat: Beat) -> None:
        def done(reply: BeatReply | RoadsteadError) -> None:
            if isinstance(reply, RoadsteadError):
                self._failed(owner, beat, reply)
            else:
                self._answered(owner, beat, reply)

        try:
            self._pool.get(owner).ask(BEAT, beat, deadline_ms=BEAT_DEADLINE_MS, done=done)
        except RoadsteadError as error:
            self._failed(owner, beat, error)

    def _answered(self, owner: NodeId, beat: Beat, reply: BeatReply) -> None:
        answered = self._core.answered(self._clock.monotonic(), owner, beat, reply)
        if answered.table is not None:
            self._table.offer(answered.table)
        if self._confirming:
            for session in answered.opened:
                self._confirmed(session)
        if not self._is_beat_soon:
            self._beat()

    def _failed(self, owner: NodeId, beat: Beat, error: RoadsteadError) -> None:
        log = self._log.error if isinstance(error, TooLarge) else self._log.info  # which no time will mend
        log("beat_failed", owner=owner, error=str(error))
        if isinstance(error, StaleEpoch):
            if self._ended is not None and not self._ended.done():
                self._ended.set_exception(error)  # a newer life of this node is known: this one must end
            return
        self._core.failed(self._clock.monotonic(), owner, beat)
        self._beat_soon()

    def _confirmed(self, session: str) -> None:
        for waiting in self._confirming.get(session, ()):
            if not waiting.done():
                waiting.set_result(None)


class StatusSide(TypedDict):
    """What an access node needs of a status backend. Without watches there are no presence channels."""

    reports: SessionReports
    statuses: StatusLookups
    watches: StatusWatches | None


def status_side(site: Site, *, users_max: int, grace_ms: int = GRACE_MS) -> StatusSide:
    """Return an access node's parts of the status cluster, sharing its streams.

    `users_max`: how many it may watch; `grace_ms`: how long it holds back that somebody went offline, where it had to
    ask anew.
    """
    reports = StatusPublisher(site)
    return {
        "reports": reports,
        "statuses": StatusClient(site, link=reports.link),
        "watches": StatusWatches(site, reports.link, users_max=users_max, grace_ms=grace_ms),
    }
