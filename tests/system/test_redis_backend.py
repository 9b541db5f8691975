"""The whole system with its statuses in Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from base.errors import NotFound
from roadstead.api import call_api
from roadstead.config import Config
from status.config import StatusConfig
from tests.contract.redis_servers import RedisServer, as_if_used_for_long
from tests.system.conftest import Connect, System, eventually, running


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    await server.start()
    await as_if_used_for_long([server])
    yield server
    server.kill()


@pytest.fixture
async def system(tmp_path: Path, redis: RedisServer) -> AsyncIterator[System]:
    status = StatusConfig(backend="redis", redis_url=redis.url, redis_ttl_ms=3_000)
    async with running(tmp_path / "data", msgspec.structs.replace(Config(), status=status)) as made:
        yield made


async def test_two_clients_talk_and_are_seen(system: System, connect: Connect) -> None:
    """Stock clients, both ways; statuses over HTTP, one by one and together."""
    alice, bob = await connect("alice"), await connect("bob")
    await alice.send("bob", "m-1", "hello")
    assert (await bob.wait_publications(1))[0].data["body"] == "hello"
    await bob.send("alice", "m-2", "hello yourself")
    assert (await alice.wait_publications(2))[-1].data["body"] == "hello yourself"

    status = await system.status("bob")
    assert (status["state"], status["sessions"][0]["node"][:7]) == ("online", "access-")
    (url,) = system.endpoints.status.values()
    answer = await call_api(
        "POST", f"{url}/v1/users/status", credential=system.key, body={"users": ["alice", "nobody"]}
    )
    assert [one["state"] for one in answer["statuses"]] == ["online", "offline"]
    with pytest.raises(NotFound, match="no partition table"):
        await call_api("GET", f"{url}/v1/admin/status/table", credential=system.key)

    await bob.sdk.disconnect()

    async def gone() -> bool:
        return bool((await system.status("bob"))["state"] == "offline")

    await eventually(gone)


async def test_messages_arrive_while_redis_is_away(system: System, connect: Connect, redis: RedisServer) -> None:
    """Acknowledged at once, pushed when the receiver can be looked up again; nobody reconnects."""
    alice, bob = await connect("alice"), await connect("bob")
    redis.kill()
    assert (await system.status("bob"))["state"] == "unknown"
    await alice.send("bob", "m-1", "are you there?")
    await redis.start()
    assert (await bob.wait_publications(1))[0].data["body"] == "are you there?"
    assert not bob.reconnecting.is_set()

    async def seen() -> bool:
        return bool((await system.status("bob"))["state"] == "online")

    await eventually(seen)
