"""A role on its way into a system: what it waits for, what it refuses, and that it can be told to end at any point."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from base.clock import SystemClock
from base.core.registry import ServiceInstance
from base.credentials import Credentials
from base.errors import ConfigError, PeerUnavailable, SessionLost, StoreUnavailable, Unauthenticated
from base.metrics import Metrics
from base.registry import Registry
from base.registry.memory import MemoryRegistry
from base.trust import Trust
from roadstead import role
from roadstead.config import Config
from roadstead.keys import Keys
from roadstead.role import Place, Ready, run_node
from status.config import StatusConfig

CONFIG = Config(status=StatusConfig(bootstrap_nodes=1))


class Opened:
    """A registry within the test. `failure`: what asking it comes to."""

    url = "http://registry"

    def __init__(self, failure: Exception | None = None) -> None:
        self.registry: Registry = MemoryRegistry(SystemClock())
        self.failure = failure

    async def probe(self) -> None:
        if self.failure is not None:
            raise self.failure

    def count_in(self, metrics: Metrics, node: str) -> None:
        pass

    async def run(self) -> None:
        pass


def place(opened: Opened, **fields: Any) -> Place:
    keys = Keys(node="status-1", trust=Trust.of_key("a-key-of-the-tests"), credentials=Credentials({}))
    settings = {"name": "status-1", "host": "127.0.0.1", "port": 0, "keys": keys, "start_deadline_ms": 5_000}
    return Place(registry=opened, **(settings | fields))


async def run(opened: Opened, config: Config = CONFIG, **fields: Any) -> list[Ready]:
    """Run a status node until it is ready; return what it said."""
    told: list[Ready] = []
    stop = asyncio.Event()

    def ready(said: Ready) -> None:
        told.append(said)
        asyncio.get_running_loop().call_later(0.05, stop.set)

    await run_node("status", config, place(opened, **fields), on_ready=ready, stop=stop)
    return told


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(role, "LOOK_S", 0.01)


async def test_a_node_waits_for_the_registry_and_joins():
    """It is registered while it runs, and not any more when it has ended."""
    opened = Opened(StoreUnavailable("away"))

    def back() -> None:
        opened.failure = None

    asyncio.get_running_loop().call_later(0.05, back)
    (said,) = await run(opened)
    assert (said.name, said.client_url, said.url.startswith("http://127.0.0.1:")) == ("status-1", None, True)
    assert (await opened.registry.services("status")).items == ()
    entry = await opened.registry.get("incarnation/status-1")
    assert entry is not None
    assert int(entry.value) > 0


@pytest.mark.parametrize(
    ("failure", "fields", "kind", "said"),
    [
        (
            StoreUnavailable("away"),
            {"start_deadline_ms": 50},
            PeerUnavailable,
            r"waited 0\.05 s for the registry at .*: away",
        ),
        (PeerUnavailable("gone"), {"is_patient": False}, PeerUnavailable, "^gone$"),
        (StoreUnavailable("away"), {"is_patient": False}, PeerUnavailable, "^the registry at http://registry: away$"),
        (Unauthenticated("bad key"), {}, Unauthenticated, "bad key"),
    ],
)
async def test_a_registry_that_cannot_be_used_is_one_error(
    failure: Exception, fields: dict[str, Any], kind: type[Exception], said: str
):
    """After the time that a node may wait; at once if it may not, or if waiting would not mend it."""
    with pytest.raises(kind, match=said):
        await run(Opened(failure), **fields)


async def test_a_stop_ends_the_waiting():
    """In order: that is no failure."""
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, stop.set)
    waiting = place(Opened(StoreUnavailable("away")), start_deadline_ms=0)
    await run_node("status", CONFIG, waiting, on_ready=lambda _said: pytest.fail("it is not ready"), stop=stop)


async def test_the_name_of_a_live_node_is_refused():
    """One that is registered where nobody listens any more is free, and its next life is a later one."""
    opened = Opened()
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    other = ServiceInstance(id="status-1", service="access", url=url, incarnation=0)
    await opened.registry.register(other, ttl_ms=60_000)
    with pytest.raises(SessionLost, match=f"the name status-1 is in use by a node at {url}"):
        await run(opened)
    server.close()
    await server.wait_closed()
    assert len(await run(opened)) == 1


async def test_of_two_that_begin_a_system_otherwise_one_ends():
    """A node compares its settings again when it is registered, and so is seen by whoever says others."""
    opened = Opened()
    put = opened.registry.put

    async def overtaken(key: str, value: bytes, *, expect: int | None = None) -> int:
        index = await put(key, value, expect=expect)
        if key == "settings/status":
            await put(key, b'{"lease_ms": 2800}')
        return index

    opened.registry.put = overtaken  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="lease_ms is 3000 here and 2800 in the system"):
        await run(opened)
