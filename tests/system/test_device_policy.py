"""How many devices of a user may be connected, and which of them has to go."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import centrifuge
import pytest

from tests.system.conftest import SETTLE_S, System, eventually
from tests.system.test_presence import connected


@pytest.mark.spec("CC-05")
async def test_a_second_device_closes_the_first(tmp_path: Path) -> None:
    """Policy `one`, the newest wins: 3503, and an SDK does not come back."""
    async with connected(tmp_path / "data", device_policy="one") as (system, connect):
        first = await connect("bob", platform="ios", candidate=0)
        second = await connect("bob", platform="web", candidate=1)
        async with asyncio.timeout(SETTLE_S):
            assert (await first.disconnected).code == 3503
        await eventually(lambda: _has_devices(system, "bob", "web"))
        assert not second.disconnected.done()


@pytest.mark.spec("CC-05")
async def test_one_device_of_each_platform_may_stay(tmp_path: Path) -> None:
    """Policy `one_per_platform`: a phone does not close a browser."""
    async with connected(tmp_path / "data", device_policy="one_per_platform") as (system, connect):
        web, old = await connect("bob", platform="web"), await connect("bob", platform="ios")
        await connect("bob", platform="ios")
        async with asyncio.timeout(SETTLE_S):
            assert (await old.disconnected).code == 3503
        await eventually(lambda: _has_devices(system, "bob", "ios", "web"))
        assert not web.disconnected.done()


async def test_the_oldest_may_be_the_one_that_stays(tmp_path: Path) -> None:
    """Then the newcomer is closed."""
    async with connected(tmp_path / "data", device_policy="one", device_winner="oldest") as (system, connect):
        first = await connect("bob", platform="ios")
        with contextlib.suppress(centrifuge.ClientDisconnectedError):
            await connect("bob", platform="web")
        second = connect.clients[-1]
        async with asyncio.timeout(SETTLE_S):
            assert (await second.disconnected).code == 3503
        await eventually(lambda: _has_devices(system, "bob", "ios"))
        assert not first.disconnected.done()


@pytest.mark.spec("CC-05")
async def test_any_number_of_devices_may_stay_by_default(tmp_path: Path) -> None:
    """Policy `all`."""
    async with connected(tmp_path / "data") as (system, connect):
        for number in range(4):
            await connect("bob", platform="ios", device=str(number))
        assert len((await system.status("bob"))["sessions"]) == 4


async def _has_devices(system: System, user: str, *platforms: str) -> bool:
    return sorted(one["platform"] for one in (await system.status(user))["sessions"]) == list(platforms)
