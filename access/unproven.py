"""Sessions that ended without a sign that they got everything, told to the message services.

A link that is dead is only noticed when a pong is missing: until then the node writes into the void (*pseudo-online*).
Nothing is lost, since the timeline has it all; but nobody would tell the user, who seemed to be there. So what a
session has *proven* to have is known from its pongs (`core/inbox`), and when it ends by silence or a broken connection
its user and that offset are told, so that whatever comes after it can be announced in another way.

It is a courtesy: of a user the lowest offset counts, many sessions that end together are told in few calls, and what
cannot be told for long, or is too much, is dropped.
"""

from __future__ import annotations

import asyncio

from access.client import Client
from access.core.protocol import Close
from access.metrics import AccessMetrics
from access.ports import ABNORMAL
from base.errors import Retry, RoadsteadError
from base.log import logger
from im.api import UNPROVEN_MAX
from im.client import ImClient

__all__ = ["UnprovenSessions"]

SILENT_ENDS = frozenset({ABNORMAL, Close.NO_PONG.code, Close.SLOW.code})
"""Ends at which the client may not have read what was written last."""
USERS_MAX = 100_000
GATHER_S = 0.05
RETRY_S = 1.0


class UnprovenSessions:
    """What is to be told. `run` tells it."""

    def __init__(self, im: ImClient, metrics: AccessMetrics, *, node: str) -> None:
        self._im = im
        self._metrics = metrics
        self._users: dict[str, int] = {}
        self._is_some = asyncio.Event()
        self._log = logger(node=node)

    def gone(self, client: Client) -> None:
        """A client is gone. Call it while the client is still in its inbox."""
        if client.reader is None or client.connection.code not in SILENT_ENDS:
            return
        offset = client.reader.unproven(has_answered=client.session.has_answered)
        if offset is not None:
            self._metrics.unproven.inc()
            self._add(client.user, offset)
            self._is_some.set()

    async def run(self) -> None:
        """Tell it until cancelled."""
        while True:
            await self._is_some.wait()
            await asyncio.sleep(GATHER_S)  # many end together
            batch = [(user, self._users.pop(user)) for user in list(self._users)[:UNPROVEN_MAX]]
            try:
                untold = await self._im.unproven(batch)
            except RoadsteadError as error:
                self._log.info("unproven_failed", sessions=len(batch), error=str(error))
                untold = [] if error.retry is Retry.NEVER else batch
            if untold:
                for user, offset in untold:
                    self._add(user, offset)
                await asyncio.sleep(RETRY_S)
            if not self._users:
                self._is_some.clear()

    def _add(self, user: str, offset: int) -> None:
        if user in self._users or len(self._users) < USERS_MAX:
            self._users[user] = min(offset, self._users.get(user, offset))
