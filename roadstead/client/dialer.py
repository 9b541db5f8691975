"""Where the Python client connects: to the scheduler's candidates, or to where a node that drains sends it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import aiohttp

from base.core.backoff import Backoff
from base.errors import AuthError, PeerUnavailable, Retry, RoadsteadError, TokenExpired
from base.ids import entropy
from roadstead.api import call_api, connector
from roadstead.client.channel import Channel
from roadstead.client.connection import Connection, Move

__all__ = ["Dialer"]

STABLE_S = 10.0
PROBE_S = 2.0
"""How long a probe may take, to be worth a thought."""
PROBES_MAX = 8


class Dialer:
    """Opens the connections of one client, of which each follows its inbox."""

    def __init__(
        self,
        scheduler: str,
        params: dict[str, str],
        inbox: Channel,
        *,
        credential: Callable[[], str],
        tls: ssl.SSLContext | None,
    ) -> None:
        """`params` are those of `GET /v1/access`: who asks, from which device. `tls`: whom to believe, see `Client`."""
        self._url = f"{scheduler}/v1/access"
        self._credential = credential
        self._tls = tls
        self._params = params
        self._inbox = inbox
        self._pace: dict[str, int] = {}
        self._backoff = Backoff(entropy())
        self._lifetime_s = 0.0
        self._probes: list[dict[str, str]] = []
        self._distances: dict[str, int] = {}
        """Regions that were measured and not told yet, in ms."""

    async def dial(self) -> Connection:
        """One round: ask the scheduler, wait for our turn, try its candidates in their order.

        A ticket that is used up is replaced, once.

        Raises:
            RoadsteadError: the scheduler's refusal, PeerUnavailable when no candidate let us in, PermissionDenied when
                one of them closed for good.
        """
        last: RoadsteadError | None = None
        for _ in range(2):
            answer = await self._ask()
            await asyncio.sleep(answer.get("not_before_ms", 0) / 1000)
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

    async def measure(self) -> None:
        """Time the probes that the last answer asked for, to tell it with the next question. Those that fail do not."""
        probes, self._probes = self._probes[:PROBES_MAX], []
        if probes:
            timeout = aiohttp.ClientTimeout(total=PROBE_S)
            async with (
                aiohttp.ClientSession(connector=connector(self._tls), timeout=timeout) as http,
                asyncio.TaskGroup() as tasks,
            ):
                for probe in probes:
                    tasks.create_task(self._measure(http, probe["region"], probe["url"]))

    async def _measure(self, http: aiohttp.ClientSession, region: str, url: str) -> None:
        now = asyncio.get_running_loop().time
        began = now()
        with suppress(aiohttp.ClientError, TimeoutError, OSError, ValueError):
            async with http.get(url, raise_for_status=True) as response:
                await response.read()
            self._distances[region] = round((now() - began) * 1000)

    async def _ask(self) -> dict[str, Any]:
        params = dict(self._params)
        if self._distances:
            params["rtt"] = ",".join(f"{region}:{ms}" for region, ms in self._distances.items())
        answer: dict[str, Any] = await call_api(
            "GET", self._url, credential=self._credential(), params=params, tls=self._tls
        )
        self._distances = {}
        self._probes = answer.get("probe", [])
        self._lifetime_s = answer.get("lifetime_ms", 0) / 1000
        if answer["backoff"] != self._pace:
            self._pace = answer["backoff"]
            self._backoff = Backoff(entropy(), **self._pace)
        return answer

    async def _open(self, address: str, ticket: str) -> Connection:
        connection = Connection(address, ticket, self._inbox, lifetime_s=self._lifetime_s, tls=self._tls)
        await connection.open()
        return connection
