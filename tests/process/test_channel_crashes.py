"""Application channels while access nodes are killed, added and drained: real processes, stock clients, real sockets.

In the end every client's copy of a channel is its history, and whatever was acknowledged is in it, once and in order.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import centrifuge
import pytest

from access.core import placement
from tests.process.channel_clients import (
    BACKEND,
    SETTLE_S,
    Cluster,
    Copy,
    Node,
    Phone,
    Traffic,
    cluster_of,
    connected,
    said,
)

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("goodbyes")]

Record = Callable[[str, object], None]


def placed(view: placement.View, count: int, where: Callable[..., bool]) -> list[str]:
    """So many channels whose owner and backup are as asked for."""
    names = (f"room:{number}" for number in itertools.count())
    return list(itertools.islice((name for name in names if where(*view.order(name))), count))


async def until(what: str, is_so: Callable[[], Awaitable[bool]]) -> float:
    """Return how many seconds it took until an awaitable condition holds."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(SETTLE_S):
            while not await is_so():  # noqa: ASYNC110 - seen as from another process
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {SETTLE_S:g} s: {what}") from None
    return time.monotonic() - began


async def present(phones: list[Phone], channels: Sequence[str]) -> bool:
    """Whether everybody sees exactly everybody in every channel."""
    everybody = {phone.id for phone in phones}
    for channel in channels:
        for phone in phones:
            try:
                seen = await phone.subscriptions[channel].presence()
            except centrifuge.CentrifugeError:
                return False
            if set(seen.clients) != everybody:
                return False
    return True


async def check(traffic: Traffic, lost: Mapping[tuple[str, str], int] = MappingProxyType({})) -> None:
    """Compare everybody's copies with the histories, and those with what was acknowledged.

    `lost`: of which channel and publisher how many of the first acknowledged ones may be lost.
    """
    for channel in traffic.channels:
        page = await traffic.phones[0].subscriptions[channel].history(limit=-1)
        history = {publication.offset: said(publication) for publication in page.publications}
        assert list(history) == list(range(1, page.offset + 1)), channel
        for phone in traffic.phones:
            copy = phone.copies[channel]

            async def is_level(copy: Copy = copy, head: int = page.offset) -> bool:
                return copy.offset == head

            await until(f"{phone.user} has {channel} up to {page.offset}, not {copy.offset}", is_level)
            assert copy.faults == [], (channel, phone.user)
            assert copy.epoch == page.epoch, (channel, phone.user)
            assert copy.data == {offset: data for offset, data in history.items() if offset > copy.begin}
        for user in (*(phone.user for phone in traffic.phones), BACKEND):
            numbers = [data["n"] for data in history.values() if data["by"] == user]
            assert numbers == sorted(set(numbers)), f"{user} into {channel}: each once, as it was sent"
            kept = traffic.acknowledged[channel, user][lost.get((channel, user), 0) :]
            assert set(kept) <= set(numbers), f"{user} into {channel}: what was acknowledged"


def phones_of(cluster: Cluster) -> list[Phone]:
    """Two on each node, of which one speaks JSON and one protobuf."""
    return [
        Phone(f"{node.name}-{form}", node, is_protobuf=form == "protobuf")
        for node in cluster.nodes
        for form in ("json", "protobuf")
    ]


def of(phones: list[Phone], *homes: Node) -> list[Phone]:
    """The clients that began at these nodes."""
    return [phone for phone in phones if phone.home in homes]


def restarts(phones: list[Phone], channels: Sequence[str]) -> int:
    """How often they were told to start over."""
    return sum(phone.copies[channel].restarts for phone in phones for channel in channels)


async def test_acknowledged_publications_outlive_owners_and_clients_see_them_once(
    tmp_path: Path, record_property: Record
) -> None:
    """One node is killed, one is added, one is told to end; whoever stays connected has no need to start over."""
    async with cluster_of(tmp_path, "access-2", "access-3", "access-4") as cluster:
        first, killed, drained, last = cluster.nodes
        view = cluster.view()
        channels = [
            name for node in cluster.nodes for name in placed(view, 2, lambda owner, _, node=node: owner == node.name)
        ]
        phones = phones_of(cluster)
        async with connected(cluster, phones, channels) as traffic:
            async with traffic.flowing():
                await traffic.recovered(time.monotonic())
                assert [await node.owned() for node in cluster.nodes] == [2, 2, 2, 2]
                assert await present(phones, channels)

                began, unknown = time.monotonic(), traffic.unknown
                killed.kill()
                cluster.nodes.remove(killed)
                took = await traffic.recovered(began)
                owned = [took[name] for name in channels if view.owner(name) == killed.name]
                record_property("s from kill -9 to an acknowledgement, channels that it owned", round(max(owned), 2))
                kept = [took[name] for name in channels if view.backup(name) == killed.name]
                record_property("s the same, channels that it was the backup of", round(max(kept, default=0), 2))
                await until("presence after the kill", lambda: present(phones, channels))
                record_property("s from kill -9 until presence is right", round(time.monotonic() - began, 2))
                record_property("publications of unknown outcome", traffic.unknown - unknown)

                unknown = traffic.unknown
                await cluster.add("access-5")
                took_s = await until("the new node owns its share", cluster.is_shared(channels))
                record_property("s until a new node owns its share", round(took_s, 2))
                await traffic.recovered(time.monotonic())

                await drained.drain()
                cluster.nodes.remove(drained)
                await traffic.recovered(time.monotonic())
                await until("presence after the drain", lambda: present(phones, channels))
                record_property("of unknown outcome while one was added and one drained", traffic.unknown - unknown)
            await check(traffic)
            staying = of(phones, first, last)
            assert [phone.connects for phone in staying] == [1, 1, 1, 1]
            assert restarts(staying, channels) == 0


async def test_who_loses_owner_and_backup_at_once_is_told_to_start_over(
    tmp_path: Path, record_property: Record
) -> None:
    """The channels that nobody else had begin anew; all others go on, whatever they lost."""
    async with cluster_of(tmp_path, "access-2", "access-3", "access-4") as cluster:
        first, last, *killed = cluster.nodes
        names = {node.name for node in killed}
        view = cluster.view()
        lost = placed(view, 2, lambda owner, backup: {owner, backup} == names)
        kept = placed(view, 2, lambda owner, backup: owner in names and backup not in names)
        kept += placed(view, 2, lambda owner, backup: owner not in names and backup in names)
        phones = phones_of(cluster)
        async with connected(cluster, phones, [*lost, *kept]) as traffic:
            async with traffic.flowing():
                await traffic.recovered(time.monotonic())
                began = time.monotonic()
                for node in killed:
                    node.kill()
                    cluster.nodes.remove(node)
                took = await traffic.recovered(began)
                before = {of: len(numbers) for of, numbers in traffic.acknowledged.items() if of[0] in lost}
                for what, channels in (("lost", lost), ("kept", kept)):
                    worst = max(took[channel] for channel in channels)
                    record_property(f"s from kill -9 to an acknowledgement, channels that were {what}", round(worst, 2))
                await until("presence after the kill", lambda: present(phones, [*lost, *kept]))
            await check(traffic, before)
            staying = of(phones, first, last)
            assert restarts(staying, lost) == len(staying) * len(lost)
            assert restarts(staying, kept) == 0
