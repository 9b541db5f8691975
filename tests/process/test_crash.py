"""kill -9 at random moments while clients send: what was acknowledged is there, once; what was not, at most once.

ROADSTEAD_TEST_CRASHES sets how often, over all parts; 100 by default.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import centrifuge
import pytest

from base.errors import RoadsteadError
from roadstead.api import call_api
from roadstead.client import Client, Incoming
from roadstead.local import System, UpProcess

pytestmark = [pytest.mark.process, pytest.mark.timeout(3_600), pytest.mark.usefixtures("goodbyes")]

CRASHES = int(os.environ.get("ROADSTEAD_TEST_CRASHES", "100"))
PARTS = 4
SENDERS = ("ann", "ben", "cid")
RECEIVER = "zoe"


@dataclass
class History:
    """What one sender did: every send that it ever began, and the acknowledgements that it got."""

    begun: list[str] = field(default_factory=list)
    acknowledged: dict[str, dict[str, Any]] = field(default_factory=dict)

    def next_id(self, user: str) -> str:
        """The unacknowledged send, to be retried under its own key, or a new one."""
        if self.begun and self.begun[-1] not in self.acknowledged:
            return self.begun[-1]
        self.begun.append(f"{user}-{len(self.begun)}")
        return self.begun[-1]


async def ignore(_incoming: Incoming) -> None:
    """Senders do not read."""


async def send_until_dead(system: System, user: str, history: History, first_ack: asyncio.Event) -> None:
    """Send one message after the other until the server is gone."""
    client = Client(system.scheduler, user=user, credential=system.data.secrets().api_key, on_message=ignore)
    try:
        await client.connect()
        while True:
            key = history.next_id(user)
            # One try of the SDK itself, without the wrapper's retries: the retry is after the restart.
            arguments = {"to": RECEIVER, "client_msg_id": key, "body": key}
            history.acknowledged[key] = await client.call("im.send", arguments)
            first_ack.set()
    except (RoadsteadError, centrifuge.CentrifugeError, OSError):
        return
    finally:
        await client.close()


async def round_of_sends(process: UpProcess, histories: dict[str, History], rng: random.Random) -> None:
    """Start, let everybody send, kill at a random moment after the first acknowledgement."""
    system = process.start()
    first_ack = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        senders = [tasks.create_task(send_until_dead(system, user, histories[user], first_ack)) for user in SENDERS]
        async with asyncio.timeout(20):
            await first_ack.wait()
        await asyncio.sleep(rng.uniform(0, 0.15))
        process.kill()
        # What is still waiting for an answer will not get one.
        for sender in senders:
            sender.cancel()


async def whole_timeline(system: System, user: str) -> list[dict[str, Any]]:
    """Every entry of a user's timeline, by pages."""
    url, key = next(iter(system.endpoints.im.values())), system.data.secrets().api_key
    entries: list[dict[str, Any]] = []
    while True:
        params = {"since": str(len(entries)), "limit": "500"}
        page = await call_api("GET", f"{url}/v1/users/{user}/timeline", credential=key, params=params)
        entries += page["entries"]
        if not page["has_more"]:
            return entries


def check(histories: dict[str, History], timelines: dict[str, list[dict[str, Any]]]) -> None:
    """The final state against what the senders saw."""
    received = timelines[RECEIVER]
    assert [entry["offset"] for entry in received] == list(range(1, len(received) + 1)), "offsets without a hole"
    for user, history in histories.items():
        mine = [entry["data"] for entry in received if entry["data"]["from"] == user]
        keys = [message["client_msg_id"] for message in mine]
        assert len(keys) == len(set(keys)), "nothing twice"
        assert set(keys) <= set(history.begun), "nothing that nobody sent"
        assert set(history.acknowledged) <= set(keys), "nothing acknowledged is lost"
        assert keys == [key for key in history.begun if key in set(keys)], "in the order of sending"
        assert [message["seq"] for message in mine] == list(range(1, len(mine) + 1)), "seq without a hole"
        for message in mine:
            place = history.acknowledged.get(message["client_msg_id"])
            assert place is None or (place["mid"], place["seq"]) == (message["mid"], message["seq"]), (
                "where it was said"
            )
        own = [entry["data"] for entry in timelines[user]]
        assert own == mine, "the sender's own timeline has the same messages"


@pytest.mark.parametrize("part", range(PARTS))
async def test_acknowledged_messages_survive_kill_nine_exactly_once(part: int, tmp_path: Path) -> None:
    """Seeded moments; the unacknowledged send of each sender is retried under its own key after each restart."""
    rng = random.Random(part)
    process = UpProcess(tmp_path / "data")
    histories = {user: History() for user in SENDERS}
    for _ in range(-(-CRASHES // PARTS)):
        await round_of_sends(process, histories, rng)
    try:
        system = process.start()
        timelines = {user: await whole_timeline(system, user) for user in (*SENDERS, RECEIVER)}
    finally:
        process.stop()
    check(histories, timelines)
    assert sum(len(history.acknowledged) for history in histories.values()) >= CRASHES // PARTS
