"""The status cluster as backends and operators ask it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from base.errors import BadRequest, LimitExceeded
from roadstead.api import call_api
from tests.system.conftest import Connect, System, eventually


async def statuses(system: System, users: list[str]) -> list[dict[str, object]]:
    url = next(iter(system.endpoints.status.values()))
    answer = await call_api("POST", f"{url}/v1/users/status", credential=system.key, body={"users": users})
    found = answer["statuses"]
    assert isinstance(found, list)
    return found


async def test_many_users_are_looked_up_at_once_in_the_order_asked(system: System, connect: Connect) -> None:
    """Whoever owns them: the answering node asks the owners."""
    online = [f"user-{n}" for n in range(20)]
    async with asyncio.TaskGroup() as tasks:
        for user in online:
            tasks.create_task(connect(user))
    asked = ["nobody", *online, "nobody-else", "user-3"]
    answer = await statuses(system, asked)
    assert [status["user"] for status in answer] == asked
    assert [status["state"] for status in answer] == ["offline", *["online"] * 20, "offline", "online"]


async def test_a_lookup_is_bounded_and_checked(system: System) -> None:
    """1,000 users are fine, one more is refused; an id over 128 bytes is named."""
    assert len(await statuses(system, [f"u{n}" for n in range(1_000)])) == 1_000
    with pytest.raises(LimitExceeded):
        await statuses(system, ["u"] * 1_001)
    with pytest.raises(BadRequest, match="128 bytes"):
        await statuses(system, ["é" * 65])


async def test_an_access_node_that_leaves_takes_its_users_offline(system: System, connect: Connect) -> None:
    """A closed socket without a goodbye from the client is seen at once by its access node."""
    client = await connect("alice")
    assert client.sdk._conn is not None
    await client.sdk.disconnect()

    async def gone() -> bool:
        return (await statuses(system, ["alice"]))[0]["state"] == "offline"

    await eventually(gone)


async def test_the_table_shows_every_partition_with_its_owner(system: System) -> None:
    """Three nodes of equal weight own 1,365 or 1,366 of 4,096 partitions each."""
    url = next(iter(system.endpoints.status.values()))
    table = await call_api("GET", f"{url}/v1/admin/status/table", credential=system.key)
    assert len(table["owners"]) == 4_096
    assert sorted(node["partitions"] for node in table["nodes"]) == [1_365, 1_365, 1_366]


async def test_the_commands_show_it(system: System, capsys: pytest.CaptureFixture[str]) -> None:
    """`roadstead status table`, for people and for programs."""
    from roadstead.cli import main

    def run(*arguments: str) -> str:
        main([*arguments, "--data", str(Path(system.data.path))])
        return capsys.readouterr().out

    shown = await asyncio.to_thread(run, "status", "table")
    assert "epoch 1, 4096 partitions, 3 nodes" in shown
    assert shown.count("of its share") == 3
    assert json.loads(await asyncio.to_thread(run, "status", "table", "--json"))["epoch"] == 1
