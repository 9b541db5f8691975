"""Timeline entries to clients: deliveries from the message services, gaps fetched, last pushes audited.

The rules are `core/inbox`; this carries them out. Whatever was lost on the way to this node is in the timeline: a gap
is seen when the next entry comes, a lost last entry by the audit, which compares all positions with the heads of the
timelines, a thousand users a call. What has no entry in a timeline is not known here: by the user's sync version, which
comes with the heads and is passed on when it changes, the client sees whether it was told everything.

Every client is subscribed to its user's inbox by the server; it may take the subscription over with one of its own,
which starts at a position that it kept. There is one place in the hub for both.
"""

from __future__ import annotations

import asyncio

import msgspec

from access.api import Deliver, Delivered
from access.client import Client
from access.config import AccessConfig
from access.core.inbox import InboxHub, Reader
from access.core.outgoing import ENCODINGS, Outgoing, wrap
from access.core.protocol import (
    ClientError,
    Close,
    HistoryRequest,
    HistoryResult,
    Position,
    Publication,
    ReplyError,
    SubscribeFlag,
    SubscribeRequest,
    SubscribeResult,
)
from access.metrics import AccessMetrics
from access.ports import Member
from access.refusing import RefusingBroker
from access.rounds import Rounds
from access.websocket import write_soon
from base.errors import RoadsteadError
from base.log import logger
from im.api import TimelinePage
from im.client import ImClient

__all__ = ["CHANNEL_PREFIX", "Inboxes"]

CHANNEL_PREFIX = "inbox:"


class Inboxes(RefusingBroker):
    """The inbox subscriptions of one node, a `Broker`."""

    def __init__(self, config: AccessConfig, im: ImClient, metrics: AccessMetrics, *, node: str) -> None:
        self.hub: InboxHub[Client] = InboxHub()
        self._config = config
        self._im = im
        self._rounds = Rounds(config.audit_interval_ms)
        im.on_connected(self._rounds.come_soon)
        self._metrics = metrics
        self._epochs: dict[int, str] = {}
        """Of the timelines, by shard of the message services."""
        self._fetching: set[Reader[Client]] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._log = logger(node=node)

    async def run(self) -> None:
        """Fetch and audit until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            while True:
                await self._rounds.next()
                try:
                    ends = await self._im.heads(self.hub.users())
                except RoadsteadError as error:
                    self._log.info("audit_failed", error=str(error))
                    continue
                for reader in self.hub.audit(ends.offsets):
                    self._fetch_later(reader)
                for user, version in ends.versions.items():
                    clients = self.hub.tell(user, version)
                    if clients:  # nearly nobody, in most rounds
                        hint = b'{"kind":"sync","sync_version":%d}' % version
                        self._metrics.writes.inc(self._write(clients, user, 0, hint))

    def attach(self, client: Client) -> None:
        """From here on entries for the client are noticed, to be fetched if its start does not have them."""
        client.reader = self.hub.attach(client, client.user)

    def detach(self, client: Client) -> None:
        """Undo `attach`; no error if that was not called."""
        reader, client.reader = client.reader, None
        if reader is not None:
            self.hub.detach(reader)

    # ---------------------------------------------------------------- Broker

    async def subscribe(self, member: Member, request: SubscribeRequest) -> SubscribeResult | ReplyError:
        """Hand the inbox over to the client's own subscription, with a position that it kept."""
        if request.channel != CHANNEL_PREFIX + member.user:
            return ClientError.PERMISSION_DENIED.wire
        assert isinstance(member, Client)
        reader = member.reader
        assert reader is not None, "whoever may subscribe is attached"
        self.hub.restart(reader)
        start = None
        try:
            result = await self._read_start(member.user, Position(request.recover, request.epoch, request.offset))
            if result.was_recovering and not result.recovered and request.flag & SubscribeFlag.REJECT_UNRECOVERED:
                return ClientError.UNRECOVERABLE_POSITION.wire
            start = result
        finally:
            if start is None and self.hub.restarted(reader, None):
                self._fetch_later(reader)
        return start

    async def subscribe_by_server(self, member: Member, channel: str, position: Position) -> SubscribeResult | None:
        """Read what the inbox starts with. `attach` has to come first. Raises what the message services raise."""
        if channel != CHANNEL_PREFIX + member.user:
            return None
        return await self._read_start(member.user, position)

    def subscribed(self, member: Member, channel: str, result: SubscribeResult) -> None:
        """The client was given its start; from here on entries are written to it."""
        del channel
        assert isinstance(member, Client)
        reader = member.reader
        if reader is None:
            return
        if result.recovered or not reader.position:
            reader.stands(result.offset - len(result.publications))
        # What the server subscribes is begun before the client can subscribe anything itself.
        given = self.hub.restarted if reader.starts else self.hub.loaded
        if given(reader, result.offset):
            self._fetch_later(reader)

    def unsubscribe(self, member: Member, channel: str) -> None:
        """See `Broker`. The inbox stays subscribed by the server; the SDK just stops listening to it by itself."""

    def gone(self, member: Member) -> None:
        """See `Broker`."""
        assert isinstance(member, Client)
        self.detach(member)

    async def history(self, member: Member, request: HistoryRequest) -> HistoryResult | ReplyError:
        """Return how far the timeline goes; what is in it is read in pages with `im.sync`."""
        if request.channel != CHANNEL_PREFIX + member.user:
            return ClientError.PERMISSION_DENIED.wire
        if request.limit != 0:
            return ClientError.NOT_AVAILABLE.wire
        page = await self._read(member.user, 0, 0)
        return HistoryResult(epoch=page.epoch, offset=page.head)

    async def _read_start(self, user: str, position: Position) -> SubscribeResult:
        """Read what a subscription starts with: everything after the position, or just where the timeline is.

        Never a part: who is too far behind, or comes with another epoch, is told `recovered = false` and the present
        position, and pages through `im.sync`. Raises what the message services raise.
        """
        limit = self._config.recovery_entries_max if position.recover else 0
        page = await self._read(user, position.offset if position.recover else 0, limit)
        is_known = position.epoch == page.epoch or (not position.epoch and position.offset == 0)
        reached = page.entries[-1][0] if page.entries else position.offset
        is_recovered = position.recover and is_known and reached == page.head
        publications = [Publication(msgspec.Raw(data), offset) for offset, data in page.entries] if is_recovered else []
        return SubscribeResult(
            recoverable=True,
            positioned=True,
            epoch=page.epoch,
            offset=page.head,
            was_recovering=position.recover,
            recovered=is_recovered,
            publications=publications,
        )

    # ---------------------------------------------------------------- entries

    def deliver(self, deliver: Deliver, _peer: str) -> Delivered:
        """Take entries from the message services (peer method)."""
        # What has a place in a timeline is of one shard; what is of the moment goes to users of any.
        placed = next((entry.user for entry in deliver.entries if entry.offset), None)
        if placed is not None:
            self._take_epoch(placed, deliver.epoch)
        hub = self.hub
        absent = []
        written = 0
        for entry in deliver.entries:
            user, offset, data = entry.user, entry.offset, entry.data
            if not hub.has_user(user):
                absent.append(user)
                continue
            if not offset:
                written += self._write(hub.ready(user), user, offset, data)
                continue
            write, fetch = hub.route(user, offset, has_data=bool(data))
            if write:
                written += self._write(write, user, offset, data)
            for reader in fetch:
                self._fetch_later(reader)
        self._metrics.writes.inc(written)
        return Delivered(absent)

    def _write(self, clients: list[Client], user: str, offset: int, data: bytes) -> int:
        """Write an entry to each client; return how many there are."""
        publication = Publication(msgspec.Raw(data), offset)
        if len(clients) == 1:  # as nearly always
            connection = clients[0].connection
            form = connection.form
            write_soon(connection, wrap(form, ENCODINGS[form].encode_push(CHANNEL_PREFIX + user, publication)))
            return 1
        # Encoded once, for all of the user's devices here.
        outgoing = Outgoing(CHANNEL_PREFIX + user, publication)
        for client in clients:
            write_soon(client.connection, outgoing.frame(client.connection.form))
        return len(clients)

    def _fetch_later(self, reader: Reader[Client]) -> None:
        """Fill a client's gap from the timeline, in the background."""
        if self._tasks is not None and reader not in self._fetching:
            self._metrics.fetches.inc()
            self._fetching.add(reader)
            self._tasks.create_task(self._fetch(reader))

    async def _fetch(self, reader: Reader[Client]) -> None:
        try:
            while await self._fetch_page(reader):
                pass
        except RoadsteadError as error:
            self._log.info("fetch_failed", client=reader.client.id, error=str(error))
            self.hub.load_failed(reader)
        finally:
            self._fetching.discard(reader)

    async def _fetch_page(self, reader: Reader[Client]) -> bool:
        """Fetch and write what follows the reader's position; return whether it needs more."""
        if not self.hub.has(reader):
            return False
        since = reader.position
        page = await self._read(reader.user, since, self._config.recovery_entries_max)
        if reader.starts:
            # They would come between the client's new start and its reply; after that it fetches again.
            self.hub.load_failed(reader)
            return False
        for offset, data in page.entries:
            # The client may have read its start anew meanwhile: what it was given then is not written again.
            if offset > reader.position:
                self._metrics.writes.inc(self._write([reader.client], reader.user, offset, data))
        if not page.entries and since < page.head:
            # What follows its position was trimmed: it comes back and is told that it has to start over.
            self.hub.load_failed(reader)
            reader.client.connection.close(Close.INSUFFICIENT_STATE)
            return False
        needs_more = self.hub.loaded(reader, page.entries[-1][0] if page.entries else since)
        if needs_more and not page.entries:
            # Told of an entry that the timeline does not show: do not insist, the audit looks again.
            self.hub.load_failed(reader)
            return False
        return needs_more

    async def _read(self, user: str, since: int, limit: int) -> TimelinePage:
        page = await self._im.timeline(user, since=since, limit=limit, bytes_max=self._config.recovery_bytes_max)
        self._take_epoch(user, page.epoch)
        return page

    def _take_epoch(self, user: str, epoch: str) -> None:
        shard = self._im.shard_of(user)
        if self._epochs.setdefault(shard, epoch) == epoch:
            return
        # The store lost its past or was replaced: every position in it is void. Clients come back and are told.
        self._epochs[shard] = epoch
        self._log.warning("epoch_changed", shard=shard, epoch=epoch)
        for client in self.hub.clients():
            if self._im.shard_of(client.user) == shard:
                client.connection.close(Close.INSUFFICIENT_STATE)
