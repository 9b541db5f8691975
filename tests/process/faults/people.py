"""Light clients who say when they were connected, where, and how long each of their calls took."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any
from urllib.parse import SplitResult

from tests.process.message_clients import Call, LightDevice
from tests.process.message_traffic import Traffic
from tests.process.message_wire import Reply

__all__ = ["PacedTraffic", "Person"]

AWAY_S = 5.0
"""So long some stay away when they lose their connection: long enough to be seen to be offline."""
AWAY_EVERY = 4


class Person(LightDevice):
    """See the module. Times are the event loop's."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stays_away = int(self.user[1:]) % AWAY_EVERY == 1
        self.where = ""
        """The host and port that it is connected to, or was last."""
        self.open_since: float | None = None
        self.gone_since: float | None = 0.0
        """Since when it has tried nothing; None while it is connected or tries to be."""
        self.waiting: dict[str, float] = {}
        """When each call that has no answer was made first, by its key."""
        self.took: list[tuple[float, float]] = []
        """When each call was made, and answered."""

    async def _connected(self, address: SplitResult) -> None:
        self.where, self.gone_since = address.netloc, None
        try:
            await super()._connected(address)
        finally:
            self.gone_since = asyncio.get_running_loop().time()

    def _joined(self, start: Any) -> None:
        super()._joined(start)
        self.open_since = asyncio.get_running_loop().time()

    def _lost(self) -> None:
        was_open = self.is_open
        super()._lost()
        self.open_since = None
        if self.stays_away and was_open:
            self.away_s = AWAY_S

    def _begin(self, call: Call) -> bytes:
        self.waiting.setdefault(call.key, asyncio.get_running_loop().time())
        return super()._begin(call)

    def _answered(self, call: Call, reply: Reply) -> None:
        super()._answered(call, reply)
        if (reply.error is None or not reply.error.temporary) and call.key in self.waiting:
            self.took.append((self.waiting.pop(call.key), asyncio.get_running_loop().time()))


class PacedTraffic(Traffic):
    """Goes on at a pace until it is ended."""

    def __init__(self, random: Random, *, messages_per_s: float) -> None:
        super().__init__(0, random)
        self.pause_s = 1.0
        self.messages_per_s = messages_per_s
        self._has_ended = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more is going to be begun."""
        return self._has_ended

    async def run(self) -> None:
        """Allow one message after the other."""
        while True:
            if not self._has_ended:
                self.target += 1
            await asyncio.sleep(1 / self.messages_per_s)

    def end(self) -> None:
        """Nothing more is begun."""
        self._has_ended = True
        self.target = self.begun
