"""What access nodes use of the scheduler: checking, without asking it, the tickets that it signed.

They sign tickets themselves for clients that they send to each other.
"""

from __future__ import annotations

import msgspec

from base.clock import Timestamp
from base.core.jws import Refusal, Verifier
from base.errors import BadRequest, PermissionDenied, TokenExpired, Unauthenticated
from base.ids import NodeId, checked_id
from base.keys import KeyRing
from scheduler.api import TICKET_AUDIENCE, Ticket
from scheduler.tokens import TicketSigner, TicketSigners, mint_ticket

__all__ = ["LEEWAY_S", "TicketSigner", "TicketSigners", "TicketVerifier", "mint_ticket"]

LEEWAY_S = 2
"""How long after its expiry a ticket is still taken (seconds), for clocks that differ between machines."""


class _Registered(msgspec.Struct, frozen=True):
    """What a ticket must say, and what it may say that is not for us to keep."""

    aud: str
    nbf: float = 0


_read_registered = msgspec.json.Decoder(_Registered).decode
_read_ticket = msgspec.json.Decoder(Ticket).decode


class TicketVerifier:
    """Verifies tickets for one access node with the keys that the scheduler signs with, by key id."""

    def __init__(self, keys: KeyRing, *, node: NodeId) -> None:
        """`keys`: all that tickets may be signed with. Several are valid at once while keys are changed."""
        self._keys = keys
        self._node = node
        keys.on_change(self._take_keys)

    def _take_keys(self) -> None:
        self._verifier = Verifier(self._keys.keys)

    def is_ticket(self, token: str) -> bool:
        """Return whether a token claims to be a ticket: it names one of the keys. Nothing is proven by that."""
        return self._verifier.names_key(token)

    def verify(self, token: str, now: Timestamp) -> Ticket:
        """Return the ticket's claims.

        Raises:
            Unauthenticated: not a ticket of ours: malformed, forged, or of another audience.
            TokenExpired: it was one, but its time is over.
            PermissionDenied: it is good for other access nodes.
        """
        payload = self._verifier.verify(token)
        if isinstance(payload, Refusal):
            raise Unauthenticated(f"the ticket is not valid: {payload.value}")
        try:
            registered = _read_registered(payload)
            ticket = _read_ticket(payload)
            checked_id(ticket.sub, "sub")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, BadRequest) as error:
            raise Unauthenticated(f"the ticket is not valid: {error}") from error
        if registered.aud != TICKET_AUDIENCE:
            raise Unauthenticated("the ticket is not valid: it is for another audience")
        if not ticket.sid.isascii():
            raise Unauthenticated("the ticket is not valid: sid must be ASCII")
        # A ticket issued in the future is one of a scheduler whose clock is ahead of ours, and good.
        if now // 1000 < registered.nbf - LEEWAY_S:
            raise Unauthenticated("the ticket is not valid yet")
        if now // 1000 > ticket.exp + LEEWAY_S:
            raise TokenExpired("the ticket is expired")
        if ticket.nodes and self._node not in ticket.nodes:
            raise PermissionDenied("the ticket is for another access node")
        return ticket
