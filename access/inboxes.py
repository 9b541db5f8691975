"""Timeline entries to clients: deliveries from the message services, gaps fetched, last pushes audited.

The rules are `core/inbox`; this carries them out. Whatever was lost on the way to this node is in the timeline: a gap
is seen when the next entry comes, a lost last entry by the audit, which compares all positions with the heads of the
timelines, a thousand users a call.
"""

from __future__ import annotations

import asyncio

import msgspec

from access.api import Deliver, Delivered
from access.config import AccessConfig
from access.core.inbox import InboxHub
from access.core.protocol import Close, Position, Publication, SubscribeResult, encode_push
from access.metrics import AccessMetrics
from access.ports import Sink
from base.errors import RoadsteadError
from base.log import logger
from im.api import TimelinePage
from im.client import ImClient

__all__ = ["CHANNEL_PREFIX", "Inboxes"]

CHANNEL_PREFIX = "inbox:"


class Inboxes:
    """The inbox subscriptions of one node."""

    def __init__(self, config: AccessConfig, im: ImClient, metrics: AccessMetrics, sink: Sink, *, node: str) -> None:
        self.hub = InboxHub()
        self._config = config
        self._im = im
        self._metrics = metrics
        self._sink = sink
        self._epoch: str | None = None
        self._fetching: set[str] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._log = logger(node=node)

    async def run(self) -> None:
        """Fetch and audit until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            while True:
                await asyncio.sleep(self._config.audit_interval_ms / 1000)
                try:
                    behind = self.hub.audit(await self._im.heads(self.hub.users()))
                except RoadsteadError as error:
                    self._log.info("audit_failed", error=str(error))
                    continue
                for session in behind:
                    self.fetch(session)

    async def read_start(self, user: str, position: Position) -> SubscribeResult:
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

    def started(self, session: str, offset: int) -> None:
        """The session was given its start up to `offset`; from here on entries are written to it."""
        if self.hub.loaded(session, offset):
            self.fetch(session)

    def deliver(self, deliver: Deliver, _peer: str) -> Delivered:
        """Take entries from the message services (peer method)."""
        self._take_epoch(deliver.epoch)
        absent = []
        for entry in deliver.entries:
            if not self.hub.has_user(entry.user):
                absent.append(entry.user)
                continue
            routing = self.hub.route(entry.user, entry.offset, has_data=bool(entry.data))
            if routing.write:
                # Encoded once, for all of the user's devices here.
                frame = encode_push(CHANNEL_PREFIX + entry.user, Publication(msgspec.Raw(entry.data), entry.offset))
                for session in routing.write:
                    self._sink.write(session, frame)
                self._metrics.writes.inc(len(routing.write))
            for session in routing.fetch:
                self.fetch(session)
        return Delivered(absent)

    def fetch(self, session: str) -> None:
        """Fill a session's gap from the timeline, in the background."""
        if self._tasks is not None and session not in self._fetching:
            self._metrics.fetches.inc()
            self._fetching.add(session)
            self._tasks.create_task(self._fetch(session))

    async def _fetch(self, session: str) -> None:
        try:
            while await self._fetch_page(session):
                pass
        except RoadsteadError as error:
            self._log.info("fetch_failed", session=session, error=str(error))
            self.hub.load_failed(session)
        finally:
            self._fetching.discard(session)

    async def _fetch_page(self, session: str) -> bool:
        """Fetch and write what follows the session's position; return whether it needs more."""
        user, since = self.hub.user(session), self.hub.position(session)
        if user is None or since is None:
            return False
        page = await self._read(user, since, self._config.recovery_entries_max)
        written = 0
        for offset, data in page.entries:
            # The client may have read its start anew meanwhile: what it was given then is not written again.
            if offset > (self.hub.position(session) or 0):
                self._sink.write(session, encode_push(CHANNEL_PREFIX + user, Publication(msgspec.Raw(data), offset)))
                written += 1
        self._metrics.writes.inc(written)
        needs_more = self.hub.loaded(session, page.entries[-1][0] if page.entries else since)
        if needs_more and not page.entries:
            # Told of an entry that the timeline does not show: do not insist, the audit looks again.
            self.hub.load_failed(session)
            return False
        return needs_more

    async def _read(self, user: str, since: int, limit: int) -> TimelinePage:
        page = await self._im.timeline(user, since=since, limit=limit, bytes_max=self._config.recovery_bytes_max)
        self._take_epoch(page.epoch)
        return page

    def _take_epoch(self, epoch: str) -> None:
        if self._epoch not in (None, epoch):
            # The store lost its past or was replaced: every position here is void. Clients come back and are told.
            self._log.warning("epoch_changed", epoch=epoch)
            self._sink.close_all(Close.INSUFFICIENT_STATE)
        self._epoch = epoch
