"""A node's channels with a history: claimed when they are asked for, kept with a backup, given away when asked.

The rules are `core/custody`; this carries them out. There is no task per channel or message: other nodes are asked with
callbacks, and only who has to wait does.

A publication is answered when it is committed: the backup has it. If the backup does not answer in `COMMIT_MS`, the
outcome is unknown: the publication stays numbered, and appears once a backup has it, or is lost with this node.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from access.channel_metrics import ChannelMetrics
from access.core.custody import Custody, Duty, Outcome, Step
from access.core.placement import View
from access.core.stream import Draft, Entry, Stream
from access.mesh import Peers
from access.peers import (
    COLLECT,
    DROP,
    NUDGE,
    REPLICATE,
    Ballot,
    ChannelName,
    Collect,
    Collected,
    Done,
    Drop,
    Place,
    Replicate,
    Replicated,
)
from base.clock import Clock
from base.errors import DeadlineExceeded, NotOwner, NotReady, Overloaded, RoadsteadError
from base.ids import new_epoch
from base.log import logger
from base.peer import Method

__all__ = ["ChannelKeeper", "is_out_of_room"]

COLLECT_MS = 500
COMMIT_MS = 250
CLAIM_MS = 1_000
"""How long a request waits until this node owns its channel."""
AGAIN_MS = 50
CLAIMS_MAX = 256
"""Claims under way at once, of those that nobody waits for."""
DUTIES_A_STEP = 200
DUTY_MS = 10_000
"""How often all channels are looked at, whether or not the view changed."""

_NO_ROOM = "channels"
_DONE = Done()


def is_out_of_room(error: RoadsteadError) -> bool:
    """Return whether an owner, here or elsewhere, refused a channel since it owns as many as it may.

    Any other Overloaded is of a stream between nodes, and over in a moment.
    """
    return isinstance(error, Overloaded) and error.detail.get("what") == _NO_ROOM


class ChannelKeeper:
    """See the module. `run` must run."""

    def __init__(
        self,
        peers: Peers,
        clock: Clock,
        custody: Custody,
        *,
        metrics: ChannelMetrics,
        committed: Callable[[str, str, Sequence[Entry]], None],
        deposed: Callable[[str], None],
    ) -> None:
        """`committed(channel, epoch, entries)`: may be told now; `deposed(channel)`: another node owns it."""
        self.custody = custody
        self._peers = peers
        self._clock = clock
        self._metrics = metrics
        self._on_committed = committed
        self._on_deposed = deposed
        self._claiming: dict[str, asyncio.Future[Outcome]] = {}
        self._uncommitted: dict[str, deque[tuple[int, asyncio.Future[Place]]]] = {}
        self._again: dict[str, asyncio.TimerHandle] = {}
        self._duties: deque[str] = deque()
        self._has_duties = asyncio.Event()
        self._log = logger(node=peers.node)
        peers.serve(COLLECT, self._collect)
        peers.serve(REPLICATE, self._replicate)
        peers.serve(DROP, self._drop)
        peers.serve(NUDGE, self._nudge)

    async def run(self) -> None:
        """Do what is due until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._do_duties())
                while True:
                    await asyncio.sleep(DUTY_MS / 1000)
                    self._look_at_all()
        finally:
            for timer in self._again.values():
                timer.cancel()

    def adopt(self, view: View) -> None:
        """Go by a newer view."""
        for channel in self.custody.adopt(view, self._clock.monotonic()):
            self._deposed(channel)
        self._look_at_all()

    def require_ownership(self, channel: str) -> None:
        """Raises NotOwner or NotReady if by the view the channel is not this node's."""
        owner = self.custody.view.owner(channel)
        if owner is None:
            raise NotReady("no access node is known yet", retry_after_ms=AGAIN_MS)
        if owner != self.custody.node:
            raise NotOwner(f"{owner} owns the channel", owner=owner)

    def is_owner(self, channel: str) -> bool:
        """Return whether this node owns the channel now."""
        return self.custody.is_owner(channel)

    def stream(self, channel: str) -> Stream:
        """Return the committed past of a channel that this node owns."""
        stream = self.custody.stream(channel)
        assert stream is not None, "an owner has the stream"
        return stream

    async def own(self, channel: str, former: str = "") -> None:
        """Return when this node owns the channel. `former`: a node that may have it.

        Raises:
            NotOwner: another node owns it; `owner` names it.
            NotReady: somebody who may have the channel does not answer.
            Overloaded: this node owns as many channels as it may.
        """
        try:
            async with asyncio.timeout(CLAIM_MS / 1000):
                while not self.custody.is_owner(channel):
                    await self._claim_once(channel, former)
        except TimeoutError:
            raise NotReady("a node that may have the channel does not answer", retry_after_ms=AGAIN_MS) from None

    async def _claim_once(self, channel: str, former: str) -> None:
        self.require_ownership(channel)
        if self.custody.stream(channel) is None and not self._has_room():
            raise Overloaded("this node owns as many channels as it may", what=_NO_ROOM, retry_after_ms=1_000)
        outcome = await asyncio.shield(self._claim(channel, former))
        if outcome.owner:
            raise NotOwner(f"{outcome.owner} owns the channel", owner=outcome.owner)
        if not outcome.is_owned:
            await asyncio.sleep(AGAIN_MS / 1000)

    def _has_room(self) -> bool:
        """Return whether this node may own one more channel; one that is nothing to anybody gives way to it."""
        if self.custody.has_room():
            return True
        forgotten = self.custody.make_room(self._clock.monotonic())
        if forgotten is None:
            return False
        self._metrics.forgotten.inc()
        for node in forgotten.nodes:
            self._push(node, DROP, Drop(forgotten.channel, forgotten.ballot))
        return True

    # ---------------------------------------------------------------- publications

    def publish(self, channel: str, draft: Draft) -> Place | Awaitable[Place]:
        """Publish into a channel that this node owns; at once if there is no backup.

        Raises:
            DeadlineExceeded: the backup did not answer, or the channel moved: the outcome is unknown.
            Overloaded: too many wait for the backup; this one was not published.
        """
        custody, stream = self.custody, self.stream(channel)
        offset = custody.find(channel, draft.key) if draft.key else None
        if offset is None:
            entry = custody.number(channel, draft, self._clock.realtime())
            if entry is None:
                raise Overloaded("too many publications wait for the backup", what="channel", retry_after_ms=COMMIT_MS)
            offset = entry.offset
            self._metrics.published.inc()
            if custody.is_committed(channel, offset):
                self._on_committed(channel, stream.epoch, (entry,))
        if custody.is_committed(channel, offset):
            return Place(stream.epoch, offset)
        done: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        self._uncommitted.setdefault(channel, deque()).append((offset, done))
        self._pump(channel)  # after it is waited for: where the last backup is gone, this commits
        return self._committed(done)

    async def _committed(self, done: asyncio.Future[Place]) -> Place:
        started = self._clock.stopwatch()
        try:
            async with asyncio.timeout(COMMIT_MS / 1000):
                place = await done
        except TimeoutError:
            self._metrics.unknown.inc()
            raise DeadlineExceeded("the backup did not answer in time; the outcome is unknown") from None
        self._metrics.commit.observe(self._clock.stopwatch() - started)
        return place

    def _pump(self, channel: str) -> None:
        """Give the backup what it lacks, unless something is under way to it."""
        if self.custody.duty(channel) is Duty.CLAIM:
            self._claim(channel)  # another backup; it goes on from there
            return
        pending = self.custody.pending(channel)
        if pending is None:
            return
        backup, request = pending
        done = partial(self._replicated, channel, request.ballot)
        try:
            self._peers.ask(backup, REPLICATE, request, deadline_ms=COMMIT_MS, done=done)
        except RoadsteadError as error:
            done(error)

    def _replicated(self, channel: str, ballot: Ballot, reply: Replicated | RoadsteadError) -> None:
        answer = reply if isinstance(reply, Replicated) else None
        progress = self.custody.replicated(channel, ballot, answer)
        for node in progress.drop:
            self._push(node, DROP, Drop(channel, ballot))
        if progress.is_deposed:
            self._deposed(channel)
            return
        self._told(channel, progress.committed)
        if progress.must_claim:
            self._claim(channel)
        elif answer is not None:
            self._pump(channel)
        else:
            self._pump_again(channel)

    def _told(self, channel: str, committed: Sequence[Entry]) -> None:
        if not committed:
            return
        epoch = self.stream(channel).epoch
        self._on_committed(channel, epoch, committed)
        waiting = self._uncommitted.get(channel)
        while waiting and waiting[0][0] <= committed[-1].offset:
            offset, done = waiting.popleft()
            if not done.done():
                done.set_result(Place(epoch, offset))
        if waiting is not None and not waiting:
            del self._uncommitted[channel]

    def _pump_again(self, channel: str) -> None:
        def pump() -> None:
            del self._again[channel]
            self._pump(channel)

        if channel not in self._again:
            self._again[channel] = asyncio.get_running_loop().call_later(AGAIN_MS / 1000, pump)

    def _deposed(self, channel: str) -> None:
        """This node follows another one's ballot, or was thought dead: whatever waits for it to own is over."""
        for _, done in self._uncommitted.pop(channel, ()):
            if not done.done():
                done.set_exception(DeadlineExceeded("the channel moved; the outcome is unknown"))
        if channel in self._claiming and not self.custody.is_claiming(channel):
            self._claimed(channel, Outcome(is_owned=False))
        self._on_deposed(channel)

    # ---------------------------------------------------------------- claims

    def _claim(self, channel: str, former: str = "") -> asyncio.Future[Outcome]:
        """Claim the channel, or go on with the claim that is under way."""
        done = self._claiming.get(channel)
        if done is None:
            done = self._claiming[channel] = asyncio.get_running_loop().create_future()
            former_nodes = (former,) if former else ()
            self._follow(
                channel,
                self.custody.begin(channel, self._clock.monotonic(), new_epoch=new_epoch(), former=former_nodes),
            )
        return done

    def _follow(self, channel: str, step: Step) -> None:
        """Send what a step of a claim asks for, and take its outcome."""
        for node in step.ask:
            answered = partial(self._answered, channel, step.ballot, node)
            try:
                self._peers.ask(node, COLLECT, Collect(channel, step.ballot), deadline_ms=COLLECT_MS, done=answered)
            except RoadsteadError as error:
                answered(error)
        if step.outcome is not None:
            self._claimed(channel, step.outcome)

    def _answered(self, channel: str, ballot: Ballot, node: str, reply: Collected | RoadsteadError) -> None:
        answer = reply if isinstance(reply, Collected) else None
        self._follow(channel, self.custody.answered(channel, ballot, node, answer, self._clock.monotonic()))

    def _claimed(self, channel: str, outcome: Outcome) -> None:
        self._metrics.claimed("owned" if outcome.is_owned else "refused" if outcome.owner else "unanswered")
        self._claiming.pop(channel).set_result(outcome)
        if outcome.is_owned:
            self._told(channel, outcome.committed)
            self._pump(channel)
        elif channel in self._uncommitted:
            self._pump_again(channel)

    # ---------------------------------------------------------------- other nodes' claims and copies

    def _collect(self, request: Collect, _peer: str) -> Collected | Awaitable[Collected]:
        return self._give(request) if self.custody.is_settled(request.channel) else self._give_later(request)

    async def _give_later(self, request: Collect) -> Collected:
        """Give a channel away when nothing waits for its backup, so that no outcome is unknown for this alone."""
        give_up = self._clock.monotonic() + COMMIT_MS
        while not self.custody.is_settled(request.channel):  # rare, and short
            if self._clock.monotonic() >= give_up:
                break
            await asyncio.sleep(0.005)
        return self._give(request)

    def _give(self, request: Collect) -> Collected:
        reply = self.custody.collect(request, self._clock.monotonic())
        if reply.promised == request.ballot:
            self._deposed(request.channel)
        return reply

    def _replicate(self, request: Replicate, _peer: str) -> Replicated:
        reply = self.custody.replicate(request, self._clock.monotonic(), self._clock.realtime())
        if reply.offset >= 0:  # it is kept for another owner
            self._deposed(request.channel)
        return reply

    def _drop(self, request: Drop, _peer: str) -> Done:
        self.custody.drop(request.channel, request.ballot)
        return _DONE

    def _nudge(self, request: ChannelName, peer: str) -> Done:
        """Somebody has a copy of a channel that it takes for this node's: use it, or tell that it is old."""
        channel = request.channel
        if self.custody.view.owner(channel) != self.custody.node:
            return _DONE
        if not self.custody.is_owner(channel):
            self._claim(channel, peer)
        elif self.custody.duty(channel) is Duty.NOTHING and self.custody.backup(channel) != peer:
            self._push(peer, DROP, Drop(channel, self.custody.term(channel)))
        return _DONE

    def _push(self, node: str, method: Method[Any, Any], message: object) -> None:
        try:
            self._peers.push(node, method, message)
        except RoadsteadError as error:
            self._log.info("channel_push_lost", peer=node, error=str(error))

    # ---------------------------------------------------------------- duties

    def _look_at_all(self) -> None:
        self._duties = deque(self.custody.channels())
        self._has_duties.set()

    async def _do_duties(self) -> None:
        while True:
            await self._has_duties.wait()
            for _ in range(min(DUTIES_A_STEP, len(self._duties))):
                self._do_duty(self._duties.popleft())
            if not self._duties:
                self._has_duties.clear()
            await asyncio.sleep(0.01)
            while len(self._claiming) >= CLAIMS_MAX:  # noqa: ASYNC110 - claims end one by one, there is no one event
                await asyncio.sleep(0.01)

    def _do_duty(self, channel: str) -> None:
        match self.custody.duty(channel):
            case Duty.CLAIM:
                self._claim(channel)
            case Duty.REPLICATE:
                self._pump(channel)
            case Duty.NUDGE:
                owner = self.custody.view.owner(channel)
                assert owner is not None
                self._push(owner, NUDGE, ChannelName(channel))
            case Duty.NOTHING:
                pass
