"""The two signed tokens at the scheduler's door: the user's, which it checks, and the ticket, which it mints.

A user token comes from the operator's own backend, which knows its users: a JWT, HS256, `sub` = user id, `exp`
required. A client shows it to ask for access; it never reaches an access node. The ticket is what does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from base.clock import Timestamp
from base.core.jws import Refusal, Signer, Verifier
from base.errors import BadRequest, TokenExpired, Unauthenticated
from base.ids import checked_id
from base.keys import KeyRing
from scheduler.api import ISSUER_BYTES_MAX, Ticket

__all__ = ["TicketSigner", "TicketSigners", "mint_ticket", "mint_user_token", "user_of"]


class TicketSigner:
    """Signs tickets with one key. `key` is a key's text, as `base.core.jws` has them, `kid` its name."""

    __slots__ = ("_encode", "_sign", "kid")

    def __init__(self, kid: str, key: str) -> None:
        """Raises ConfigError if the key's text is malformed, or the key can only verify."""
        self.kid = kid
        self._sign = Signer(key, kid=kid).sign
        self._encode = msgspec.json.Encoder().encode

    def sign(self, ticket: Ticket) -> str:
        """Return the ticket as clients carry it."""
        assert len(ticket.sid) <= ISSUER_BYTES_MAX
        assert ticket.sid.isascii()
        return self._sign(self._encode(ticket))


class TicketSigners:
    """Signs with whatever key of a ring is to sign now."""

    __slots__ = ("_keys", "_signer")

    def __init__(self, keys: KeyRing) -> None:
        """`keys`: those of tickets; the first that can signs."""
        self._keys = keys
        self._signer: TicketSigner | None = None
        keys.on_change(self._take_key)

    def signer(self) -> TicketSigner | None:
        """Return who signs now; None where all keys only verify."""
        return self._signer

    def _take_key(self) -> None:
        signing = self._keys.signing
        self._signer = TicketSigner(*signing) if signing is not None else None


def mint_ticket(ticket: Ticket, *, kid: str, key: str) -> str:
    """Sign one ticket with the key's text `key`, named `kid` in its header. Who signs many keeps a `TicketSigner`."""
    return TicketSigner(kid, key).sign(ticket)


def mint_user_token(user: str, *, key: str, expires_at: Timestamp) -> str:
    """Sign a user token, as an operator's backend does."""
    return Signer(key).sign(msgspec.json.encode({"sub": checked_id(user, "user"), "exp": expires_at // 1000}))


_OTHER_KEY = frozenset({Refusal.SIGNATURE, Refusal.ALGORITHM})
"""What a token that another key signed is refused with."""


class _UserClaims(msgspec.Struct, frozen=True):
    sub: str
    exp: float
    nbf: float = 0
    aud: Any = None


_read_claims = msgspec.json.Decoder(_UserClaims).decode


def user_of(token: str, *, keys: Sequence[str], now: Timestamp) -> str:
    """Return the user that a user token speaks for. Raises Unauthenticated or TokenExpired.

    `keys`: the keys' texts, at least one. A token names none of them, so each is tried, the newest first.
    """
    payload: bytes | Refusal = Refusal.UNKNOWN_KEY
    for key in keys:
        payload = _verifier(key).verify(token)
        if payload not in _OTHER_KEY:
            break
    if isinstance(payload, Refusal):
        raise Unauthenticated(f"the user token is not valid: {payload.value}")
    try:
        claims = _read_claims(payload)
        user = checked_id(claims.sub, "sub")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, BadRequest) as error:
        raise Unauthenticated(f"the user token is not valid: {error}") from error
    if claims.aud:
        raise Unauthenticated("the user token is not valid: it is for another audience")
    # A token issued in the future is one of a clock ahead of ours, and good; only `nbf` and `exp` are about time.
    if now // 1000 < claims.nbf:
        raise Unauthenticated("the user token is not valid yet")
    if now // 1000 > claims.exp:
        raise TokenExpired("the user token is expired")
    return user


@lru_cache(maxsize=32)
def _verifier(key: str) -> Verifier:
    return Verifier({}, default=key)
