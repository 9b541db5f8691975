"""Conversations: members see a stretch of them, which begins where they come in and ends where they leave."""

from __future__ import annotations

import asyncio

import pytest

from access.config import AccessConfig
from access.core.protocol import HistoryRequest, HistoryResult, StreamPosition, SubscribeResult
from access.fanout import Fanout
from base.clock import SystemClock
from base.errors import NotReady, PermissionDenied
from tests.access.conversation_nodes import CHANNEL, PUT_OUT, START_OVER, assert_nobody_left, running, settle


async def test_the_entry_by_which_somebody_leaves_is_the_last_one_that_is_written() -> None:
    """The others go on; who left may not come back, on any of its connections."""
    async with running() as node:
        ann, phone, ben = node.join("ann"), node.join("ann"), node.join("ben")
        for who in (ann, phone, ben):
            await who.subscribe()
        await node.deliver(node.im.store(), node.im.remove("ann", "eve"), node.im.store())
        assert [(who.seen, who.ended) for who in (ann, phone, ben)] == [
            ([1, 2], [PUT_OUT]),
            ([1, 2], [PUT_OUT]),
            ([1, 2, 3], []),
        ]
        with pytest.raises(PermissionDenied):
            await ann.subscribe(recover=True)
        history = await node.broker.history(ann, HistoryRequest(CHANNEL, 10, StreamPosition(0, "e1")))
        assert isinstance(history, HistoryResult)
        assert [publication.offset for publication in history.publications] == [1, 2]
        ben.leave()
        assert_nobody_left(node)


async def test_who_leaves_is_told_after_what_waits_for_it() -> None:
    """Pushes to many are written in chunks: the end keeps its place among them."""
    fanout = Fanout(SystemClock(), chunk=1)
    async with running(fanout=fanout, runs_fanout=False) as node:
        people = [node.join(name) for name in ("ann", "ben", "cat")]
        for who in people:
            await who.subscribe()
        await node.deliver(node.im.store(), node.im.remove("ann"), node.im.store())
        assert [who.seen for who in people] == [[], [], []]
        while fanout.is_busy(CHANNEL):
            fanout._step(CHANNEL)
        assert [who.seen for who in people] == [[1, 2], [1, 2, 3], [1, 2, 3]]
        assert [who.ended for who in people] == [[PUT_OUT], [], []]


async def test_who_went_before_its_end_was_written_is_not_told() -> None:
    """It is not subscribed any more."""
    fanout = Fanout(SystemClock(), chunk=1)
    async with running(fanout=fanout, runs_fanout=False) as node:
        ann, ben = node.join("ann"), node.join("ben")
        await ann.subscribe()
        await ben.subscribe()
        await node.deliver(node.im.remove("ann"))
        ann.leave()
        while fanout.is_busy(CHANNEL):
            fanout._step(CHANNEL)
        assert (ann.seen, ann.ended, ben.seen) == ([], [], [1])


async def test_where_too_much_waits_the_end_is_told_at_once() -> None:
    """Rather than never."""
    fanout = Fanout(SystemClock(), chunk=1, waiting_max=1)
    async with running(fanout=fanout, runs_fanout=False) as node:
        ann, ben = node.join("ann"), node.join("ben")
        await ann.subscribe()
        await ben.subscribe()
        await node.deliver(node.im.remove("ann"))
        assert (ann.ended, ben.ended) == ([PUT_OUT], [])
        while fanout.is_busy(CHANNEL):
            fanout._step(CHANNEL)
        assert (ann.seen, ben.seen) == ([], [1])


async def test_who_leaves_while_its_start_is_read_is_told_to_start_over() -> None:
    """Which it may not, if it was let in before it left."""
    async with running() as node:
        ben = node.join("ben")
        await ben.subscribe()
        node.im.holds = True
        ann = node.join("ann")
        starting = asyncio.ensure_future(ann.subscribe())
        await settle()
        await node.deliver(node.im.remove("ann"))
        await node.im.answer()
        await starting
        assert (ann.seen, ann.ended) == ([], [START_OVER])
        node.im.holds = False
        with pytest.raises(PermissionDenied):
            await ann.subscribe(recover=True)
        assert ben.seen == [1]


async def test_who_leaves_ahead_of_the_others_is_put_out() -> None:
    """It was told a start that is still on its way to the node."""
    async with running() as node:
        ann, ben = node.join("ann"), node.join("ben")
        await ben.subscribe()
        late = node.im.store()
        await ann.subscribe()
        await node.deliver(node.im.remove("ann"), node.im.store())
        assert (ann.seen, ann.ended) == ([2], [PUT_OUT])
        await node.deliver(late)
        assert ben.seen == [1, 2, 3]


async def test_who_leaves_by_an_entry_that_was_not_pushed_is_put_out_by_what_is_read() -> None:
    """Members, and who is ahead of the others: each gets the entry and nothing after it, whoever it is read for."""
    async with running() as node:
        ann, ben, cat = node.join("ann"), node.join("ben"), node.join("cat")
        await ann.subscribe()
        await ben.subscribe()
        node.im.store()
        await cat.subscribe()
        node.im.remove("ben", "cat")
        await node.deliver(node.im.store())
        assert [(who.seen, who.ended) for who in (ann, ben, cat)] == [
            ([1, 2, 3], []),
            ([1, 2], [PUT_OUT]),
            ([2], [PUT_OUT]),
        ]
        node.im.remove("dan")
        await node.im.audit()
        assert ann.seen == [1, 2, 3, 4]


async def test_who_leaves_while_something_is_missing_is_put_out_in_its_turn() -> None:
    """The entry is kept like any other until what comes before it was read."""
    async with running() as node:
        ann, ben = node.join("ann"), node.join("ben")
        await ann.subscribe()
        await ben.subscribe()
        node.im.holds = True
        node.im.store()
        await node.deliver(node.im.store())
        await node.deliver(node.im.remove("ben"), node.im.store())
        assert (ben.seen, ben.ended) == ([], [])
        await node.im.answer()
        assert (ann.seen, ann.ended) == ([1, 2, 3, 4], [])
        assert (ben.seen, ben.ended) == ([1, 2, 3], [PUT_OUT])


async def test_a_push_of_old_does_not_put_out_who_came_back() -> None:
    """It was let in again by a later entry than the one that is told."""
    async with running() as node:
        leave, back = node.im.remove("ann"), node.im.take_back("ann")
        ann = node.join("ann")
        await ann.subscribe()
        await node.deliver(leave, back)
        assert (ann.ended, ann.offset) == ([], 2)
        other = node.join("ann")
        late = node.im.store()
        await other.subscribe()
        await node.deliver(leave)
        assert other.ended == []
        await node.deliver(late, node.im.store())
        assert (ann.seen, other.seen) == ([3, 4], [4])


async def test_who_comes_from_before_it_may_see_anything_begins_where_it_may() -> None:
    """And is told the rest as anybody."""
    async with running() as node:
        node.im.heads["7"] = 5
        node.im.first_seqs["ann"] = 4
        ann = node.join("ann")
        ann.epoch, ann.offset = "e1", 1
        result = await ann.subscribe(recover=True)
        assert isinstance(result, SubscribeResult)
        assert result.recovered
        await node.deliver(node.im.store())
        assert ann.seen == [4, 5, 6]


async def test_nothing_is_read_for_others_by_who_may_not_see_it() -> None:
    """Somebody who left and came back unnoticed starts over; then somebody else is asked."""
    async with running(AccessConfig(audit_interval_ms=1)) as node:
        ann, ben = node.join("ann"), node.join("ben")
        await ann.subscribe()
        await ben.subscribe()
        node.im.store(), node.im.remove("ann"), node.im.take_back("ann")
        await node.deliver(node.im.store())
        assert node.im.reads[2:] == [("ann", 0), ("ben", 0)]
        assert (ann.ended, ben.seen) == ([START_OVER], [1, 2, 3, 4])
        await ann.subscribe(recover=True)
        assert ann.seen == [3, 4]


async def test_who_left_unnoticed_is_put_out_when_something_is_to_be_read_for_it() -> None:
    """At the latest."""
    async with running() as node:
        ann = node.join("ann")
        await ann.subscribe()
        node.im.remove("ann")
        await node.deliver(node.im.store())
        assert (ann.seen, ann.ended) == ([], [PUT_OUT])
        assert_nobody_left(node)


async def test_a_start_that_is_being_read_fails_if_it_was_asked_for_others() -> None:
    """It is tried again by the SDK, and goes right then."""
    async with running() as node:
        node.im.holds = True
        ann = node.join("ann")
        starting = asyncio.ensure_future(ann.subscribe())
        await settle()
        ben = node.join("ben")
        second = asyncio.ensure_future(ben.subscribe())
        await settle()
        await node.im.answer(1)
        await second
        ben.leave()
        for _ in range(3):
            node.im.store()
        node.im.first_seqs["ann"] = 3
        await node.deliver(node.im.push(3))
        await node.im.answer(1)
        await node.im.answer()
        with pytest.raises(NotReady):
            await starting
        assert_nobody_left(node)
