"""How a node reaches the owner of a channel: the one that its view names, or the one that is named instead.

Who is asked in vain because the cluster changes is asked again, a moment later, until the deadline. A publication is
only sent again if it was refused for sure; otherwise its outcome is unknown.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from access.channel_owner import ChannelOwner
from access.core.placement import View
from access.mesh import Peers
from base.errors import DeadlineExceeded, NotOwner, NotReady, PeerUnavailable, RoadsteadError
from base.log import logger
from base.peer import Method

__all__ = ["OwnerCalls"]

DEADLINE_MS = 1_500
AGAIN_MS = 50

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class OwnerCalls:
    """Calls to owners, this very node among them."""

    def __init__(self, peers: Peers, owner: ChannelOwner) -> None:
        self.view = View()
        self._peers = peers
        self._owner = owner
        self._log = logger(node=peers.node)

    async def ask(
        self, channel: str, method: Method[Req, Rep], request: Req, *, is_repeatable: bool = True
    ) -> tuple[Rep, str]:
        """Return the owner's reply, and its name. Without a wait if this node is the owner and need not wait itself.

        Raises:
            NotReady, NotOwner, PeerUnavailable, DeadlineExceeded: no owner answered in time. If the request is not
                repeatable, the outcome after the last two is unknown.
            Overloaded, LimitExceeded: the owner refused.
        """
        node = self.view.owner(channel)
        if node == self._peers.node:
            try:
                return await self._send(node, method, request, DEADLINE_MS), node
            except (NotOwner, NotReady) as refusal:
                node = refusal.detail.get("owner")
        loop = asyncio.get_running_loop()
        give_up = loop.time() + DEADLINE_MS / 1000
        error: RoadsteadError = NotReady("no owner of the channel is known", retry_after_ms=AGAIN_MS)
        hops = 0
        while (left_ms := int((give_up - loop.time()) * 1000)) > 0:
            named = None
            if node is not None and (node == self._peers.node or node in self.view):
                try:
                    return await self._send(node, method, request, left_ms), node
                except (NotOwner, NotReady) as refusal:
                    error, named = refusal, refusal.detail.get("owner")
                except (PeerUnavailable, DeadlineExceeded) as failure:
                    if not is_repeatable:
                        raise
                    error = failure
            hops += 1
            if named is None or hops > 1:
                await asyncio.sleep(AGAIN_MS / 1000)
            node = named or self.view.owner(channel)
        raise error

    def push(self, node: str, method: Method[Req, Any], message: Req) -> None:
        """Push to an owner. What is lost is noticed by the audit."""
        try:
            if node == self._peers.node:
                self._owner.answer(method, message)
            else:
                self._peers.push(node, method, message)
        except RoadsteadError as error:
            self._log.info("channel_push_lost", peer=node, error=str(error))

    async def _send(self, node: str, method: Method[Req, Rep], request: Req, deadline_ms: int) -> Rep:
        if node != self._peers.node:
            return await self._peers.call(node, method, request, deadline_ms=deadline_ms)
        reply: Any = self._owner.answer(method, request)
        if hasattr(reply, "__await__"):
            reply = await reply
        answer: Rep = reply
        return answer
