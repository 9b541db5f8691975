"""Histories of a cluster's channels: nodes are killed, added, drained and restarted under clients that keep on.

Each seed is one history of the real code on simulated time and network (`channel_cluster`). Checked in all of them:

    H1  No two publications have the same offset in the same epoch, whoever saw them.
    H2  A client sees every offset of an epoch from where it began, in order, each once, until it is told to start over.
    H3  When the faults are over, every channel takes publications, and every client gets them.

and where at most one node dies at a time:

    H4  What was acknowledged is in the history at the end, in the order of its offsets, each once.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any

import msgspec
import pytest

from access.core.custody import Custody, Forgotten
from access.core.feed import Feed, News
from access.core.holding import Holding
from access.core.namespaces import ChannelSettings, Namespace
from access.core.placement import View
from access.core.protocol import HistoryResult, SubscribeRequest, SubscribeResult
from access.peers import Place, Replicate, Replicated
from base.clock import Instant
from base.errors import RoadsteadError
from tests.access.channel_cluster import Cluster, FakeMember, SimNode, simulate

SEEDS = range(int(os.environ.get("CHANNEL_HISTORIES", "120")))
SEEDS_TO_CATCH = range(80)
SEEDS_TO_CROWD = range(10)
NAMES = ("a", "b", "c", "d", "e")
CHANNELS = ("x", "y", "z")
CHAOS_S = 14.0
SPARE_S = 5.0
"""Time in which a channel has two copies again after a node died."""
NAMESPACE = Namespace(
    history_size=10_000,
    force_recovery=True,
    presence=True,
    join_leave=True,
    allow_subscribe="anyone",
    allow_publish="anyone",
    allow_history="anyone",
    allow_presence="anyone",
)
MADE_UP = Namespace(
    name="made-up",
    history_size=10,
    history_ttl_ms=1_000,
    force_recovery=True,
    allow_subscribe="anyone",
    allow_publish="anyone",
    allow_history="anyone",
)


class Violated(AssertionError):
    """An invariant does not hold."""


class World:
    """What all clients saw together."""

    def __init__(self) -> None:
        self.data: dict[tuple[str, str, int], Any] = {}
        self.acknowledged: dict[str, list[str]] = {channel: [] for channel in CHANNELS}
        self.counts: Counter[str] = Counter()

    def saw(self, channel: str, epoch: str, offset: int, data: Any) -> None:
        known = self.data.setdefault((channel, epoch, offset), data)
        if known != data:
            raise Violated(f"H1: {channel} {epoch}:{offset} is {known} and {data}")


class SimClient:
    """An SDK, as dumb as can be: it subscribes to all channels, and comes back with its positions."""

    def __init__(self, number: int, cluster: Cluster, world: World, random: Random) -> None:
        self.name = f"client{number}"
        self.cluster = cluster
        self.world = world
        self.random = random
        self.lives = 0
        self.node: SimNode | None = None
        self.member: FakeMember | None = None
        self.positions: dict[str, tuple[str, int]] = {}
        self.subscribed: set[str] = set()
        self.published = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.failure: BaseException | None = None

    def spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.ended)

    def ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.failure = task.exception()

    def connect(self) -> None:
        """Go to a live node that does not drain."""
        staying = [name for name in self.cluster.nodes if not self.cluster.registered[name].is_draining]
        self.node = self.cluster.nodes[self.random.choice(sorted(staying or self.cluster.nodes))]
        self.lives += 1
        self.member = FakeMember(f"{self.name}/{self.lives}", self.name)
        self.member.connection.on_push = partial(self.pushed, self.lives)
        self.subscribed.clear()
        for channel in CHANNELS:
            self.spawn(self.subscribe(channel, self.lives))

    async def live(self, ends_at: float) -> None:
        """Publish, and connect again when the node is gone or drains, until the time is over."""
        loop = asyncio.get_running_loop()
        while loop.time() < ends_at:
            self.look_after_node()
            self.spawn(self.publish(self.random.choice(CHANNELS)))
            await asyncio.sleep(self.random.random() * 0.4)

    def look_after_node(self) -> None:
        node = self.node
        is_there = node is not None and self.cluster.nodes.get(node.name) is node
        if node is None or not is_there:
            self.connect()
        elif self.cluster.registered[node.name].is_draining and self.random.random() < 0.1:
            assert self.member is not None
            node.channels.gone(self.member)
            self.connect()

    def is_life(self, life: int) -> bool:
        return life == self.lives and self.node is not None and self.cluster.nodes.get(self.node.name) is self.node

    async def subscribe(self, channel: str, life: int) -> None:
        while self.is_life(life):
            assert self.node is not None
            assert self.member is not None
            epoch, offset = self.positions.get(channel, ("", 0))
            try:
                result = await self.node.channels.subscribe(
                    self.member,
                    SubscribeRequest(channel, recover=channel in self.positions, epoch=epoch, offset=offset),
                )
            except RoadsteadError:
                await asyncio.sleep(0.05)
                continue
            if not isinstance(result, SubscribeResult):
                raise Violated(f"{self.name} subscribes to {channel}: {result}")
            if self.random.random() < 0.5:
                await asyncio.sleep(self.random.random() * 0.1)  # as when other channels are subscribed with it
            if not self.is_life(life):
                return
            self.started(channel, result)
            self.node.channels.subscribed(self.member, channel, result)
            return

    def started(self, channel: str, result: SubscribeResult) -> None:
        self.world.counts["starts"] += 1
        self.subscribed.add(channel)
        if result.recovered:
            self.world.counts["recovered"] += 1
            for publication in result.publications:
                self.got(channel, result.epoch, publication.offset, msgspec.json.decode(publication.data))
            if (result.epoch, result.offset) != self.positions[channel]:
                raise Violated(f"H2: {self.name} recovered {channel} up to {self.positions[channel]} of {result}")
        elif result.was_recovering:
            self.world.counts["not recovered"] += 1
        self.positions[channel] = result.epoch, result.offset

    def got(self, channel: str, epoch: str, offset: int, data: Any) -> None:
        at_epoch, at = self.positions[channel]
        if (epoch, offset) != (at_epoch or epoch, at + 1):
            raise Violated(f"H2: {self.name} at {channel} {at_epoch}:{at} got {epoch}:{offset}")
        self.positions[channel] = epoch, offset
        self.world.saw(channel, epoch, offset, data)
        self.world.counts["got"] += 1

    def pushed(self, life: int, push: dict[str, Any]) -> None:
        if not self.is_life(life):
            return
        try:
            self.take(push["channel"], push, life)
        except Violated as violation:  # not into the code that wrote it
            self.failure = self.failure or violation

    def take(self, channel: str, push: dict[str, Any], life: int) -> None:
        if "unsubscribe" in push:
            self.world.counts["started over"] += 1
            self.subscribed.discard(channel)
            self.spawn(self.subscribe(channel, life))
        elif "pub" in push:
            if channel not in self.subscribed:
                raise Violated(f"H2: {self.name} got a publication of {channel}, which it is not subscribed to")
            self.got(channel, self.positions[channel][0], push["pub"]["offset"], push["pub"]["data"])

    async def publish(self, channel: str) -> None:
        self.published += 1
        data = f"{self.name}-{self.published}"
        assert self.node is not None
        assert self.member is not None
        try:
            error = await self.node.publish(self.member, channel, msgspec.json.encode(data))
        except RoadsteadError:
            self.world.counts["refused"] += 1
            return
        if error is None:
            self.world.counts["acknowledged"] += 1
            self.world.acknowledged[channel].append(data)
        else:
            self.world.counts["unknown"] += 1


class History:
    """One seed."""

    def __init__(self, seed: int, *, is_wild: bool, is_crowded: bool = False) -> None:
        """Crowded: nodes own few channels, and somebody makes up others."""
        self.seed = seed
        self.is_wild = is_wild
        self.is_crowded = is_crowded
        self.random = Random(seed)
        self.world = World()

    async def run(self) -> Counter[str]:
        settings = ChannelSettings(streams_max=len(CHANNELS) + 1 if self.is_crowded else 1_000)
        self.cluster = cluster = Cluster(NAMESPACE, MADE_UP, settings=settings, seed=self.seed)
        random, loop = self.random, asyncio.get_running_loop()
        cluster.start(*NAMES[: random.randint(1, 4)])
        cluster.view_late_s = random.choice((0.0, 0.05, 0.5))
        cluster.net.late_permille = random.choice((0, 20, 100))
        cluster.net.lost_permille = random.choice((0, 0, 5, 20))
        cluster.net.twice_permille = random.choice((0, 30))
        clients = [SimClient(number, cluster, self.world, random) for number in range(random.randint(2, 5))]
        ends_at = loop.time() + CHAOS_S
        lives = [loop.create_task(client.live(ends_at)) for client in clients]
        if self.is_crowded:
            lives.append(loop.create_task(self.make_up_channels(ends_at)))
        await self.disturb(ends_at)
        cluster.net.late_permille = cluster.net.lost_permille = cluster.net.twice_permille = 0
        cluster.net.cut.clear()
        await asyncio.wait(lives)
        for life in lives:
            life.result()
        await self.settle(clients)
        await self.check(clients)
        await cluster.stop()
        return self.world.counts

    async def disturb(self, ends_at: float) -> None:
        loop = asyncio.get_running_loop()
        next_death = loop.time() + 1.0
        while loop.time() < ends_at:
            await asyncio.sleep(self.random.random() * (0.7 if self.is_wild else 1.2))
            live = sorted(self.cluster.nodes)
            absent = sorted(set(NAMES) - set(live))
            staying = [name for name in live if not self.cluster.registered[name].is_draining]
            kind = self.random.choice(("kill", "kill", "start", "start", "drain", "cut"))
            if kind == "kill" and len(staying) > 1 and loop.time() >= next_death:
                self.cluster.kill(self.random.choice(live))
                next_death = loop.time() + (0.0 if self.is_wild else SPARE_S)
            elif kind == "start" and absent:
                if len(live) == 1:  # whose publications have no second copy yet
                    next_death = max(next_death, loop.time() + SPARE_S * (not self.is_wild))
                self.cluster.start(*self.random.sample(absent, self.random.randint(1, min(2, len(absent)))))
            elif kind == "drain" and len(staying) > 1 and loop.time() >= next_death:
                loop.create_task(self.drain(self.random.choice(staying)))  # noqa: RUF006 - it ends by itself
                next_death = loop.time() + SPARE_S
            elif kind == "cut" and self.is_wild and len(live) > 1:
                pair = frozenset(self.random.sample(live, 2))
                self.cluster.net.cut.add(pair)
                loop.call_later(self.random.random() * 4, self.cluster.net.cut.discard, pair)
            else:
                continue
            self.world.counts[kind] += 1
            self.cluster.check_invariants()

    async def make_up_channels(self, ends_at: float) -> None:
        """Subscribe to one after the other, at all nodes, publish into every other one, and stay in none.

        H1 holds in these as well.
        """
        loop, eve, made = asyncio.get_running_loop(), FakeMember("eve", "eve"), 0
        while loop.time() < ends_at:
            made += 1
            channel = f"made-up:{made % 20}"
            for name, node in tuple(self.cluster.nodes.items()):
                with suppress(RoadsteadError, TimeoutError):
                    async with asyncio.timeout(0.02):
                        await node.channels.subscribe(eve, SubscribeRequest(channel))
                        if made % 2:
                            await node.publish(eve, channel, msgspec.json.encode(f"{made} at {name}"))
                            self.saw(channel, await node.history(eve, channel, limit=-1))
                node.channels.unsubscribe(eve, channel)
            self.world.counts["made up"] += 1
            await asyncio.sleep(0.2)

    def saw(self, channel: str, page: HistoryResult) -> None:
        for publication in page.publications:
            self.world.saw(channel, page.epoch, publication.offset, msgspec.json.decode(publication.data))

    async def drain(self, name: str) -> None:
        """It drains, and leaves the registry as it ends, a while later."""
        node = self.cluster.nodes[name]
        self.cluster.drain(name)
        await asyncio.sleep(3.0)
        if self.cluster.nodes.get(name) is node:
            self.cluster.registered.pop(name)
            self.cluster.kill(name)
            self.cluster.publish_view()

    async def settle(self, clients: list[SimClient]) -> None:
        """H3: everything works again, soon."""
        for _ in range(120):
            for client in clients:
                client.look_after_node()
            await asyncio.sleep(0.1)
        for channel in CHANNELS:
            client = self.random.choice(clients)
            before = len(self.world.acknowledged[channel])
            for _ in range(2):  # the first may find that somebody claimed the channel, and died
                if len(self.world.acknowledged[channel]) == before:
                    await client.publish(channel)
                    await asyncio.sleep(0.5)
            if len(self.world.acknowledged[channel]) == before:
                raise Violated(f"H3: {channel} takes no publication")
        await asyncio.sleep(0.2)

    async def check(self, clients: list[SimClient]) -> None:
        for client in clients:
            if client.failure is not None:
                raise client.failure
        for channel in CHANNELS:
            reader = clients[0]
            assert reader.node is not None
            assert reader.member is not None
            page = await reader.node.history(reader.member, channel, limit=-1)
            assert isinstance(page, HistoryResult)
            offsets = [publication.offset for publication in page.publications]
            assert offsets == list(range(page.offset - len(offsets) + 1, page.offset + 1))
            kept = [msgspec.json.decode(publication.data) for publication in page.publications]
            for offset, data in zip(offsets, kept, strict=True):
                if (channel, page.epoch, offset) in self.world.data:
                    self.world.saw(channel, page.epoch, offset, data)
            for client in clients:
                if client.positions[channel] != (page.epoch, page.offset):
                    raise Violated(f"H3: {client.name} is at {client.positions[channel]} of {page.epoch}:{page.offset}")
            if not self.is_wild:
                lost = set(self.world.acknowledged[channel]) - set(kept)
                if lost or len(kept) != len(set(kept)):
                    raise Violated(f"H4: {channel} lost {sorted(lost)}")
        self.cluster.check_invariants()


def run_all(seeds: range) -> None:
    for seed in seeds:
        run(seed, is_wild=seed % 2 == 0)


def run(seed: int, *, is_wild: bool, is_crowded: bool = False) -> Counter[str]:
    try:
        counts: Counter[str] = simulate(History(seed, is_wild=is_wild, is_crowded=is_crowded).run)
    except BaseException as error:
        error.add_note(f"seed {seed}, is_wild {is_wild}")
        raise
    return counts


@pytest.mark.parametrize("is_wild", [False, True])
def test_no_history_violates_an_invariant(*, is_wild: bool, record_property: Any):
    """H1, H2 and H3 in all, H4 where nodes die one at a time; and much happened in them."""
    totals: Counter[str] = Counter()
    for seed in SEEDS:
        totals.update(run(seed, is_wild=is_wild))
    for name, count in totals.items():
        record_property(f"seen by the simulator: channel events: {name}", count)
    for kind in ("kill", "start", "drain", "recovered", "unknown"):
        assert totals[kind] >= len(SEEDS) // 4, totals
    assert totals["got"] >= 100 * len(SEEDS)


def test_channels_that_give_way_to_others_violate_nothing(monkeypatch: pytest.MonkeyPatch):
    """Those that somebody makes up come and go, with and without publications, and who uses the others is not hurt."""
    make_room, totals = Custody.make_room, Counter[str]()

    def counted(self: Custody, now: Instant) -> Forgotten | None:
        spent = set(self._shelf._spent)
        forgotten = make_room(self, now)
        totals["forgotten"] += forgotten is not None
        totals["forgotten with a past"] += forgotten is not None and forgotten.channel in spent
        return forgotten

    monkeypatch.setattr(Custody, "make_room", counted)
    for seed in SEEDS_TO_CROWD:
        totals.update(run(seed, is_wild=seed % 2 == 0, is_crowded=True))
    assert totals["forgotten"] >= 20 * len(SEEDS_TO_CROWD), totals
    assert totals["forgotten with a past"] >= 5 * len(SEEDS_TO_CROWD), totals


def test_a_history_is_its_seed():
    """Or nobody could look into one that failed."""
    assert run(3, is_wild=True) == run(3, is_wild=True)


# ---------------------------------------------------------------- sensitivity


def commits_alone(patch: pytest.MonkeyPatch) -> None:
    """An owner answers before its backup has the publication."""
    number = Custody.number

    def at_once(self: Custody, channel: str, draft: Any, wall: Any) -> Any:
        entry = number(self, channel, draft, wall)
        holding = self._held(channel)
        if entry is not None:
            self._commit(channel, holding, entry.offset)
        return entry

    patch.setattr(Custody, "number", at_once)


def asks_nobody(patch: pytest.MonkeyPatch) -> None:
    """R2: a new owner begins with what it has."""
    patch.setattr(View, "nearest", lambda _self, _channel, _count, **_beside: ())


def breaks_promises(patch: pytest.MonkeyPatch) -> None:
    """I3: a backup takes what any owner sends, whatever it promised."""
    replicate = Custody.replicate

    def always(self: Custody, request: Replicate, now: Any, wall: Any) -> Replicated:
        self._shelf.hold(request.channel, now).promised = request.ballot
        return replicate(self, request, now, wall)

    patch.setattr(Custody, "replicate", always)


def keeps_owning(patch: pytest.MonkeyPatch) -> None:
    """An owner that was asked for its copy goes on numbering."""
    patch.setattr(Holding, "step_down", lambda _self: None)
    patch.setattr(Holding, "promise", lambda _self, _ballot: None)


def ignores_gaps(patch: pytest.MonkeyPatch) -> None:
    """A node delivers whatever comes."""

    def received(self: Feed, epoch: str, entries: Any) -> News:
        if self.place is None:
            return News()
        self.place = Place(epoch, entries[-1].offset)
        return News(entries)

    patch.setattr(Feed, "received", received)


@pytest.mark.parametrize(
    "remove",
    [
        commits_alone,
        asks_nobody,
        breaks_promises,
        keeps_owning,
        ignores_gaps,
    ],
)
def test_the_histories_notice_a_removed_guard(remove: Any, monkeypatch: pytest.MonkeyPatch):
    """Each of these is there to prevent what the histories then find."""
    remove(monkeypatch)
    with pytest.raises(AssertionError):
        run_all(SEEDS_TO_CATCH)
