"""The target of a move has its source cease, and then takes what it refused: the shells of the two."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from base.errors import PeerUnavailable, RoadsteadError
from base.ids import NodeId
from base.peer import PeerPool
from base.peer.server import PeerServer
from status.api import REFUSED
from status.core.holding import Role
from status.core.partitions import Advance, Stage
from status.peers import CEASE, Cease, Ceased
from status.taking_over import TakingOver
from tests.status.core.status_node import GATE, A, B, Node, at, entry, moved, serving, table

Done = Callable[[Ceased | RoadsteadError], None]


class Wire:
    """Both a pool and a server: what is asked of the source lies here until it is brought there."""

    def __init__(self) -> None:
        self.asked: list[tuple[Cease, Done]] = []
        self.is_broken = False
        self._cease: Callable[[Cease, str], Ceased]

    def serve(self, method: Any, handler: Any) -> None:
        assert method is CEASE
        self._cease = handler

    def get(self, node: NodeId) -> Wire:
        assert node == A
        if self.is_broken:
            raise PeerUnavailable("no stream", peer=node)
        return self

    def ask(self, method: Any, request: Cease, *, deadline_ms: int, done: Done) -> None:
        assert method is CEASE
        assert deadline_ms > 0
        self.asked.append((request, done))

    def bring(self) -> None:
        (request, done) = self.asked.pop()
        done(self._cease(request, "b"))


def taking_over(node: Node, wire: Wire) -> TakingOver:
    return TakingOver(node.core, cast("PeerPool", wire), catch_up=lambda: at(2))


def committed() -> tuple[Node, Node, Wire, TakingOver]:
    """A source, its target that has read the commit, and the way between them."""
    source, target, wire = serving(entry(1)), Node(B, GATE), Wire()
    made = moved(source, target, at(0))
    taking_over(source, wire).serve(cast("PeerServer", wire))
    taking = taking_over(target, wire)
    target.read(at(1), table(Advance(0, Stage.COMMIT), since=made))
    return source, target, wire, taking


async def test_the_source_ceases_before_the_target_takes_anything() -> None:
    """One question does it, however many tables come by."""
    source, target, wire, taking = committed()
    taking.begin()
    taking.begin()
    assert len(wire.asked) == 1
    assert (source.says(at(1)), target.says(at(1))) == (entry(1), REFUSED)
    wire.bring()
    assert (source.says(at(2)), target.role(at(2))) == (REFUSED, Role.SERVING)


async def test_a_source_that_does_not_answer_costs_time_only() -> None:
    """Be it that there is no stream, or that the answer is an error."""
    for is_broken in (True, False):
        _, target, wire, taking = committed()
        wire.is_broken = is_broken
        taking.begin()
        for _, done in wire.asked:
            done(PeerUnavailable("it broke", peer="a"))
        assert target.role(at(2)) is Role.SEALED
        target.step(at(1_000))
        assert target.role(at(1_000)) is Role.SERVING


async def test_news_wait_until_the_partitions_are_here_alone() -> None:
    """And no longer."""
    _, _, wire, taking = committed()
    taking.begin()
    await taking.wait({1})
    waiting = asyncio.ensure_future(taking.wait({0, 1}))
    await asyncio.sleep(0)
    taking.done()  # another one's
    await asyncio.sleep(0)
    assert not waiting.done()
    wire.bring()
    taking.done()
    await waiting
    await taking.wait({0})


async def test_news_do_not_wait_for_ever() -> None:
    """Who tells them is told what was refused, and tells it again."""
    _, target, _, taking = committed()
    began = asyncio.get_running_loop().time()
    await taking.wait({0})
    assert 0.4 < asyncio.get_running_loop().time() - began < 5
    assert target.core.shares([0])
