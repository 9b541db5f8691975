"""Who a client is, by what it shows: a ticket of the scheduler, or a token that the application's backend signed.

A ticket lets in one connection, once, at the nodes that it names. A token (a JWT as the protocol's SDKs know it) may
be used many times until it expires, and is only taken where the operator configured its key: for applications that
come with tokens of their own, and connect to an address instead of asking the scheduler.

Subscription tokens, with the same key, let a user into one channel.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from access.core.replay import ReplayCache, Use
from base.clock import Timestamp
from base.core.jws import Refusal, Verifier
from base.errors import BadRequest, Overloaded, TokenExpired, Unauthenticated
from base.ids import checked_id
from scheduler.client import LEEWAY_S, TicketVerifier

__all__ = ["Identities", "Identity", "SubscriptionClaims", "ttl_of"]

TTL_MAX = (1 << 32) - 1


class Identity(msgspec.Struct, frozen=True):
    """What credentials say. Times are in seconds since the Unix epoch.

    `ticket` is the id of the ticket that was used up for it, None for a token, and `issuer` who issued that. `info` is
    JSON about the user for others to see, `channels` are to be subscribed by the server, `expires_at` 0 means never.
    `app` is the version of the client's application.
    """

    user: str
    device: str = ""
    platform: str = ""
    info: bytes = b""
    channels: tuple[str, ...] = ()
    expires_at: int = 0
    ticket: str | None = None
    issuer: str = ""
    app: str = ""


class SubscriptionClaims(msgspec.Struct, frozen=True):
    """What a subscription token says: `info` about the user in that channel, and when it has to be renewed."""

    info: bytes = b""
    expires_at: int = 0


_NumericDate = Annotated[float, msgspec.Meta(ge=0, le=1 << 53)]
"""Seconds since the Unix epoch, with or without a fraction (RFC 7519, 2)."""


class _TokenClaims(msgspec.Struct, frozen=True):
    sub: str
    exp: _NumericDate = 0
    nbf: _NumericDate = 0
    expire_at: _NumericDate | None = None
    channel: str = ""
    channels: tuple[str, ...] = ()
    info: Any = None
    device: str = ""
    platform: str = ""
    aud: Any = None

    def expires_at(self) -> int:
        """When the connection or subscription itself ends, which a backend may set apart from the token's own time."""
        return int(self.exp if self.expire_at is None else self.expire_at)


_read_claims = msgspec.json.Decoder(_TokenClaims).decode


class Identities:
    """Checks credentials, without asking anybody."""

    def __init__(self, tickets: TicketVerifier, *, token_key: str) -> None:
        """`token_key`: text of the key of the application's tokens (`base.core.jws`), empty to take none.

        Raises ConfigError if that is malformed.
        """
        self._tickets = tickets
        self._tokens = Verifier({}, default=token_key) if token_key else None
        self._replay = ReplayCache()

    def admit(self, credential: str, now: Timestamp) -> Identity:
        """Return who may connect with a ticket or a token, and use the ticket up.

        Raises:
            Unauthenticated: it is neither, or forged.
            TokenExpired: its time is over, or the ticket was used before.
            PermissionDenied: the ticket is for other nodes.
            Overloaded: too many tickets are remembered.
        """
        if self._tokens is not None and not self._tickets.is_ticket(credential):
            claims = self._connection_claims(self._tokens, credential, now)
            return Identity(
                user=claims.sub,
                device=claims.device,
                platform=claims.platform,
                info=_json(claims.info),
                channels=claims.channels,
                expires_at=claims.expires_at(),
            )
        ticket = self._tickets.verify(credential, now)
        match self._replay.use(ticket.jti, expires_at=ticket.exp + LEEWAY_S, now=now // 1000):
            case Use.FIRST:
                return Identity(
                    ticket.sub,
                    ticket.device,
                    ticket.platform,
                    ticket=ticket.jti,
                    issuer=ticket.sid,
                    app=ticket.app,
                )
            case Use.REPEATED:
                raise TokenExpired("the ticket was used before; ask the scheduler for another")
            case Use.FULL:
                raise Overloaded("too many tickets are remembered", what="replay_cache", retry_after_ms=1_000)

    def give_back(self, identity: Identity) -> None:
        """The connect came to nothing, by a failure on our side: the ticket is good for another try."""
        if identity.ticket is not None:
            self._replay.forget(identity.ticket)

    def renew(self, credential: str, user: str, now: Timestamp) -> int:
        """Return when a connection that is renewed with a token has to be renewed again, 0 for never.

        Raises as `admit` does; Unauthenticated also for the token of another user.
        """
        if self._tokens is None or self._tickets.is_ticket(credential):
            raise BadRequest("a connection is renewed with a token; a ticket is for a new connection")
        claims = self._connection_claims(self._tokens, credential, now)
        if claims.sub != user:
            raise Unauthenticated("the token is another user's")
        return claims.expires_at()

    def subscription(self, token: str, channel: str, user: str, now: Timestamp) -> SubscriptionClaims:
        """Return what a subscription token says. Raises Unauthenticated or TokenExpired."""
        if self._tokens is None:
            raise Unauthenticated("no key for subscription tokens is configured")
        claims = _claims(self._tokens, token, now)
        if claims.channel != channel or claims.sub != user:
            raise Unauthenticated("the subscription token is for another channel or user")
        return SubscriptionClaims(_json(claims.info), claims.expires_at())

    @staticmethod
    def _connection_claims(tokens: Verifier, token: str, now: Timestamp) -> _TokenClaims:
        claims = _claims(tokens, token, now)
        if claims.channel:  # good for that and nothing else
            raise Unauthenticated("the token is for a subscription, not for a connection")
        return claims


def _claims(tokens: Verifier, token: str, now: Timestamp) -> _TokenClaims:
    payload = tokens.verify(token)
    if isinstance(payload, Refusal):
        raise Unauthenticated(f"the token is not valid: {payload.value}")
    try:
        claims = _read_claims(payload)
        checked_id(claims.sub, "sub")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, BadRequest) as error:
        raise Unauthenticated(f"the token is not valid: {error}") from error
    if claims.aud:
        raise Unauthenticated("the token is not valid: it is for another audience")
    if claims.exp and now // 1000 > claims.exp + LEEWAY_S:
        raise TokenExpired("the token is expired")
    if claims.nbf and now // 1000 < claims.nbf - LEEWAY_S:
        raise Unauthenticated("the token is not valid yet")
    return claims


def ttl_of(expires_at: int, now: Timestamp) -> int:
    """Return in how many seconds a client has to renew, as the protocol counts them (32 bits); 0: never."""
    return min(max(1, expires_at - now // 1000), TTL_MAX) if expires_at else 0


def _json(value: Any) -> bytes:
    return b"" if value is None else msgspec.json.encode(value)
