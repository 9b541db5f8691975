"""Keeps timelines from growing for ever: of each the newest entries are kept, and whoever is behind them starts over.

A timeline is looked at when it has grown by another tenth of what is kept, so that nothing is remembered for it here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from base.errors import RoadsteadError
from base.log import logger
from im.core.commands import Delivery, Trim
from im.writer import GroupCommit

__all__ = ["Trimming"]

WAITING_MAX = 10_000
"""Timelines that may wait to be trimmed; one that is left out is trimmed a tenth later."""
RETRY_MS = 1_000


class Trimming:
    """The trimming of one message service."""

    def __init__(self, writer: GroupCommit, *, keep: int) -> None:
        """`keep`: entries of a timeline; 0 for all."""
        self._writer = writer
        self._keep = keep
        self._step = max(1, keep // 10)
        self._due: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._log = logger()

    def committed(self, deliveries: Iterable[Delivery]) -> None:
        """Note which timelines have grown enough."""
        if not self._keep:
            return
        for delivery in deliveries:
            for user, offset in delivery.positions:
                if offset > self._keep and offset % self._step == 0 and len(self._due) < WAITING_MAX:
                    self._due[user] = offset - self._keep
                    self._wake.set()

    async def run(self) -> None:
        """Trim until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._due:
                user, through = self._due.popitem()
                try:
                    await self._writer.submit(Trim(user, through))
                except RoadsteadError as error:
                    self._log.info("trim_failed", user=user, error=str(error))
                    await asyncio.sleep(RETRY_MS / 1000)
