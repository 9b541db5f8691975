"""Owners that have as many channels as they may: what is nothing to anybody gives way, or one more is refused."""

from __future__ import annotations

import asyncio

import pytest

from access.core.holding import CROWDED_MS
from access.core.namespaces import ChannelSettings
from access.core.protocol import Position
from base.errors import NotReady, Overloaded
from tests.access.channel_cluster import NAMES, SMALL, FakeMember, alice, bob, cluster, published, simulated, subscribed

EXPIRED_S = SMALL.history_ttl_ms / 1000 + 5
"""In which every publication got too old, and every node noticed."""


@simulated
async def test_a_node_owns_no_more_channels_than_it_may():
    """One more is refused for now, and who subscribes is told so at once."""
    nodes = cluster("a", settings=ChannelSettings(streams_max=1))
    await subscribed(nodes, "a", alice(), "plain:c")
    with pytest.raises(Overloaded):
        await nodes.nodes["a"].publish(alice(), "plain:d", b"1")
    began = asyncio.get_running_loop().time()
    with pytest.raises(Overloaded):
        await nodes.nodes["a"].subscribe(alice(), "plain:d")
    assert asyncio.get_running_loop().time() - began < 0.1
    await nodes.stop()


@simulated
async def test_a_client_is_let_in_without_a_channel_that_there_is_no_room_for():
    """What it comes for may be its inbox. Where the owner does not answer at all, it comes back instead."""
    nodes = cluster("a", settings=ChannelSettings(streams_max=1, subscribe_personal=True))
    channels = nodes.nodes["a"].channels
    await subscribed(nodes, "a", bob(), "plain:c")
    assert await channels.subscribe_by_server(alice(), "#alice", Position()) is None
    assert channels.statistics()["here"]["subscriptions"] == 1
    nodes.registered.clear()
    nodes.publish_view()
    with pytest.raises(NotReady):
        await channels.subscribe_by_server(alice(), "#alice", Position())
    await nodes.stop()


@simulated
async def test_whoever_makes_up_names_keeps_nobody_from_a_channel():
    """Everybody may enter any channel that ends in their boundary. What they leave behind gives way, at all nodes."""
    nodes = cluster(*NAMES, settings=ChannelSettings(streams_max=30))
    eve, node = FakeMember("eve-1", "eve"), nodes.nodes["a"]
    used = alice()
    start = await subscribed(nodes, "a", used, "plain:used", positioned=True)
    assert await node.publish(used, "plain:used", b"1") is None
    for number in range(400):
        channel = f"small:{number}#eve"
        await subscribed(nodes, "a", eve, channel)
        node.channels.unsubscribe(eve, channel)
        if number % 20 == 0:
            await subscribed(nodes, "b", bob(), f"plain:{number}")
    nodes.check_invariants()
    history = await node.history(used, "plain:used", limit=-1)
    assert (history.epoch, published(history)) == (start.epoch, [1])
    await asyncio.sleep(CROWDED_MS / 1000 + 5)
    for each in nodes.nodes.values():
        assert each.custody.statistics()["owned"] <= 31
        assert each.custody.statistics()["known"] <= 90, "those that it owns, and copies of those of the others"
    await nodes.stop()


@simulated
async def test_whoever_publishes_into_made_up_channels_keeps_nobody_from_one_for_long():
    """Only while the publications are kept, and not for as long as a position is."""
    nodes = cluster(*NAMES, settings=ChannelSettings(streams_max=30))
    eve, node = FakeMember("eve-1", "eve"), nodes.nodes["a"]

    async def refused(user: FakeMember, *names: str) -> int:
        count = 0
        for name in names:
            try:
                await subscribed(nodes, "a", user, name)
            except Overloaded:
                count += 1
        return count

    for number in range(150):
        channel = f"small:{number}#eve"
        if not await refused(eve, channel):
            assert await node.publish(eve, channel, b"1") is None
            node.channels.unsubscribe(eve, channel)
    assert await refused(bob(), *(f"plain:{number}" for number in range(20))) == 20
    await asyncio.sleep(EXPIRED_S)
    assert await refused(alice(), *(f"plain:{number}" for number in range(20))) == 0
    nodes.check_invariants()
    await nodes.stop()
