"""Application channels: what clients ask for, decided and carried out over all access nodes. Implements `Broker`.

| part             | decides                | carries out                                                       |
|------------------|------------------------|-------------------------------------------------------------------|
| `channels`       | `core/namespaces`      | what a client may, and for how long                               |
| `channel_feeds`  | `core/feed`            | what the subscribers of this node get, in order                   |
| `owner_calls`    | `core/placement`       | which node is asked                                               |
| `channel_owner`  | `core/roster`          | what an owner answers, and whom it tells                          |
| `channel_keeper` | `core/custody`         | who owns a channel with a history, and that two nodes have it     |

A publication that is answered is in the history, and outlives the death of one node. One that is answered with error
100 may have happened: an SDK that sends it again may publish it twice; a backend has idempotency keys against that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from access.channel_feeds import ChannelFeeds, Local, Subscription, client_info_of, publication_of
from access.channel_keeper import is_out_of_room
from access.channel_metrics import ChannelMetrics
from access.channel_owner import ChannelOwner
from access.core.encoding import is_json, one_line
from access.core.namespaces import Channel, ChannelSettings, Namespace, Namespaces
from access.core.placement import View
from access.core.protocol import (
    ClientError,
    HistoryRequest,
    HistoryResult,
    Position,
    PresenceResult,
    PresenceStatsResult,
    PublishRequest,
    ReplyError,
    SubRefreshRequest,
    SubRefreshResult,
    SubscribeFlag,
    SubscribeRequest,
    SubscribeResult,
    Unsubscribed,
)
from access.core.stream import Draft
from access.fanout import Fanout
from access.identity import SubscriptionClaims, ttl_of
from access.mesh import Peers
from access.owner_calls import OwnerCalls
from access.peers import (
    KICK,
    PRESENCE,
    PUBLISH,
    READ,
    ChannelName,
    Happened,
    Kick,
    Page,
    Place,
    Presence,
    Present,
    Publish,
    Read,
)
from access.ports import Member
from base.clock import Clock, Instant
from base.core.wheel import TimerWheel
from base.errors import (
    BadRequest,
    DeadlineExceeded,
    LimitExceeded,
    NotFound,
    NotOwner,
    NotReady,
    Overloaded,
    PeerUnavailable,
    TokenExpired,
    Unauthenticated,
)

__all__ = ["Channels", "Verify"]

Verify = Callable[[str, str, str], SubscriptionClaims]
"""(token, channel, user) -> what the token says. Raises Unauthenticated or TokenExpired."""

TICK_MS = 1_000
EXPIRED_GRACE_S = 25
"""How long after its expiry a subscription may still be renewed."""
STARTS_MAX = 3
"""How often a start is read anew, since the channel's position was lost meanwhile."""
IDEMPOTENCY_KEY_MAX = 128


class Channels:
    """The application channels of one node. `run` must run."""

    def __init__(
        self,
        peers: Peers,
        clock: Clock,
        *,
        namespaces: tuple[Namespace, ...],
        settings: ChannelSettings,
        verify: Verify,
        fanout: Fanout,
        metrics: ChannelMetrics,
    ) -> None:
        """Build it, before the streams between nodes run.

        Args:
            peers: the other access nodes.
            clock: of this node.
            namespaces: what channels there are.
            settings: limits.
            verify: checks subscription tokens.
            fanout: writes to many; somebody else runs it.
            metrics: of this part.
        """
        self._clock = clock
        self._namespaces = Namespaces(namespaces)
        self._settings = settings
        self._verify = verify
        self._metrics = metrics
        self._members: dict[Member, dict[str, Subscription]] = {}
        self._expiring: TimerWheel[Subscription] = TimerWheel(clock.monotonic(), tick_ms=TICK_MS)
        self._owner = ChannelOwner(
            peers,
            clock,
            self._namespaces,
            settings,
            metrics=metrics,
            happened=self._happened,
            moved=self._moved,
        )
        self._calls = OwnerCalls(peers, self._owner)
        self._feeds = ChannelFeeds(peers, self._calls, fanout, metrics=metrics, ended=self._ended)
        peers.on_view(self._adopt)
        metrics.show_sizes(
            channels=lambda: len(self._feeds), owned=lambda: self._owned("owned"), size=lambda: self._owned("bytes")
        )

    async def run(self) -> None:
        """Follow owners, own, and end what expired, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._owner.run())
            tasks.create_task(self._feeds.run())
            while True:
                await asyncio.sleep(TICK_MS / 1000)
                self._owner.tick()
                self._expire()

    def by_server(self, user: str) -> tuple[str, ...]:
        """Return the channels that the server subscribes each client of a user to."""
        name = self._namespaces.personal(user) if self._settings.subscribe_personal else None
        return (name,) if name is not None else ()

    def statistics(self) -> dict[str, dict[str, int]]:
        """Return a snapshot of sizes."""
        return {"here": self._feeds.statistics(), **self._owner.statistics()}

    # ---------------------------------------------------------------- Broker: subscriptions

    async def subscribe(self, member: Member, request: SubscribeRequest) -> SubscribeResult | ReplyError:
        """See `Broker`. Raises NotReady if the channel's owner does not answer, Overloaded if it has no room."""
        claims = SubscriptionClaims()
        if request.token:
            try:
                claims = self._verify(request.token, request.channel, member.user)
            except TokenExpired:
                return ClientError.TOKEN_EXPIRED.wire
            except Unauthenticated:
                return ClientError.PERMISSION_DENIED.wire
        channel = self._namespaces.may_subscribe(request.channel, member.user, has_token=bool(request.token))
        if isinstance(channel, ClientError):
            return channel.wire
        subscriptions = self._members.get(member, {})
        if channel.name in subscriptions:
            return ClientError.ALREADY_SUBSCRIBED.wire
        if len(subscriptions) >= self._settings.per_client_max:
            return ClientError.LIMIT_EXCEEDED.wire
        result = await self._start(member, channel, request, claims)
        if result.was_recovering and not result.recovered and request.flag & SubscribeFlag.REJECT_UNRECOVERED:
            self.unsubscribe(member, channel.name)
            return ClientError.UNRECOVERABLE_POSITION.wire
        return result

    async def subscribe_by_server(self, member: Member, channel: str, position: Position) -> SubscribeResult | None:
        """See `Broker`: to a channel that exists, whatever its namespace allows to clients.

        Raises NotReady if the channel's owner does not answer, Overloaded if too much is on its way there: for the
        moment, so the client rather comes back than misses the channel for as long as it stays. An owner without room
        is another matter: it may have none for long, and what else the client is there for must not wait for that.
        """
        found = self._namespaces.find(channel)
        subscriptions = self._members.get(member, {})
        if isinstance(found, ClientError) or channel in subscriptions:
            return None
        if len(subscriptions) >= self._settings.per_client_max:
            return None
        request = SubscribeRequest(channel, position.recover, position.epoch, position.offset)
        try:
            return await self._start(member, found, request, SubscriptionClaims())
        except Overloaded as error:
            if not is_out_of_room(error):
                raise
            self._metrics.left_out.inc()
            return None

    def subscribed(self, member: Member, channel: str, result: SubscribeResult) -> None:
        """See `Broker`."""
        subscription = self._members.get(member, {}).get(channel)
        if subscription is not None:
            del result  # the subscription knows where it ended, also if the client is not told
            self._feeds.begin(subscription)

    def unsubscribe(self, member: Member, channel: str) -> None:
        """See `Broker`."""
        subscription = self._forget(member, channel)
        if subscription is not None:
            self._feeds.remove(subscription)

    def gone(self, member: Member) -> None:
        """See `Broker`."""
        for subscription in self._members.pop(member, {}).values():
            self._expiring.cancel(subscription)
            self._feeds.remove(subscription)

    async def refresh(self, member: Member, request: SubRefreshRequest) -> SubRefreshResult | ReplyError:
        """See `Broker`."""
        subscription = self._members.get(member, {}).get(request.channel)
        if subscription is None:
            return ClientError.PERMISSION_DENIED.wire
        try:
            claims = self._verify(request.token, request.channel, member.user)
        except TokenExpired:
            return ClientError.TOKEN_EXPIRED.wire
        except Unauthenticated:
            return ClientError.PERMISSION_DENIED.wire
        subscription.expires_at = claims.expires_at
        self._arm(subscription)
        ttl = self._ttl(subscription)
        return SubRefreshResult(expires=ttl > 0, ttl=ttl)

    # ---------------------------------------------------------------- Broker: the other requests

    async def publish(self, member: Member, request: PublishRequest) -> ReplyError | None:
        """See `Broker`. Error 100, which is temporary: the outcome is unknown. Raises Overloaded."""
        subscription = self._begun(member, request.channel)
        data = bytes(request.data)
        channel = self._namespaces.may_publish(
            request.channel, member.user, len(data), is_subscribed=subscription is not None
        )
        if isinstance(channel, ClientError):
            return channel.wire
        if not is_json(data):
            return ClientError.BAD_REQUEST.wire
        chan_info = subscription.chan_info if subscription is not None else b""
        draft = Draft(bytes(one_line(data)), member.user, member.id, member.info, chan_info)
        try:
            await self._calls.ask(channel.name, PUBLISH, Publish(channel.name, draft), is_repeatable=False)
        except (NotReady, NotOwner, PeerUnavailable, DeadlineExceeded):
            return ClientError.INTERNAL.wire
        return None

    async def history(self, member: Member, request: HistoryRequest) -> HistoryResult | ReplyError:
        """See `Broker`."""
        is_subscribed = self._begun(member, request.channel) is not None
        channel = self._namespaces.may_read_history(request.channel, member.user, is_subscribed=is_subscribed)
        if isinstance(channel, ClientError):
            return channel.wire
        since = Place(request.since.epoch, request.since.offset) if request.since is not None else None
        read = Read(channel.name, since, max(-1, request.limit), request.reverse)
        page, _ = await self._calls.ask(channel.name, READ, read)
        if not page.is_known:
            return ClientError.UNRECOVERABLE_POSITION.wire
        return _history(page)

    async def presence(self, member: Member, channel: str) -> PresenceResult | ReplyError:
        """See `Broker`. Raises LimitExceeded if there are too many to list."""
        present = await self._present(member, channel, counts_only=False)
        return _presence(present) if isinstance(present, Present) else present

    async def presence_stats(self, member: Member, channel: str) -> PresenceStatsResult | ReplyError:
        """See `Broker`."""
        present = await self._present(member, channel, counts_only=True)
        return PresenceStatsResult(present.clients, present.users) if isinstance(present, Present) else present

    async def _present(self, member: Member, name: str, *, counts_only: bool) -> Present | ReplyError:
        is_subscribed = self._begun(member, name) is not None
        channel = self._namespaces.may_see_presence(name, member.user, is_subscribed=is_subscribed)
        if isinstance(channel, ClientError):
            return channel.wire
        present, _ = await self._calls.ask(name, PRESENCE, Presence(name, counts_only))
        return present

    # ---------------------------------------------------------------- for the application's backend

    async def backend_publish(self, name: str, data: bytes, *, tags: Mapping[str, str], key: str = "") -> Place:
        """Publish, whatever clients are allowed. `key`: the same one, while its publication is kept, publishes once.

        Raises:
            NotFound, LimitExceeded, BadRequest: no such channel; too long; a key, but no history to find it in.
            Overloaded, NotReady: it was not published.
            DeadlineExceeded, PeerUnavailable: the outcome is unknown; repeat it with the same key.
        """
        namespace = self._existing(name).namespace
        if len(data) > namespace.publish_bytes_max:
            limit = namespace.publish_bytes_max
            raise LimitExceeded(f"data has {len(data)} bytes, the limit is {limit}", what="data", limit=limit)
        if key and (not namespace.history_size or len(key) > IDEMPOTENCY_KEY_MAX):
            raise BadRequest(
                f"an idempotency_key has at most {IDEMPOTENCY_KEY_MAX} characters, and needs a channel with a history"
            )
        draft = Draft(bytes(one_line(data)), tags=dict(tags), key=key)
        place, _ = await self._calls.ask(name, PUBLISH, Publish(name, draft), is_repeatable=bool(key))
        return place

    async def backend_history(
        self, name: str, *, limit: int, since: Place | None, is_reverse: bool
    ) -> HistoryResult | None:
        """Read a page of the past; None if the position's epoch is over. Raises NotFound, NotReady."""
        if not self._existing(name).namespace.history_size:
            raise NotFound(f"the channel {name} keeps no history")
        page, _ = await self._calls.ask(name, READ, Read(name, since, limit, is_reverse))
        return _history(page) if page.is_known else None

    async def backend_presence(self, name: str) -> PresenceResult:
        """Return who is subscribed. Raises NotFound, LimitExceeded, NotReady."""
        return _presence(await self._backend_present(name, counts_only=False))

    async def backend_presence_stats(self, name: str) -> PresenceStatsResult:
        """Return how many are subscribed. Raises NotFound, NotReady."""
        present = await self._backend_present(name, counts_only=True)
        return PresenceStatsResult(present.clients, present.users)

    async def backend_unsubscribe(self, name: str, user: str) -> None:
        """End a user's subscriptions, at all nodes. Raises NotFound, NotReady."""
        self._existing(name)
        await self._calls.ask(name, KICK, Kick(name, user))

    async def _backend_present(self, name: str, *, counts_only: bool) -> Present:
        if not self._existing(name).namespace.presence:
            raise NotFound(f"nobody keeps who is in the channel {name}")
        present, _ = await self._calls.ask(name, PRESENCE, Presence(name, counts_only))
        return present

    def _existing(self, name: str) -> Channel:
        channel = self._namespaces.find(name)
        if isinstance(channel, ClientError):
            raise NotFound(f"there is no channel {name!r}: {channel.wire.message}")
        return channel

    # ---------------------------------------------------------------- inside

    async def _start(
        self, member: Member, channel: Channel, request: SubscribeRequest, claims: SubscriptionClaims
    ) -> SubscribeResult:
        namespace = channel.namespace
        has_history = namespace.history_size > 0
        is_recoverable = has_history and (namespace.force_recovery or request.recoverable)
        is_positioned = is_recoverable or (has_history and (namespace.force_positioned or request.positioned))
        wants_joins = namespace.join_leave and (namespace.force_push_join_leave or request.join_leave)
        subscription = Subscription(member, is_positioned=is_positioned, wants_joins=wants_joins)
        subscription.chan_info, subscription.expires_at = claims.info, claims.expires_at
        self._members.setdefault(member, {})[channel.name] = subscription
        local = self._feeds.add(channel, subscription)
        since = Place(request.epoch, request.offset) if is_recoverable and request.recover else None
        page = None
        try:
            page = await self._read_start(local, subscription, since)
        finally:
            if page is None and subscription.local is not None:
                self.unsubscribe(member, channel.name)
        self._arm(subscription)
        ttl = self._ttl(subscription)
        return SubscribeResult(
            recoverable=is_recoverable,
            positioned=is_positioned,
            epoch=page.place.epoch if is_positioned else "",
            offset=page.place.offset if is_positioned else 0,
            was_recovering=since is not None,
            recovered=since is not None and page.is_known,
            publications=[publication_of(entry) for entry in page.entries],
            expires=ttl > 0,
            ttl=ttl,
        )

    async def _read_start(self, local: Local, subscription: Subscription, since: Place | None) -> Page:
        """Return what the subscription starts with. Raises NotReady, also if it ended meanwhile."""
        name = local.channel.name
        for _ in range(STARTS_MAX):
            place = await self._feeds.joined(local)
            self._feeds.restart(subscription)
            page = Page(place, [])
            if since is not None and since != place:
                page, _ = await self._calls.ask(name, READ, Read(name, since, recovers=True))
            if subscription.local is None:
                raise NotReady("unsubscribed before it was subscribed")
            here = local.feed.place
            assert here is not None
            if page.place.epoch == here.epoch:
                subscription.place = page.place
                return page
            self._feeds.rejoin(local)  # the channel went on in another epoch, and this node does not know yet
        raise NotReady("the channel is changing its owner", retry_after_ms=1_000)

    def _begun(self, member: Member, channel: str) -> Subscription | None:
        subscription = self._members.get(member, {}).get(channel)
        return subscription if subscription is not None and subscription.is_begun() else None

    def _forget(self, member: Member, channel: str) -> Subscription | None:
        subscriptions = self._members.get(member, {})
        subscription = subscriptions.pop(channel, None)
        if subscription is not None:
            self._expiring.cancel(subscription)
            if not subscriptions:
                del self._members[member]
        return subscription

    def _ended(self, subscription: Subscription, channel: str) -> None:
        """The feeds ended a subscription, and told its client."""
        self._forget(subscription.member, channel)

    def _adopt(self, view: View) -> None:
        self._calls.view = view
        self._owner.adopt(view)
        self._feeds.adopt(view)

    def _happened(self, message: Happened, node: str) -> None:
        self._feeds.happened(message, node)

    def _moved(self, message: ChannelName, node: str) -> None:
        self._feeds.moved(message, node)

    def _owned(self, name: str) -> int:
        return self._owner.statistics()["custody"][name]

    # ---------------------------------------------------------------- expiry

    def _ttl(self, subscription: Subscription) -> int:
        """Return the seconds until the subscription has to be renewed, 0 for never."""
        return ttl_of(subscription.expires_at, self._clock.realtime())

    def _arm(self, subscription: Subscription) -> None:
        if subscription.expires_at:
            left_ms = (subscription.expires_at + EXPIRED_GRACE_S) * 1000 - self._clock.realtime()
            self._expiring.set(subscription, Instant(self._clock.monotonic() + max(0, left_ms)))
        else:
            self._expiring.cancel(subscription)

    def _expire(self) -> None:
        for subscription in self._expiring.advance(self._clock.monotonic()):
            self._metrics.expired.inc()
            self._feeds.end(subscription, Unsubscribed.EXPIRED)


def _history(page: Page) -> HistoryResult:
    return HistoryResult([publication_of(entry) for entry in page.entries], page.place.epoch, page.place.offset)


def _presence(present: Present) -> PresenceResult:
    return PresenceResult({member.client: client_info_of(member) for member in present.members})
