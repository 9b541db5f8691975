"""A server in Consul's place that is none, or a proxy before it: what it says is no answer, and nothing else ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from base.clock import SystemClock
from base.errors import StoreUnavailable
from base.registry.config import RegistryConfig
from base.registry.consul import ConsulRegistry

INDEX = {"X-Consul-Index": "5"}
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
}


@pytest.mark.parametrize("said", ANSWERS)
async def test_what_makes_no_sense_is_no_answer(said: str) -> None:
    """Who asked rides it out, as if nobody had answered: Consul may be another one when it is back."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(**ANSWERS[said])

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", answer)
    taken = []
    async with TestServer(app) as server:
        config = RegistryConfig(consul_url=f"http://127.0.0.1:{server.port}")
        registry = ConsulRegistry(config, SystemClock(), node="n")
        for name, call in CALLS.items():
            with suppress(StoreUnavailable):
                await call(registry)
                taken.append(name)
        await registry.close()
    assert not taken
