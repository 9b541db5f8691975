"""Channels while nodes die, drain and lose messages: one thing at a time. All at once: `test_channel_histories`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from access.core.namespaces import ChannelSettings
from access.core.placement import Node, View
from access.core.protocol import (
    ClientError,
    Position,
    PresenceStatsResult,
)
from access.peers import JOIN, READ
from base.errors import NotReady, Overloaded
from base.peer import Method
from tests.access.channel_cluster import (
    NAMES,
    FakeMember,
    SimNode,
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
async def test_when_the_last_backup_is_gone_the_first_publication_is_acknowledged():
    """Nobody is left to ask, so it is committed at once, before the node looks at all its channels."""
    nodes = cluster("a", "b")
    channel = next(name for name in (f"plain:{number}" for number in range(99)) if nodes.owner(name) == "a")
    node, member = nodes.nodes["a"], alice()
    await subscribed(nodes, "a", member, channel, positioned=True)
    assert await node.publish(member, channel, b"1") is None
    nodes.kill("b")
    del nodes.registered["b"]
    nodes.publish_view()
    assert await node.publish(member, channel, b"2") is None
    assert datas(member) == [1, 2]
    await nodes.stop()


def alone(*, drains: str = "", without: str = "") -> View:
    """What one node may see of three."""
    return View([Node(name, 1, name == drains) for name in NAMES if name != without])


@simulated
async def test_an_owner_that_is_missing_from_its_own_view_tells_who_waits():
    """At once that the outcome is unknown; and once it owns again, nothing is left of that."""
    nodes = cluster(*NAMES)
    channel = "plain:c"
    order = nodes.nodes["a"].custody.view.nearest(channel, 3, beside="")
    owner, member = nodes.nodes[order[0]], alice()
    assert await owner.publish(member, channel, b"1") is None
    cuts = {frozenset((order[0], other)) for other in order[1:]}
    nodes.net.cut |= cuts
    loop = asyncio.get_running_loop()
    waiting = [loop.create_task(owner.publish(member, channel, b"%d" % number)) for number in range(10)]
    await asyncio.sleep(0.01)
    for node in nodes.nodes.values():
        node.peers.view(alone(without=order[0]))
    began = loop.time()
    assert await asyncio.gather(*waiting) == [ClientError.INTERNAL.wire] * 10
    assert loop.time() - began < 0.01
    assert await nodes.nodes[order[1]].publish(member, channel, b"2") is None
    nodes.net.cut -= cuts
    nodes.publish_view()
    await a_moment()
    for number in range(3, 6):
        assert await owner.publish(member, channel, b"%d" % number) is None
    assert nodes.nodes[order[0]].custody.stream(channel).offset == 5
    nodes.check_invariants()
    await nodes.stop()


@simulated
async def test_a_claim_ends_with_the_ownership_that_it_was_for():
    """An owner that collects for a new backup, and is missing from its own view meanwhile, can claim again."""
    nodes = cluster(*NAMES)
    channel = "plain:c"
    owner, backup, _ = nodes.nodes["a"].custody.view.nearest(channel, 3, beside="")
    node, member = nodes.nodes[owner], alice()
    assert await node.publish(member, channel, b"1") is None
    nodes.net.cut.add(frozenset((owner, backup)))
    node.peers.view(alone(drains=backup))
    nodes.net.cut.clear()
    nodes.net.late_permille = 1_000
    await asyncio.sleep(0.02)
    assert node.custody.is_claiming(channel)
    node.peers.view(alone(without=owner))
    nodes.net.late_permille = 0
    nodes.publish_view()
    await asyncio.sleep(1)
    async with asyncio.timeout(1):
        assert await node.publish(member, channel, b"2") is None
    nodes.check_invariants()
    await nodes.stop()


@simulated
async def test_nobody_waits_for_a_claim_longer_than_it_may_take(monkeypatch: pytest.MonkeyPatch):
    """Who asked is told to come again; the claim itself goes on."""
    monkeypatch.setattr("access.channel_keeper.COLLECT_MS", 60_000)
    nodes = cluster(*NAMES)
    channel = "plain:c"
    owner = nodes.nodes[nodes.owner(channel)]
    nodes.net.lost_permille = 1_000
    began = asyncio.get_running_loop().time()
    assert await owner.publish(alice(), channel, b"1") == ClientError.INTERNAL.wire
    assert asyncio.get_running_loop().time() - began < 5
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


# ---------------------------------------------------------------- much is on its way between nodes


def busy(node: SimNode, what: str, method: Method[Any, Any], times: int) -> None:
    """Let the streams of a node refuse the method so many times, as a stream does whose queue or peer is full."""
    call = node.peers.call

    async def refused(to: str, asked: Method[Any, Any], request: Any, *, deadline_ms: int) -> Any:
        nonlocal times
        if asked is method and times:
            times -= 1
            raise Overloaded("for now", what=what, retry_after_ms=50)
        return await call(to, asked, request, deadline_ms=deadline_ms)

    node.peers.call = refused  # type: ignore[method-assign]


@pytest.mark.parametrize("what", ["peer_queue", "inflight"])
@simulated
async def test_a_stream_that_is_full_for_a_moment_costs_nobody_a_channel(*, what: str):
    """It is no owner without room: who subscribes waits, and so does who is subscribed by the server."""
    nodes = cluster(*NAMES, settings=ChannelSettings(subscribe_personal=True))
    owners = {nodes.owner("#alice"), nodes.owner("plain:c")}
    node = next(each for name, each in nodes.nodes.items() if name not in owners)
    busy(node, what, JOIN, 2)
    assert await node.channels.subscribe_by_server(alice(), "#alice", Position()) is not None
    busy(node, what, JOIN, 2)
    await subscribed(nodes, node.name, alice(2), "plain:c")
    await nodes.stop()


@simulated
async def test_a_client_is_not_let_in_without_a_channel_whose_owner_is_busy():
    """It comes back, or it would miss the channel for as long as it stays."""
    nodes = cluster(*NAMES, settings=ChannelSettings(subscribe_personal=True))
    joining, reading = (each for name, each in nodes.nodes.items() if name != nodes.owner("#alice"))
    busy(joining, "peer_queue", JOIN, 1_000)
    with pytest.raises(NotReady):
        await joining.channels.subscribe_by_server(alice(), "#alice", Position())
    busy(reading, "peer_queue", READ, 1)
    with pytest.raises(Overloaded):
        await reading.channels.subscribe_by_server(alice(), "#alice", Position(recover=True, epoch="other", offset=1))
    for node in (joining, reading):
        assert node.channels.statistics()["here"]["subscriptions"] == 0
    await nodes.stop()
