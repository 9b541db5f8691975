"""Channels while nodes die, drain and lose messages: one thing at a time. All at once: `test_channel_histories`."""

from __future__ import annotations

import asyncio

import pytest

from access.core.protocol import (
    ClientError,
    PresenceStatsResult,
)
from tests.access.channel_cluster import (
    NAMES,
    FakeMember,
    a_moment,
    alice,
    bob,
    cluster,
    datas,
    published,
    simulated,
    subscribed,
)

# ---------------------------------------------------------------- nodes die, drain, and lose messages


@pytest.mark.parametrize("role", ["owner", "backup", "neither"])
@simulated
async def test_a_channel_goes_on_when_a_node_dies(*, role: str):
    """Same epoch, next offset, and nobody has to start over."""
    nodes = cluster(*NAMES)
    channel = "plain:c"
    order = nodes.nodes["a"].custody.view.nearest(channel, 3, beside="")
    dies = order[{"owner": 0, "backup": 1, "neither": 2}[role]]
    members = {name: FakeMember(name, name) for name in NAMES}
    for name, member in members.items():
        start = await subscribed(nodes, name, member, channel, recoverable=True)
    await nodes.nodes["a"].publish(members["a"], channel, b"1")
    await a_moment()
    nodes.kill(dies)
    await asyncio.sleep(2)
    left = [name for name in NAMES if name != dies]
    assert await nodes.nodes[left[0]].publish(members[left[0]], channel, b"2") is None
    await a_moment()
    for name in left:
        assert datas(members[name]) == [1, 2]
        assert members[name].of("unsubscribe") == []
        history = await nodes.nodes[name].history(members[name], channel, limit=-1)
        assert (history.epoch, published(history)) == (start.epoch, [1, 2])
        assert await nodes.nodes[name].channels.presence_stats(members[name], channel) == PresenceStatsResult(2, 2)
    nodes.check_invariants()
    await nodes.stop()


@simulated
async def test_while_a_dead_backup_is_still_registered_a_publication_is_unknown():
    """It is numbered, and appears when another backup has it."""
    nodes = cluster(*NAMES)
    channel = "plain:c"
    owner, backup, third = nodes.nodes["a"].custody.view.nearest(channel, 3, beside="")
    member = alice()
    await subscribed(nodes, owner, member, channel, positioned=True)
    await nodes.nodes[owner].publish(member, channel, b"1")
    nodes.kill(backup)
    assert await nodes.nodes[owner].publish(member, channel, b"2") == ClientError.INTERNAL.wire
    assert await nodes.nodes[third].publish(member, channel, b"3") == ClientError.INTERNAL.wire
    assert datas(member) == [1]
    await asyncio.sleep(2)
    assert datas(member) == [1, 2, 3]
    assert await nodes.nodes[owner].publish(member, channel, b"4") is None
    assert nodes.nodes[third].custody.stream(channel).offset == 4
    await nodes.stop()


@simulated
async def test_a_draining_node_hands_its_channels_over_unnoticed():
    """While publications go on, none is unknown, none lost, and nobody starts over."""
    nodes = cluster(*NAMES)
    channel = "plain:c"
    owner = nodes.owner(channel)
    name = next(name for name in NAMES if name != owner)
    member = alice()
    await subscribed(nodes, name, member, channel, positioned=True)
    for number in range(100):
        if number == 30:
            nodes.drain(owner)
        if number == 60:
            nodes.start("d")
        assert await nodes.nodes[name].publish(member, channel, b"%d" % number) is None
    await a_moment()
    assert datas(member) == list(range(100))
    assert member.of("unsubscribe") == []
    assert nodes.nodes[owner].custody.stream(channel) is None
    await nodes.stop()


@simulated
async def test_a_lost_last_publication_is_found_by_the_audit():
    """And the members that the owner did not hear of."""
    nodes = cluster(*NAMES)
    channel = "plain:c"
    owner = nodes.owner(channel)
    name = next(name for name in NAMES if name != owner)
    here, there = alice(), bob()
    await subscribed(nodes, owner, there, channel, positioned=True)
    await subscribed(nodes, name, here, channel, positioned=True)
    await nodes.nodes[owner].publish(there, channel, b"1")
    await a_moment()
    nodes.net.cut.add(frozenset((owner, name)))
    assert await nodes.nodes[owner].publish(there, channel, b"2") in {None, ClientError.INTERNAL.wire}
    await subscribed(nodes, name, alice(2), channel)
    nodes.net.cut.clear()
    await asyncio.sleep(1)
    assert (await nodes.nodes[owner].channels.presence_stats(there, channel)).num_clients == 2
    await asyncio.sleep(6)
    assert datas(here) == [1, 2]
    assert (await nodes.nodes[owner].channels.presence_stats(there, channel)).num_clients == 3
    await nodes.stop()


@simulated
async def test_a_node_that_is_silent_for_long_counts_as_gone():
    """Its members leave; when it is heard of again, they are there again."""
    nodes = cluster("a", "b", "c")
    channel = "plain:c"
    owner = nodes.owner(channel)
    name = next(name for name in NAMES if name != owner)
    here, there = alice(), bob()
    await subscribed(nodes, owner, there, channel, join_leave=True)
    await subscribed(nodes, name, here, channel)
    await a_moment()
    nodes.net.cut.add(frozenset((owner, name)))
    await asyncio.sleep(30)
    assert [leave["info"]["client"] for leave in there.of("leave")] == ["alice-1"]
    nodes.net.cut.clear()
    await asyncio.sleep(10)
    assert (await nodes.nodes[owner].channels.presence_stats(there, channel)).num_clients == 2
    await nodes.stop()


@simulated
async def test_a_new_stream_to_the_owner_makes_a_node_join_again():
    """What was pushed over the old one may be lost."""
    nodes = cluster(*NAMES)
    channel = "plain:c"
    owner = nodes.owner(channel)
    name = next(name for name in NAMES if name != owner)
    here = alice()
    await subscribed(nodes, name, here, channel, positioned=True)
    pair = frozenset((owner, name))
    nodes.net.cut.add(pair)
    await nodes.nodes[owner].publish(bob(), channel, b"1")
    nodes.net.cut.clear()
    nodes.nodes[name].peers.connected(owner)
    await asyncio.sleep(1)
    assert datas(here) == [1]
    await nodes.stop()


@simulated
async def test_when_owner_and_backup_die_together_subscribers_start_over():
    """The channel begins a new epoch; who relies on a position is told, who does not goes on."""
    nodes = cluster("a", "b", "c", "d")
    channel = "plain:c"
    order = nodes.nodes["a"].custody.view.nearest(channel, 4, beside="")
    third = order[2]
    positioned, plain = alice(), bob()
    start = await subscribed(nodes, third, positioned, channel, recoverable=True)
    await subscribed(nodes, third, plain, channel)
    await nodes.nodes[third].publish(plain, channel, b"1")
    await a_moment()
    nodes.kill(order[0])
    nodes.kill(order[1])
    await asyncio.sleep(6)
    assert positioned.of("unsubscribe") == [{"code": 2500, "reason": "insufficient state"}]
    assert plain.of("unsubscribe") == []
    back = await subscribed(
        nodes, third, positioned, channel, recover=True, recoverable=True, epoch=start.epoch, offset=1
    )
    assert (back.recovered, back.was_recovering) == (False, True)
    assert back.epoch != start.epoch
    await nodes.nodes[third].publish(plain, channel, b"2")
    await a_moment()
    assert datas(positioned) == datas(plain) == [1, 2]
    await nodes.stop()


@simulated
async def test_who_cannot_be_written_to_fast_enough_starts_over():
    """A channel with more publications than its many subscribers can be given."""
    nodes = cluster("a", chunk=1, waiting_max=3)
    members = [FakeMember(f"m{number}", "u") for number in range(3)]
    for member in members:
        await subscribed(nodes, "a", member, "plain:c", positioned=True)
    for number in range(6):
        await nodes.nodes["a"].publish(members[0], "plain:c", b"%d" % number)
    await asyncio.sleep(1)
    assert all(len(member.of("unsubscribe")) == 1 for member in members)
    assert nodes.nodes["a"].channels.statistics()["here"]["subscriptions"] == 0
    await nodes.stop()
