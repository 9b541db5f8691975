"""Conversations: their logs are read in turns, those of each shard by themselves, and by clients in pages."""

from __future__ import annotations

import asyncio

import pytest

from access import conversations
from access.core.protocol import (
    ClientError,
    HistoryRequest,
    HistoryResult,
    ReplyError,
    StreamPosition,
    SubscribeResult,
)
from base.errors import Overloaded, PeerUnavailable, PermissionDenied, Retry
from tests.access.conversation_nodes import CHANNEL, CID, running, settle


async def test_a_shard_that_hangs_holds_up_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its readings are bounded by themselves, and who gets no turn among them is told so."""
    monkeypatch.setattr(conversations, "READS_MAX", 2)
    monkeypatch.setattr(conversations, "TURN_S", 0.02)
    async with running() as node:
        node.im.heads["8"] = 0
        node.im.holds = True
        hanging = [asyncio.ensure_future(node.join(name).subscribe()) for name in ("ann", "ben", "cat")]
        await settle()
        node.im.holds = False
        dan = node.join("dan", "8")
        assert isinstance(await dan.subscribe(), SubscribeResult)
        with pytest.raises(Overloaded) as caught:
            await hanging.pop()
        assert caught.value.retry is Retry.SAME_NODE
        assert len(node.im.held) == 2
        await node.im.answer()
        await node.im.answer(0, PeerUnavailable("gone"))
        assert isinstance(await hanging[0], SubscribeResult)
        with pytest.raises(PeerUnavailable):
            await hanging[1]
        for name in ("eve", "fay"):
            assert isinstance(await node.join(name).subscribe(), SubscribeResult)


async def test_history_is_read_in_pages() -> None:
    """Of the bounds that a client gives; backwards there is none."""
    async with running() as node:
        node.im.heads[CID] = 5
        ann = node.join("ann")

        async def history(limit: int, since: StreamPosition | None = None) -> list[int] | ReplyError:
            found = await node.broker.history(ann, HistoryRequest(CHANNEL, limit=limit, since=since))
            if isinstance(found, ReplyError):
                return found
            assert isinstance(found, HistoryResult)
            assert (found.epoch, found.offset) == ("e1", 5)
            return [publication.offset for publication in found.publications]

        assert await history(0) == []
        assert await history(2) == [1, 2]
        assert await history(-1) == [1, 2, 3, 4, 5]
        assert await history(-1, StreamPosition(3, "e1")) == [4, 5]
        assert await history(1, StreamPosition(3)) == [4]
        assert await history(1, StreamPosition(3, "e0")) == ClientError.UNRECOVERABLE_POSITION.wire
        reverse = HistoryRequest(CHANNEL, limit=1, reverse=True)
        assert await node.broker.history(ann, reverse) == ClientError.NOT_AVAILABLE.wire
        node.im.strangers = {"ann"}
        with pytest.raises(PermissionDenied):
            await history(1)
