"""Wire types of the scheduler: the answer of `GET /v1/access`, and the ticket in it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

__all__ = ["ISSUER_BYTES_MAX", "TICKET_AUDIENCE", "AccessAnswer", "Backoff", "Candidate", "Probe", "Ticket"]

TICKET_AUDIENCE = "roadstead-access"
ISSUER_BYTES_MAX = 32
"""Longest `Ticket.sid`: access nodes report a count for each of them, once a second."""


class Candidate(msgspec.Struct, frozen=True):
    """An access node to try. `urls` has an endpoint per transport."""

    id: str
    region: str
    urls: dict[str, str]


class Backoff(msgspec.Struct, frozen=True):
    """How long to wait between rounds over the candidates: full jitter below a doubling ceiling, in ms."""

    base_ms: int
    ceiling_ms: int


class Probe(msgspec.Struct, frozen=True):
    """Something of the region that answers a plain GET: how long that takes is the client's distance to the region."""

    region: str
    url: str


class AccessAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Try the candidates in order with the ticket; ask again after `ttl_ms` or when all of them failed."""

    decision: str
    ttl_ms: int
    candidates: tuple[Candidate, ...]
    ticket: str
    backoff: Backoff
    why: tuple[Any, ...] | None = None
    """The stages of the decision, for people (`core.explanation.Stage`); only for those who ask."""
    region: str = ""
    """The region that was chosen for the client."""
    arm: str = ""
    """Of which arm the candidates are: a rollout's name (its canary) or "stable"; empty if nothing is rolled out."""
    not_before_ms: int = 0
    """Connect so much later, counted from this answer, and not earlier: the client's place in a queue."""
    lifetime_ms: int = 0
    """Ask again after so long a connection, and move over without a gap; 0: stay."""
    probe: tuple[Probe, ...] = ()
    """Time a GET of each, once connected, and tell it with the next request: `rtt=region:ms,region:ms`."""


class Ticket(msgspec.Struct, frozen=True, omit_defaults=True):
    """The claims of a ticket, a JWT (RFC 7519). Times are in seconds since the Unix epoch, as the RFC has them.

    `nodes` are the access nodes that it is good for; empty means any, as in tickets that an operator's backend mints.
    """

    sub: str
    jti: str
    exp: int
    aud: str = msgspec.field(default_factory=lambda: TICKET_AUDIENCE)
    """Not a plain default, which would be left out."""
    iat: int = 0
    device: str = ""
    platform: str = ""
    nodes: tuple[str, ...] = ()
    sid: Annotated[str, msgspec.Meta(max_length=ISSUER_BYTES_MAX)] = ""
    """Who issued it: one life of a scheduler, or a plan of moves. Access nodes count connections by it. ASCII."""
    seq: int = 0
    """Which of its issuer's tickets it is."""
    arm: str = ""
    """See `AccessAnswer.arm`."""
    app: Annotated[str, msgspec.Meta(max_length=128)] = ""
    """Version of the client's application, as it says."""
