"""What access nodes use of the scheduler: checking, without asking it, the tickets that it signed.

They sign tickets themselves for clients that they send to each other.
"""

from __future__ import annotations

from collections.abc import Mapping

import jwt
import msgspec
from jwt.types import Options

from base.clock import Timestamp
from base.errors import BadRequest, PermissionDenied, TokenExpired, Unauthenticated
from base.ids import NodeId, checked_id
from scheduler.api import TICKET_AUDIENCE, Ticket
from scheduler.tokens import mint_ticket

__all__ = ["LEEWAY_S", "TicketVerifier", "mint_ticket"]

LEEWAY_S = 2
"""How long after its expiry a ticket is still taken (seconds), for clocks that differ between machines."""


class TicketVerifier:
    """Verifies tickets for one access node with the keys that the scheduler signs with, by key id."""

    def __init__(self, keys: Mapping[str, str], *, node: NodeId) -> None:
        """`keys`: `kid` -> HS256 secret. Several are valid at once while keys are rotated."""
        assert keys
        self._keys = dict(keys)
        self._node = node

    def is_ticket(self, token: str) -> bool:
        """Return whether a token claims to be a ticket: it names one of the keys. Nothing is proven by that."""
        try:
            return jwt.get_unverified_header(token).get("kid") in self._keys
        except (jwt.InvalidTokenError, UnicodeEncodeError, TypeError):
            return False

    def verify(self, token: str, now: Timestamp) -> Ticket:
        """Return the ticket's claims.

        Raises:
            Unauthenticated: not a ticket of ours: malformed, forged, or of another audience.
            TokenExpired: it was one, but its time is over.
            PermissionDenied: it is good for other access nodes.
        """
        try:
            key = self._keys.get(jwt.get_unverified_header(token).get("kid", ""))
            if key is None:
                raise Unauthenticated("the ticket names no known key")
            # Expiry is checked below, on the injected clock. A ticket issued in the future is one of a scheduler whose
            # clock is ahead of ours, and good.
            options: Options = {"verify_exp": False, "verify_iat": False}
            claims = jwt.decode(token, key, algorithms=["HS256"], audience=TICKET_AUDIENCE, options=options)
            ticket = msgspec.convert(claims, Ticket)
            checked_id(ticket.sub, "sub")
            msgspec.json.encode(ticket)  # or others could not be told: JSON has escapes for what is no text
        except (jwt.InvalidTokenError, msgspec.ValidationError, BadRequest, UnicodeEncodeError) as error:
            raise Unauthenticated(f"the ticket is not valid: {error}") from error
        if now // 1000 > ticket.exp + LEEWAY_S:
            raise TokenExpired("the ticket is expired")
        if ticket.nodes and self._node not in ticket.nodes:
            raise PermissionDenied("the ticket is for another access node")
        return ticket
