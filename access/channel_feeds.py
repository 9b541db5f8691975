"""A node's subscribers of channels: what their owners tell, written to each from where it begins.

The rules are `core/feed`; this carries them out. The node follows each channel that has subscribers here at its owner,
joins again when the owner changes or something is missing, and asks every owner every few seconds whether both agree.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec

from access.channel_keeper import is_out_of_room
from access.channel_metrics import ChannelMetrics
from access.core.feed import Feed, News, Start
from access.core.namespaces import Channel
from access.core.outgoing import Outgoing
from access.core.placement import View
from access.core.protocol import ClientInfo, Join, Leave, Publication, Push, Unsubscribed
from access.core.roster import digest_of
from access.core.stream import Entry
from access.fanout import Fanout, Roll
from access.mesh import Peers
from access.owner_calls import OwnerCalls
from access.peers import (
    AUDIT,
    HAPPENED,
    JOIN,
    MEMBERS,
    MOVED,
    PART,
    Audit,
    ChannelName,
    Happened,
    MemberInfo,
    Members,
    Place,
)
from access.peers import Join as JoinRequest
from access.ports import Member
from base.errors import NotReady, RoadsteadError
from base.log import logger

__all__ = ["ChannelFeeds", "Local", "Subscription", "client_info_of", "publication_of"]

AUDIT_MS = 5_000
AUDIT_CHANNELS = 1_000
JOIN_WAIT_MS = 2_000
JOINS_MAX = 256
"""Joins under way at once."""
AGAIN_S = 0.1
MEMBERS_A_MESSAGE = 1_000


class Subscription:
    """One member's subscription to one channel."""

    __slots__ = (
        "chan_info",
        "expires_at",
        "is_positioned",
        "is_told",
        "local",
        "member",
        "place",
        "start",
        "wants_joins",
    )

    def __init__(self, member: Member, *, is_positioned: bool, wants_joins: bool) -> None:
        self.member = member
        self.local: Local | None = None
        self.is_positioned = is_positioned
        """Whether it is told when it missed something."""
        self.wants_joins = wants_joins
        self.chan_info = b""
        self.expires_at = 0
        """In seconds since the Unix epoch; 0: never."""
        self.place = Place()
        """Where its reply ends."""
        self.start: Start | None = Start()
        """Until it stands where its node does."""
        self.is_told = False
        """Whether the owner counts it among the members, or will with the next join."""

    def is_begun(self) -> bool:
        """Return whether the reply was written."""
        return self.start is None or self.start.place is not None

    def info(self) -> MemberInfo:
        """Return the member as others see it here."""
        member = self.member
        return MemberInfo(member.id, member.user, member.info, self.chan_info)


class Local:
    """One channel with subscribers at this node."""

    __slots__ = ("channel", "digest", "feed", "joins", "owner", "roll", "starting", "subs", "waiting")

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.feed = Feed()
        self.owner = ""
        """Where it was joined last."""
        self.subs: dict[Member, Subscription] = {}
        self.starting: dict[Subscription, None] = {}
        self.roll = Roll()
        """Who gets publications."""
        self.joins: Roll | None = None
        """Who gets joins and leaves, if anybody does."""
        self.digest = 0
        """Of the members that the owner was told of."""
        self.waiting: list[asyncio.Future[None]] = []


class ChannelFeeds:
    """See the module. `run` must run."""

    def __init__(
        self,
        peers: Peers,
        calls: OwnerCalls,
        fanout: Fanout,
        *,
        metrics: ChannelMetrics,
        ended: Callable[[Subscription, str], None],
    ) -> None:
        """`ended` is called for each subscription that ends from this side, after its client was told."""
        self._peers = peers
        self._calls = calls
        self._fanout = fanout
        self._metrics = metrics
        self._on_ended = ended
        self._locals: dict[str, Local] = {}
        self._to_join: deque[Local] = deque()
        self._wants_join = asyncio.Event()
        self._joining: set[Local] = set()
        self._log = logger(node=peers.node)
        peers.hear(HAPPENED, self.happened)
        peers.hear(MOVED, self.moved)
        peers.on_connected(self._reconnected)

    def __len__(self) -> int:
        return len(self._locals)

    async def run(self) -> None:
        """Join and audit until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._audit_always())
            while True:
                await self._wants_join.wait()
                while self._to_join and len(self._joining) < JOINS_MAX:
                    local = self._to_join.popleft()
                    if local not in self._joining and not local.feed.is_joined and self._is_current(local):
                        self._joining.add(local)
                        tasks.create_task(self._join(local))
                self._wants_join.clear()

    def adopt(self, view: View) -> None:
        """Go by a newer view: what has another owner is joined there."""
        for local in self._locals.values():
            if local.owner and view.owner(local.channel.name) != local.owner:
                self.rejoin(local)

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes."""
        return {
            "channels": len(self._locals),
            "subscriptions": sum(len(local.subs) for local in self._locals.values()),
            "joining": len(self._joining) + len(self._to_join),
            "pushes_waiting": len(self._fanout),
        }

    # ---------------------------------------------------------------- subscriptions

    def add(self, channel: Channel, subscription: Subscription) -> Local:
        """Begin a subscription: what happens from here on is kept for it."""
        local = self._locals.get(channel.name)
        if local is None:
            local = self._locals[channel.name] = Local(channel)
        assert subscription.member not in local.subs
        subscription.local = local
        local.subs[subscription.member] = subscription
        local.starting[subscription] = None
        return local

    async def joined(self, local: Local) -> Place:
        """Return where the node stands in the channel.

        Raises:
            NotReady: the owner does not answer in time, or too much is on its way there for as long.
            Overloaded: it owns as many channels as it may.
        """
        if not local.feed.is_joined:
            await self._wait_joined(local)
        place = local.feed.place
        assert place is not None
        return place

    def restart(self, subscription: Subscription) -> None:
        """Its start is read from here on: what was kept for it so far is in that."""
        subscription.start = Start()

    def rejoin(self, local: Local) -> None:
        """The owner may have told what did not arrive here."""
        if local.feed.is_joined:
            self._metrics.rejoins.inc()
        local.feed.lost()
        self._want_join(local)

    def begin(self, subscription: Subscription) -> None:
        """The reply was written: let follow what comes after it."""
        local, start = subscription.local, subscription.start
        if local is None or start is None:
            return  # ended meanwhile
        here = local.feed.place
        assert here is not None
        held = start.begun(subscription.place, here)
        if held is None:
            self.end(subscription, Unsubscribed.INSUFFICIENT_STATE)
            return
        self._write_start(subscription, held, {})
        if subscription.wants_joins:
            local.joins = local.joins or Roll()
            local.joins.add(subscription.member.connection)  # and it is told of its own join
        if local.channel.has_members:
            self._tell_members(local, entered=[subscription])

    def end(self, subscription: Subscription, why: Unsubscribed) -> None:
        """End a subscription from this side, and tell its client."""
        local = subscription.local
        if local is None:
            return
        self.remove(subscription)
        connection = subscription.member.connection
        connection.write(Outgoing(local.channel.name, why.wire).frame(connection.form))
        if why is Unsubscribed.INSUFFICIENT_STATE:
            self._metrics.resets.inc()
        self._on_ended(subscription, local.channel.name)

    def remove(self, subscription: Subscription) -> None:
        """Forget a subscription: nothing is written for it any more."""
        local, subscription.local = subscription.local, None
        if local is None:
            return
        self._forget(local, subscription)
        if subscription.is_told and local.channel.has_members:
            self._tell_members(local, left=[subscription])
        self._close_up(local)

    def _forget(self, local: Local, subscription: Subscription) -> None:
        connection = subscription.member.connection
        del local.subs[subscription.member]
        local.starting.pop(subscription, None)
        local.roll.discard(connection)
        if local.joins is not None:
            local.joins.discard(connection)

    def _close_up(self, local: Local) -> None:
        name = local.channel.name
        if not self._is_current(local):
            return
        if not local.subs:
            del self._locals[name]
            if local.owner and local not in self._joining:
                self._calls.push(local.owner, PART, ChannelName(name))
        elif not self._fanout.is_busy(name):
            local.roll.close_up()
            if local.joins is not None:
                local.joins.close_up()

    def kick(self, local: Local, user: str) -> None:
        """End all subscriptions of a user, by order of the application."""
        for subscription in [one for one in local.subs.values() if one.member.user == user]:
            self.end(subscription, Unsubscribed.BY_SERVER)

    # ---------------------------------------------------------------- what owners tell

    def happened(self, message: Happened, peer: str) -> None:
        """Take news of a channel."""
        local = self._locals.get(message.channel)
        if local is None:
            self._calls.push(peer, PART, ChannelName(message.channel))
            return
        if message.entries:
            self._carry_out(local, local.feed.received(message.epoch, message.entries))
        for member in message.joined:
            self._announce(local, Join(client_info_of(member)))
        for member in message.left:
            self._announce(local, Leave(client_info_of(member)))
        if message.kicked:
            self.kick(local, message.kicked)

    def moved(self, message: ChannelName, _peer: str) -> None:
        """Take that the channel has another owner."""
        local = self._locals.get(message.channel)
        if local is not None:
            self.rejoin(local)

    def _carry_out(self, local: Local, news: News) -> None:
        if news.is_reset:
            self._reset(local)
        if news.deliver:
            self._deliver(local, news.deliver)
        if news.must_join:
            self.rejoin(local)

    def _deliver(self, local: Local, entries: Sequence[Entry]) -> None:
        name = local.channel.name
        made: dict[int, Outgoing] = {}
        for entry in entries:
            outgoing = made[entry.offset] = Outgoing(name, publication_of(entry))
            if not self._fanout.send(name, local.roll.connections, outgoing):
                # Nobody can keep up with the channel. Who has a position recovers; the others miss what they miss.
                self._fanout.drop(name)
                self._reset(local)
                return
        for subscription in tuple(local.starting):
            start = subscription.start
            assert start is not None
            if start.place is None:
                start.hold(entries)
                continue
            follows = start.take(entries)
            if follows is None:
                self.end(subscription, Unsubscribed.INSUFFICIENT_STATE)
            else:
                self._write_start(subscription, follows, made)

    def _write_start(self, subscription: Subscription, entries: Sequence[Entry], made: dict[int, Outgoing]) -> None:
        """Write what follows a subscription's start."""
        local, start = subscription.local, subscription.start
        assert local is not None
        assert start is not None
        connection = subscription.member.connection
        for entry in entries:
            outgoing = made.get(entry.offset) or Outgoing(local.channel.name, publication_of(entry))
            connection.write(outgoing.frame(connection.form))
        here = local.feed.place
        assert here is not None
        if start.is_level(here):
            self._level(subscription)

    def _level(self, subscription: Subscription) -> None:
        """It gets what everybody gets, from here on."""
        local = subscription.local
        assert local is not None
        subscription.start = None
        del local.starting[subscription]
        local.roll.add(subscription.member.connection)

    def _announce(self, local: Local, push: Push) -> None:
        if local.joins:
            self._fanout.send(local.channel.name, local.joins.connections, Outgoing(local.channel.name, push))

    def _reset(self, local: Local) -> None:
        """The position is lost: who relies on it is told to start over. Those without one go on."""
        for subscription in tuple(local.starting):
            start = subscription.start
            assert start is not None
            if start.place is None:
                start.reset()
            elif not subscription.is_positioned:
                self._level(subscription)
        lost = [one for one in local.subs.values() if one.is_positioned and one.is_begun()]
        if not lost:
            return
        name = local.channel.name
        for subscription in lost:
            subscription.local = None
            self._forget(local, subscription)
        if local.channel.has_members:
            self._tell_members(local, left=[subscription for subscription in lost if subscription.is_told])
        connections = [subscription.member.connection for subscription in lost]
        outgoing = Outgoing(name, Unsubscribed.INSUFFICIENT_STATE.wire)
        if not self._fanout.send(name, connections, outgoing):
            self._fanout.drop(name)
            self._fanout.send(name, connections, outgoing)
        self._metrics.resets.inc(len(lost))
        for subscription in lost:
            self._on_ended(subscription, local.channel.name)
        self._close_up(local)

    # ---------------------------------------------------------------- joining

    def _is_current(self, local: Local) -> bool:
        return self._locals.get(local.channel.name) is local

    async def _wait_joined(self, local: Local) -> None:
        self._want_join(local)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        local.waiting.append(done)
        try:
            async with asyncio.timeout(JOIN_WAIT_MS / 1000):
                await done
        except TimeoutError:
            raise NotReady("the owner of the channel does not answer", retry_after_ms=1_000) from None

    def _want_join(self, local: Local) -> None:
        if local not in self._joining:
            self._to_join.append(local)
            self._wants_join.set()

    async def _join(self, local: Local) -> None:
        """Join until it worked, or nobody is subscribed any more."""
        name = local.channel.name
        try:
            while self._is_current(local) and not local.feed.is_joined:
                try:
                    request = JoinRequest(name, local.feed.place, local.owner)
                    joined, owner = await self._calls.ask(name, JOIN, request)
                except RoadsteadError as error:
                    self._log.info("channel_join_failed", channel=name, error=str(error))
                    if is_out_of_room(error):
                        _end_wait(local, error)
                    await asyncio.sleep(AGAIN_S)
                    continue
                if not self._is_current(local):
                    if name not in self._locals:
                        self._calls.push(owner, PART, ChannelName(name))
                    return
                local.owner = owner
                if local.channel.has_members:
                    self._restate_members(local)
                self._carry_out(local, local.feed.joined(joined))
        finally:
            self._joining.discard(local)
            self._wants_join.set()
            if local.feed.is_joined:
                _end_wait(local, None)

    def _reconnected(self, node: str) -> None:
        """What the node told over its former stream may be lost."""
        for local in self._locals.values():
            if local.owner == node:
                self.rejoin(local)

    # ---------------------------------------------------------------- members, and the audit

    def _tell_members(
        self, local: Local, *, entered: Iterable[Subscription] = (), left: Iterable[Subscription] = ()
    ) -> None:
        infos = [subscription.info() for subscription in entered]
        gone = [subscription.member.id for subscription in left]
        for subscription in entered:
            subscription.is_told = True
        for client in (*(info.client for info in infos), *gone):
            local.digest ^= digest_of(client)
        if not local.owner or not local.feed.is_joined:
            return  # it is told with the join
        for begin in range(0, max(len(infos), len(gone)), MEMBERS_A_MESSAGE):
            end = begin + MEMBERS_A_MESSAGE
            self._calls.push(local.owner, MEMBERS, Members(local.channel.name, infos[begin:end], gone[begin:end]))

    def _restate_members(self, local: Local) -> None:
        infos = [subscription.info() for subscription in local.subs.values() if subscription.is_told]
        for begin in range(0, max(len(infos), 1), MEMBERS_A_MESSAGE):
            part = infos[begin : begin + MEMBERS_A_MESSAGE]
            message = Members(local.channel.name, part, [], restates=begin == 0, is_news=False)
            self._calls.push(local.owner, MEMBERS, message)

    async def _audit_always(self) -> None:
        while True:
            await asyncio.sleep(AUDIT_MS / 1000)
            by_owner: dict[str, list[Local]] = {}
            for local in self._locals.values():
                if local.feed.is_joined and local.owner != self._peers.node:
                    by_owner.setdefault(local.owner, []).append(local)
            for owner, followed in by_owner.items():
                for begin in range(0, len(followed), AUDIT_CHANNELS):
                    await self._audit(owner, followed[begin : begin + AUDIT_CHANNELS])

    async def _audit(self, owner: str, followed: list[Local]) -> None:
        """Compare with the owner. What it told before its answer has arrived before it."""
        digests = [local.digest for local in followed]
        request = Audit([local.channel.name for local in followed])
        try:
            reply = await self._peers.call(owner, AUDIT, request, deadline_ms=AUDIT_MS)
        except RoadsteadError as error:
            self._log.info("channel_audit_failed", peer=owner, error=str(error))
            return
        for local, digest, place, told in zip(followed, digests, reply.places, reply.digests, strict=True):
            if not self._is_current(local) or local.owner != owner or not local.feed.is_joined:
                continue
            here = local.feed.place
            assert here is not None
            if place is None or place.epoch != here.epoch or place.offset > here.offset:
                self.rejoin(local)
            elif told != digest and local.channel.has_members:
                self._restate_members(local)


def _end_wait(local: Local, refusal: RoadsteadError | None) -> None:
    """Tell who waits for the join that it is done, or refused."""
    for done in local.waiting:
        if done.done():
            continue
        if refusal is None:
            done.set_result(None)
        else:
            done.set_exception(refusal)
    local.waiting.clear()


def publication_of(entry: Entry) -> Publication:
    """Return the publication as clients get it."""
    draft = entry.draft
    info = None
    if draft.client:
        info = client_info_of(MemberInfo(draft.client, draft.user, draft.conn_info, draft.chan_info))
    return Publication(msgspec.Raw(draft.data), entry.offset, info, draft.tags, entry.time)


def client_info_of(member: MemberInfo) -> ClientInfo:
    """Return a member as clients see it."""
    return ClientInfo(
        member.user,
        member.client,
        msgspec.Raw(member.conn_info) if member.conn_info else msgspec.UNSET,
        msgspec.Raw(member.chan_info) if member.chan_info else msgspec.UNSET,
    )
