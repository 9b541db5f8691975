"""A resize between nodes of which two reach all others and not each other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from base.ids import NodeId
from roadstead.api import call_api
from status.core import patience
from status.core.handoff import Pull
from status.core.partitions import Stage
from status.member import Member
from tests.system.conftest import Connect, System, eventually, running

SOURCE, TARGET = NodeId("status-1"), NodeId("status-4")
REST_MS = 3_000
"""Longer than any patience, as in production: else what began apart is never over at once."""


class Apart:
    """While it is set, and from the given stage of a move on, the target's questions do not reach the source."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
        self.is_set = True
        self.is_reached = False
        pull = Member._pull

        async def pull_unless_apart(member: Member, source: NodeId, pulls: list[Pull]) -> bool:
            table = member._table.table
            if table is not None and (source, member._node) == (SOURCE, TARGET):
                pairs = [move for move in table.moves if (move.source, move.target) == (SOURCE, TARGET)]
                self.is_reached = self.is_reached or any(move.stage is stage for move in pairs)
                if self.is_set and self.is_reached:
                    return False
            return await pull(member, source, pulls)

        monkeypatch.setattr(Member, "_pull", pull_unless_apart)


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    async with running(tmp_path / "data") as made:
        yield made


@pytest.mark.parametrize("stage", [Stage.COPY, Stage.SEAL])
async def test_they_hold_up_nobody(
    system: System, connect: Connect, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    """Their moves are rolled back, all others are made; nobody stays unknown; later theirs are made as well."""
    monkeypatch.setattr(patience, "_PATIENCE_MS", {Stage.COPY: 1_500, Stage.CATCHUP: 1_500, Stage.SEAL: 700})
    monkeypatch.setattr(patience, "REST_MS", REST_MS)
    apart = Apart(monkeypatch, stage)
    users = [f"user-{number}" for number in range(20)]
    for user in users:
        await connect(user)
    url = next(iter(system.endpoints.status.values()))

    async def ask(method: str, what: str, body: Any = None) -> Any:
        return await call_api(method, f"{url}/v1/{what}", credential=system.key, body=body)

    async def all_are_online() -> bool:
        found = await ask("POST", "users/status", {"users": users})
        return {status["state"] for status in found["statuses"]} == {"online"}

    async def others_are_done() -> bool:
        table = await ask("GET", "admin/status/table")
        nodes = {node["node"]: node for node in table["nodes"]}
        still = [move for move in table["moves"] if (move["source"], move["target"]) != (SOURCE, TARGET)]
        there = all(
            nodes[node]["partitions"] == nodes[node].get("wanted_partitions") for node in ("status-2", "status-3")
        )
        return apart.is_reached and there and not still

    async def nothing_moves() -> bool:
        return not (await ask("GET", "admin/status/table"))["moves"]

    async def is_done() -> bool:
        return bool((await ask("GET", "admin/status/resize"))["is_done"])

    await ask("POST", "admin/status/resize", {"to": 4})
    await eventually(others_are_done)
    await eventually(nothing_moves)
    assert await all_are_online()
    assert (await ask("GET", "admin/status/resize"))["left"] > 0
    apart.is_set = False
    await eventually(is_done)
    assert await all_are_online()
