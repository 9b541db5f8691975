"""The session event feed of a whole system, as backends and operators read it; its corners are in tests/status."""

from __future__ import annotations

import asyncio
import json

import pytest

from roadstead.api import call_api
from roadstead.cli import main
from tests.system.conftest import Connect, System, eventually, said


async def read(system: System, cursor: str, **params: str) -> tuple[list[tuple[str, str]], str]:
    """All events after a cursor but the resyncs, and the cursor after them."""
    url = next(iter(system.endpoints.status.values()))
    told = []
    while True:
        page = await call_api("GET", f"{url}/v1/events", credential=system.key, params={"cursor": cursor, **params})
        cursor = page["cursor"]
        told += [(event["kind"], event["user"]) for event in page["events"] if event["kind"] != "resync"]
        if page["is_at_end"]:
            return told, cursor


async def test_stock_clients_come_and_go(system: System, connect: Connect) -> None:
    """Each is told once, from the cursor of before; what comes later, after the cursor of then."""
    _, cursor = await read(system, "")
    alice = await connect("alice")
    await connect("bob")
    told, later = await read(system, cursor)
    assert sorted(told) == [("connect", "alice"), ("connect", "bob")]
    await alice.sdk.disconnect()
    told, _ = await read(system, later, wait_ms="4000")
    assert told == [("disconnect", "alice")]


async def test_nobody_learns_whom_a_user_shows_the_status_to(
    system: System, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    """An audience is a list of other people."""
    client = await connect("alice")
    await client.sdk.rpc("presence.set", {"audience": {"mode": "listed", "users": ["bob"]}})

    async def is_told() -> bool:
        await asyncio.to_thread(main, ["status", "events", "--json", "--data", str(system.data.path)])
        out = capsys.readouterr().out
        assert "audience" not in out
        assert "bob" not in out
        return '"alice"' in out

    await eventually(is_told)


async def test_the_command_shows_who_is_there(
    system: System, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    """For people a line a session, for programs a line a page; the cursor goes on."""

    def run(*arguments: str) -> tuple[str, str]:
        main(["status", "events", *arguments, "--data", str(system.data.path)])
        captured = capsys.readouterr()
        return said(captured.out), captured.err

    client = await connect("alice", device="tablet", platform="android")

    async def is_shown() -> bool:
        out, _ = await asyncio.to_thread(run)
        return "alice  online  tablet (android) at access-" in out

    await eventually(is_shown)
    out, _ = await asyncio.to_thread(run, "--json")
    cursor = json.loads(out.splitlines()[-1])["cursor"]
    await client.sdk.disconnect()
    shown = ""

    async def has_gone() -> bool:
        nonlocal shown
        out, err = await asyncio.to_thread(run, "--cursor", cursor)
        shown = err
        return "disconnect  alice" in out

    await eventually(has_gone)
    assert shown.startswith("cursor: ")


def test_the_command_tells_what_is_wrong(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing runs there."""
    with pytest.raises(SystemExit):
        main(["status", "events", "--data", str(tmp_path)])
    assert capsys.readouterr().err.startswith("error: ")
