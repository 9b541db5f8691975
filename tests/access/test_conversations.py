"""Conversations: who may subscribe, where it begins, what is lost on the way, and what is too much."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from access.config import AccessConfig
from access.core.feed import HELD_MAX
from access.core.protocol import (
    ClientError,
    SubscribeFlag,
    SubscribeRequest,
    SubscribeResult,
)
from access.fanout import Fanout
from base.clock import SystemClock
from base.errors import BadRequest, LimitExceeded, NotReady, PeerUnavailable, PermissionDenied
from tests.access.conversation_nodes import (
    CHANNEL,
    CID,
    PUT_OUT,
    START_OVER,
    assert_nobody_left,
    running,
    settle,
)

# ---------------------------------------------------------------- where a subscription begins


async def test_a_subscription_begins_at_the_head() -> None:
    """What was before is not told, what comes is; what others get is not theirs."""
    async with running() as node:
        await node.deliver(node.im.store(), node.im.store())
        ann = node.join("ann")
        result = await ann.subscribe()
        assert isinstance(result, SubscribeResult)
        assert (result.epoch, result.offset, result.recovered) == ("e1", 2, False)
        node.im.heads["8"] = 0
        await node.deliver(node.im.store("8"), node.im.store(), node.im.store())
        assert ann.seen == [3, 4]
        assert node.im.followed == {CID}


@pytest.mark.parametrize(
    ("epoch", "offset", "recovered"),
    [
        ("e1", 1, [2, 3]),
        ("e1", 3, []),
        ("", 0, [1, 2, 3]),
        ("e0", 1, None),
        ("", 1, None),
        ("e1", 4, None),
    ],
)
async def test_recovery_is_all_or_nothing(epoch: str, offset: int, recovered: list[int] | None) -> None:
    """Everything after a position of this epoch, else the head and no part; and it goes on from there in each case."""
    async with running() as node:
        node.im.heads[CID] = 3
        ann = node.join("ann")
        ann.epoch, ann.offset = epoch, offset
        result = await ann.subscribe(recover=True)
        assert isinstance(result, SubscribeResult)
        assert (result.recovered, result.offset) == (recovered is not None, 3)
        assert ann.seen == (recovered or [])
        await node.deliver(node.im.store())
        assert ann.seen == [*(recovered or []), 4]


async def test_who_missed_more_than_a_recovery_sends_is_told_so() -> None:
    """The bound is exact."""
    async with running(AccessConfig(audit_interval_ms=1, recovery_entries_max=3)) as node:
        node.im.heads[CID] = 4
        for offset, is_recovered in ((0, False), (1, True)):
            ann = node.join("ann")
            ann.epoch, ann.offset = "e1", offset
            result = await ann.subscribe(recover=True)
            assert isinstance(result, SubscribeResult)
            assert result.recovered is is_recovered


async def test_who_wants_all_or_nothing_is_refused_with_112() -> None:
    """And nothing is left of it; who can be given all is let in."""
    async with running() as node:
        node.im.heads[CID] = 3
        ann = node.join("ann")
        ann.epoch, ann.offset = "e0", 1
        refused = await ann.subscribe(recover=True, flag=SubscribeFlag.REJECT_UNRECOVERED)
        assert refused == ClientError.UNRECOVERABLE_POSITION.wire
        assert_nobody_left(node)
        ann.epoch = "e1"
        assert isinstance(await ann.subscribe(recover=True, flag=SubscribeFlag.REJECT_UNRECOVERED), SubscribeResult)
        assert ann.seen == [2, 3]


# ---------------------------------------------------------------- who may not


async def test_who_is_no_member_is_refused() -> None:
    """As is everybody where there is no conversation."""
    async with running() as node:
        node.im.strangers = {"eve"}
        for who in (node.join("eve"), node.join("ann", "99")):
            with pytest.raises(PermissionDenied):
                await who.subscribe()
        assert_nobody_left(node)


@pytest.mark.parametrize("name", ["", "x", "-1", "1.5", "٣", "1 ", "conv:1"])
async def test_a_name_that_is_no_number_is_no_channel(name: str) -> None:
    """The message services are not asked."""
    async with running() as node:
        ann = node.join("ann", name)
        assert await ann.subscribe() == ClientError.UNKNOWN_CHANNEL.wire
        assert node.im.reads == []
        assert_nobody_left(node)


async def test_a_number_that_the_message_services_do_not_take_leaves_nothing_behind() -> None:
    """They know better which numbers there are."""
    async with running() as node:

        def refuse(_cids: Iterable[str]) -> None:
            raise BadRequest("no conversation is named so")

        node.im.follow = refuse  # type: ignore[method-assign]
        with pytest.raises(BadRequest):
            await node.join("ann", "007").subscribe()
        assert_nobody_left(node)


async def test_nobody_subscribes_twice_or_to_too_much() -> None:
    """105 and 106; what is there goes on, and what was left makes room."""
    async with running(AccessConfig(audit_interval_ms=1, conversations_max=1)) as node:
        node.im.heads["8"] = 0
        ann = node.join("ann")
        await ann.subscribe()
        assert await node.broker.subscribe(ann, ann.request()) == ClientError.ALREADY_SUBSCRIBED.wire
        with pytest.raises(LimitExceeded):
            await node.broker.subscribe(ann, SubscribeRequest("conv:8"))
        await node.deliver(node.im.store())
        assert ann.seen == [1]
        ann.leave()
        assert isinstance(await node.broker.subscribe(ann, SubscribeRequest("conv:8")), SubscribeResult)


async def test_a_client_follows_several_and_leaves_them_one_by_one_or_at_once() -> None:
    """What it left is not followed any more, the rest goes on."""
    async with running() as node:
        node.im.heads |= {"8": 0, "9": 0}
        ann = node.join("ann")
        await ann.subscribe()
        for channel in ("conv:8", "conv:9"):
            assert isinstance(await node.broker.subscribe(ann, SubscribeRequest(channel)), SubscribeResult)
        assert node.broker.statistics() == {"conversations": 3, "subscriptions": 3}
        node.broker.unsubscribe(ann, "conv:8")
        node.broker.unsubscribe(ann, "conv:8")
        assert node.im.followed == {CID, "9"}
        await node.deliver(node.im.store("8"), node.im.store())
        assert ann.seen == [1]
        node.broker.gone(ann)
        assert_nobody_left(node)


async def test_a_read_that_fails_leaves_nothing_behind() -> None:
    """Nor anything in the way of the next try, nor of others."""
    async with running() as node:
        ann, ben = node.join("ann"), node.join("ben")
        node.im.holds = True
        first, second = asyncio.ensure_future(ann.subscribe()), asyncio.ensure_future(ben.subscribe())
        await settle()
        await node.im.answer(0, PeerUnavailable("gone"))
        with pytest.raises(PeerUnavailable):
            await first
        await node.deliver(node.im.store())
        await node.im.answer()
        await second
        assert ben.seen == [1]
        node.im.holds = False
        await ann.subscribe()
        await node.deliver(node.im.store())
        assert (ann.seen, ben.seen) == ([2], [1, 2])


# ---------------------------------------------------------------- between the read and the reply


async def test_what_is_pushed_while_the_start_is_read_follows_the_reply() -> None:
    """The first one in a conversation, and one who comes to others; what the read has already is not told again."""
    async with running() as node:
        node.im.holds = True
        ann, ben = node.join("ann"), node.join("ben")
        for who, others in ((ann, []), (ben, [ann])):
            before = node.im.store()
            starting = asyncio.ensure_future(who.subscribe())
            await settle()
            await node.deliver(before, node.im.store(), node.im.store())
            assert who.seen == []
            for other in others:
                assert other.offset == node.im.heads[CID]
            await node.im.answer()
            await starting
            assert who.seen[-2:] == [node.im.heads[CID] - 1, node.im.heads[CID]]
        await node.deliver(node.im.store())
        assert ann.seen == [2, 3, 4, 5, 6, 7]
        assert ben.seen == [5, 6, 7]
        assert node.fetches() == 0


async def test_a_start_ahead_of_the_feed_waits_for_it() -> None:
    """Its reply has what is still on its way to the others: it gets that once."""
    async with running() as node:
        ann, ben = node.join("ann"), node.join("ben")
        await ann.subscribe()
        late = [node.im.store(), node.im.store()]
        await ben.subscribe(recover=True)
        assert ben.seen == [1, 2]
        await node.deliver(*late, node.im.store())
        assert ann.seen == ben.seen == [1, 2, 3]
        await node.deliver(node.im.store())
        assert ann.seen == ben.seen == [1, 2, 3, 4]


async def test_a_start_whose_read_was_overtaken_is_told_to_start_over() -> None:
    """Two read at once, and the later answer comes first: the feed begins behind what the other one needs."""
    async with running() as node:
        node.im.holds = True
        ann, ben = node.join("ann"), node.join("ben")
        first = asyncio.ensure_future(ann.subscribe())
        await settle()
        push = node.im.store()
        await node.deliver(push)
        second = asyncio.ensure_future(ben.subscribe())
        await settle()
        await node.im.answer(1)
        await node.im.answer(0)
        await asyncio.gather(first, second)
        assert (ann.offset, ann.ended) == (0, [START_OVER])
        node.im.holds = False
        await ann.subscribe(recover=True)
        await node.deliver(node.im.store())
        assert ann.seen == [1, 2]
        assert ben.seen == [2]


async def test_more_than_is_kept_for_a_start_makes_it_start_over() -> None:
    """The bound holds, and the others do not notice."""
    async with running() as node:
        ann, ben = node.join("ann"), node.join("ben")
        await ann.subscribe()
        node.im.holds = True
        starting = asyncio.ensure_future(ben.subscribe())
        await settle()
        await node.deliver(*(node.im.store() for _ in range(HELD_MAX + 1)))
        await node.im.answer()
        await starting
        assert (ben.seen, ben.ended) == ([], [START_OVER])
        assert ann.offset == HELD_MAX + 1


@pytest.mark.parametrize("how", ["leave", "gone"])
async def test_who_leaves_while_the_start_is_read_gets_nothing(how: str) -> None:
    """Neither a reply nor a push, and nobody is left behind."""
    async with running() as node:
        ann = node.join("ann")
        node.im.holds = True
        starting = asyncio.ensure_future(ann.subscribe())
        await settle()
        await node.im.audit()
        await node.im.audit()  # knows nothing to compare with yet
        ann.leave() if how == "leave" else node.broker.gone(ann)
        assert_nobody_left(node)
        await node.deliver(node.im.store())
        await node.im.answer()
        with pytest.raises(NotReady):
            await starting
        assert_nobody_left(node)


async def test_a_start_that_was_given_up_does_not_disturb_the_next_one() -> None:
    """The same client, the same conversation: the late answer to the first, good or bad, is nobody's."""
    async with running() as node:
        ann = node.join("ann")
        node.im.holds = True
        for error in (None, PeerUnavailable("gone")):
            first = asyncio.ensure_future(ann.subscribe())
            await settle()
            ann.leave()
            second = asyncio.ensure_future(ann.subscribe())
            await settle()
            await node.im.answer(0, error)
            with pytest.raises(NotReady if error is None else PeerUnavailable):
                await first
            await node.im.answer()
            await second
            before = len(ann.seen)
            await node.deliver(node.im.store())
            assert len(ann.seen) == before + 1
            ann.leave()
        assert_nobody_left(node)


async def test_a_reply_to_one_who_left_begins_nothing() -> None:
    """The client went between the answer and its reply."""
    async with running() as node:
        ann = node.join("ann")
        result = await node.broker.subscribe(ann, ann.request())
        assert isinstance(result, SubscribeResult)
        node.broker.gone(ann)
        node.broker.subscribed(ann, CHANNEL, result)
        await node.deliver(node.im.store())
        assert_nobody_left(node)


# ---------------------------------------------------------------- what is lost on the way


@pytest.mark.spec("MD-01")
async def test_a_gap_is_read_and_nothing_is_told_twice() -> None:
    """One push is lost: the next one shows it, one read fills it for everybody, and what comes meanwhile follows."""
    async with running() as node:
        ann, ben = node.join("ann"), node.join("ben")
        await ann.subscribe()
        await ben.subscribe()
        node.im.store()
        node.im.holds = True
        await node.deliver(node.im.store(), node.im.store())
        assert (ann.seen, node.im.reads[-1]) == ([], ("ann", 0))
        await node.deliver(node.im.store(), node.im.push(3))
        await node.im.answer()
        assert ann.seen == ben.seen == [1, 2, 3, 4]
        assert node.fetches() == 1


async def test_what_comes_twice_or_late_is_told_once() -> None:
    """Messages of one push, too."""
    async with running() as node:
        ann = node.join("ann")
        await ann.subscribe()
        node.im.heads[CID] = 4
        await node.deliver(node.im.push(1, 2), node.im.push(2, 3), node.im.push(1), node.im.push(4), node.im.push(4))
        assert ann.seen == [1, 2, 3, 4]
        assert node.fetches() == 0


@pytest.mark.spec("MD-02")
async def test_a_lost_last_push_is_found_by_the_audit() -> None:
    """Nothing follows it that would show the gap."""
    async with running() as node:
        ann = node.join("ann")
        await ann.subscribe()
        node.im.store()
        await node.im.audit()
        assert ann.seen == [1]
        await node.im.audit()
        await node.im.audit(PeerUnavailable("gone"))
        node.im.store()
        await node.im.audit()
        await node.im.audit()
        assert ann.seen == [1, 2]
        assert node.fetches() == 2


async def test_messages_that_come_during_an_audit_are_no_loss() -> None:
    """Its answer was made before them."""
    async with running() as node:
        ann = node.join("ann")
        await ann.subscribe()
        await asyncio.sleep(0.01)  # the question is under way
        await node.deliver(node.im.store())
        await node.im.audit()
        assert ann.seen == [1]
        assert node.fetches() == 0


async def test_a_read_that_fails_is_tried_again_by_the_audit_or_for_the_next_one() -> None:
    """And the next one to come does not make the others miss what was not read."""
    async with running() as node:
        ann, ben = node.join("ann"), node.join("ben")
        await ann.subscribe()
        for again in (node.im.audit, ben.subscribe):
            node.im.store()
            node.im.holds = True
            await node.deliver(node.im.store())
            await node.im.answer(0, PeerUnavailable("gone"))
            assert ann.offset == node.im.heads[CID] - 2
            node.im.holds = False
            await again()
            await settle()
            await node.im.audit()
            assert ann.offset == node.im.heads[CID]
        assert ann.seen == [1, 2, 3, 4]
        await node.deliver(node.im.store())
        assert ben.seen == [5]


async def test_a_gap_that_is_longer_than_a_read_makes_everybody_start_over() -> None:
    """Never a part."""
    async with running(AccessConfig(audit_interval_ms=1, recovery_entries_max=3)) as node:
        ann = node.join("ann")
        await ann.subscribe()
        node.im.heads[CID] = 4
        await node.deliver(node.im.push(4))
        assert (ann.seen, ann.ended) == ([], [START_OVER])
        assert_nobody_left(node)


# ---------------------------------------------------------------- another life of the store


@pytest.mark.parametrize("how", ["push", "audit", "subscriber"])
async def test_another_epoch_makes_everybody_start_over(how: str) -> None:
    """However it shows: the members, who waits for the feed, and who is being read a start; then all go on."""
    async with running() as node:
        ann, ben, cat = node.join("ann"), node.join("ben"), node.join("cat")
        node.im.heads[CID] = 5
        await ann.subscribe()
        node.im.store()  # lost: ben is ahead of the feed
        await ben.subscribe()
        node.im.holds = True
        starting = asyncio.ensure_future(cat.subscribe())
        await settle()
        node.im.begin_anew("e2")
        node.im.holds = False
        if how == "push":
            await node.deliver(node.im.store())
        elif how == "audit":
            await node.im.audit()
            await node.im.audit()
        else:
            await node.join("dan").subscribe()
            await settle()
        assert ann.ended == ben.ended == [START_OVER]
        await node.im.answer()
        await starting
        assert cat.ended == [START_OVER]
        for who in (ann, ben, cat):
            await who.subscribe(recover=True)
        seen = len(ann.seen)
        await node.deliver(node.im.store())
        assert [len(who.seen) - seen for who in (ann, ben, cat)] == [1, 1, 1]


async def test_what_is_kept_from_the_former_epoch_does_not_follow_a_start_of_the_next() -> None:
    """The numbers would fit."""
    async with running() as node:
        ann, ben = node.join("ann"), node.join("ben")
        await ann.subscribe()
        node.im.holds = node.im.reads_late = True
        starting = asyncio.ensure_future(ben.subscribe())
        await settle()
        await node.deliver(node.im.store(), node.im.store())
        node.im.begin_anew("e2")
        await node.deliver(node.im.store())
        await node.im.answer(1)
        assert (ann.seen, ann.ended) == ([1, 2], [START_OVER])
        await node.im.answer(0)
        await starting
        assert (ben.seen, ben.ended) == ([], [START_OVER])


async def test_a_read_that_failed_is_tried_again_though_the_heads_agree() -> None:
    """The new life of the store has come as far as the former one."""
    async with running() as node:
        ann = node.join("ann")
        await ann.subscribe()
        await node.deliver(node.im.store())
        node.im.begin_anew("e2")
        node.im.holds = True
        await node.deliver(node.im.store())
        await node.im.answer(0, PeerUnavailable("gone"))
        node.im.holds = False
        await node.im.audit()
        assert (ann.seen, ann.ended) == ([1], [START_OVER])


# ---------------------------------------------------------------- who is put out


async def test_who_is_no_member_any_more_is_put_out_when_it_shows() -> None:
    """A read for it is refused; it is told, and the others get what was to be read."""
    async with running() as node:
        ann, ben = node.join("ann"), node.join("ben")
        await ann.subscribe()
        await ben.subscribe()
        node.im.strangers = {"ann"}
        node.im.store()
        await node.deliver(node.im.store())
        assert (ann.seen, ann.ended) == ([], [PUT_OUT])
        assert (ben.seen, ben.ended) == ([1, 2], [])
        node.im.strangers = {"ann", "ben"}
        node.im.store()
        await node.deliver(node.im.store())
        assert ben.ended == [PUT_OUT]
        assert_nobody_left(node)


async def test_a_stranger_does_not_read_for_the_others() -> None:
    """Only somebody who was let in does; where nobody is left, the stranger's own question decides."""
    async with running() as node:
        ann, eve = node.join("ann"), node.join("eve")
        await ann.subscribe()
        node.im.strangers = {"eve"}
        node.im.holds = True
        starting = asyncio.ensure_future(eve.subscribe())
        await settle()
        node.im.store()
        await node.deliver(node.im.store())
        assert node.im.reads[-1] == ("ann", 0)
        ann.leave()
        await node.im.answer(1, PermissionDenied("ann left"))
        assert node.im.reads[-1] == ("eve", 0)
        await node.im.answer(1)
        assert_nobody_left(node)
        await node.im.answer(0)
        with pytest.raises(PermissionDenied):
            await starting
        assert_nobody_left(node)


# ---------------------------------------------------------------- many


async def test_more_pushes_than_may_wait_make_everybody_start_over() -> None:
    """Nobody is left with a hole that does not show; who comes back goes on."""
    async with running(fanout=Fanout(SystemClock(), chunk=1, waiting_max=2), runs_fanout=False) as node:
        ann, ben = node.join("ann"), node.join("ben")
        await ann.subscribe()
        await ben.subscribe()
        await node.deliver(*(node.im.store() for _ in range(3)))
        assert ann.ended == ben.ended == [START_OVER]
        assert len(node.fanout) == 0
        assert_nobody_left(node)
        await ann.subscribe(recover=True)
        assert ann.seen == [1, 2, 3]


async def test_pushes_that_wait_for_many_keep_their_order_while_people_come_and_go() -> None:
    """Who left gets nothing that still waits for the others, and who comes nothing that its reply has."""
    async with running(fanout=Fanout(SystemClock(), chunk=2, waiting_max=100)) as node:
        people = [node.join(f"user-{number}") for number in range(150)]
        for who in people:
            await who.subscribe()
        for round_ in range(20):
            node.broker.deliver(node.im.store(), "im-1")
            people[round_].leave()
            if round_ % 2:
                await people[round_ - 1].subscribe(recover=True)
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            while len(node.fanout):  # noqa: ASYNC110 - chunks are written one by one
                await asyncio.sleep(0)
        for number, who in enumerate(people):
            assert who.is_on is (number >= 20 or number % 2 == 0)
            assert who.seen == list(range(1, who.offset + 1))
            assert who.offset == 20 if who.is_on else who.offset <= 20
        for who in people:
            node.broker.gone(who)
        assert_nobody_left(node)
