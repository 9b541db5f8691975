"""A server in Consul's place that is none, or a proxy before it: what it says is no answer, and nothing else ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from base.clock import Instant, SystemClock
from base.errors import StoreUnavailable
from base.registry.config import RegistryConfig
from base.registry.consul import ConsulRegistry

INDEX = {"X-Consul-Index": "5"}
SESSION = "a5a2e7a0"
ANSWERS: dict[str, dict[str, Any]] = {
    "a page": {"text": "<html>please wait</html>", "content_type": "text/html"},
    "nothing": {"text": ""},
    "no text": {"body": b"\xff\xfe", "headers": INDEX},
    "no index": {"text": "[]"},
    "another's index": {"text": "[]", "headers": {"X-Consul-Index": "x"}},
    "another's list": {"text": "[7]", "headers": INDEX},
    "another's items": {"text": '[{"Key": 7}]', "headers": INDEX},
    "another's object": {"text": '{"error": "no such path"}', "headers": INDEX},
    "a number": {"text": "7", "headers": INDEX},
    "a value that is not encoded": {
        "text": '[{"Key": "a", "ModifyIndex": 1, "Flags": 0, "Value": "a"}]',
        "headers": INDEX,
    },
    "no results": {"text": '{"Results": null, "Errors": null}', "headers": INDEX},
    "no result": {"text": '{"Results": [], "Errors": null}', "headers": INDEX},
    "another's id": {"text": '{"ID": 7}', "headers": INDEX},
    "a page instead of reasons": {"status": 409, "text": "<html>"},
    "another's reasons": {"status": 409, "text": '{"Errors": [7]}'},
    "a failure": {"status": 502, "text": "<html>"},
}
CALLS: dict[str, Callable[[ConsulRegistry], Awaitable[object]]] = {
    "get": lambda registry: registry.get("a/b"),
    "scan": lambda registry: registry.scan("a/"),
    "services": lambda registry: registry.services("access"),
    "put": lambda registry: registry.put("a/b", b"x"),
    "delete": lambda registry: registry.delete("a/b"),
    "open_session": lambda registry: registry.open_session("n", ttl_ms=3_000),
    "acquire": lambda registry: registry.acquire("a/lock", SESSION, b"x"),
    "renew_session": lambda registry: registry.renew_session(SESSION),
}
READS = {"get", "scan", "services", "delete"}
"""What asks Consul for something first, and does no more where nothing is there."""


class HurriedClock(SystemClock):
    """Whoever waits by it has waited."""

    def __init__(self) -> None:
        self._ahead_ms = 0

    def monotonic(self) -> Instant:
        return Instant(super().monotonic() + self._ahead_ms)

    async def sleep_until(self, instant: Instant) -> None:
        self._ahead_ms += max(instant - self.monotonic(), 0)


async def opens_session(request: web.Request) -> web.Response:
    """As Consul."""
    return web.json_response({"ID": SESSION} if request.path == "/v1/session/create" else None)


@pytest.mark.parametrize("is_read", [False, True])
@pytest.mark.parametrize("said", ANSWERS)
async def test_what_makes_no_sense_is_no_answer(said: str, *, is_read: bool) -> None:
    """Who asked rides it out, as if nobody had answered: Consul may be another one when it is back.

    `is_read`: Consul reads, and says that nothing is there; writes alone get such answers.
    """

    async def makes_no_sense(request: web.Request) -> web.Response:
        if is_read and request.method == "GET":
            return web.json_response(None, status=404, headers=INDEX)
        return web.Response(**ANSWERS[said])

    handler = opens_session

    async def answer(request: web.Request) -> web.Response:
        return await handler(request)

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", answer)
    taken = []
    async with TestServer(app) as server:
        config = RegistryConfig(consul_url=f"http://127.0.0.1:{server.port}")
        registry = ConsulRegistry(config, HurriedClock(), node="n")
        assert await registry.open_session("n", ttl_ms=3_000) == SESSION
        handler = makes_no_sense
        for name, call in CALLS.items():
            with suppress(StoreUnavailable):
                await call(registry)
                taken.append(name)
        await registry.close()
    assert set(taken) == (READS if is_read else set())
