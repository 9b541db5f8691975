"""Views of real services: whatever a conversation's fan-out, and whatever was lost, all devices show its log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from access.api import Deliver, Delivered
from access.config import AccessConfig
from access.inboxes import Inboxes
from base.errors import RoadsteadError
from im.config import ImConfig
from roadstead.client import Client, Incoming, Position
from roadstead.client.viewer import Update
from roadstead.config import Config
from tests.system.client_application import becomes
from tests.system.conftest import System, running


class Device:
    """A user's device that shows its view."""

    def __init__(self, system: System, user: str, device: str = "phone", position: Position | None = None) -> None:
        self.user = user
        self.told: list[Incoming] = []
        self.updates: list[Update] = []
        self.ends: list[RoadsteadError] = []
        self.client = Client(
            system.scheduler,
            user=user,
            credential=system.key,
            device=device,
            position=position,
            on_message=self._take,
            on_end=self.ends.append,
            on_update=self.updates.append,
        )

    async def _take(self, incoming: Incoming) -> None:
        self.told.append(incoming)

    def rows(self, cid: str) -> list[Any]:
        conversation = self.client.view.conversation(cid)
        return [row.data["body"] for row in conversation.rows()] if conversation is not None else []

    def texts(self, cid: str) -> list[Any]:
        """Bodies of messages, None for what was recalled."""
        conversation = self.client.view.conversation(cid)
        rows = conversation.rows() if conversation is not None else []
        return [row.data["body"] for row in rows if row.data["kind"] == "message"]

    async def shows(self, cid: str, *texts: Any) -> None:
        await becomes(lambda: self.texts(cid) == list(texts))


class Devices:
    """Connects devices, and closes them at the end."""

    def __init__(self, system: System, stack: AsyncExitStack) -> None:
        self._system = system
        self._stack = stack

    async def __call__(self, user: str, device: str = "phone", position: Position | None = None) -> Device:
        made = Device(self._system, user, device, position)
        self._stack.push_async_callback(made.client.close)
        await made.client.connect()
        return made


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as made:
        yield made


async def begin(stack: AsyncExitStack, folder: Path, preset: Any) -> Devices:
    config = Config(im=ImConfig(preset=preset), access=AccessConfig(audit_interval_ms=500))
    return Devices(await stack.enter_async_context(running(folder / "data", config)), stack)


async def all_show(devices: Iterable[Device], cid: str, *texts: Any) -> None:
    for device in devices:
        await device.shows(cid, *texts)


@pytest.mark.spec("CC-05", "MD-04")
async def test_all_devices_of_a_chat_show_the_same(tmp_path: Path, stack: AsyncExitStack) -> None:
    """With write fan-out: edits, recalls, what is read elsewhere, and a device that begins or comes back later."""
    devices = await begin(stack, tmp_path, "hybrid")
    ann, bob, tablet = await devices("ann"), await devices("bob"), await devices("bob", "tablet")
    cid = (await ann.client.send("bob", "one"))["cid"]
    await ann.client.send(cid=cid, body="two")
    await all_show((ann, bob, tablet), cid, "one", "two")
    kept = tablet.client.position
    await tablet.client.close()
    await ann.client.send("bob", "three")
    await ann.client.edit(cid, 1, "first")
    await ann.client.recall(cid, 2)
    await all_show((ann, bob), cid, "first", None, "three")
    assert (ann.client.view.total_unread(), bob.client.view.total_unread()) == (0, 2)
    late, again = await devices("bob", "laptop"), await devices("bob", "tablet", kept)
    late.client.open_window(cid)
    again.client.open_window(cid)
    await all_show((late, again), cid, "first", None, "three")
    await becomes(lambda: (late.client.view.total_unread(), again.client.view.total_unread()) == (2, 2))
    assert (await bob.client.unread())["total"] == 2
    await bob.client.mark_read(cid, 3)
    await becomes(lambda: late.client.view.total_unread() + again.client.view.total_unread() == 0)
    await bob.client.send("ann", "four")
    await all_show((ann, bob, late, again), cid, "first", None, "three", "four")
    found = await bob.client.search(cid, "three")
    assert [entry["body"] for entry in found["entries"]] == ["three"]


@pytest.mark.spec("PP-03", "MD-02")
async def test_where_entries_are_only_pushed_nothing_that_is_lost_stays_lost(
    tmp_path: Path, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last push of every conversation is dropped: the sync version, passed on by the node, shows that."""
    deliver, losses = Inboxes.deliver, [0]

    def lossy(self: Inboxes, told: Deliver, peer: str) -> Delivered:
        kept = [entry for entry in told.entries if entry.offset or not losses[0]]
        losses[0] += len(told.entries) - len(kept) if losses[0] else 0
        return deliver(self, Deliver(told.epoch, kept), peer)

    monkeypatch.setattr(Inboxes, "deliver", lossy)
    devices = await begin(stack, tmp_path, "qq")
    ann, bob = await devices("ann"), await devices("bob")
    group = (await ann.client.create_group("three", ["bob", "cat"]))["cid"]
    single = (await ann.client.send("bob", 1))["cid"]
    await ann.client.send(cid=group, body=1)
    for cid in (group, single):
        await all_show((ann, bob), cid, 1)
    losses[0] = 1
    for cid in (group, single):
        await ann.client.send(cid=cid, body=2)
    for cid in (group, single):
        await all_show((ann, bob), cid, 1, 2)
    assert losses[0] > 2
    losses[0] = 0
    await bob.client.send(cid=group, body=3)
    await bob.client.send("ann", 3)
    for cid in (group, single):
        await all_show((ann, bob), cid, 1, 2, 3)
    assert (ann.client.view.total_unread(), bob.client.view.total_unread()) == (2, 0)


@pytest.mark.spec("CC-04")
async def test_a_large_group_is_followed_until_one_is_put_out(tmp_path: Path, stack: AsyncExitStack) -> None:
    """Over its own channel; from the next entry on nothing is told, and by history neither."""
    devices = await begin(stack, tmp_path, "dingtalk")
    ann, bob = await devices("ann"), await devices("bob")
    members = ["bob", *(f"member-{number}" for number in range(109))]
    cid = (await ann.client.create_group("many", members))["cid"]
    channel = f"conv:{cid}"
    await becomes(lambda: all(device.client.positions.get(channel, Position()).epoch for device in (ann, bob)))
    for number in range(3):
        await ann.client.send(cid=cid, body=number)
    await all_show((ann, bob), cid, 0, 1, 2)
    assert bob.client.view.total_unread() == 3
    again = await devices("bob", "tablet")
    again.client.open_window(cid)
    await again.shows(cid, 0, 1, 2)
    await ann.client.change_group(cid, "kick", users=["bob"])
    await ann.client.send(cid=cid, body="among us")
    await ann.shows(cid, 0, 1, 2, "among us")
    for device in (bob, again):
        await becomes(lambda: channel not in device.client.positions)  # noqa: B023
        assert device.texts(cid) == [0, 1, 2]
        assert device.rows(cid)[-1]["event"] == "kick"
        assert device.client.view.total_unread() == 0
        assert device.ends == []
    document = await bob.client.history(cid, after=0)
    assert [entry["body"] for entry in document["entries"] if entry["kind"] == "message"] == [0, 1, 2]
    await ann.client.change_group(cid, "invite", users=["bob"])
    await ann.client.send(cid=cid, body="welcome back")
    await bob.shows(cid, 0, 1, 2, "welcome back")
