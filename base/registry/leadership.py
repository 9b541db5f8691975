"""One of several processes leads: whoever holds a registry lock, for as long as its session was renewed in time.

Time is counted from when the holder *asked*. One that cannot renew stops leading by itself before the registry lets
another one in. What a leader writes it writes by compare-and-set: two that think they lead for a moment, by clocks that
drift, do no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from base.clock import Clock
from base.core.lease import HeldLease
from base.errors import SessionLost, StoreError
from base.ids import Epoch
from base.log import logger
from base.registry.ports import Registry

__all__ = ["Leadership"]

RENEW_MS = 1_000
SESSION_TTL_MS = 5_000
"""How long the lock outlives a holder that died."""


class Leadership:
    """A standing candidacy for one lock. `run` campaigns and renews until it is cancelled."""

    def __init__(
        self, registry: Registry, clock: Clock, *, key: str, node: str, on_elected: Callable[[], None] | None = None
    ) -> None:
        """`on_elected` is called when this process begins to lead, also when it leads again."""
        self._registry = registry
        self._clock = clock
        self._key = key
        self._node = node
        self._on_elected = on_elected
        self._held = HeldLease()
        self._session: str | None = None
        self._log = logger(node=node)

    @property
    def is_leading(self) -> bool:
        """Whether this process may act as the leader at this instant."""
        return self._held.is_valid(self._clock.monotonic())

    async def run(self) -> None:
        """Campaign until cancelled; give the lock back at the end."""
        try:
            while True:
                try:
                    await self._campaign()
                except StoreError as error:
                    self._log.debug("campaign_failed", key=self._key, error=str(error))
                await asyncio.sleep(RENEW_MS / 1000)
        finally:
            await self._step_down()

    async def _campaign(self) -> None:
        asked_at = self._clock.monotonic()
        if self._session is None:
            self._session = await self._registry.open_session(self._node, ttl_ms=SESSION_TTL_MS)
        else:
            try:
                await self._registry.renew_session(self._session)
            except SessionLost:
                self._session = None
                self._held = HeldLease()  # a registry that started over counts its tokens from the beginning
                raise
        was_leading = self._held.is_valid(asked_at)
        if self._held.epoch is not None:
            self._held.granted(asked_at, self._held.epoch, SESSION_TTL_MS)
        else:
            token = await self._registry.acquire(self._key, self._session, self._node.encode())
            if token is None:
                return
            self._held.granted(asked_at, Epoch(token), SESSION_TTL_MS)
        if not was_leading and self.is_leading:
            self._log.info("leading", key=self._key)
            if self._on_elected is not None:
                self._on_elected()

    async def _step_down(self) -> None:
        session, self._session = self._session, None
        self._held = HeldLease()
        if session is not None:
            try:
                await self._registry.close_session(session)
            except StoreError as error:  # it ends by itself
                self._log.debug("session_left_open", key=self._key, error=str(error))
