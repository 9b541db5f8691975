"""Conversations with anything in any order: each gets every message once and in order, or is told to start over.

Nobody gets one that came between the entry by which it left and the one by which it came back.
"""

from __future__ import annotations

import asyncio

from hypothesis import example, given, settings
from hypothesis import strategies as st

from access.api import DeliverConversations
from access.config import AccessConfig
from base.errors import NotReady, PeerUnavailable, PermissionDenied
from tests.access.conversation_nodes import (
    CID,
    Node,
    Subscriber,
    assert_nobody_left,
    running,
    settle,
)

PEOPLE = 4
Act = tuple[str, int]
NUMBERS = st.integers(0, 2**16)
WEIGHTS = {
    **dict.fromkeys(("push", "lose", "twice", "delay", "late"), 2),
    **dict.fromkeys(("subscribe", "recover"), 4),
    **dict.fromkeys(("leave", "gone", "audit", "epoch", "fail", "sooner", "later"), 1),
    "membership": 3,
    "answer": 8,
}
ACTS = st.tuples(st.sampled_from([what for what, weight in WEIGHTS.items() for _ in range(weight)]), NUMBERS)


class Life:
    """People who come and go in one conversation, pushes that get lost, and answers in any order."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.people = [node.join(f"user-{number}") for number in range(PEOPLE)]
        self.starting: dict[Subscriber, asyncio.Task[None]] = {}
        self.delayed: list[DeliverConversations] = []
        self.epochs = 1

    async def act(self, what: str, number: int) -> None:
        im, who = self.node.im, self.people[number % PEOPLE]
        match what:
            case "push" | "twice":
                await self.node.deliver(*[im.store()] * (1 + (what == "twice")))
            case "lose":
                im.store()
            case "delay":
                self.delayed.append(im.store())
            case "membership":
                is_out = who.user in im.last_seqs
                await self._send(im.take_back(who.user) if is_out else im.remove(who.user), number)
            case "late" if self.delayed:
                await self.node.deliver(self.delayed.pop(number % len(self.delayed)))
            case "answer" | "fail" if im.held:
                error = PeerUnavailable("gone") if what == "fail" else None
                await im.answer(number % len(im.held), error)
            case "sooner" | "later":
                im.reads_late = what == "later"
            case "audit":
                await im.audit()
            case "epoch":
                self.epochs += 1
                im.begin_anew(f"e{self.epochs}")
                im.heads[CID] = number % 3
            case "subscribe" | "recover" if not who.is_on and who not in self.starting:
                self._start(who, recover=what == "recover")
                await settle()
            case "leave":
                who.leave()
            case "gone":
                who.is_on = False
                self.node.broker.gone(who)
                self.people[number % PEOPLE] = self.node.join(who.user)

    async def end(self) -> None:
        """Everything is answered, the last push arrives, heads are compared: all know all, and leave."""
        im = self.node.im
        im.holds = False
        while im.held:
            await im.answer()
        await self.node.deliver(im.store())
        for _ in range(2):  # what is told at last, and what is lost at last
            await im.audit()
            await im.audit()
            im.store()
        await im.audit()
        await im.audit()
        for who in self.people:
            if who.is_on:
                assert who.user not in im.last_seqs
                assert (who.epoch, who.offset) == (im.epoch, im.heads[CID])
        followed = any(who.is_on for who in self.people)
        assert self.node.im.followed == ({CID} if followed else set())
        for who in self.people:
            self.node.broker.gone(who)
        await settle()
        assert not self.starting
        assert_nobody_left(self.node)

    async def _send(self, push: DeliverConversations, number: int) -> None:
        """Have the push arrive, come late, or be lost."""
        how = number // PEOPLE % 3
        if how == 0:
            await self.node.deliver(push)
        elif how == 1:
            self.delayed.append(push)

    def _start(self, who: Subscriber, *, recover: bool) -> None:
        async def start() -> None:
            try:
                await who.subscribe(recover=recover)
            except (PeerUnavailable, NotReady, PermissionDenied):
                pass
            finally:
                del self.starting[who]

        self.starting[who] = asyncio.ensure_future(start())


LEFT_WHILE_A_GAP_WAS_READ = [("membership", 0), ("subscribe", 1), ("membership", 5), ("answer", 0), ("membership", 1)]
LEFT_WHILE_A_GAP_WAS_READ += [("recover", 0), ("leave", 1), ("answer", 1), ("recover", 1), ("answer", 1)]
"""And nobody else was there; then it came back, while that reading, on its behalf, was still under way."""


@settings(max_examples=300, deadline=None)
@example(acts=LEFT_WHILE_A_GAP_WAS_READ)
@given(acts=st.lists(ACTS, min_size=20, max_size=60))
def test_whatever_happens_each_gets_all_once_and_in_order_or_starts_over(acts: list[Act]) -> None:
    """Each subscriber asserts with every write that it is the next one that it may see; in the end all are there."""

    async def live() -> None:
        async with running(AccessConfig(audit_interval_ms=0, recovery_entries_max=5)) as node:
            node.im.holds = True
            life = Life(node)
            for what, number in acts:
                await life.act(what, number)
            await life.end()

    asyncio.run(live())
