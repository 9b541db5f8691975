"""Wire types of the scheduler: the answer of `GET /v1/access`, and the ticket in it."""

from __future__ import annotations

import msgspec

__all__ = ["TICKET_AUDIENCE", "AccessAnswer", "Backoff", "Candidate", "Ticket"]

TICKET_AUDIENCE = "roadstead-access"


class Candidate(msgspec.Struct, frozen=True):
    """An access node to try. `urls` has an endpoint per transport."""

    id: str
    region: str
    urls: dict[str, str]


class Backoff(msgspec.Struct, frozen=True):
    """How long to wait between rounds over the candidates: full jitter below a doubling ceiling, in ms."""

    base_ms: int
    ceiling_ms: int


class AccessAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Try the candidates in order with the ticket; ask again after `ttl_ms` or when all of them failed."""

    decision: str
    ttl_ms: int
    candidates: tuple[Candidate, ...]
    ticket: str
    backoff: Backoff
    why: tuple[str, ...] | None = None


class Ticket(msgspec.Struct, frozen=True):
    """The claims of a ticket, a JWT (RFC 7519). Times are in seconds since the Unix epoch, as the RFC has them.

    `nodes` are the access nodes that it is good for; empty means any, as in tickets that an operator's backend mints.
    """

    sub: str
    jti: str
    iat: int
    exp: int
    aud: str = TICKET_AUDIENCE
    device: str = ""
    platform: str = ""
    nodes: tuple[str, ...] = ()
