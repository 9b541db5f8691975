"""Which claims the ticket carries that goes with a decision."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.api import TICKET_AUDIENCE, Ticket
from scheduler.core.engine import Decision
from scheduler.core.node import AccessNode
from scheduler.core.request import Request

__all__ = ["ticket_of"]

NO_DEVICE = "default"
NO_PLATFORM = "unknown"
"""What sessions are told of a client that does not say; rules and buckets take it for one that does not."""


def ticket_of(
    request: Request, decision: Decision, nodes: Sequence[AccessNode], *, issuer: str, arm: str, now_s: int, exp: int
) -> Ticket:
    """Return the claims of the ticket that goes with a decision. Times in seconds since the Unix epoch."""
    return Ticket(
        sub=request.user,
        jti=f"{issuer}-{decision.seq:x}",
        iat=now_s,
        exp=exp,
        aud=TICKET_AUDIENCE,
        device=request.device or NO_DEVICE,
        platform=request.platform or NO_PLATFORM,
        nodes=tuple([node.id for node in nodes]),
        sid=issuer,
        seq=decision.seq,
        arm=arm,
        app=request.app,
    )
