"""Which claims the ticket carries that goes with a decision."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.api import Ticket
from scheduler.core.engine import Decision
from scheduler.core.node import AccessNode
from scheduler.core.request import Request

__all__ = ["ticket_of"]


def ticket_of(
    request: Request, decision: Decision, nodes: Sequence[AccessNode], *, issuer: str, arm: str, now_s: int, exp: int
) -> Ticket:
    """Return the claims of the ticket that goes with a decision. Times in seconds since the Unix epoch."""
    return Ticket(
        sub=request.user,
        jti=f"{issuer}-{decision.seq:x}",
        iat=now_s,
        exp=exp,
        device=request.device,
        platform=request.platform,
        nodes=tuple([node.id for node in nodes]),
        sid=issuer,
        seq=decision.seq,
        arm=arm,
        app=request.app,
    )
