"""One user of the replay: a stock client on each of its devices, which does what the plan says and notes what it sees.

A device connects as any application does: `roadstead.Client`, which is the stock SDK with the way in around it. It asks
a scheduler for an access node, follows the user's timeline on from where it was, and makes calls again, with the same
id, until they are answered. What a device is given is noted as it comes, unsorted, and with whatever comes twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import centrifuge

from base.core.backoff import Backoff
from base.errors import RoadsteadError
from base.ids import entropy
from roadstead.api import ambient
from roadstead.client import Client, Incoming, Position
from roadstead.replay.core.plan import Message, Person, Step, Stretch
from roadstead.replay.core.proof import Entry, Place, Shown, Unread, digest
from roadstead.replay.doors import Doors
from roadstead.replay.lookups import Lookups
from roadstead.replay.notebook import Notebook

__all__ = ["Actor", "Device"]

PAGE = 500
AGAIN_CEILING_MS = 2_000

FAILURES = (RoadsteadError, centrifuge.CentrifugeError, TimeoutError, OSError)
"""What a call may end with that is to be made again."""


class Device:
    """A device that comes and goes, and knows how far it has read."""

    def __init__(
        self, name: str, user: str, doors: Doors, notes: Notebook, *, on_entry: Callable[[Entry], None]
    ) -> None:
        self.name = name
        self.entries: list[Entry] = []
        """The messages that it was given, in the order in which they came."""
        self._user = user
        self._doors = doors
        self._notes = notes
        self._on_entry = on_entry
        self._position = Position()
        self._client: Client | None = None
        self._connected = asyncio.Event()
        self._is_over = asyncio.Event()
        self._since_ms: int | None = None
        self._given = asyncio.Event()

    @asynccontextmanager
    async def there(self) -> AsyncIterator[None]:
        """Be connected, again and again, until the block ends. It begins without waiting for the first time."""
        async with asyncio.TaskGroup() as tasks:
            staying = tasks.create_task(self._stay())
            try:
                yield
            finally:
                staying.cancel()

    async def client(self) -> Client:
        """Return the connected client, when there is one."""
        await self._connected.wait()
        assert self._client is not None
        return self._client

    async def until_given(self, count: int) -> None:
        """Return when it was given so many messages."""
        while len(self.entries) < count:
            self._given.clear()
            await self._given.wait()

    async def _stay(self) -> None:
        backoff = Backoff(entropy(), ceiling_ms=AGAIN_CEILING_MS)
        while True:
            with suppress(*FAILURES):
                await self._stay_connected()
                backoff.reset()
            await asyncio.sleep(backoff.next_ms() / 1_000)

    async def _stay_connected(self) -> None:
        """Return when the client says that it will not connect any more."""
        self._is_over.clear()
        client = self._client = self._new_client()
        try:
            await client.connect()
            self._changed(1)
            self._connected.set()
            await self._is_over.wait()
            self._notes.happened.ends += 1
        except asyncio.CancelledError:
            await client.close()
            raise
        finally:
            self._position = client.position
            if self._connected.is_set():
                self._connected.clear()
                self._changed(-1)

    def _changed(self, change: int) -> None:
        now_ms = self._notes.now_ms()
        self._since_ms = now_ms if change > 0 else None
        self._notes.happened.presence.append((now_ms, change))

    def _new_client(self) -> Client:
        return Client(
            self._doors.scheduler_of(self._user),
            user=self._user,
            device=self.name,
            credential=self._doors.credential,
            on_message=self._take,
            on_end=lambda _error: self._is_over.set(),
            position=self._position,
            tls=ambient(),
        )

    async def _take(self, incoming: Incoming) -> None:
        data = incoming.data
        if incoming.is_start or data["kind"] != "message":
            return
        entry = _entry(data)
        self.entries.append(entry)
        self._notes.given(entry, to=self._user, since_ms=self._since_ms)
        self._on_entry(entry)
        self._given.set()


class Actor:
    """A user who follows its script."""

    def __init__(self, person: Person, doors: Doors, notes: Notebook, *, lookups: Lookups, in_flight: int) -> None:
        self.person = person
        self.devices = [Device(name, person.user, doors, notes, on_entry=self._note) for name in person.devices]
        self._notes = notes
        self._lookups = lookups
        self._in_flight = in_flight
        self._places: dict[str, Place] = {}
        """Of the messages that any of the devices has, or sent."""
        self._waiting: dict[str, asyncio.Future[Place]] = {}

    async def run(self) -> None:
        """Come and go, and do what there is to do, to the end of the script."""
        for number, stretch in enumerate(self.person.stretches):
            await self._notes.until(stretch.begin_ms)
            async with self._together(self.devices if number % 2 else self.devices[:1]):
                await self._do_all(stretch)
                await self._notes.until(stretch.end_ms)

    async def close(self, *, expected: int, give_up: float) -> None:
        """Come once more with all devices, until each was given `expected` messages.

        Note what is unread meanwhile, what the history of its conversations has, and what is said of the user.
        `give_up`: when to leave in any case, by the event loop's time; what is missing then is found by the proof.
        """
        async with self._together(self.devices):
            with suppress(TimeoutError):
                async with asyncio.timeout_at(give_up):
                    await self._ask()
                    for device in self.devices:
                        await device.until_given(expected)
                    online = Shown("online", tuple(sorted(self.person.devices)))
                    self._notes.seen.there |= await self._lookups.look_up({self.person.user: online})

    @asynccontextmanager
    async def _together(self, devices: list[Device]) -> AsyncIterator[None]:
        if not devices:
            yield
            return
        async with devices[0].there(), self._together(devices[1:]):
            yield

    # ---------------------------------------------------------------- the script

    async def _do_all(self, stretch: Stretch) -> None:
        room = asyncio.Semaphore(self._in_flight)
        async with asyncio.TaskGroup() as tasks:
            for step in stretch.steps:
                await self._notes.until(step.at_ms)
                await room.acquire()
                tasks.create_task(self._do(step)).add_done_callback(lambda _task: room.release())

    async def _do(self, step: Step) -> None:
        if step.reads is not None:
            read = await self._has(step.reads.key)
            await self._answered(lambda client: client.mark_read(str(read.cid), read.seq))
        if step.message is not None:
            await self._send(step.message)

    async def _send(self, message: Message) -> None:
        if message.after:
            await self._has(message.after)
        began_ms = self._notes.begun(message)
        answer = await self._answered(
            lambda client: client.send(message.to, message.text, client_msg_id=message.key),
        )
        place = Place(int(answer["cid"]), answer["seq"], int(answer["mid"]))
        self._notes.acknowledged(message, place, began_ms)
        self._knows(message.key, place)

    async def _answered(self, call: Callable[[Client], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """Call until there is an answer. What is refused is asked for again, too: nothing here should be."""
        backoff = Backoff(entropy(), ceiling_ms=AGAIN_CEILING_MS)
        while True:
            client = await self.devices[0].client()
            try:
                return await call(client)
            except FAILURES:
                self._notes.happened.unknown += 1
            await asyncio.sleep(backoff.next_ms() / 1_000)

    # ---------------------------------------------------------------- what it knows

    async def _has(self, key: str) -> Place:
        """Return where a message is, once a device was given it."""
        if key not in self._places:
            future = self._waiting.setdefault(key, asyncio.get_running_loop().create_future())
            await asyncio.shield(future)
        return self._places[key]

    def _note(self, entry: Entry) -> None:
        self._knows(entry.key, entry.place)

    def _knows(self, key: str, place: Place) -> None:
        self._places[key] = place
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            waiting.set_result(place)

    # ---------------------------------------------------------------- what it asks in the end

    async def _ask(self) -> None:
        told = await self._answered(lambda client: client.unread())
        counts = {int(one["cid"]): one["unread"] for one in told["conversations"]}
        self._notes.seen.unread[self.person.user] = Unread(told["total"], counts)
        for cid in await self._conversations():
            if self._notes.is_to_read(cid):
                self._notes.seen.logs[cid] = await self._history(cid)

    async def _conversations(self) -> list[int]:
        cids: list[int] = []
        after = ""
        while True:
            page = await self._answered(partial(_list_page, after=after))
            cids += [int(one["cid"]) for one in page["conversations"]]
            after = page["next"]
            if not after:
                return cids

    async def _history(self, cid: int) -> list[Entry]:
        log: list[Entry] = []
        has_more = True
        while has_more:
            after = log[-1].place.seq if log else 0
            page = await self._answered(partial(_page, cid=cid, after=after))
            log += [_entry(data) for data in page["entries"]]
            has_more = bool(page["entries"]) and log[-1].place.seq < page["head"]
        return log


def _list_page(client: Client, *, after: str) -> Awaitable[dict[str, Any]]:
    return client.conversations(limit=PAGE, after=after)


def _page(client: Client, *, cid: int, after: int) -> Awaitable[dict[str, Any]]:
    return client.history(str(cid), after=after, limit=PAGE)


def _entry(data: dict[str, Any]) -> Entry:
    """Return a message as it is noted, from a publication or from a page of a history."""
    place = Place(int(data["cid"]), data["seq"], int(data["mid"]))
    return Entry(place, data["client_msg_id"], data["from"], digest(str(data["body"])))
