"""A node's clients at their worst: each ends alone, leaves nothing open, and may come back if it did nothing wrong."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import msgspec
import pytest

from access.api import Deliver, InboxEntry
from access.client import Client
from access.core.protocol import Close
from access.core.session import Session
from access.ports import Connection
from access.redirect import Redirects
from base.errors import Conflict, LimitExceeded, Overloaded, PeerUnavailable
from im.api import RpcReply
from scheduler.api import Ticket
from scheduler.client import mint_ticket
from tests.access.client_nodes import SETTLE_S, TICKET_KEY, ClientsNode, clients_node, settle, token

DEADLINE_MS = 10_000
"""To be connected, as it is configured without anything said."""


@pytest.fixture
async def node() -> AsyncIterator[ClientsNode]:
    async with clients_node() as made:
        yield made


def now_s(node: ClientsNode) -> int:
    return node.clock.realtime() // 1000


def unsigned(**header: Any) -> str:
    """A token that anybody can make."""
    parts = [json.dumps({"alg": "HS256", **header}).encode(), json.dumps({"sub": "ann"}).encode(), bytes(32)]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


# ---------------------------------------------------------------- one ends, the others stay


@pytest.mark.parametrize("header", [{"crit": ["\ud800"]}, {"kid": "\ud800"}, {"alg": "\ud800"}])
async def test_what_a_forged_token_quotes_is_told_and_ends_nobody(node: ClientsNode, header: dict[str, Any]) -> None:
    """The failure quotes the token, in which anything may stand, also what has no UTF-8."""
    ann, bob = node.wire(), node.wire()
    await ann.connect()
    await bob.connect("bob")
    await ann.send(id=2, refresh={"token": unsigned(**header)})
    assert ann.told[-1]["error"]["code"] == 101
    await bob.send(id=2, ping={})
    assert bob.told[-1] == {"id": 2, "ping": {}}
    stranger = node.wire()
    await stranger.send(id=1, connect={"token": unsigned(**header)})
    assert stranger.closed is Close.INVALID_TOKEN


@pytest.mark.parametrize(
    "claims",
    [{"channels": ["inbox:\ud800"]}, {"info": {"name": "\ud800"}}, {"device": "\ud800"}, {"platform": "\ud800"}],
)
async def test_a_token_with_what_is_no_text_lets_nobody_in(node: ClientsNode, claims: dict[str, Any]) -> None:
    """The backend that signed it passed on what a user gave it, say."""
    ann = node.wire()
    await ann.connect(**claims)
    assert ann.closed is Close.INVALID_TOKEN
    assert node.reports.open_sessions == {}


async def test_a_defect_costs_its_client_the_connection_and_nobody_else(node: ClientsNode) -> None:
    """With a code at which the client comes back."""
    node.channels.breaks = "subscribed"
    ann, bob = node.wire(), node.wire()
    await ann.connect(channels=["news:all"])
    assert ann.closed is Close.SERVER_ERROR
    await bob.connect("bob")
    assert "connect" in bob.told[0]


async def test_whoever_is_gone_is_not_shown_online_whatever_else_goes_wrong(node: ClientsNode) -> None:
    """It would be, until the process ends."""
    ann = node.wire()
    await ann.connect()
    assert len(node.reports.open_sessions) == 1
    node.channels.breaks = "gone"
    with pytest.raises(ValueError, match="defect"):
        ann.go()
    assert node.reports.open_sessions == {}


@pytest.mark.parametrize("is_closed", [False, True])
async def test_who_goes_where_it_was_sent_is_shown_until_it_can_be_there(node: ClientsNode, *, is_closed: bool) -> None:
    """By itself, or closed when its time was over; whoever goes for a reason of its own is gone at once."""
    ann, bob = node.wire(), node.wire()
    await ann.connect()
    await bob.connect("bob")
    client = ann.client
    assert isinstance(client, Client)
    if is_closed:
        node.clients.send_on(client)
        assert ann.closed is Close.SHUTDOWN
    else:
        redirects = Redirects(node.site, region="", version="", signer=lambda: None, app_of=node.clients.app_of)
        assert redirects.tell(client, None, 10_000)
    ann.go()
    bob.go()
    assert [opened.user for opened in node.reports.open_sessions.values()] == ["ann"]
    await node.let_pass(1_499)
    assert node.reports.open_sessions
    assert len(node.clients.leaving) == 1
    await node.let_pass(1)
    assert node.reports.open_sessions == {}


async def test_a_node_that_stops_does_not_end_before_it_has_told_who_went(node: ClientsNode) -> None:
    """Nobody else would."""
    ann = node.wire()
    await ann.connect()
    assert isinstance(ann.client, Client)
    node.clients.send_on(ann.client)
    ann.go()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(node.clients.leaving.wait_over())
        await settle()
        assert node.reports.open_sessions
        node.clock.advance(1_500)
        async with asyncio.timeout(5):
            await waiting
    assert node.reports.open_sessions == {}


# ---------------------------------------------------------------- gone on the way in


async def test_who_is_gone_while_its_inbox_is_read_is_subscribed_to_nothing_more(node: ClientsNode) -> None:
    """What comes behind the inbox would never be ended: that was done when the client went."""
    node.im.holds = True
    ann = node.wire()
    await ann.connect(channels=["news:all", "news:more"])
    ann.go()
    await node.im.answer()
    assert node.channels.subscriptions == []
    assert node.reports.open_sessions == {}
    assert node.inboxes.hub.users() == ()


@pytest.mark.parametrize("is_gone_first", [True, False])
async def test_a_connect_that_fails_leaves_nothing(node: ClientsNode, *, is_gone_first: bool) -> None:
    """Before the client goes, or after. One that stayed may try again on the same connection."""
    node.im.holds = True
    ann = node.wire()
    await ann.connect(channels=["news:all"])
    if is_gone_first:
        ann.go()
    await node.im.answer(PeerUnavailable("no message services"))
    assert node.channels.subscriptions == []
    assert node.reports.open_sessions == {}
    assert node.inboxes.hub.users() == ()
    if not is_gone_first:
        assert ann.told[-1]["error"] == {"code": 1101, "message": "no message services", "temporary": True}
        node.im.holds = False
        await ann.connect()
        assert "connect" in ann.told[-1]
        ann.go()
        assert node.reports.open_sessions == {}


# ---------------------------------------------------------------- not connected in time


@pytest.mark.parametrize("lifetime_s", [0, 86_400])
async def test_who_was_refused_has_as_long_as_everybody_to_connect(node: ClientsNode, lifetime_s: int) -> None:
    """And not until its token expires: nobody pings it meanwhile, so that it might not even be there."""
    claims = {"exp": now_s(node) + lifetime_s} if lifetime_s else {}
    ann = node.wire()
    await ann.send(id=1, connect={"token": token(sub="ann", **claims), "data": {"presence": 7}})
    assert ann.told[-1]["error"]["code"] == 107
    await node.let_pass(DEADLINE_MS - 1_000)
    assert ann.closed is None
    await node.let_pass(1_500)
    assert ann.closed is Close.STALE


async def test_who_waits_for_us_for_too_long_is_to_come_back(node: ClientsNode) -> None:
    """An SDK that is closed as stale stops for good, and it did nothing wrong."""
    node.im.holds = True
    ann = node.wire()
    await ann.connect(exp=now_s(node) + 86_400)
    await node.let_pass(DEADLINE_MS + 500)
    assert ann.closed is Close.SERVER_ERROR
    await node.im.answer()
    assert ann.told == []
    ann.go()
    assert node.reports.open_sessions == {}


async def test_who_is_connected_has_until_its_token_expires(node: ClientsNode) -> None:
    """And then some time to renew it."""
    ann = node.wire()
    await ann.connect(exp=now_s(node) + 60)
    assert ann.told[0]["connect"]["ttl"] == 60
    await node.let_pass(60_000 + 24_000)
    assert ann.closed is None
    await node.let_pass(2_000)
    assert ann.closed is Close.EXPIRED


# ---------------------------------------------------------------- credentials that an SDK can mend


async def test_only_too_many_connections_stop_an_sdk_for_good() -> None:
    """By a close; what else in a connect is over a limit is told by a reply, and can be asked for otherwise."""
    async with clients_node(user_connections_max=1) as node:
        node.im.holds = True
        wire = node.wire()
        await wire.connect()
        await node.im.answer(LimitExceeded("too many users in an audience", what="users", limit=3))
        assert wire.closed is None
        assert wire.told == [{"id": 1, "error": {"code": 106, "message": "too many users in an audience"}}]
        node.im.holds = False
        await wire.connect()
        assert wire.told[-1]["connect"]["client"]
        other = node.wire()
        await other.connect()
        assert other.closed is Close.CONNECTION_LIMIT


async def test_a_ticket_for_other_nodes_makes_an_sdk_ask_for_another(node: ClientsNode) -> None:
    """109; at 103 it would stop for good, where a node has moved to the address that another one had."""
    ticket = Ticket(sub="ann", jti="t", iat=now_s(node), exp=now_s(node) + 60, nodes=("access-2",))
    ann = node.wire()
    await ann.send(id=1, connect={"token": mint_ticket(ticket, kid="k1", key=TICKET_KEY)})
    assert ann.told[-1]["error"] == {"code": 109, "message": "the ticket is for another access node"}
    good = mint_ticket(msgspec.structs.replace(ticket, nodes=("access-1",)), kid="k1", key=TICKET_KEY)
    await ann.send(id=2, connect={"token": good})
    assert "connect" in ann.told[-1]


async def test_a_renewal_with_an_expired_token_closes_and_does_not_stop_an_sdk(node: ClientsNode) -> None:
    """With 3005: it comes back with a token that it asks for anew. At an error it would stop for good."""
    ann = node.wire()
    await ann.connect(exp=now_s(node) + 60)
    expired = token(sub="ann", exp=now_s(node) - 60)
    await ann.send(id=2, refresh={"token": expired})
    assert ann.closed is Close.EXPIRED
    assert len(ann.told) == 1


# ---------------------------------------------------------------- a start that is read anew


async def entries(node: ClientsNode, count: int) -> None:
    for _ in range(count):
        node.im.store()


def resume(command_id: int, since: int, **more: Any) -> dict[str, Any]:
    request = {"channel": "inbox:ann", "recover": True, "epoch": "e", "offset": since, **more}
    return {"id": command_id, "subscribe": request}


async def test_nothing_overtakes_the_start_that_a_client_reads_anew(node: ClientsNode) -> None:
    """An entry that is pushed between the reading and the reply follows the reply, whoever else gets it at once."""
    await entries(node, 5)
    ann, other = node.wire(), node.wire()
    await ann.connect()
    await other.connect()
    node.im.holds = True
    await ann.send(**resume(2, 2))
    await node.push(node.im.store())
    await node.push(node.im.store())
    assert (ann.offsets(), other.offsets()) == ([], [6, 7])
    await node.im.answer()
    await node.im.answer()
    assert ann.offsets() == [3, 4, 5, 6, 7]
    await node.push(node.im.store())
    assert (ann.offsets(), other.offsets()) == ([3, 4, 5, 6, 7, 8], [6, 7, 8])


async def test_a_gap_that_is_fetched_meanwhile_does_not_overtake_it_either(node: ClientsNode) -> None:
    """What the fetch brings is left to the one after the reply."""
    await entries(node, 5)
    ann = node.wire()
    await ann.connect()
    node.im.holds = True
    node.im.store()
    await node.push(node.im.store())
    await ann.send(**resume(2, 4))
    node.im.store()
    assert len(node.im.held) == 2
    await node.im.answer()
    assert ann.offsets() == []
    node.im.holds = False
    await node.im.answer()
    assert ann.offsets() == [5, 6, 7]
    await node.push(node.im.store())
    assert ann.offsets() == [5, 6, 7, 8, 9]


@pytest.mark.spec("MD-05")
async def test_a_client_whose_next_entries_were_trimmed_has_to_start_over(node: ClientsNode) -> None:
    """It would wait for them for ever: closed with the code by which it comes back and is told."""
    ann = node.wire()
    await ann.connect()
    await entries(node, 4)
    node.im.floor = 3
    await node.push(node.im.store())
    await settle()
    assert ann.offsets() == []
    assert ann.closed == Close.INSUFFICIENT_STATE


async def test_a_shard_that_has_another_past_sends_back_its_own_users_alone(node: ClientsNode) -> None:
    """Positions of one shard say nothing about those of another; what is of the moment says nothing of positions."""
    node.im.apart = {"bob": "b1", "ben": "b1"}
    ann, bob = node.wire(), node.wire()
    await ann.connect()
    await bob.connect("bob")
    await node.push(Deliver("e", [InboxEntry("bob", 0, b"1"), InboxEntry("ann", 1, b"1")]))
    assert (ann.closed, bob.closed) == (None, None)
    await node.push(Deliver("b2", [InboxEntry("ben", 1, b"1")]))
    assert (ann.closed, bob.closed) == (None, Close.INSUFFICIENT_STATE)


@pytest.mark.parametrize("fails", [True, False])
async def test_a_start_that_came_to_nothing_leaves_the_client_where_it_was(node: ClientsNode, *, fails: bool) -> None:
    """It gets what was held back from it."""
    await entries(node, 5)
    ann = node.wire()
    await ann.connect()
    node.im.holds = True
    await ann.send(**resume(2, 2, flag=2, **({} if fails else {"epoch": "another"})))
    await node.push(node.im.store())
    node.im.holds = False
    await node.im.answer(PeerUnavailable("no message services") if fails else None)
    assert [told["error"]["code"] for told in ann.told if "error" in told] == [1101 if fails else 112]
    assert ann.offsets() == [6]


async def test_a_client_that_goes_while_it_reads_its_start_anew_leaves_nothing(node: ClientsNode) -> None:
    """Nor is anything fetched for it."""
    ann = node.wire()
    await ann.connect()
    node.im.holds = True
    await ann.send(**resume(2, 0))
    await node.push(node.im.store())
    ann.go()
    await node.im.answer(PeerUnavailable("no message services"))
    assert node.im.held == []
    assert node.inboxes.hub.users() == ()


async def test_without_the_servers_subscription_a_failed_start_begins_nothing() -> None:
    """The client is written to from its first start on, and not from the beginning of its timeline."""
    async with clients_node(subscribe_inbox=False) as node:
        await entries(node, 5)
        ann = node.wire()
        await ann.connect()
        node.im.holds = True
        await ann.send(**resume(2, 2))
        await node.im.answer(PeerUnavailable("no message services"))
        await node.push(node.im.store())
        assert (ann.offsets(), node.im.held) == ([], [])
        await ann.send(**resume(3, 4))
        await node.im.answer()
        assert ann.offsets() == [5, 6]


async def test_the_work_of_many_clients_ends_with_them(node: ClientsNode) -> None:
    """A hundred come, ask, and go in the middle; nothing is left of them."""
    node.im.holds = True
    wires = [node.wire() for _ in range(100)]
    for number, wire in enumerate(wires):
        await wire.connect(f"user-{number}", channels=["news:all"])
    for wire in wires:
        wire.go()
    async with asyncio.timeout(SETTLE_S):
        while node.im.held:
            await node.im.answer()
    await settle()
    assert (len(node.clients), node.reports.open_sessions, node.channels.subscriptions) == (0, {}, [])
    assert node.inboxes.hub.statistics() == {"clients": 0, "users": 0, "loading": 0}


# ---------------------------------------------------------------- calls of the message services


async def test_a_call_is_answered_when_the_message_services_do(node: ClientsNode) -> None:
    """In any order, by the result or the error; who is gone by then is told nothing."""
    ann, bob = node.wire(), node.wire()
    await ann.connect()
    await bob.connect("bob")
    for number in (2, 3):
        await ann.send(id=number, rpc={"method": "im.send", "data": {"n": number}})
    await bob.send(id=2, rpc={"method": "im.sync", "data": None})
    (first, second, third) = node.im.asked
    assert first[:4] == ("ann", "", "im.send", b'{"n": 2}')
    assert third[:4] == ("bob", "", "im.sync", b"null")
    told = len(ann.told)
    second[4](RpcReply(b'{"seq":1}'))
    first[4](Conflict("used before"))
    assert ann.told[told] == {"id": 3, "rpc": {"data": {"seq": 1}}}
    assert ann.told[told + 1]["error"]["message"] == "used before"
    told = len(bob.told)
    node.clients.gone(cast("Connection", bob))
    third[4](RpcReply(b"{}"))
    assert len(bob.told) == told


async def test_a_call_waits_for_the_message_services_to_be_reached(node: ClientsNode) -> None:
    """Where there is no stream for now. Any other refusal is told at once."""
    ann = node.wire()
    await ann.connect()
    node.im.refusal = PeerUnavailable("no stream")
    await ann.send(id=2, rpc={"method": "im.sync", "data": {}})
    assert node.im.waited == [("ann", "im.sync", b"{}")]
    assert ann.told[-1] == {"id": 2, "rpc": {"data": {"waited": True}}}
    node.im.refusal = Overloaded("too much", what="peer_queue")
    await ann.send(id=3, rpc={"method": "im.sync", "data": {}})
    assert ann.told[-1]["error"]["code"] == 111
    assert node.im.asked == []


async def test_a_defect_at_an_answer_is_its_clients_only(node: ClientsNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of many come over one stream, which is to live on."""
    ann, bob = node.wire(), node.wire()
    await ann.connect()
    await bob.connect("bob")
    await ann.send(id=2, rpc={"method": "im.send", "data": {}})
    (asked,) = node.im.asked
    monkeypatch.setattr(Session, "finish", lambda *_: 1 / 0)
    asked[4](RpcReply(b"{}"))
    assert ann.closed is Close.SERVER_ERROR
    assert bob.closed is None
