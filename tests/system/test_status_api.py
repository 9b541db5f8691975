"""The status cluster as backends and operators ask it."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any, cast

import pytest

from base.errors import BadRequest, LimitExceeded, PeerUnavailable
from roadstead.api import call_api
from tests.system.conftest import Connect, System, eventually, said


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


async def test_operators_see_how_many_are_online_and_who_is_behind_a_node(
    system: System, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    """`roadstead status count` and `roadstead status sessions`, for people and for programs."""
    from roadstead.cli import main

    users = [f"user-{n}" for n in range(6)]
    for user in users:
        await connect(user)
    behind: dict[str, set[str]] = {}
    for status in await statuses(system, users):
        (session,) = cast("list[dict[str, str]]", status["sessions"])
        behind.setdefault(session["node"], set()).add(str(status["user"]))
    node, there = max(behind.items(), key=lambda item: len(item[1]))

    async def run(*arguments: str) -> tuple[str, str]:
        await asyncio.to_thread(main, ["status", *arguments, "--data", str(system.data.path)])
        captured = capsys.readouterr()
        return said(captured.out), captured.err

    async def is_counted() -> bool:
        return bool(json.loads((await run("count", "--json"))[0])["is_exact"])

    await eventually(is_counted)
    rows = [line.split() for line in (await run("count"))[0].splitlines()]
    assert rows[0] == ["access", "node", "users", "sessions"]
    assert [node, str(len(there)), str(len(there))] in rows
    assert rows[-1] == ["all", "6", "6"]

    listing, errors = await run("sessions", "--node", node)
    lines = listing.splitlines()
    assert {line.split()[0] for line in lines[1:-1]} == there
    assert (lines[-1], errors) == (f"{len(there)} sessions of {len(there)} users behind {node}", "")
    (page,) = (json.loads(line) for line in (await run("sessions", "--node", node, "--json"))[0].splitlines())
    assert ({session["user"] for session in page["sessions"]}, page["cursor"]) == (there, None)

    listing, errors = await run("sessions", "--node", "access-77")
    assert listing.splitlines()[-1] == "0 sessions of 0 users behind access-77"
    assert errors == "no access node access-77 is registered now\n"


async def test_what_is_not_all_is_said_and_exits_with_one(
    system: System, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A status node does not answer: its partitions are not listed, and the count is too low."""
    from base.peer.client import PeerClient
    from roadstead.cli import main
    from status.peers import COUNT, SESSIONS

    call = PeerClient.call

    async def cut(self: PeerClient, method: Any, request: Any, **options: Any) -> Any:
        if method in {COUNT, SESSIONS} and self.peer == "status-2":
            raise PeerUnavailable("no stream")
        return await call(self, method, request, **options)

    monkeypatch.setattr(PeerClient, "call", cut)
    data = ["--data", str(system.data.path)]
    await asyncio.to_thread(main, ["status", "count", *data])
    assert re.search(
        "did not answer: status-2\nat least so many: only 27[0-9]{2} partitions were counted", capsys.readouterr().out
    )
    with pytest.raises(SystemExit) as ended:
        await asyncio.to_thread(main, ["status", "sessions", "--node", "access-1", *data])
    assert ended.value.code == 1
    assert re.search(
        "did not answer: status-2\n13[0-9]{2} partitions are not, or not completely, listed", capsys.readouterr().err
    )


async def test_the_commands_show_it(system: System, capsys: pytest.CaptureFixture[str]) -> None:
    """`roadstead status table`, for people and for programs."""
    from roadstead.cli import main

    def run(*arguments: str) -> str:
        main([*arguments, "--data", str(Path(system.data.path))])
        return said(capsys.readouterr().out)

    shown = await asyncio.to_thread(run, "status", "table")
    assert "epoch 1, 4096 partitions, 3 nodes" in shown
    assert shown.count("of its share") == 3
    assert json.loads(await asyncio.to_thread(run, "status", "table", "--json"))["epoch"] == 1
