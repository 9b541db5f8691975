"""Where the Python client connects: to the scheduler's candidates, or to where a node that drains sends it.

Of several schedulers it stays with one, at first any, for as long as that answers. Whatever a scheduler says itself is
an answer, refusals too: the next one is asked only where there was none.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated

import aiohttp
import msgspec

from base.core.backoff import Backoff
from base.errors import (
    AuthError,
    ConfigError,
    PeerUnavailable,
    RemoteProtocolError,
    Retry,
    RoadsteadError,
    TokenExpired,
)
from base.ids import entropy
from roadstead.api import call_api, connector
from roadstead.client.channel import Channel
from roadstead.client.connection import Connection, Move

__all__ = ["Dialer"]

STABLE_S = 10.0
PROBE_S = 2.0
"""How long a probe may take, to be worth a thought."""
PROBES_MAX = 8


Ms = Annotated[int, msgspec.Meta(ge=0)]


class _Candidate(msgspec.Struct, frozen=True):
    urls: dict[str, str]


class _Probe(msgspec.Struct, frozen=True):
    region: str
    url: str


class _Pace(msgspec.Struct, frozen=True):
    base_ms: int
    ceiling_ms: int

    def __post_init__(self) -> None:
        if not 0 < self.base_ms <= self.ceiling_ms:
            raise ValueError("no waits are between these two")


class _Answer(msgspec.Struct, frozen=True):
    """What is heeded of a scheduler's answer (`scheduler.api.AccessAnswer`)."""

    candidates: list[_Candidate]
    ticket: str
    backoff: _Pace
    not_before_ms: Ms = 0
    lifetime_ms: Ms = 0
    probe: list[_Probe] = []

    def addresses(self) -> list[str]:
        """Return the candidates' WebSocket endpoints."""
        return [each.urls["websocket"] for each in self.candidates if "websocket" in each.urls]


class Dialer:
    """Opens the connections of one client, of which each follows its inbox."""

    def __init__(
        self,
        schedulers: Sequence[str],
        params: dict[str, str],
        inbox: Channel,
        *,
        credential: Callable[[], str],
        tls: ssl.SSLContext | None,
    ) -> None:
        """`params` are those of `GET /v1/access`: who asks, from which device. `tls`: whom to believe, see `Client`.

        Raises ConfigError without any scheduler.
        """
        if not schedulers:
            raise ConfigError(["there is no scheduler"])
        self.opening: Connection | None = None
        """The one that is not open yet, though it may tell entries by now."""
        random = entropy()
        self._schedulers = schedulers
        self._at = random.randrange(len(schedulers))
        """Which of them is asked."""
        self._credential = credential
        self._tls = tls
        self._params = params
        self._inbox = inbox
        self._pace: _Pace | None = None
        self._backoff = Backoff(random)
        self._lifetime_s = 0.0
        self._probes: list[_Probe] = []
        self._distances: dict[str, int] = {}
        """Regions that were measured and not told yet, in ms."""

    async def dial(self) -> Connection:
        """One round: ask a scheduler, wait for our turn, try its candidates in their order.

        A ticket that is used up is replaced, once.

        Raises:
            RoadsteadError: a scheduler's refusal, PeerUnavailable when no candidate let us in or no scheduler answers,
                RemoteProtocolError when what answers is none, PermissionDenied when a candidate closed for good.
        """
        last: RoadsteadError | None = None
        for _ in range(2):
            answer = await self._ask()
            await asyncio.sleep(answer.not_before_ms / 1000)
            for address in answer.addresses():
                try:
                    return await self._open(address, answer.ticket)
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

        Raises the refusals with which there is no use in asking again. What only stands where a scheduler should is
        none: a gateway's pages come and go.
        """
        if lost.age_s() > STABLE_S:
            self._backoff.reset()
        retry_after_ms = 0
        while True:
            await asyncio.sleep((retry_after_ms + self._backoff.next_ms()) / 1000)
            try:
                return await self.dial()
            except RoadsteadError as error:
                is_refusal = error.retry is Retry.NEVER and not isinstance(error, RemoteProtocolError)
                if is_refusal or isinstance(error, AuthError):
                    raise
                retry_after_ms = _retry_after_ms(error)

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
                    tasks.create_task(self._measure(http, probe.region, probe.url))

    async def _measure(self, http: aiohttp.ClientSession, region: str, url: str) -> None:
        now = asyncio.get_running_loop().time
        began = now()
        with suppress(aiohttp.ClientError, TimeoutError, OSError, ValueError):
            async with http.get(url, raise_for_status=True) as response:
                await response.read()
            self._distances[region] = round((now() - began) * 1000)

    async def _ask(self) -> _Answer:
        """Ask the scheduler that answered last; where there is no answer, each of the others."""
        failures: list[RoadsteadError] = []
        for _ in self._schedulers:
            try:
                answer = await self._ask_at(self._schedulers[self._at])
            except (PeerUnavailable, RemoteProtocolError) as error:
                failures.append(error)
                self._at = (self._at + 1) % len(self._schedulers)
            else:
                self._heed(answer)
                return answer
        if len(failures) == 1:
            raise failures[0]
        raise PeerUnavailable(
            f"no scheduler answers: {'; '.join(map(str, failures))}", retry_after_ms=min(map(_retry_after_ms, failures))
        )

    async def _ask_at(self, scheduler: str) -> _Answer:
        url, params = f"{scheduler}/v1/access", dict(self._params)
        if self._distances:
            params["rtt"] = ",".join(f"{region}:{ms}" for region, ms in self._distances.items())
        answer = await call_api("GET", url, credential=self._credential(), params=params, tls=self._tls)
        try:
            return msgspec.convert(answer, _Answer)
        except msgspec.ValidationError as error:
            raise RemoteProtocolError(f"{url} did not answer as a scheduler does: {error}") from error

    def _heed(self, answer: _Answer) -> None:
        self._distances = {}
        self._probes = answer.probe
        self._lifetime_s = answer.lifetime_ms / 1000
        if answer.backoff != self._pace:
            self._pace = answer.backoff
            self._backoff = Backoff(entropy(), base_ms=self._pace.base_ms, ceiling_ms=self._pace.ceiling_ms)

    async def _open(self, address: str, ticket: str) -> Connection:
        connection = Connection(address, ticket, self._inbox, lifetime_s=self._lifetime_s, tls=self._tls)
        self.opening = connection
        try:
            await connection.open()
        finally:
            if self.opening is connection:
                self.opening = None
        return connection


def _retry_after_ms(error: RoadsteadError) -> int:
    """Return when to come back, as far as the error says so in a way that can be understood."""
    after_ms = error.detail.get("retry_after_ms")
    return max(after_ms, 0) if isinstance(after_ms, int) else 0
