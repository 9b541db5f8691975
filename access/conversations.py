"""Conversations to clients: the channel `conv:<cid>`, whose publications are the conversation's messages.

For large groups, where a message is stored once and read by all, rather than once in the timeline of each. The offset
of a publication is its number in the conversation, so that a gap is a loss and is found. This node has the messages
pushed that its clients follow (`im.follow`); what did not arrive is read from the conversation when the next one comes,
or when its head is compared, every `audit_interval_ms`.

One feed a conversation (`core/feed`) follows the log for all clients of this node; who subscribes catches up with it.
Whoever cannot be told everything in order is told to start over (2500), which the SDKs do by themselves.

A member sees a stretch of the conversation: it may begin behind the position that it comes with, and ends when it
leaves. The entry by which somebody leaves is the last one that is written to it (2000 follows, and no SDK comes back).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

import msgspec

from access.api import ConversationsDelivered, DeliverConversations
from access.config import AccessConfig
from access.core.feed import Feed, News, Start
from access.core.outgoing import Form, Outgoing
from access.core.protocol import (
    ClientError,
    HistoryRequest,
    HistoryResult,
    Publication,
    ReplyError,
    SubscribeFlag,
    SubscribeRequest,
    SubscribeResult,
    Unsubscribed,
)
from access.core.stream import Draft, Entry
from access.fanout import Fanout, Roll
from access.metrics import AccessMetrics
from access.peers import Joined, Place
from access.ports import Member
from access.refusing import RefusingBroker
from access.rounds import Rounds
from base.clock import Timestamp
from base.errors import LimitExceeded, NotMember, NotReady, Overloaded, PermissionDenied, RoadsteadError
from base.log import logger
from im.api import ConversationReply
from im.client import ImClient

__all__ = ["CHANNEL_PREFIX", "Conversations"]

CHANNEL_PREFIX = "conv:"
READS_MAX = 256
"""Readings of the logs of one shard at once; when a whole group subscribes, the others wait for their turn."""
TURN_S = 4.0
"""How long: SDKs give a command up after 5 s."""
BACK_MS = 1_000
"""When to come back who got none."""
HISTORY_MAX = 1_000


class _Room:
    """One conversation, as this node follows it."""

    __slots__ = ("feed", "is_fetching", "members", "roll", "starts")

    def __init__(self) -> None:
        self.feed = Feed()
        self.is_fetching = False
        self.members: dict[Member, None] = {}
        """Who stands where the feed does."""
        self.roll = Roll()
        """Their connections."""
        self.starts: dict[Member, Start] = {}
        """Who is on the way there."""

    def is_empty(self) -> bool:
        """Return whether nobody is interested any more."""
        return not self.members and not self.starts

    def begun(self) -> list[Member]:
        """Return who was told where it stands: the members, and those of the others whose reply was written."""
        return [*self.members, *(member for member, start in self.starts.items() if start.place is not None)]

    def reader(self) -> Member:
        """Return somebody on whose behalf to read: one who was let in, if there is one."""
        return next(iter(self.members or self.begun() or self.starts))


class Conversations(RefusingBroker):
    """The conversation subscriptions of one node, a `Broker`."""

    def __init__(
        self, config: AccessConfig, im: ImClient, metrics: AccessMetrics, fanout: Fanout, *, node: str
    ) -> None:
        self._config = config
        self._im = im
        self._rounds = Rounds(config.audit_interval_ms)
        im.on_connected(self._rounds.come_soon)
        self._metrics = metrics
        self._fanout = fanout
        self._rooms: dict[str, _Room] = {}
        self._of: dict[Member, set[str]] = {}
        self._turns: defaultdict[int, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(READS_MAX))
        """For readings, by shard: those of a process that hangs last long, and must hold up no other one's."""
        self._tasks: asyncio.TaskGroup | None = None
        self._log = logger(node=node)

    async def run(self) -> None:
        """Read what is missing, and look for it, until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            while True:
                await self._rounds.next()
                try:
                    await self._audit()
                except RoadsteadError as error:
                    self._log.info("audit_failed", error=str(error))

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes."""
        return {"conversations": len(self._rooms), "subscriptions": sum(map(len, self._of.values()))}

    # ---------------------------------------------------------------- Broker

    async def subscribe(self, member: Member, request: SubscribeRequest) -> SubscribeResult | ReplyError:
        """Begin a subscription, from a position if that is asked for. Raises what the message services raise."""
        cid = request.channel.removeprefix(CHANNEL_PREFIX)
        if not (cid.isascii() and cid.isdecimal()):
            return ClientError.UNKNOWN_CHANNEL.wire
        mine = self._of.get(member, set())
        if cid in mine:
            return ClientError.ALREADY_SUBSCRIBED.wire
        if len(mine) >= self._config.conversations_max:
            limit = self._config.conversations_max
            raise LimitExceeded("too many conversations on one connection", what="conversations", limit=limit)
        room = self._rooms.get(cid)
        if room is None:
            self._im.follow([cid])
            room = self._rooms[cid] = _Room()
        self._of.setdefault(member, set()).add(cid)
        start = room.starts[member] = Start()
        result: SubscribeResult | ReplyError | None = None
        try:
            result = await self._read_start(cid, member.user, request)
        finally:
            is_here = room.starts.get(member) is start
            if is_here and not isinstance(result, SubscribeResult):
                self.unsubscribe(member, request.channel)
        if not is_here:
            raise NotReady("unsubscribed before it was subscribed")
        if isinstance(result, SubscribeResult):
            self._compare(cid, room, Place(result.epoch, result.offset))
        return result

    def subscribed(self, member: Member, channel: str, result: SubscribeResult) -> None:
        """See `Broker`."""
        cid = channel.removeprefix(CHANNEL_PREFIX)
        room = self._rooms.get(cid)
        start = room.starts.get(member) if room is not None else None
        if room is None or start is None:
            return
        place = room.feed.place
        assert place is not None, "whoever was told a start was read one"
        self._advance(cid, room, member, start.begun(Place(result.epoch, result.offset), place), place)

    def unsubscribe(self, member: Member, channel: str) -> None:
        """See `Broker`."""
        cid = channel.removeprefix(CHANNEL_PREFIX)
        mine = self._of.get(member)
        if mine is None or cid not in mine:
            return
        mine.discard(cid)
        if not mine:
            del self._of[member]
        room = self._rooms[cid]
        room.starts.pop(member, None)
        room.members.pop(member, None)
        room.roll.discard(member.connection)
        if room.is_empty():
            del self._rooms[cid]
            self._im.unfollow([cid])
        elif not self._fanout.is_busy(channel):
            room.roll.close_up()

    def gone(self, member: Member) -> None:
        """See `Broker`."""
        for cid in tuple(self._of.get(member, ())):
            self.unsubscribe(member, CHANNEL_PREFIX + cid)

    def is_following(self, member: Member, channel: str) -> bool:
        """Return whether the member has a subscription, or one that begins."""
        return channel.removeprefix(CHANNEL_PREFIX) in self._of.get(member, ())

    async def history(self, member: Member, request: HistoryRequest) -> HistoryResult | ReplyError:
        """Read a page after a position. Raises what the message services raise."""
        if request.reverse:
            return ClientError.NOT_AVAILABLE.wire
        limit = HISTORY_MAX if request.limit < 0 else min(request.limit, HISTORY_MAX)
        since = request.since.offset if request.since is not None else 0
        page = await self._page(request.channel.removeprefix(CHANNEL_PREFIX), member.user, since, limit)
        if request.since is not None and request.since.epoch not in {"", page.epoch}:
            return ClientError.UNRECOVERABLE_POSITION.wire
        return HistoryResult(_publications(page), page.epoch, page.head)

    # ---------------------------------------------------------------- messages

    def deliver(self, delivered: DeliverConversations, _peer: str) -> ConversationsDelivered:
        """Take messages from the message services (peer method)."""
        for told in delivered.entries:
            room = self._rooms.get(told.cid)
            if room is not None:
                entry = _entry(told.seq, told.data, told.removed)
                self._apply(told.cid, room, room.feed.received(delivered.epoch, [entry]))
        return ConversationsDelivered()

    def _put_out(self, cid: str, room: _Room, leaving: Collection[Member]) -> None:
        """End subscriptions for good, after what was written until now."""
        channel, end = CHANNEL_PREFIX + cid, Outgoing(CHANNEL_PREFIX + cid, Unsubscribed.BY_SERVER.wire)
        members = [_Leaving(self, channel, member) for member in leaving if member in room.members]
        for member in leaving:
            start = room.starts.get(member)
            if start is not None:
                start.reset()  # its reply is under way: after it, it is told to start over, and may not
        if members and not self._fanout.send(channel, members, end):
            self._end(cid, [one.member for one in members], Unsubscribed.BY_SERVER)

    def _compare(self, cid: str, room: _Room, read: Place) -> None:
        """Take what somebody's start shows of the conversation."""
        place = room.feed.place
        if place is None:
            # The first reading tells where the feed begins; what was pushed since then was kept.
            self._apply(cid, room, room.feed.joined(Joined(read, [], is_known=True)))
        elif place.epoch != read.epoch or not room.feed.is_joined:
            self._rejoin(cid, room)

    def _rejoin(self, cid: str, room: _Room) -> None:
        room.feed.lost()
        self._apply(cid, room, News(must_join=True))

    def _apply(self, cid: str, room: _Room, news: News) -> None:
        if news.is_reset:
            for start in room.starts.values():
                start.reset()  # those who were not told their start yet are told to start over after it
            self._end(cid, room.begun(), Unsubscribed.INSUFFICIENT_STATE)
        if news.deliver:
            self._deliver(cid, room, news.deliver)
        if news.must_join and not room.is_fetching and self._tasks is not None and not room.is_empty():
            room.is_fetching = True
            self._metrics.fetches.inc()
            self._tasks.create_task(self._fetch(cid, room))

    def _deliver(self, cid: str, room: _Room, entries: Sequence[Entry]) -> None:
        """Write what comes next, up to where the feed stands now. Who leaves by an entry gets none after it."""
        written = 0
        for end, entry in enumerate(entries, 1):
            if isinstance(entry, _Parting):
                leaving = _leaving(room, entry)
                self._write(cid, room, entries[written:end])
                self._put_out(cid, room, leaving)
                written = end
        if written < len(entries):
            self._write(cid, room, entries[written:])

    def _write(self, cid: str, room: _Room, entries: Sequence[Entry]) -> None:
        channel = CHANNEL_PREFIX + cid
        outgoings = [_outgoing(channel, entry) for entry in entries]
        for outgoing in outgoings if room.members else ():
            if not self._fanout.send(channel, room.roll.connections, outgoing):
                # More wait than may: nobody keeps up, and those who miss it would not know before the next one.
                self._fanout.drop(channel)
                self._end(cid, tuple(room.members), Unsubscribed.INSUFFICIENT_STATE)
                break
            self._metrics.writes.inc(len(room.roll))
        assert room.feed.place is not None
        here = Place(room.feed.place.epoch, entries[-1].offset)
        for member, start in tuple(room.starts.items()):
            if start.place is None:
                start.hold(entries)
            else:
                self._advance(cid, room, member, start.take(entries), here)

    def _advance(self, cid: str, room: _Room, member: Member, entries: Sequence[Entry] | None, here: Place) -> None:
        """Write to a subscriber on its way to where the members stand; None: it has to start over."""
        start = room.starts[member]
        assert start.place is not None
        # Behind the members with nothing to follow: its start was read before that of another, and came after it.
        if entries is None or start.place.offset < here.offset:
            self._end(cid, [member], Unsubscribed.INSUFFICIENT_STATE)
            return
        channel, connection = CHANNEL_PREFIX + cid, member.connection
        for entry in entries:
            connection.write(_outgoing(channel, entry).frame(connection.form))
        self._metrics.writes.inc(len(entries))
        if start.is_level(here):
            del room.starts[member]
            room.members[member] = None
            room.roll.add(connection)

    def _end(self, cid: str, members: Iterable[Member], why: Unsubscribed) -> None:
        """End subscriptions from this side. Told at once: a client could not subscribe again before it hears of it."""
        channel = CHANNEL_PREFIX + cid
        outgoing = Outgoing(channel, why.wire)
        for member in members:
            self.unsubscribe(member, channel)
            member.connection.write(outgoing.frame(member.connection.form))

    # ---------------------------------------------------------------- reading

    async def _read_start(self, cid: str, user: str, request: SubscribeRequest) -> SubscribeResult | ReplyError:
        limit = self._config.recovery_entries_max if request.recover else 0
        page = await self._page(cid, user, request.offset if request.recover else 0, limit)
        if page.last_seq:
            raise PermissionDenied("you are no member of this conversation any more")
        is_known = request.epoch == page.epoch or (not request.epoch and request.offset == 0)
        is_recovered = request.recover and is_known and _reached(page, request.offset)
        if request.recover and not is_recovered and request.flag & SubscribeFlag.REJECT_UNRECOVERED:
            return ClientError.UNRECOVERABLE_POSITION.wire
        return SubscribeResult(
            recoverable=True,
            positioned=True,
            epoch=page.epoch,
            offset=page.head,
            was_recovering=request.recover,
            recovered=is_recovered,
            publications=_publications(page) if is_recovered else [],
        )

    async def _fetch(self, cid: str, room: _Room) -> None:
        """Read what the feed is missing."""
        try:
            while not room.is_empty() and not room.feed.is_joined:
                place = room.feed.place
                assert place is not None
                reader = room.reader()
                try:
                    page = await self._page(cid, reader.user, place.offset, self._config.recovery_entries_max)
                except PermissionDenied:
                    self._deny(cid, room, reader, Unsubscribed.BY_SERVER)
                    continue
                if page.last_seq:
                    self._deny(cid, room, reader, Unsubscribed.BY_SERVER)
                    continue
                if page.entries and page.entries[0][0] > place.offset + 1:
                    # It came back after the feed's place, and others may see what it may not.
                    self._deny(cid, room, reader, Unsubscribed.INSUFFICIENT_STATE)
                    continue
                removed = dict(page.removed)
                entries = [_entry(seq, data, removed.get(seq, ())) for seq, data in page.entries]
                is_whole = _reached(page, place.offset)
                self._apply(cid, room, room.feed.joined(Joined(Place(page.epoch, page.head), entries, is_whole)))
        except RoadsteadError as error:
            self._log.info("fetch_failed", conversation=cid, error=str(error))  # the audit tries again
        finally:
            room.is_fetching = False

    def _deny(self, cid: str, room: _Room, reader: Member, why: Unsubscribed) -> None:
        """Nothing can be read for somebody, who is no member any more, or has become one anew.

        Who left the room meanwhile may have come back by another one, of which nothing was read here.
        """
        if reader in room.begun():
            self._end(cid, [reader], why)
        elif reader in room.starts:
            self.unsubscribe(reader, CHANNEL_PREFIX + cid)  # what it asked for fails, which tells it

    async def _audit(self) -> None:
        """Compare where the feeds stand with the heads. A head that is lower than before is another life's."""
        before = {cid: room.feed.place for cid, room in self._rooms.items()}
        heads = await self._im.conversation_heads(tuple(before))
        for cid, head in heads.items():
            room = self._rooms.get(cid)
            asked, place = before[cid], room.feed.place if room is not None else None
            if room is None or asked is None or place is None:
                continue  # its first reading is under way
            if head > place.offset or head < asked.offset or not room.feed.is_joined:
                self._rejoin(cid, room)

    async def _page(self, cid: str, user: str, since: int, limit: int) -> ConversationReply:
        bytes_max = self._config.recovery_bytes_max
        turns = self._turns[self._im.shard_of_conversation(cid)]
        try:
            async with asyncio.timeout(TURN_S):
                await turns.acquire()
        except TimeoutError:
            what = "conversation_reads"
            raise Overloaded("too many conversations are being read", what=what, retry_after_ms=BACK_MS) from None
        try:
            return await self._im.conversation(cid, user=user, since=since, limit=limit, bytes_max=bytes_max)
        except NotMember as error:
            raise PermissionDenied(error.message) from error
        finally:
            turns.release()


class _Parting(Entry, frozen=True):
    """An entry by which users leave."""

    users: frozenset[str]


class _Leaving:
    """A member's connection, as a receiver of the last push that it gets of a conversation."""

    __slots__ = ("_broker", "_channel", "form", "member")

    def __init__(self, broker: Conversations, channel: str, member: Member) -> None:
        self.form: Form = member.connection.form
        self._broker = broker
        self._channel = channel
        self.member = member

    def write(self, frame: bytes, replaces: int | None = None) -> None:
        """See `Receiver`."""
        if self._broker.is_following(self.member, self._channel):
            self._broker.unsubscribe(self.member, self._channel)
            self.member.connection.write(frame, replaces)


def _entry(seq: int, data: bytes, removed: Collection[str]) -> Entry:
    draft = Draft(data)
    return _Parting(seq, Timestamp(0), draft, frozenset(removed)) if removed else Entry(seq, Timestamp(0), draft)


def _leaving(room: _Room, parting: _Parting) -> list[Member]:
    """Return who is here and leaves by an entry. Who stands behind it already came back since, by a later one."""
    leaving = [member for member in room.members if member.user in parting.users]
    for member, start in room.starts.items():
        if member.user in parting.users and (start.place is None or start.place.offset < parting.offset):
            leaving.append(member)
    return leaving


def _reached(page: ConversationReply, since: int) -> bool:
    return (page.entries[-1][0] if page.entries else since) == page.head


def _publications(page: ConversationReply) -> list[Publication]:
    return [Publication(msgspec.Raw(data), seq) for seq, data in page.entries]


def _outgoing(channel: str, entry: Entry) -> Outgoing:
    return Outgoing(channel, Publication(msgspec.Raw(entry.draft.data), entry.offset))
