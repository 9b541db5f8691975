"""Settings that all nodes of one system must have alike: said by the first, compared by whoever comes later."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from base.clock import SystemClock
from base.core.registry import ServiceInstance
from base.errors import CasConflict, ConfigError
from base.registry.memory import MemoryRegistry
from roadstead.agreed import SECTIONS, agree, keep_agreed, publish_agreed, require_agreed
from roadstead.config import Config
from status.config import StatusConfig
from tests.support.wiped_registry import WipedRegistry

ROLES = ("status", "access")
STATUS = ("status",)


def having(**changed: object) -> Config:
    """A configuration with these settings of the status service."""
    return Config(status=msgspec.structs.replace(StatusConfig(lease_ms=3_000, device_policy="one"), **changed))


OURS = having()


@pytest.fixture
def registry() -> MemoryRegistry:
    return MemoryRegistry(SystemClock())


async def a_node_is_there(registry: MemoryRegistry) -> None:
    await registry.register(
        ServiceInstance(id="access-1", service="access", url="http://a", incarnation=1), ttl_ms=60_000
    )


async def test_a_node_with_the_settings_of_the_system_is_accepted(registry: MemoryRegistry):
    """Also where the rest differs, and where the system says less than this version asks, or nothing."""
    await require_agreed(registry, OURS, STATUS)
    await publish_agreed(registry, OURS)
    await a_node_is_there(registry)
    for config in (OURS, having(offline_grace_ms=1)):
        await require_agreed(registry, config, STATUS)
        await agree(registry, config, STATUS, roles=ROLES)
    await registry.put("settings/status", b'{"lease_ms": 3000, "of_a_later_version": 1}')
    await require_agreed(registry, OURS, STATUS)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lease_ms": 2_800}, "status.lease_ms is 2800 here and 3000 in the system; give"),
        ({"device_policy": "all"}, 'status.device_policy is "all" here and "one" in the system; give'),
        (
            {"lease_ms": 2_800, "device_winner": "oldest"},
            """status.lease_ms is 2800 here and 3000 in the system, status.device_winner is "oldest" here""",
        ),
    ],
)
async def test_a_node_with_other_settings_is_refused_in_one_line(
    registry: MemoryRegistry, changed: dict[str, object], said: str
):
    """Whatever differs is named, with both values; what the system says stays."""
    await publish_agreed(registry, Config())
    await publish_agreed(registry, OURS)  # the newest start counts
    await a_node_is_there(registry)
    for refusing in (
        require_agreed(registry, having(**changed), STATUS),
        agree(registry, having(**changed), STATUS, roles=ROLES),
    ):
        with pytest.raises(ConfigError) as refused:
            await refusing
        (line,) = refused.value.errors
        assert line.startswith(said)
        assert "\n" not in line
    await require_agreed(registry, OURS, STATUS)


async def test_the_first_node_says_what_the_system_has(registry: MemoryRegistry):
    """Of each section that it goes by; and again, once nobody is registered any more."""
    await agree(registry, OURS, SECTIONS, roles=ROLES)
    entries = (await registry.scan("settings/")).items
    assert [entry.key for entry in entries] == sorted(f"settings/{section}" for section in SECTIONS)
    other = having(lease_ms=2_800)
    await agree(registry, other, STATUS, roles=ROLES)
    with pytest.raises(ConfigError):
        await require_agreed(registry, OURS, STATUS)


async def test_whoever_is_second_compares_with_the_first(registry: MemoryRegistry, monkeypatch: pytest.MonkeyPatch):
    """Of two that find nothing said, one is told that the other was quicker, and looks again."""
    put = registry.put

    async def late(key: str, value: bytes, *, expect: int | None = None) -> int:
        monkeypatch.setattr(registry, "put", put)
        await agree(registry, having(lease_ms=2_800), STATUS, roles=ROLES)
        await a_node_is_there(registry)
        with pytest.raises(CasConflict):
            await put(key, value, expect=expect)
        raise CasConflict(key)

    monkeypatch.setattr(registry, "put", late)
    with pytest.raises(ConfigError, match=r"status\.lease_ms is 3000 here and 2800 in the system"):
        await agree(registry, OURS, STATUS, roles=ROLES)


async def test_a_registry_that_lost_the_settings_gets_them_back_from_who_runs():
    """Or the next node with others would say what is right, and nobody would compare."""
    registry = WipedRegistry(SystemClock())
    await agree(registry, OURS, STATUS, roles=ROLES)
    said = await registry.get("settings/status")
    keeping = asyncio.create_task(keep_agreed(registry, SystemClock(), OURS, STATUS))
    try:
        async with asyncio.timeout(5):
            await asyncio.sleep(0.01)
            await registry.start_over()
            while (again := await registry.get("settings/status")) is None:  # noqa: ASYNC110 - another task writes it
                await asyncio.sleep(0.005)
        assert said is not None
        assert again.value == said.value
        with pytest.raises(ConfigError):
            await require_agreed(registry, having(lease_ms=9_000), STATUS)
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
