"""Tickets and tokens: what each lets in, for how long, how often, and what is refused with which failure."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from access.core.replay import ReplayCache
from access.identity import Identities, Identity, SubscriptionClaims
from base.clock import Timestamp
from base.errors import BadRequest, Overloaded, PermissionDenied, RoadsteadError, TokenExpired, Unauthenticated
from base.ids import NodeId
from base.keys import KeyRing
from scheduler.api import Ticket
from scheduler.client import LEEWAY_S, TicketVerifier, mint_ticket

TICKET_KEY = "the scheduler's secret, 32 bytes at least"
TOKEN_KEY = "the application's secret, 32 bytes at least"
NOW_S = 1_700_000_000
NOW = Timestamp(NOW_S * 1000)
IN_A_MINUTE = NOW_S + 60


def identities(token_key: str = TOKEN_KEY) -> Identities:
    return Identities(TicketVerifier(KeyRing.of({"k1": TICKET_KEY}), node=NodeId("access-1")), token_key=token_key)


@pytest.fixture
def checked() -> Identities:
    """Takes tickets and tokens."""
    return identities()


def at(seconds: int) -> Timestamp:
    return Timestamp(seconds * 1000)


def ticket(jti: str = "t1", *, key: str = TICKET_KEY, kid: str = "k1", **fields: Any) -> str:
    claims: dict[str, Any] = {"sub": "ann", "iat": NOW_S, "exp": IN_A_MINUTE} | fields
    return mint_ticket(msgspec.convert(claims | {"jti": jti}, Ticket), kid=kid, key=key)


def token(*, key: str = TOKEN_KEY, **claims: Any) -> str:
    """A token of Ann, as the application's backend makes it. A claim of None is left out."""
    claims = {"sub": "ann", "exp": IN_A_MINUTE} | claims
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, key, algorithm="HS256")


# ---------------------------------------------------------------- tickets


@pytest.mark.parametrize("token_key", [TOKEN_KEY, ""])
def test_a_ticket_lets_in_whom_it_names(token_key: str) -> None:
    """Whether tokens are taken beside it or not. It does not have to be renewed."""
    found = identities(token_key).admit(ticket(device="d", platform="ios", nodes=("access-1",)), NOW)
    assert found == Identity("ann", "d", "ios", ticket="t1")
    assert found.expires_at == 0


def test_a_ticket_tells_who_issued_it_and_for_which_application(checked: Identities) -> None:
    """Its issuer's tickets are counted; an application's token has none."""
    found = checked.admit(ticket(sid="scheduler-1.3", seq=9, app="5.1.0"), NOW)
    assert (found.ticket, found.issuer, found.app) == ("t1", "scheduler-1.3", "5.1.0")
    assert checked.admit(token(), NOW).ticket is None


def test_a_ticket_lets_in_once(checked: Identities) -> None:
    """Until it is expired, and then its expiry refuses it."""
    credential = ticket()
    checked.admit(credential, NOW)
    for seconds in (NOW_S, IN_A_MINUTE, IN_A_MINUTE + LEEWAY_S, IN_A_MINUTE + LEEWAY_S + 1):
        with pytest.raises(TokenExpired):
            checked.admit(credential, at(seconds))
    checked.admit(ticket("t2"), NOW)


def test_a_ticket_is_given_back_when_the_connect_failed_on_our_side(checked: Identities) -> None:
    """For one more try. There is nothing to give back of a token."""
    credential = ticket()
    checked.give_back(checked.admit(credential, NOW))
    checked.give_back(checked.admit(token(), NOW))
    checked.admit(credential, NOW)
    with pytest.raises(TokenExpired):
        checked.admit(credential, NOW)


def test_when_too_many_tickets_are_remembered_new_ones_have_to_wait(checked: Identities) -> None:
    """And are not used up by that."""
    checked._replay = ReplayCache(limit=1)
    checked.admit(ticket("t1", exp=NOW_S + 1), NOW)
    with pytest.raises(Overloaded) as caught:
        checked.admit(ticket("t2"), NOW)
    assert caught.value.detail["retry_after_ms"] > 0
    assert checked.admit(ticket("t2"), at(NOW_S + 2 + LEEWAY_S)).user == "ann"


@pytest.mark.parametrize("token_key", [TOKEN_KEY, ""])
@pytest.mark.parametrize(
    ("credential", "error"),
    [
        (ticket(key="somebody else's secret, of 32 bytes too"), Unauthenticated),
        (ticket(exp=NOW_S - LEEWAY_S - 1), TokenExpired),
        (ticket(nodes=("access-2", "access-3")), PermissionDenied),
        (ticket(aud="somewhere else"), Unauthenticated),
        (ticket(sub=""), Unauthenticated),
    ],
    ids=["forged", "expired", "for other nodes", "for another audience", "of nobody"],
)
def test_a_ticket_that_is_not_good_lets_nobody_in(token_key: str, credential: str, error: type[RoadsteadError]) -> None:
    """Nor is it taken for a token instead."""
    with pytest.raises(error):
        identities(token_key).admit(credential, NOW)


# ---------------------------------------------------------------- tokens


def test_a_token_lets_in_as_often_as_one_likes(checked: Identities) -> None:
    """It says who it is, what others may see of him, and when it has to be renewed."""
    credential = token(device="d", platform="web", info={"name": "Änn"}, channels=["news", "weather"], exp=IN_A_MINUTE)
    expected = Identity(
        "ann", "d", "web", '{"name":"Änn"}'.encode(), channels=("news", "weather"), expires_at=IN_A_MINUTE
    )
    assert checked.admit(credential, NOW) == checked.admit(credential, NOW) == expected


@pytest.mark.parametrize(
    ("claims", "expires_at"),
    [
        ({"exp": IN_A_MINUTE}, IN_A_MINUTE),
        ({"exp": None}, 0),
        ({"exp": IN_A_MINUTE, "expire_at": NOW_S + 3_600}, NOW_S + 3_600),
        ({"exp": IN_A_MINUTE, "expire_at": 0}, 0),
        ({"exp": None, "expire_at": NOW_S + 5}, NOW_S + 5),
    ],
)
def test_the_connection_ends_with_its_token_unless_that_says_otherwise(
    checked: Identities, claims: dict[str, Any], expires_at: int
) -> None:
    """`expire_at` is the connection's own time; 0 is never."""
    credential = token(**claims)
    assert checked.admit(credential, NOW).expires_at == expires_at
    assert checked.renew(credential, "ann", NOW) == expires_at


def test_a_token_is_good_from_its_beginning_to_its_end(checked: Identities) -> None:
    """With the same leeway for clocks that differ as tickets have, on both sides."""
    credential = token(nbf=NOW_S, exp=IN_A_MINUTE)
    with pytest.raises(Unauthenticated):
        checked.admit(credential, at(NOW_S - LEEWAY_S - 1))
    checked.admit(credential, at(NOW_S - LEEWAY_S))
    checked.admit(credential, at(IN_A_MINUTE + LEEWAY_S))
    with pytest.raises(TokenExpired):
        checked.admit(credential, at(IN_A_MINUTE + LEEWAY_S + 1))


def unsigned(header: Any, payload: Any) -> str:
    """A token without a signature."""
    parts = (base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (header, payload))
    return ".".join([*parts, ""])


BAD_TOKENS: dict[str, str] = {
    "nothing": "",
    "no token": "hello",
    "no letters": "\u00fc.\u00fc.\ud800",
    "forged": token(key="somebody else's secret, of 32 bytes too"),
    "unsigned": unsigned({"alg": "none"}, {"sub": "ann"}),
    "signed by a ticket's key": token(key=TICKET_KEY),
    "of nobody": token(sub=None),
    "of the empty user": token(sub=""),
    "of a user with a line break": token(sub="a\nb"),
    "of a very long user": token(sub="a" * 1_000),
    "with a time that is none": token(exp=None, nbf="soon"),
    "with channels that are none": token(channels="news"),
    "for another audience": token(aud="password-reset"),
    "for several other audiences": token(aud=["billing", "search"]),
    "nested without end": base64.urlsafe_b64encode(b"[" * 30_000).decode() + ".e30.AA",
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_what_is_no_token_lets_nobody_in(checked: Identities, name: str) -> None:
    """By one failure, wherever it is shown."""
    credential = BAD_TOKENS[name]
    for show in (
        lambda: checked.admit(credential, NOW),
        lambda: checked.renew(credential, "ann", NOW),
        lambda: checked.subscription(credential, "news", "ann", NOW),
    ):
        with pytest.raises(Unauthenticated):
            show()
    with pytest.raises(Unauthenticated):
        identities(token_key="").admit(credential, NOW)


def test_a_token_is_taken_only_where_its_key_is_configured() -> None:
    """Not because it is signed with an empty one."""
    with pytest.raises(Unauthenticated):
        identities(token_key="").admit(token(), NOW)


# ---------------------------------------------------------------- renewing


def test_a_connection_is_renewed_with_a_token_of_its_user(checked: Identities) -> None:
    """A newer one says until when."""
    assert checked.renew(token(exp=NOW_S + 600), "ann", NOW) == NOW_S + 600
    with pytest.raises(Unauthenticated):
        checked.renew(token(sub="bob"), "ann", NOW)
    with pytest.raises(TokenExpired):
        checked.renew(token(exp=NOW_S - 60), "ann", NOW)


def test_a_connection_is_not_renewed_with_a_ticket(checked: Identities) -> None:
    """Which is for a new connection, and not used up by trying."""
    for one in (checked, identities(token_key="")):
        with pytest.raises(BadRequest):
            one.renew(ticket(), "ann", NOW)
        one.admit(ticket(), NOW)
    with pytest.raises(BadRequest):
        identities(token_key="").renew(token(), "ann", NOW)


# ---------------------------------------------------------------- subscribing


def test_a_subscription_token_lets_its_user_into_its_channel(checked: Identities) -> None:
    """With what it says about him there."""
    credential = token(channel="news", info=[1, None, "x"])
    assert checked.subscription(credential, "news", "ann", NOW) == SubscriptionClaims(b'[1,null,"x"]', IN_A_MINUTE)
    assert checked.subscription(token(channel="news", exp=None), "news", "ann", NOW) == SubscriptionClaims()


@pytest.mark.parametrize(("channel", "user"), [("other", "ann"), ("news", "bob"), ("", "ann"), ("news", "")])
def test_it_lets_nobody_else_in_and_nowhere_else(checked: Identities, channel: str, user: str) -> None:
    """Channel and user are both signed."""
    with pytest.raises(Unauthenticated):
        checked.subscription(token(channel="news"), channel, user, NOW)


def test_each_kind_of_token_is_good_for_its_own_thing(checked: Identities) -> None:
    """Whoever was given one channel was not given a connection, nor the other way round. Both need a key."""
    for show in (checked.admit, lambda credential, now: checked.renew(credential, "ann", now)):
        with pytest.raises(Unauthenticated):
            show(token(channel="news"), NOW)
    with pytest.raises(Unauthenticated):
        checked.subscription(token(), "news", "ann", NOW)
    with pytest.raises(Unauthenticated):
        checked.subscription(ticket(), "news", "ann", NOW)
    with pytest.raises(Unauthenticated):
        identities(token_key="").subscription(token(channel="news"), "news", "ann", NOW)


def test_a_subscription_token_expires(checked: Identities) -> None:
    """As any other."""
    with pytest.raises(TokenExpired):
        checked.subscription(token(channel="news", exp=NOW_S - 60), "news", "ann", NOW)


def test_tokens_may_be_signed_with_a_key_that_nobody_here_has() -> None:
    """The operator's backend keeps the private one. With the public one, as a secret, nothing can be signed."""
    public = "ed25519:11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    private = Ed25519PrivateKey.from_private_bytes(
        base64.urlsafe_b64decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
    )
    checked = identities(token_key=public)
    signed = jwt.encode({"sub": "ann", "exp": IN_A_MINUTE, "channel": "news"}, private, algorithm="EdDSA")
    assert checked.subscription(signed, "news", "ann", NOW) == SubscriptionClaims(b"", IN_A_MINUTE)
    assert checked.admit(jwt.encode({"sub": "ann"}, private, algorithm="EdDSA"), NOW).user == "ann"
    with pytest.raises(Unauthenticated):
        checked.admit(token(key=public), NOW)
