"""Looking into decisions over HTTP: why one was made, and a recording of all that are made.

GET /v1/admin/explain?user=&address=&region=&platform=&app=&device=   what would be decided now; nothing is counted
GET /v1/admin/explain?decision=ID                                      one that this scheduler made of late
GET /v1/admin/recording?for_ms=&decisions_max=                         all that it decides from now on, as it comes

A recording holds what the engine is told and decides, users and their addresses too: an operator's key is asked for. It
begins with a new engine, which does not know who is on the way to the nodes, and it is not begun in panic, since a new
engine would not keep the nodes that panic keeps.

The sink never waits. What the reader has not taken stands in a queue of `QUEUE_BYTES_MAX`; who is slower than that gets
a recording that is cut off, which ends without its last chunk, so that the reader knows.
"""

from __future__ import annotations

import asyncio
import ipaddress
from itertools import zip_longest
from typing import Any, Final

import msgspec
from aiohttp import web

from base.errors import BadRequest, Conflict, NotFound
from base.http import Role, json_response
from base.ids import checked_id
from base.log import logger
from base.site import Site
from scheduler.access_api import Locate
from scheduler.core.engine import Passed, Picked
from scheduler.core.explanation import Stage
from scheduler.core.request import Request
from scheduler.decider import Decider, Remembered

__all__ = ["DECISIONS_MAX", "FOR_MS", "FOR_MS_MAX", "Recorder"]

FOR_MS: Final = 60_000
FOR_MS_MAX: Final = 3_600_000
DECISIONS_MAX: Final = 100_000_000
QUEUE_BYTES_MAX: Final = 8 * 1024 * 1024
FLUSH_S: Final = 0.05
"""How often what came is written: many records in one piece."""
WRITE_TIMEOUT_S: Final = 10.0


class _Considered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A client as the query describes it."""

    user: str
    device: str = "default"
    platform: str = "unknown"
    app: str = ""
    region: str = ""
    address: str = ""


class Recorder:
    """The routes."""

    def __init__(self, site: Site, *, decider: Decider, locate: Locate) -> None:
        self._credentials = site.credentials
        self._clock = site.clock
        self._decider = decider
        self._locate = locate
        self._log = logger(node=site.name)

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/v1/admin/explain", self._get_explain)
        router.add_get("/v1/admin/recording", self._get_recording, allow_head=False)

    # ---------------------------------------------------------------- explaining

    async def _get_explain(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.VIEWER)
        query = dict(request.query)
        if len(query) != len(request.query):
            raise BadRequest("a query parameter is given twice")
        if "decision" in query:
            if len(query) > 1:
                raise BadRequest("with decision goes nothing else: it says who asked")
            return json_response(self._past(query["decision"]))
        try:
            asked = self._request(msgspec.convert(query, _Considered))
        except msgspec.ValidationError as error:
            raise BadRequest(f"bad query: {error}") from error
        decision, stages = self._decider.consider(asked)
        engine = self._decider.engine
        return json_response(self._explained(Remembered(asked, decision, engine.snapshot, engine.policy), stages))

    def _request(self, asked: _Considered) -> Request:
        address = asked.address
        if address:
            try:
                address = str(ipaddress.ip_address(address))
            except ValueError as error:
                raise BadRequest(f"address: {error}") from error
        region = checked_id(asked.region, "region") if asked.region else ""
        user = checked_id(asked.user, "user")
        return Request(
            user,
            checked_id(asked.device, "device"),
            checked_id(asked.platform, "platform"),
            checked_id(asked.app, "app") if asked.app else "",
            address,
            self._locate(user, address, region, {}),
        )

    def _past(self, decision: str) -> dict[str, Any]:
        issuer, _, number = decision.rpartition("-")
        try:
            seq = int(number, 16)
        except ValueError as error:
            raise BadRequest("decision: an answer's `decision` is meant, such as 0123456789-1f") from error
        if issuer != self._decider.id:
            raise NotFound(f"this scheduler did not make {decision}; its decisions begin with {self._decider.id}-")
        found = self._decider.explain_past(seq)
        if found is None:
            raise NotFound(f"{decision} is not remembered any more")
        past, stages = found
        return self._explained(past, stages)

    def _explained(self, made: Remembered, stages: tuple[Stage, ...]) -> dict[str, Any]:
        asked, decision, snapshot, policy = made
        return {
            # What is only considered has no number.
            "decision": f"{self._decider.id}-{decision.seq:x}" if decision.seq else None,
            "age_ms": self._clock.monotonic() - decision.at,
            "request": _request_shown(asked),
            "policy": policy.name,
            "rule": policy.rules[decision.rule].name,
            "arm": decision.arm,
            "region": decision.region,
            "picked": Picked(decision.picked).name.lower(),
            "carrier": decision.carrier,
            "candidates": [snapshot.nodes[index].id for index in decision.candidates],
            "not_before_ms": decision.not_before_ms,
            "placed": [
                {"rollout": cohort.rollout.name, **placed._asdict()}
                for cohort, placed in zip(snapshot.cohorts, decision.placed, strict=False)
            ],
            "passed": [
                {"arm": arm, "region": region, "why": Passed(why).name.lower()} for arm, region, why in decision.passed
            ],
            # JSON has no infinity: null is the load of a node without credit.
            "drawn": [
                {"node": snapshot.nodes[index].id, "load": load}
                for index, load in zip_longest(decision.drawn, decision.loads)
            ],
            "stages": stages,
        }

    # ---------------------------------------------------------------- recording

    async def _get_recording(self, request: web.Request) -> web.StreamResponse:
        self._credentials.require(request, Role.OPERATOR)
        others = set(request.query) - {"for_ms", "decisions_max"}
        if others:
            raise BadRequest(f"unknown query parameters: {', '.join(sorted(others))}")
        for_ms = _number(request, "for_ms", FOR_MS, FOR_MS_MAX)
        decisions_max = _number(request, "decisions_max", DECISIONS_MAX, DECISIONS_MAX)
        if self._decider.engine.is_panic:
            raise Conflict("no recording is begun in panic: its new engine would not keep the nodes that vanished")
        who = self._credentials.who(request)
        queue = _Queue(self._decider, decisions_max)
        queue.begin()
        self._log.warning("recording_started", for_ms=for_ms, decisions_max=decisions_max, who=who)
        try:
            return await self._stream(request, queue, self._clock.monotonic() + for_ms)
        finally:
            queue.stop()
            self._log.info("recording_ended", decisions=queue.decisions, was_cut_off=queue.is_cut_off, who=who)

    async def _stream(self, request: web.Request, queue: _Queue, until: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        await response.prepare(request)
        while True:
            if self._clock.monotonic() >= until:
                queue.stop()
            is_over = queue.is_stopped
            if not await _written(request, response, queue):
                queue.is_cut_off = True
                if request.transport is not None:
                    request.transport.abort()
                return response
            if is_over:
                await response.write_eof()
                return response
            await asyncio.sleep(FLUSH_S)


class _Queue:
    """What was recorded and not written yet."""

    def __init__(self, decider: Decider, decisions_max: int) -> None:
        self.is_cut_off = False
        """Whether the reader was too slow: nothing more comes."""
        self._decider = decider
        self._decisions_max = decisions_max
        self._began = decider.engine.seq
        self._ended: int | None = None
        self._records: list[bytes] = []
        self._bytes = 0

    @property
    def decisions(self) -> int:
        """How many decisions were made while it was recorded."""
        return (self._decider.engine.seq if self._ended is None else self._ended) - self._began

    @property
    def is_stopped(self) -> bool:
        """Whether nothing more is recorded."""
        return self._ended is not None

    def begin(self) -> None:
        """Begin the recording. Raises Conflict if another one is under way."""
        self._decider.record(self.put)
        if self.is_stopped:  # what it begins with was too much already
            self._decider.stop_recording()

    def put(self, record: bytes) -> None:
        """Take a record."""
        self._records.append(record)
        self._bytes += len(record)
        if self._bytes > QUEUE_BYTES_MAX:
            self.is_cut_off = True
            self._records.clear()
        if self.is_cut_off or self.decisions >= self._decisions_max:
            self.stop()

    def stop(self) -> None:
        """End the recording, once: the next one may be somebody else's."""
        if self._ended is None:
            self._ended = self._decider.engine.seq
            self._decider.stop_recording()

    def take(self) -> bytes:
        """Return what came since the last time."""
        taken = b"".join(self._records)
        self._records.clear()
        self._bytes = 0
        return taken


async def _written(request: web.Request, response: web.StreamResponse, queue: _Queue) -> bool:
    """Write what came; return whether the reader is there, and kept up."""
    if queue.is_cut_off or request.transport is None or request.transport.is_closing():
        return False
    taken = queue.take()
    if not taken:
        return True
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await response.write(taken)
    except (TimeoutError, ConnectionError):
        return False
    return not queue.is_cut_off


def _request_shown(asked: Request) -> dict[str, Any]:
    return {
        "user": asked.user,
        "device": asked.device,
        "platform": asked.platform,
        "app": asked.app,
        "address": asked.address,
        "location": {
            "region": asked.location.region,
            "place": asked.location.place,
            "carrier": asked.location.carrier,
            "source": asked.location.source,
        },
    }


def _number(request: web.Request, name: str, default: int, most: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= 12 and 1 <= int(text) <= most):
        raise BadRequest(f"{name} must be a whole number from 1 to {most}")
    return int(text)
