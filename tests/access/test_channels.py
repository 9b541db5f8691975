"""Application channels as clients and backends use them, on nodes over simulated time and network."""

from __future__ import annotations

import asyncio

import pytest

from access.channel_api import HISTORY_MAX
from access.core.feed import HELD_MAX
from access.core.namespaces import ChannelSettings
from access.core.protocol import (
    ClientError,
    Position,
    PresenceResult,
    PresenceStatsResult,
    ReplyError,
    StreamPosition,
    SubRefreshRequest,
    SubRefreshResult,
    SubscribeFlag,
    SubscribeRequest,
    SubscribeResult,
)
from access.peers import Place
from base.errors import BadRequest, DeadlineExceeded, LimitExceeded, NotFound, NotReady
from tests.access.channel_cluster import (
    EPOCH_MS,
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
    token,
)

# ---------------------------------------------------------------- what the SDKs' own tests do


@pytest.mark.parametrize("count", [1, 2, 3])
@simulated
async def test_a_subscriber_publishes_and_finds_it_in_history_and_presence(*, count: int):
    """With itself in the presence as soon as it is subscribed, at whatever node."""
    nodes = cluster(*NAMES[:count])
    for name in NAMES[:count]:
        member, channel, node = alice(), f"channel-{name}", nodes.nodes[name]
        result = await subscribed(nodes, name, member, channel)
        assert (result.recoverable, result.positioned, result.offset, result.was_recovering) == (True, True, 0, False)
        assert await node.publish(member, channel, b'{"input":"test"}') is None
        history = await node.history(member, channel, limit=-1)
        assert (history.offset, history.epoch, published(history)) == (1, result.epoch, [{"input": "test"}])
        presence = await node.channels.presence(member, channel)
        assert isinstance(presence, PresenceResult)
        assert list(presence.presence) == ["alice-1"]
        assert bytes(presence.presence["alice-1"].chan_info) == b'{"by":"token"}'
        assert await node.channels.presence_stats(member, channel) == PresenceStatsResult(1, 1)
        await a_moment()
        (pub,) = member.of("pub")
        assert (pub["data"], pub["offset"]) == ({"input": "test"}, 1)
        assert pub["info"] == {
            "user": "alice",
            "client": "alice-1",
            "conn_info": {"name": "A"},
            "chan_info": {"by": "token"},
        }
        assert [join["info"]["client"] for join in member.of("join")] == ["alice-1"]
    nodes.check_invariants()
    await nodes.stop()


@simulated
async def test_history_is_read_in_pages_and_backwards():
    """From the start, after a position, before one; 0 asks for the position only."""
    nodes = cluster(*NAMES)
    member, node = alice(), nodes.nodes["b"]
    start = await subscribed(nodes, "b", member, "c")
    for number in range(5):
        await node.publish(member, "c", b"%d" % number)
    first = await node.history(member, "c", limit=2)
    second = await node.history(member, "c", limit=2, since=StreamPosition(2, first.epoch))
    backwards = await node.history(member, "c", limit=-1, reverse=True)
    top = await node.history(member, "c", limit=0)
    assert [published(page) for page in (first, second, backwards, top)] == [[0, 1], [2, 3], [4, 3, 2, 1, 0], []]
    assert (top.offset, top.epoch) == (5, start.epoch)
    assert await node.history(member, "c", limit=1, since=StreamPosition(1, "other")) == (
        ClientError.UNRECOVERABLE_POSITION.wire
    )
    await nodes.stop()


@simulated
async def test_who_joins_and_leaves_is_told_to_the_others():
    """Over all nodes; a leave is told when its client unsubscribes, and when it is gone."""
    nodes = cluster(*NAMES)
    here, there, third = alice(), bob(), alice(2)
    await subscribed(nodes, "a", here, "c")
    await subscribed(nodes, "b", there, "c")
    await subscribed(nodes, "c", third, "c")
    await a_moment()
    nodes.nodes["b"].channels.unsubscribe(there, "c")
    nodes.nodes["b"].channels.unsubscribe(there, "c")
    nodes.nodes["c"].channels.gone(third)
    await a_moment()
    assert {join["info"]["client"] for join in here.of("join")} == {"alice-1", "bob-1", "alice-2"}
    assert {leave["info"]["client"] for leave in here.of("leave")} == {"bob-1", "alice-2"}
    assert {join["info"]["client"] for join in there.of("join")} >= {"bob-1", "alice-2"}
    assert there.of("leave") == []
    assert await nodes.nodes["a"].channels.presence_stats(here, "c") == PresenceStatsResult(1, 1)
    await nodes.stop()


@simulated
async def test_who_comes_back_recovers_what_it_missed():
    """All of it, at another node too."""
    nodes = cluster(*NAMES)
    here, there = alice(), bob()
    start = await subscribed(nodes, "a", here, "c")
    await subscribed(nodes, "b", there, "c")
    nodes.nodes["a"].channels.gone(here)
    for number in range(10):
        await nodes.nodes["b"].publish(there, "c", b"%d" % number)
    back = alice(2)
    result = await subscribed(nodes, "c", back, "c", recover=True, epoch=start.epoch, offset=start.offset)
    assert (result.was_recovering, result.recovered, result.offset) == (True, True, 10)
    assert published(result) == list(range(10))
    await nodes.nodes["b"].publish(there, "c", b"10")
    await a_moment()
    assert datas(back) == [10]
    again = await subscribed(nodes, "a", alice(3), "c", recover=True, epoch=start.epoch, offset=11)
    assert (again.recovered, again.publications) == (True, [])
    await nodes.stop()


@simulated
async def test_a_position_before_everything_recovers_from_the_start():
    """The zero position, which an application has that never read anything."""
    nodes = cluster("a")
    member = alice()
    await subscribed(nodes, "a", member, "c")
    for number in range(3):
        await nodes.nodes["a"].publish(member, "c", b"%d" % number)
    result = await subscribed(nodes, "a", bob(), "c", recover=True)
    assert (result.recovered, published(result)) == (True, [0, 1, 2])
    await nodes.stop()


@simulated
async def test_a_position_that_is_too_old_is_not_recovered_and_may_be_refused():
    """Never a part. Who asks for it is refused with 112, and may subscribe anew."""
    nodes = cluster("a", "b")
    member, node = alice(), nodes.nodes["a"]
    start = await subscribed(nodes, "a", member, "small:c")
    for number in range(5):
        await node.publish(member, "small:c", b"%d" % number)
    await a_moment()
    back = bob()
    position = {"recover": True, "epoch": start.epoch, "offset": 0}
    refused = await node.subscribe(back, "small:c", flag=SubscribeFlag.REJECT_UNRECOVERED, **position)
    assert refused == ClientError.UNRECOVERABLE_POSITION.wire
    result = await subscribed(nodes, "a", back, "small:c", **position)
    assert (result.was_recovering, result.recovered, result.publications, result.offset) == (True, False, [], 5)
    await node.publish(member, "small:c", b"5")
    await a_moment()
    assert datas(back) == [5]
    await nodes.stop()


@simulated
async def test_the_personal_channel_is_subscribed_by_the_server():
    """From a position, too; a client cannot subscribe to another user's, nor twice to its own."""
    nodes = cluster("a", settings=ChannelSettings(subscribe_personal=True, per_client_max=2))
    member, channels = alice(), nodes.nodes["a"].channels
    assert channels.by_server("alice") == ("#alice",)
    assert channels.by_server("a:b") == ()
    result = await channels.subscribe_by_server(member, "#alice", Position())
    assert result is not None
    channels.subscribed(member, "#alice", result)
    assert await nodes.nodes["a"].publish(member, "#alice", b'"me"') is None
    assert datas(member) == ["me"]
    assert [join["info"]["client"] for join in member.of("join")] == ["alice-1"]
    assert await channels.subscribe_by_server(member, "#alice", Position()) is None
    assert await channels.subscribe_by_server(member, "no:such", Position()) is None
    assert await nodes.nodes["a"].subscribe(member, "#bob") == ClientError.PERMISSION_DENIED.wire
    again = alice(2)
    back = await channels.subscribe_by_server(again, "#alice", Position(recover=True, epoch=result.epoch))
    assert back is not None
    assert (back.recovered, published(back)) == (True, ["me"])
    assert await channels.subscribe_by_server(again, "plain:1", Position()) is not None
    assert await channels.subscribe_by_server(again, "plain:2", Position()) is None
    await nodes.stop()


@simulated
async def test_the_server_subscribes_nobody_unless_it_is_configured():
    """The default."""
    nodes = cluster("a")
    assert nodes.nodes["a"].channels.by_server("alice") == ()
    await nodes.stop()


# ---------------------------------------------------------------- what is refused


@simulated
async def test_what_a_client_may_not_is_refused_with_the_protocols_code():
    """Each request, each reason."""
    nodes = cluster("a", settings=ChannelSettings(per_client_max=2))
    member, node, channels = alice(), nodes.nodes["a"], nodes.nodes["a"].channels
    assert await node.subscribe(member, "no:such") == ClientError.UNKNOWN_CHANNEL.wire
    assert await node.subscribe(member, "c") == ClientError.PERMISSION_DENIED.wire
    assert await node.subscribe(member, "c", token="c/bob") == ClientError.PERMISSION_DENIED.wire
    assert await node.subscribe(member, "c", token="expired") == ClientError.TOKEN_EXPIRED.wire
    await subscribed(nodes, "a", member, "c")
    assert await node.subscribe(member, "c", token="c/alice") == ClientError.ALREADY_SUBSCRIBED.wire
    await subscribed(nodes, "a", member, "plain:c")
    assert await node.subscribe(member, "plain:d") == ClientError.LIMIT_EXCEEDED.wire
    other = bob()
    assert await node.publish(other, "c", b"1") == ClientError.PERMISSION_DENIED.wire
    assert await node.history(other, "c") == ClientError.PERMISSION_DENIED.wire
    assert await channels.presence(other, "c") == ClientError.PERMISSION_DENIED.wire
    assert await channels.presence_stats(other, "no:such") == ClientError.UNKNOWN_CHANNEL.wire
    assert await node.publish(member, "c", b"{") == ClientError.BAD_REQUEST.wire
    assert await node.publish(member, "c", b'"%s"' % (b"x" * 65_536)) == ClientError.LIMIT_EXCEEDED.wire
    assert await node.history(member, "bare:c") == ClientError.NOT_AVAILABLE.wire
    assert await channels.presence(member, "bare:c") == ClientError.NOT_AVAILABLE.wire
    await nodes.stop()


@simulated
async def test_data_is_passed_on_in_one_line():
    """Or it would break the frames of everybody who gets it."""
    nodes = cluster("a")
    member = alice()
    await subscribed(nodes, "a", member, "plain:c")
    await nodes.nodes["a"].publish(member, "plain:c", b'{"a":\r\n 1}')
    (publication,) = (await nodes.nodes["a"].history(member, "plain:c", limit=1)).publications
    assert bytes(publication.data) == b'{"a": 1}'
    await nodes.stop()


@simulated
async def test_a_node_without_a_view_serves_nobody_yet():
    """It does not know who owns what."""
    nodes = cluster("a")
    nodes.registered.clear()
    nodes.publish_view()
    with pytest.raises(NotReady):
        await nodes.nodes["a"].subscribe(alice(), "plain:c")
    assert await nodes.nodes["a"].publish(alice(), "plain:c", b"1") == ClientError.INTERNAL.wire
    with pytest.raises(NotReady):
        await nodes.nodes["a"].channels.presence(alice(), "plain:c")
    await nodes.stop()


# ---------------------------------------------------------------- subscriptions with options


@simulated
async def test_without_a_history_publications_have_no_position():
    """They reach who is there, over all nodes."""
    nodes = cluster(*NAMES)
    here, there = alice(), bob()
    result = await subscribed(nodes, "a", here, "bare:c", recover=True, recoverable=True)
    assert result == SubscribeResult()
    await subscribed(nodes, "b", there, "bare:c")
    assert await nodes.nodes["c"].publish(here, "bare:c", b"1") is None
    await a_moment()
    assert datas(here) == datas(there) == [1]
    assert "offset" not in here.of("pub")[0]
    nodes.kill(nodes.owner("bare:c"))
    await asyncio.sleep(2)
    left = next(iter(nodes.nodes))
    assert await nodes.nodes[left].publish(here, "bare:c", b"2") is None
    await nodes.stop()


@simulated
async def test_joins_and_positions_are_for_who_asks_where_nothing_is_forced():
    """And recovery only with a position."""
    nodes = cluster("a")
    quiet, curious = alice(), bob()
    plain = await subscribed(nodes, "a", quiet, "plain:c")
    assert (plain.positioned, plain.recoverable, plain.epoch) == (False, False, "")
    asked = await subscribed(nodes, "a", curious, "plain:c", join_leave=True, positioned=True)
    assert (asked.positioned, asked.recoverable) == (True, False)
    await subscribed(nodes, "a", alice(2), "plain:c", recoverable=True)
    assert quiet.of("join") == []
    assert [join["info"]["client"] for join in curious.of("join")] == ["bob-1", "alice-2"]
    unasked = await subscribed(nodes, "a", alice(3), "plain:c", recover=True, epoch=asked.epoch)
    assert unasked.was_recovering is False
    await nodes.stop()


@simulated
async def test_a_subscription_expires_unless_it_is_renewed():
    """With a time to renew it; then its client is told to ask for a new token."""
    nodes = cluster("a")
    now_s = EPOCH_MS // 1000 + 1000
    member, channels = alice(), nodes.nodes["a"].channels
    result = await subscribed(nodes, "a", member, "c", token=token("c", member, now_s + 60))
    assert (result.expires, result.ttl) == (True, 60)
    await asyncio.sleep(60)
    assert member.of("unsubscribe") == []
    renewal = SubRefreshRequest("c", token("c", member, now_s + 200))
    assert await channels.refresh(member, renewal) == SubRefreshResult(expires=True, ttl=140)
    await asyncio.sleep(100)
    assert member.of("unsubscribe") == []
    await asyncio.sleep(70)
    assert member.of("unsubscribe") == [{"code": 2501, "reason": "subscription expired"}]
    assert await channels.refresh(member, renewal) == ClientError.PERMISSION_DENIED.wire
    assert nodes.nodes["a"].channels.statistics()["here"]["subscriptions"] == 0
    await nodes.stop()


@simulated
async def test_a_renewal_needs_a_good_token_and_may_end_the_expiry():
    """Expired and foreign ones are told apart."""
    nodes = cluster("a")
    now_s = EPOCH_MS // 1000 + 1000
    member, channels = alice(), nodes.nodes["a"].channels
    await subscribed(nodes, "a", member, "c", token=token("c", member, now_s + 10))
    assert await channels.refresh(member, SubRefreshRequest("c", "expired")) == ClientError.TOKEN_EXPIRED.wire
    assert await channels.refresh(member, SubRefreshRequest("c", "x/y")) == ClientError.PERMISSION_DENIED.wire
    assert await channels.refresh(member, SubRefreshRequest("c", "c/alice")) == SubRefreshResult()
    await asyncio.sleep(100)
    assert member.of("unsubscribe") == []
    await nodes.stop()


@simulated
async def test_who_goes_while_its_start_is_read_is_forgotten():
    """Nothing of it is left, and its request fails."""
    nodes = cluster(*NAMES)
    channel = "plain:c"
    name = next(name for name in NAMES if name != nodes.owner(channel))
    channels = nodes.nodes[name].channels
    for end in (channels.gone, lambda member: channels.unsubscribe(member, channel)):
        member = alice()
        asking = asyncio.get_running_loop().create_task(nodes.nodes[name].subscribe(member, channel))
        await asyncio.sleep(0)
        end(member)
        with pytest.raises(NotReady):
            await asking
        await a_moment()
        assert channels.statistics()["here"]["channels"] == 0
    await a_moment()
    assert nodes.nodes[nodes.owner(channel)].channels.statistics()["roster"]["follows"] == 0
    await nodes.stop()


@simulated
async def test_what_is_published_while_a_start_is_told_follows_it():
    """From exactly where the reply ended, each once."""
    nodes = cluster(*NAMES)
    first, late = alice(), bob()
    start = await subscribed(nodes, "a", first, "plain:c", recoverable=True)
    channels = nodes.nodes["a"].channels
    for number in range(3):
        await nodes.nodes["b"].publish(first, "plain:c", b"%d" % number)
    asked = SubscribeRequest("plain:c", recover=True, recoverable=True, epoch=start.epoch, offset=1)
    result = await channels.subscribe(late, asked)
    assert isinstance(result, SubscribeResult)
    assert published(result) == [1, 2]
    for number in range(3, 6):
        await nodes.nodes["b"].publish(first, "plain:c", b"%d" % number)
    await a_moment()
    assert datas(late) == []
    channels.subscribed(late, "plain:c", result)
    channels.subscribed(late, "plain:d", result)
    await nodes.nodes["b"].publish(first, "plain:c", b"6")
    await a_moment()
    assert datas(late) == [3, 4, 5, 6]
    await nodes.stop()


@simulated
async def test_a_start_that_takes_too_long_starts_over():
    """What is kept for it is bounded."""
    nodes = cluster("a")
    first, late = alice(), bob()
    await subscribed(nodes, "a", first, "plain:c", positioned=True)
    result = await nodes.nodes["a"].channels.subscribe(late, SubscribeRequest("plain:c", positioned=True))
    assert isinstance(result, SubscribeResult)
    for _ in range(HELD_MAX + 1):
        await nodes.nodes["a"].publish(first, "plain:c", b"1")
    nodes.nodes["a"].channels.subscribed(late, "plain:c", result)
    assert late.connection.pushes == [
        {"channel": "plain:c", "unsubscribe": {"code": 2500, "reason": "insufficient state"}}
    ]
    await nodes.stop()


# ---------------------------------------------------------------- backends


@simulated
async def test_a_backend_publishes_reads_and_looks_whatever_clients_may():
    """At any node."""
    nodes = cluster(*NAMES)
    member = alice()
    await subscribed(nodes, "a", member, "c")
    for name in NAMES:
        channels = nodes.nodes[name].channels
        place = await channels.backend_publish("c", b'"%s"' % name.encode(), tags={"from": name})
        assert place.offset == NAMES.index(name) + 1
        history = await channels.backend_history("c", limit=HISTORY_MAX, since=None, is_reverse=False)
        assert history is not None
        assert published(history) == list(NAMES[: place.offset])
        assert list((await channels.backend_presence("c")).presence) == ["alice-1"]
        assert await channels.backend_presence_stats("c") == PresenceStatsResult(1, 1)
    await a_moment()
    assert [publication["tags"] for publication in member.of("pub")] == [{"from": name} for name in NAMES]
    assert all("info" not in publication for publication in member.of("pub"))
    since = Place("other", 1)
    assert await nodes.nodes["a"].channels.backend_history("c", limit=1, since=since, is_reverse=False) is None
    await nodes.stop()


@simulated
async def test_the_same_idempotency_key_publishes_once():
    """At whatever node, and after the owner died."""
    nodes = cluster(*NAMES)
    places = [
        await nodes.nodes[name].channels.backend_publish("plain:c", b"1", tags={}, key="k") for name in (*NAMES, "a")
    ]
    assert places == [places[0]] * 4
    nodes.kill(nodes.owner("plain:c"))
    await asyncio.sleep(2)
    channels = next(iter(nodes.nodes.values())).channels
    assert await channels.backend_publish("plain:c", b"1", tags={}, key="k") == places[0]
    assert (await channels.backend_publish("plain:c", b"1", tags={}, key="l")).offset == 2
    await nodes.stop()


@simulated
async def test_a_backend_is_told_what_it_asks_wrongly():
    """By the errors of our tree."""
    nodes = cluster("a")
    channels = nodes.nodes["a"].channels
    with pytest.raises(NotFound):
        await channels.backend_publish("no:such", b"1", tags={})
    with pytest.raises(LimitExceeded):
        await channels.backend_publish("c", b"1" * 70_000, tags={})
    with pytest.raises(BadRequest):
        await channels.backend_publish("bare:c", b"1", tags={}, key="k")
    with pytest.raises(BadRequest):
        await channels.backend_publish("c", b"1", tags={}, key="k" * 129)
    with pytest.raises(NotFound):
        await channels.backend_history("bare:c", limit=1, since=None, is_reverse=False)
    with pytest.raises(NotFound):
        await channels.backend_presence("bare:c")
    await nodes.stop()


@simulated
async def test_a_publication_of_unknown_outcome_is_told_as_that():
    """Its backup does not answer."""
    nodes = cluster("a", "b")
    nodes.net.cut.add(frozenset("ab"))
    owner = nodes.owner("plain:c")
    await asyncio.sleep(0)
    with pytest.raises((DeadlineExceeded, NotReady)):
        await nodes.nodes[owner].channels.backend_publish("plain:c", b"1", tags={})
    await nodes.stop()


@simulated
async def test_a_backend_ends_a_users_subscriptions_at_all_nodes():
    """All clients of the user, and nobody else's; the SDK stays out."""
    nodes = cluster(*NAMES)
    members = {name: FakeMember(f"m-{name}", "alice" if name != "b" else "bob") for name in NAMES}
    for name, member in members.items():
        await subscribed(nodes, name, member, "plain:c")
    await nodes.nodes["b"].channels.backend_unsubscribe("plain:c", "alice")
    await a_moment()
    gone = [{"code": 2000, "reason": "server unsubscribe"}]
    assert [members[name].of("unsubscribe") for name in NAMES] == [gone, [], gone]
    assert await nodes.nodes["a"].channels.backend_presence_stats("plain:c") == PresenceStatsResult(1, 1)
    await nodes.stop()


# ---------------------------------------------------------------- many


@simulated
async def test_members_are_told_again_in_parts():
    """A node with more subscribers than go into one message joins a new owner."""
    nodes = cluster("a", "b")
    channel = "plain:c"
    owner = nodes.owner(channel)
    name = "b" if owner == "a" else "a"
    members = [FakeMember(f"m{number}", f"u{number % 7}") for number in range(2_500)]
    for member in members:
        await subscribed(nodes, name, member, channel)
    await a_moment()
    assert await nodes.nodes[owner].channels.backend_presence_stats(channel) == PresenceStatsResult(2_500, 7)
    nodes.kill(owner)
    await asyncio.sleep(2)
    assert await nodes.nodes[name].channels.backend_presence_stats(channel) == PresenceStatsResult(2_500, 7)
    for member in members:
        nodes.nodes[name].channels.gone(member)
    assert nodes.nodes[name].channels.statistics()["roster"]["members"] == 0
    nodes.check_invariants()
    await nodes.stop()


@simulated
async def test_too_many_to_list_are_counted():
    """A list of all would be too long for one message."""
    nodes = cluster("a")
    for number in range(10_001):
        await subscribed(nodes, "a", FakeMember(f"m{number}", "u"), "plain:c")
    with pytest.raises(LimitExceeded):
        await nodes.nodes["a"].channels.backend_presence("plain:c")
    assert await nodes.nodes["a"].channels.backend_presence_stats("plain:c") == PresenceStatsResult(10_001, 1)
    await nodes.stop()


@simulated
async def test_one_node_alone_answers_without_a_wait():
    """A subscription and a publication take no step of the loop."""
    nodes = cluster("a")
    member = alice()
    await subscribed(nodes, "a", member, "plain:c")
    publishing = nodes.nodes["a"].publish(member, "plain:c", b"1")
    with pytest.raises(StopIteration) as ended:
        publishing.send(None)
    assert ended.value.value is None
    subscribing = nodes.nodes["a"].subscribe(bob(), "plain:c")
    with pytest.raises(StopIteration) as ended:
        subscribing.send(None)
    assert not isinstance(ended.value.value, ReplyError)
    assert datas(member) == [1]
    await nodes.stop()
