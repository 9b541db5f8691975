"""Where the Python client connects: to the scheduler's candidates, or to where a node that drains sends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from base.core.backoff import Backoff
from base.errors import AuthError, PeerUnavailable, Retry, RoadsteadError, TokenExpired
from base.ids import entropy
from roadstead.api import call_api
from roadstead.client.channel import Channel
from roadstead.client.connection import Connection, Move

__all__ = ["Dialer"]

STABLE_S = 10.0


class Dialer:
    """Opens the connections of one client, of which each follows its inbox."""

    def __init__(
        self, scheduler: str, params: dict[str, str], inbox: Channel, *, credential: Callable[[], str]
    ) -> None:
        """`params` are those of `GET /v1/access`: who asks, from which device."""
        self._url = f"{scheduler}/v1/access"
        self._credential = credential
        self._params = params
        self._inbox = inbox
        self._pace: dict[str, int] = {}
        self._backoff = Backoff(entropy())

    async def dial(self) -> Connection:
        """One round: ask the scheduler, try its candidates in their order. A ticket that is used up is replaced, once.

        Raises:
            RoadsteadError: the scheduler's refusal, PeerUnavailable when no candidate let us in, PermissionDenied when
                one of them closed for good.
        """
        last: RoadsteadError | None = None
        for _ in range(2):
            answer = await call_api("GET", self._url, credential=self._credential(), params=self._params)
            if answer["backoff"] != self._pace:
                self._pace = answer["backoff"]
                self._backoff = Backoff(entropy(), **self._pace)
            for candidate in answer["candidates"]:
                try:
                    return await self._open(candidate["urls"]["websocket"], answer["ticket"])
                except TokenExpired as error:
                    last = error
                    break
                except PeerUnavailable as error:
                    last = error
            else:
                break
        raise PeerUnavailable(f"no access node let us in: {last}")

    async def redial(self, lost: Connection) -> Connection:
        """Rounds until a connection is open: after a wait below a doubling ceiling, which a good connection resets.

        Raises the refusals with which there is no use in asking again.
        """
        if lost.age_s() > STABLE_S:
            self._backoff.reset()
        retry_after_ms = 0
        while True:
            await asyncio.sleep((retry_after_ms + self._backoff.next_ms()) / 1000)
            try:
                return await self.dial()
            except RoadsteadError as error:
                if error.retry is Retry.NEVER or isinstance(error, AuthError):
                    raise
                retry_after_ms = int(error.detail.get("retry_after_ms", 0))

    async def follow(self, move: Move) -> Connection | None:
        """Open what a move names, else what the scheduler does. None if there is nothing to go to now."""
        with suppress(RoadsteadError):
            if move.url:
                return await self._open(move.url, move.ticket)
        with suppress(RoadsteadError):
            return await self.dial()
        return None

    async def _open(self, address: str, ticket: str) -> Connection:
        connection = Connection(address, ticket, self._inbox)
        await connection.open()
        return connection
