"""A broker of conversations with message services in its place of a test, and clients that mind what they are told."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from access.api import ConversationEntry, DeliverConversations
from access.config import AccessConfig
from access.conversations import CHANNEL_PREFIX, Conversations
from access.core.outgoing import Form
from access.core.protocol import (
    Close,
    ReplyError,
    SubscribeRequest,
    SubscribeResult,
    Unsubscribed,
)
from access.fanout import Fanout
from access.metrics import AccessMetrics
from base.clock import SystemClock
from base.errors import NotMember, RoadsteadError
from base.metrics import Metrics
from im.api import ConversationReply
from im.client import ImClient

CID = "7"
CHANNEL = CHANNEL_PREFIX + CID
START_OVER = Unsubscribed.INSUFFICIENT_STATE.value[0]
PUT_OUT = Unsubscribed.BY_SERVER.value[0]


def body(cid: str, epoch: str, seq: int) -> bytes:
    return json.dumps({"cid": cid, "epoch": epoch, "seq": seq}).encode()


class FakeIm:
    """The message services: logs of conversations, and answers that the test may hold back."""

    def __init__(self) -> None:
        self.epoch = "e1"
        self.heads: dict[str, int] = {CID: 0}
        self.strangers: set[str] = set()
        self.first_seqs: dict[str, int] = {}
        self.last_seqs: dict[str, int] = {}
        self.removals: dict[int, list[str]] = {}
        """Who left by which entry."""
        self.absences: dict[tuple[str, str], list[tuple[int, int]]] = {}
        """By epoch and user: the entry by which it left, and the one by which it came back."""
        self._returns: dict[tuple[str, str], set[int]] = {}
        self.follows: list[tuple[str, str]] = []
        self.reads: list[tuple[str, int]] = []
        """Who read, and after which seq."""
        self.holds = False
        """Whether answers wait for `answer`."""
        self.reads_late = False
        """Whether an answer that waited shows what is stored when it goes, rather than when it was asked for."""
        self.held: list[asyncio.Future[None]] = []
        self._audits: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()
        self.when_connected: list[Callable[[], None]] = []

    def store(self, cid: str = CID) -> DeliverConversations:
        """Store a message; return how it would be pushed."""
        self.heads[cid] += 1
        return self.push(self.heads[cid], cid=cid)

    def push(self, *seqs: int, cid: str = CID) -> DeliverConversations:
        """Return the push of messages that are stored."""
        return DeliverConversations(
            self.epoch, [ConversationEntry(cid, seq, body(cid, self.epoch, seq)) for seq in seqs]
        )

    def remove(self, *users: str) -> DeliverConversations:
        """Store that users leave; return how it would be pushed."""
        self.heads[CID] += 1
        seq = self.heads[CID]
        self.last_seqs |= dict.fromkeys(users, seq)
        self.removals[seq] = list(users)
        return DeliverConversations(
            self.epoch, [ConversationEntry(CID, seq, body(CID, self.epoch, seq), removed=list(users))]
        )

    def take_back(self, user: str) -> DeliverConversations:
        """Store that the user is back, and sees what comes from there on; return how it would be pushed."""
        push = self.store()
        absence = (self.last_seqs.pop(user), self.heads[CID])
        self.absences.setdefault((self.epoch, user), []).append(absence)
        self.first_seqs[user] = self.heads[CID]
        self._returns.setdefault((self.epoch, user), set()).add(self.heads[CID])
        return push

    def may_see(self, user: str, epoch: str, seq: int) -> bool:
        """Return whether the user was in when the entry was stored, or came or left by it."""
        absences = self.absences.get((epoch, user), [])
        if epoch == self.epoch and user in self.last_seqs:
            absences = [*absences, (self.last_seqs[user], seq + 1)]
        return not any(left < seq < back for left, back in absences)

    def begin_anew(self, epoch: str) -> None:
        """Lose everything."""
        self.heads = dict.fromkeys(self.heads, 0)
        self.removals.clear()
        self.last_seqs.clear()
        self.first_seqs.clear()
        self.epoch = epoch

    def first_seqs_of(self, user: str, epoch: str) -> set[int]:
        """Return where what the user sees begins, or began: an answer may be of before it left and came back."""
        now = self.first_seqs.get(user, 1) if epoch == self.epoch else 1
        return {now, *self._returns.get((epoch, user), ())}

    @property
    def followed(self) -> set[str]:
        """What is followed, after all that was said; what is said twice is a fault."""
        followed: set[str] = set()
        for what, cid in self.follows:
            assert (what == "follow") == (cid not in followed)
            followed ^= {cid}
        return followed

    async def answer(self, which: int = 0, error: RoadsteadError | None = None) -> None:
        """Let one of the reads that are held back go on, and what follows from it."""
        held = self.held.pop(which)
        if not held.done():
            if error is None:
                held.set_result(None)
            else:
                held.set_exception(error)
        await settle()

    async def audit(self, error: RoadsteadError | None = None) -> None:
        """Let the node compare heads once, and do what follows from it."""
        async with asyncio.timeout(5):
            asked = await self._audits.get()
        if error is None:
            asked.set_result(None)
        else:
            asked.set_exception(error)
        await settle()

    # ---------------------------------------------------------------- as ImClient

    def on_connected(self, listener: Callable[[], None]) -> None:
        self.when_connected.append(listener)

    def follow(self, cids: Iterable[str]) -> None:
        self.follows += [("follow", cid) for cid in cids]

    def unfollow(self, cids: Iterable[str]) -> None:
        self.follows += [("unfollow", cid) for cid in cids]

    def shard_of_conversation(self, cid: str) -> int:
        return int(cid) % 2

    async def conversation(self, cid: str, *, user: str, since: int, limit: int, bytes_max: int) -> ConversationReply:
        assert bytes_max > 0
        self.reads.append((user, since))
        page = self._page(cid, user, since, limit)
        if self.holds:
            held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.held.append(held)
            await held
            if self.reads_late:
                page = self._page(cid, user, since, limit)
        if page is None:
            raise NotMember("not a member")
        return page

    def _page(self, cid: str, user: str, since: int, limit: int) -> ConversationReply | None:
        if user in self.strangers or cid not in self.heads:
            return None
        last_seq = self.last_seqs.get(user, 0)
        since, head = max(since, self.first_seqs.get(user, 1) - 1), last_seq or self.heads[cid]
        seqs = range(since + 1, min(head, since + limit) + 1)
        entries = [(seq, body(cid, self.epoch, seq)) for seq in seqs]
        removed = [(seq, self.removals[seq]) for seq in seqs if seq in self.removals]
        return ConversationReply(self.epoch, head, entries, last_seq, removed)

    async def conversation_heads(self, cids: Sequence[str]) -> dict[str, int]:
        asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._audits.put_nowait(asked)
        await asked
        return {cid: self.heads[cid] for cid in cids}


class Subscriber:
    """A member and its connection, and a client behind it that minds what it is told."""

    form = Form.STREAM_JSON
    client: object | None = None
    code = 1000
    session = ""
    info = b""

    def __init__(self, broker: Conversations, im: FakeIm, user: str, cid: str = CID) -> None:
        self.id = self.user = user
        self.channel = CHANNEL_PREFIX + cid
        self.is_on = False
        self.epoch = ""
        self.offset = 0
        self.seen: list[int] = []
        self.ended: list[int] = []
        self._cid = cid
        self._im = im
        self._broker = broker

    @property
    def connection(self) -> Subscriber:
        return self

    async def subscribe(self, *, recover: bool = False, flag: int = 0) -> SubscribeResult | ReplyError:
        """Subscribe, from where it stands if it recovers, and take the reply as a client does."""
        before = (self.epoch, self.offset)
        result = await self._broker.subscribe(self, self.request(recover=recover, flag=flag))
        if isinstance(result, SubscribeResult):
            assert result.recoverable
            assert result.was_recovering == recover
            self.is_on, self.epoch = True, result.epoch
            if result.recovered:
                assert recover
                assert before[0] in {"", result.epoch}
                for publication in result.publications:
                    self._take(publication.offset, json.loads(bytes(publication.data)))
            else:
                assert not result.publications
                self.offset = result.offset
            assert self.offset == result.offset
            self._broker.subscribed(self, self.channel, result)
        return result

    def request(self, *, recover: bool = False, flag: int = 0) -> SubscribeRequest:
        return SubscribeRequest(self.channel, recover=recover, epoch=self.epoch, offset=self.offset, flag=flag)

    def leave(self) -> None:
        self.is_on = False
        self._broker.unsubscribe(self, self.channel)

    def write(self, frame: bytes, replaces: int | None = None) -> None:
        assert replaces is None
        assert self.is_on, f"written to {self.user}, who is not subscribed: {frame!r}"
        push = json.loads(frame)["push"]
        assert push["channel"] == self.channel
        if "unsubscribe" in push:
            self.is_on = False
            self.ended.append(push["unsubscribe"]["code"])
        else:
            self._take(push["pub"]["offset"], push["pub"]["data"])

    def _take(self, offset: int, data: Any) -> None:
        starts = self._im.first_seqs_of(self.user, self.epoch)
        expected = {self.offset + 1, *(start for start in starts if start > self.offset)}
        assert offset in expected, f"{self.user} was told {offset} after {self.offset}"
        assert self._im.may_see(self.user, self.epoch, offset), f"{self.user} was told {offset}, and was not in"
        assert data == {"cid": self._cid, "epoch": self.epoch, "seq": offset}
        self.offset = offset
        self.seen.append(offset)

    def close(self, close: Close) -> None:
        raise AssertionError(f"nobody is closed here: {close}")

    def abort(self) -> None:
        raise AssertionError("nobody is dropped here")

    def queued(self) -> int:
        return 0


class Node:
    """The broker under test, and what stands around it."""

    def __init__(self, config: AccessConfig, fanout: Fanout) -> None:
        self.im = FakeIm()
        self.fanout = fanout
        self._metrics = Metrics("access-1")
        metrics = AccessMetrics(self._metrics, node="access-1", connections=lambda: 0)
        self.broker = Conversations(config, cast("ImClient", self.im), metrics, fanout, node="access-1")

    def fetches(self) -> int:
        """Return how often the node read what it was missing."""
        found = re.search(r"^\S*access_fetches_total\S* (\S+)$", self._metrics.render().decode(), re.MULTILINE)
        return int(float(found[1])) if found else 0

    def join(self, user: str, cid: str = CID) -> Subscriber:
        return Subscriber(self.broker, self.im, user, cid)

    async def deliver(self, *pushes: DeliverConversations) -> None:
        for push in pushes:
            self.broker.deliver(push, "im-1")
        await settle()


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(8):
        await asyncio.sleep(0)


@asynccontextmanager
async def running(
    config: AccessConfig | None = None, fanout: Fanout | None = None, *, runs_fanout: bool = True
) -> AsyncIterator[Node]:
    node = Node(config or AccessConfig(audit_interval_ms=1), Fanout(SystemClock()) if fanout is None else fanout)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(node.broker.run())]
        if runs_fanout:
            running.append(tasks.create_task(node.fanout.run()))
        await settle()
        yield node
        for task in running:
            task.cancel()


def assert_nobody_left(node: Node) -> None:
    assert node.broker.statistics() == {"conversations": 0, "subscriptions": 0}
    assert node.im.followed == set()
