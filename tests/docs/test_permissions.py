"""The table of permissions is what running nodes ask for: on each route, by a key of each role."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from base.credentials import Credentials, Role
from base.errors import Code
from base.http import HttpServer
from base.metrics import Metrics
from roadstead import up
from roadstead.config import Config
from roadstead.deployment import DataFolder
from roadstead.permissions import CLIENT_PATHS, Permission, permissions
from roadstead.up import run_up

SETTLE_S = 10.0
KEYS = {f"a-key-of-a-{role.label}": role for role in Role}
KEY_OF = {role: key for key, role in KEYS.items()}
REFUSALS = {Code.UNAUTHENTICATED.label, Code.PERMISSION_DENIED.label}
UNSAID = {"HEAD", "OPTIONS"}
ROWS = permissions()
System = dict[str, str]


@pytest.fixture
async def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[System]:
    """A whole system with a key of each role; where a node of each role is, and an access node's port for clients."""
    monkeypatch.setattr(up, "Credentials", lambda keys: Credentials({**keys, **KEYS}))
    config = msgspec.structs.replace(Config(), up=msgspec.structs.replace(Config().up, port=0))
    ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run_up(config, DataFolder(tmp_path / "data"), on_ready=ready.set_result, stop=stop))
        try:
            endpoints = await asyncio.wait_for(ready, SETTLE_S)
            roles = ("scheduler", "access", "status", "im", "registry")
            yield {role: next(iter(getattr(endpoints, role).values())) for role in roles}
        finally:
            stop.set()


async def refusal(
    http: aiohttp.ClientSession, base: str, row: Permission, key: str, *, is_varied: bool = False
) -> str | None:
    """Ask, and return the name of the refusal, None without one. What else is wrong with the request counts not."""
    path = re.sub(r"{\w+}", "1", row.path)
    body: Any = {} if row.method in {"post", "put"} else None
    query = {}
    if is_varied:
        assert row.other is not None
        query = {row.other.query: ""} if row.other.query else {}
        body = row.other.body or body
    headers = {"Authorization": f"Bearer {key}"}
    async with http.request(row.method, base + path, json=body, headers=headers, params=query) as answer:
        if answer.status < 400 or answer.content_type != "application/json":
            return None
        name = (await answer.json())["error"]["name"] if answer.status in {401, 403} else ""
        return name if name in REFUSALS else None


@pytest.mark.parametrize("served_by", ["every node", "scheduler", "access", "status", "im"])
async def test_each_operation_takes_the_role_that_the_table_says(system: System, served_by: str) -> None:
    """That one and every higher one; an unknown key and every lower one are refused."""
    asked = 0
    async with aiohttp.ClientSession() as http, asyncio.timeout(30):
        for row in (row for row in ROWS if row.served_by == served_by):
            for base in system.values() if served_by == "every node" else [system[served_by]]:
                least = row.role or Role.VIEWER
                unknown = await refusal(http, base, row, "an-unknown-key")
                assert unknown == (None if row.role is None else Code.UNAUTHENTICATED.label), row
                for role in (role for role in Role if role < least):
                    assert await refusal(http, base, row, KEY_OF[role]) == Code.PERMISSION_DENIED.label, (row, role)
                assert await refusal(http, base, row, KEY_OF[least]) is None, row
                asked += 1
                if row.other is not None:
                    for role in (role for role in Role if role < row.other.role):
                        told = await refusal(http, base, row, KEY_OF[role], is_varied=True)
                        assert told == Code.PERMISSION_DENIED.label, (row, role)
                    assert await refusal(http, base, row, KEY_OF[row.other.role], is_varied=True) is None, row
    assert asked


async def test_the_table_has_every_route(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever adds one says who may use it. Ports for clients have what the client protocol has."""
    servers: list[HttpServer] = []
    of: dict[HttpServer, str] = {}
    real = HttpServer.__init__

    def spied(self: HttpServer, node: str, *args: Any, **kwargs: Any) -> None:
        real(self, node, *args, **kwargs)
        servers.append(self)
        of[self] = "clients" if kwargs.get("is_public") else node.rpartition("-")[0]

    monkeypatch.setattr(HttpServer, "__init__", spied)
    config = msgspec.structs.replace(Config(), up=msgspec.structs.replace(Config().up, port=0))
    stop = asyncio.Event()
    async with asyncio.timeout(SETTLE_S):
        await run_up(config, DataFolder(tmp_path / "data"), on_ready=lambda _endpoints: stop.set(), stop=stop)
    seen = set()
    for server in servers:
        routes = {
            (route.method.lower(), route.resource.canonical)
            for route in server.app.router.routes()
            if route.resource is not None and route.method not in UNSAID
        }
        role = of[server]
        seen.add(role)
        if role == "clients":
            assert routes == set(CLIENT_PATHS)
        else:
            told = {(row.method, row.path) for row in ROWS if row.served_by in {"every node", role}}
            assert routes - {("get", "/peer")} == told, role
    assert seen == {"scheduler", "access", "status", "im", "registry", "clients"}


@pytest.mark.parametrize("path", ["/metrics", "/debug/statistics"])
async def test_beyond_loopback_metrics_are_for_viewers(path: str) -> None:
    """Prometheus sends a bearer token; health is for everybody."""
    http = HttpServer("n", Metrics("n"), statistics=dict, credentials=Credentials(KEYS), open_metrics=False)
    await http.listen("127.0.0.1", 0)
    try:
        async with aiohttp.ClientSession(http.url) as session:
            for key, status in (("unknown", 401), (KEY_OF[Role.VIEWER], 200)):
                async with session.get(path, headers={"Authorization": f"Bearer {key}"}) as answer:
                    assert answer.status == status
            async with session.get("/healthz") as answer:
                assert answer.status == 200
    finally:
        await http.close()
