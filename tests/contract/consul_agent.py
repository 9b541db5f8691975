"""A real Consul agent for tests: one for all tests of a worker, each of which has a prefix of its own in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import aiohttp
import pytest

from base.clock import SystemClock
from base.registry.config import RegistryConfig
from base.registry.consul import ConsulRegistry
from roadstead.consul import ConsulAgent

LOOK_S = 0.02
PROBES = 4

_numbers = count(1)


@pytest.fixture(scope="session")
def consul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    agent = ConsulAgent(folder=tmp_path_factory.mktemp("consul"))
    try:
        with ThreadPoolExecutor(1) as thread:  # on a loop of its own: the agent outlives that of the first test
            thread.submit(asyncio.run, start_settled(agent)).result()
        yield agent
    finally:
        agent.kill()


async def start_settled(agent: ConsulAgent) -> None:
    """Start it, and wait until checks run out on time: for up to 3 s after a server came an agent tells none of it.

    That pause may begin after the first check was told of, which thus says little. It comes once.
    """
    await agent.start()
    for number in range(PROBES):
        probe = f"settled-{number}"
        check = {"ID": probe, "Name": probe, "TTL": "10ms", "Status": "passing"}
        await operate(agent, "PUT", "agent/check/register", json=check)
        while True:
            critical = await operate(agent, "GET", "health/state/critical")
            if any(told["CheckID"] == probe for told in critical):
                break
            await asyncio.sleep(LOOK_S)
        await operate(agent, "PUT", f"agent/check/deregister/{probe}")


async def operate(agent: ConsulAgent, method: str, path: str, token: str = "", **options: Any) -> Any:
    """Ask the agent directly, as an operator does."""
    connector = aiohttp.TCPConnector(ssl=agent.client_ssl() or True)
    async with (
        aiohttp.ClientSession(connector=connector, headers={"X-Consul-Token": token} if token else {}) as http,
        http.request(method, f"{agent.url}/v1/{path}", **options) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return await answer.json() if answer.content_type == "application/json" else None


@asynccontextmanager
async def registry_at(agent: ConsulAgent, *, node: str = "tester", **settings: Any) -> AsyncIterator[ConsulRegistry]:
    """A registry of its own in the agent, or another node's view of one if the prefix is given."""
    options = {name: settings.pop(name) for name in ("waiting_max", "poll_ms") if name in settings}
    config = RegistryConfig(**{"consul_url": agent.url, "prefix": f"t{next(_numbers)}", **settings})
    registry = ConsulRegistry(config, SystemClock(), node=node, **options)
    try:
        yield registry
    finally:
        await registry.close()
