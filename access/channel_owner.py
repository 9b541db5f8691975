"""A node's part as owner of channels: what it answers to the nodes that have their subscribers, and tells them.

`ChannelKeeper` sees to it that this node owns what it is asked for; here is who follows a channel, and who is in it.
Requests come from other nodes and from this one alike, by `answer`. What can be answered at once is answered without a
task: with one node in the cluster, everything.

Who is in a channel is known to its owner alone, by what the other nodes say. When the owner changes, they say it again
to the new one, which knows of nobody until then: for that moment presence is incomplete.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from access.channel_keeper import ChannelKeeper
from access.channel_metrics import ChannelMetrics
from access.core.custody import Custody
from access.core.namespaces import Channel, ChannelSettings, Namespaces
from access.core.placement import View
from access.core.roster import Roster
from access.core.stream import STREAM_BYTES_MAX, Entry
from access.mesh import Peers
from access.peers import (
    AUDIT,
    HAPPENED,
    JOIN,
    KICK,
    MEMBERS,
    MOVED,
    PART,
    PRESENCE,
    PUBLISH,
    READ,
    Audit,
    Audited,
    ChannelName,
    Done,
    Happened,
    Join,
    Joined,
    Kick,
    MemberInfo,
    Members,
    Page,
    Place,
    Presence,
    Present,
    Publish,
    Read,
)
from base.clock import Clock, Instant
from base.errors import LimitExceeded, NotReady, RoadsteadError
from base.log import logger
from base.peer import Method

__all__ = ["FOLLOWER_MS", "ChannelOwner"]

FOLLOWER_MS = 15_000
"""How long a node that follows may be silent before it counts as gone."""
JOIN_ENTRIES_MAX = 1_000
PRESENT_MAX = 10_000

_DONE = Done()


class ChannelOwner:
    """See the module. `run` must run, and `tick` be called once a second."""

    def __init__(
        self,
        peers: Peers,
        clock: Clock,
        namespaces: Namespaces,
        settings: ChannelSettings,
        *,
        metrics: ChannelMetrics,
        happened: Callable[[Happened, str], Any],
        moved: Callable[[ChannelName, str], Any],
    ) -> None:
        """`happened` and `moved` take what is told to this very node, as other nodes do."""
        self._node = peers.node
        self._peers = peers
        self._clock = clock
        self._namespaces = namespaces
        self._metrics = metrics
        self._happened = happened
        self._moved = moved
        self._roster = Roster()
        self._custody = Custody(
            peers.node,
            peers.life,
            keeps=self._keeps,
            is_followed=lambda channel: bool(self._roster.followers(channel)),
            owned_max=settings.streams_max,
            bytes_max=settings.history_bytes_max,
        )
        self._keeper = ChannelKeeper(
            peers, clock, self._custody, metrics=metrics, committed=self._committed, deposed=self._release
        )
        self._heard: dict[str, Instant] = {}
        self._log = logger(node=peers.node)
        self._handlers: dict[str, Callable[[Any, str], Any]] = {
            PUBLISH.name: self._publish,
            READ.name: self._read,
            JOIN.name: self._join,
            AUDIT.name: self._audit,
            MEMBERS.name: self._members,
            PART.name: self._part,
            PRESENCE.name: self._presence,
            KICK.name: self._kick,
        }
        methods: tuple[Method[Any, Any], ...] = (PUBLISH, READ, JOIN, AUDIT, MEMBERS, PART, PRESENCE, KICK)
        for method in methods:
            peers.serve(method, self._handlers[method.name])

    def answer(self, method: Method[Any, Any], request: Any) -> Any:
        """Answer this node's own request: the reply, or an awaitable of it. Raises as a call to another node does."""
        return self._handlers[method.name](request, self._node)

    def adopt(self, view: View) -> None:
        """Go by a newer view."""
        former = self._custody.view
        self._keeper.adopt(view)
        for node in self._roster.nodes():
            if former.lives.get(node) != view.lives.get(node):
                self._gone(node)
        for channel in self._roster.channels():
            if view.owner(channel) != self._node:
                self._release(channel)

    async def run(self) -> None:
        """Keep what is owned, until cancelled."""
        await self._keeper.run()

    def tick(self) -> None:
        """Forget what is old."""
        now = self._clock.monotonic()
        self._custody.sweep(now, self._clock.realtime())
        for node in self._roster.nodes():
            if node != self._node and now - self._heard.setdefault(node, now) >= FOLLOWER_MS:
                self._gone(node)

    def statistics(self) -> dict[str, dict[str, int]]:
        """Return a snapshot of sizes."""
        return {"custody": self._custody.statistics(), "roster": self._roster.statistics()}

    # ---------------------------------------------------------------- publishing and reading

    def _publish(self, request: Publish, _peer: str) -> Place | Awaitable[Place]:
        channel = self._find(request.channel)
        if not channel.namespace.history_size:
            self._keeper.require_ownership(channel.name)
            self._metrics.published.inc()
            self._committed(channel.name, "", [Entry(0, self._clock.realtime(), request.draft)])
            return Place()
        if self._keeper.is_owner(channel.name):
            return self._keeper.publish(channel.name, request.draft)
        return self._publish_later(request)

    async def _publish_later(self, request: Publish) -> Place:
        await self._keeper.own(request.channel)
        place = self._keeper.publish(request.channel, request.draft)
        return place if isinstance(place, Place) else await place

    def _committed(self, channel: str, epoch: str, entries: Sequence[Entry]) -> None:
        self._tell(channel, Happened(channel, epoch, list(entries)))

    def _read(self, request: Read, _peer: str) -> Page | Awaitable[Page]:
        self._find(request.channel)
        return self._page(request) if self._keeper.is_owner(request.channel) else self._read_later(request)

    async def _read_later(self, request: Read) -> Page:
        await self._keeper.own(request.channel)
        return self._page(request)

    def _page(self, request: Read) -> Page:
        stream = self._keeper.stream(request.channel)
        self._custody.touch(request.channel, self._clock.monotonic())
        place = Place(stream.epoch, stream.offset)
        since = request.since
        if request.recovers:
            assert since is not None
            found = stream.recover(since.epoch, since.offset)
            return Page(place, found or [], is_known=found is not None)
        if since is not None and since.epoch not in ("", stream.epoch):
            return Page(place, [], is_known=False)
        after = since.offset if since is not None else None
        return Page(place, stream.page(after=after, limit=request.limit, is_reverse=request.is_reverse))

    # ---------------------------------------------------------------- following

    def _join(self, request: Join, peer: str) -> Joined | Awaitable[Joined]:
        channel = self._find(request.channel)
        if not channel.namespace.history_size:
            self._keeper.require_ownership(channel.name)
            self._follow(channel.name, peer)
            return Joined(Place(), [], is_known=True)
        return self._joined(request, peer) if self._keeper.is_owner(channel.name) else self._join_later(request, peer)

    async def _join_later(self, request: Join, peer: str) -> Joined:
        await self._keeper.own(request.channel, request.former)
        return self._joined(request, peer)

    def _joined(self, request: Join, peer: str) -> Joined:
        stream = self._keeper.stream(request.channel)
        self._follow(request.channel, peer)
        place = Place(stream.epoch, stream.offset)
        if request.place is None:
            return Joined(place, [], is_known=True)
        found = stream.recover(
            request.place.epoch, request.place.offset, limit=JOIN_ENTRIES_MAX, bytes_max=STREAM_BYTES_MAX
        )
        return Joined(place, found or [], is_known=found is not None)

    def _follow(self, channel: str, peer: str) -> None:
        now = self._clock.monotonic()
        self._custody.touch(channel, now)
        self._roster.follow(channel, peer)
        self._heard[peer] = now

    def _audit(self, request: Audit, peer: str) -> Audited:
        self._heard[peer] = self._clock.monotonic()
        places: list[Place | None] = []
        digests: list[int] = []
        for channel in request.channels:
            digest = self._roster.digest(channel, peer)
            digests.append(digest or 0)
            stream = self._custody.stream(channel)
            if digest is None:
                places.append(None)
            else:
                places.append(Place() if stream is None else Place(stream.epoch, stream.offset))
        return Audited(places, digests)

    def _part(self, request: ChannelName, peer: str) -> Done:
        self._announce(request.channel, left=self._roster.part(request.channel, peer))
        return _DONE

    def _release(self, channel: str) -> None:
        """Another node owns the channel: who follows it joins there."""
        for node in self._roster.forget(channel):
            if node == self._node:
                self._moved(ChannelName(channel), node)
            else:
                self._tell_node(node, MOVED, ChannelName(channel))

    def _gone(self, node: str) -> None:
        self._heard.pop(node, None)
        for channel, left in self._roster.gone(node):
            self._announce(channel, left=left)

    # ---------------------------------------------------------------- members

    def _members(self, request: Members, peer: str) -> Done:
        left = self._roster.leave(request.channel, peer, request.left)
        joined = self._roster.enter(request.channel, peer, request.entered, restates=request.restates)
        if request.is_news:
            self._announce(request.channel, joined=joined, left=left)
        return _DONE

    def _announce(self, channel: str, *, joined: Sequence[MemberInfo] = (), left: Sequence[MemberInfo] = ()) -> None:
        if (joined or left) and self._find(channel).namespace.join_leave:
            self._tell(channel, Happened(channel, "", joined=list(joined), left=list(left)))

    def _presence(self, request: Presence, _peer: str) -> Present:
        self._keeper.require_ownership(request.channel)
        clients, users = self._roster.counts(request.channel)
        if request.counts_only:
            return Present(clients, users)
        if clients > PRESENT_MAX:
            message = f"{clients} clients are subscribed, more than can be listed; ask for presence_stats"
            raise LimitExceeded(message, what="clients", limit=PRESENT_MAX, seen=clients)
        return Present(clients, users, self._roster.members(request.channel))

    def _kick(self, request: Kick, _peer: str) -> Done:
        self._keeper.require_ownership(request.channel)
        self._tell(request.channel, Happened(request.channel, "", kicked=request.user))
        return _DONE

    # ---------------------------------------------------------------- telling

    def _tell(self, channel: str, happened: Happened) -> None:
        """Tell every node that follows. What is lost on the way is noticed there."""
        for node in self._roster.followers(channel):
            if node == self._node:
                self._happened(happened, node)
            else:
                self._tell_node(node, HAPPENED, happened)

    def _tell_node(self, node: str, method: Method[Any, Any], message: object) -> None:
        try:
            self._peers.tell(node, method, message)
        except RoadsteadError as error:
            self._log.info("channel_news_lost", peer=node, error=str(error))

    def _find(self, name: str) -> Channel:
        """Raises NotReady: nodes may be configured anew one after the other."""
        channel = self._namespaces.find(name)
        if not isinstance(channel, Channel):
            raise NotReady("this node is not configured for the channel", channel=name, retry_after_ms=1_000)
        return channel

    def _keeps(self, name: str) -> tuple[int, int]:
        namespace = self._find(name).namespace
        return namespace.history_size, namespace.history_ttl_ms
