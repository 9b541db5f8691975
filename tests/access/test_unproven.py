"""Pseudo-online: what a session that ends in silence may not have got is told, and nothing else; and pushes beside the
timeline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from access.api import Deliver, InboxEntry
from access.core.protocol import Close
from base.errors import PeerUnavailable, UnknownMethod
from tests.access.client_nodes import ClientsNode, Wire, clients_node, settle


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("access.unproven.GATHER_S", 0.01)
    monkeypatch.setattr("access.unproven.RETRY_S", 0.01)


@pytest.fixture
async def node() -> AsyncIterator[ClientsNode]:
    async with clients_node(ping_interval_ms=2_000, pong_deadline_ms=1_000) as made:
        yield made


async def ping(node: ClientsNode, wire: Wire, *, answers: bool) -> None:
    """Let time pass until the client is pinged; others may be, too."""
    before = wire.told.count({})
    while wire.told.count({}) == before:
        await node.let_pass(500)
    if answers:
        await wire.send()


async def told(node: ClientsNode, count: int = 1) -> list[list[tuple[str, int]]]:
    async with asyncio.timeout(5):
        while len(node.im.told_unproven) < count:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)
    return node.im.told_unproven


def ends(wire: Wire, code: int) -> None:
    wire.code = code
    wire.go()


@pytest.mark.spec("PP-04")
async def test_what_was_written_after_the_last_answered_ping_is_told(node: ClientsNode) -> None:
    """The link is dead: two entries were answered for, two were not, and no pong comes."""
    ann = node.wire()
    await ann.connect()
    await node.push(node.im.store())
    await node.push(node.im.store())
    await ping(node, ann, answers=True)
    await node.push(node.im.store())
    await ping(node, ann, answers=False)
    await node.push(node.im.store())
    await node.let_pass(500)
    await node.let_pass(500)
    assert ann.closed is Close.NO_PONG
    ends(ann, Close.NO_PONG.code)
    assert await told(node) == [[("ann", 2)]]


@pytest.mark.parametrize("code", [1006, Close.NO_PONG.code, Close.SLOW.code])
async def test_only_a_silent_end_leaves_anything_unproven(node: ClientsNode, code: int) -> None:
    """Who says goodbye is gone on purpose; and who has answered for everything has it."""
    leaves, has_all, dies, stranger = (node.wire() for _ in range(4))
    for wire in (leaves, has_all, dies):
        await wire.connect()
    await node.push(node.im.store())
    await ping(node, has_all, answers=True)
    ends(has_all, code)
    ends(leaves, 1000)
    ends(stranger, code)
    ends(dies, code)
    assert await told(node) == [[("ann", 0)]]


async def test_a_position_that_a_client_comes_with_is_proven(node: ClientsNode) -> None:
    """It says so itself; what follows it in the reply is not."""
    for _ in range(5):
        node.im.store()
    ann = node.wire()
    await ann.connect()
    ends(ann, 1006)
    again = node.wire()
    await again.connect()
    await again.send(id=2, subscribe={"channel": "inbox:ann", "recover": True, "epoch": "e", "offset": 3})
    ends(again, 1006)
    assert await told(node) == [[("ann", 3)]]


async def test_many_that_end_together_are_told_together_and_again_after_a_failure(node: ClientsNode) -> None:
    """Of a user's sessions the one that has least counts; an older message service is not asked again."""
    one, two = node.wire(), node.wire()
    await one.connect()
    await two.connect()
    await node.push(node.im.store())
    await ping(node, one, answers=True)
    await node.push(node.im.store())
    node.im.failures = [PeerUnavailable("gone"), UnknownMethod("of old")]
    ends(one, 1006)
    ends(two, 1006)
    assert await told(node, 2) == [[("ann", 0)], [("ann", 0)]]
    await asyncio.sleep(0.05)
    assert len(node.im.told_unproven) == 2


async def test_what_is_too_much_to_be_told_is_dropped(node: ClientsNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound, whatever happens."""
    monkeypatch.setattr("access.unproven.USERS_MAX", 0)
    ann = node.wire()
    await ann.connect()
    await node.push(node.im.store())
    ends(ann, 1006)
    await asyncio.sleep(0.05)
    assert node.im.told_unproven in ([], [[]])


# ---------------------------------------------------------------- beside the timeline


async def test_what_is_beside_the_timeline_is_written_and_moves_no_position(node: ClientsNode) -> None:
    """To all of the user's sessions, with no offset; whoever else is named is said to be absent."""
    phone, desk = node.wire(), node.wire()
    await phone.connect()
    await desk.connect()
    await node.push(node.im.store())
    typing = Deliver("e", [InboxEntry("ann", 0, b'{"kind":"typing"}'), InboxEntry("eve", 0, b"1")])
    assert node.inboxes.deliver(typing, "im-1").absent == ["eve"]
    for wire in (phone, desk):
        assert wire.told[-1] == {"push": {"channel": "inbox:ann", "pub": {"data": {"kind": "typing"}}}}
    await node.push(node.im.store())
    assert phone.told[-1]["push"]["pub"]["offset"] == 2


async def test_a_sync_version_is_passed_on_when_it_changes() -> None:
    """With the next comparison of heads, and not again."""
    async with clients_node(audit_interval_ms=1) as node:
        ann = node.wire()
        await ann.connect()
        for version in (7, 9):
            node.im.versions = {"ann": version, "eve": 4}
            hint = {"kind": "sync", "sync_version": version}
            async with asyncio.timeout(5):
                while ann.told[-1] != {"push": {"channel": "inbox:ann", "pub": {"data": hint}}}:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        assert len(ann.told) == 3


async def test_who_is_being_given_its_start_is_told_nothing_beside_it(node: ClientsNode) -> None:
    """It would come before the reply."""
    node.im.holds = True
    ann = node.wire()
    await ann.connect()
    node.inboxes.deliver(Deliver("e", [InboxEntry("ann", 0, b"1")]), "im-1")
    assert ann.told == []
    await node.im.answer()
    await settle()
    assert "connect" in ann.told[0]
    assert len(ann.told) == 1


async def test_what_could_not_be_told_is_told_again(node: ClientsNode) -> None:
    """The process that has the user's shard is away for a moment; the others were told."""
    ann = node.wire()
    await ann.connect()
    await node.push(node.im.store())
    node.im.untold = [("ann", 0)]
    ends(ann, 1006)
    assert await told(node, 2) == [[("ann", 0)], [("ann", 0)]]
