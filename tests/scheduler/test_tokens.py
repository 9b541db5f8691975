"""The two tokens at the door: what is let in, and every way to be refused."""

from __future__ import annotations

import base64
import json
import math
from contextlib import suppress
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.clock import Timestamp
from base.errors import BadRequest, ConfigError, PermissionDenied, RoadsteadError, TokenExpired, Unauthenticated
from base.ids import NodeId
from base.keys import KeyRing
from scheduler.api import TICKET_AUDIENCE, Ticket
from scheduler.client import LEEWAY_S, TicketSigners, TicketVerifier
from scheduler.tokens import TicketSigner, mint_ticket, mint_user_token, user_of

KEY = "the-key-of-tests-long-enough-for-hs256"
OTHER_KEY = "another-key-that-is-long-enough-as-well"
KID = "k1"
ED25519_PRIVATE = "ed25519-private:nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"
ED25519_PUBLIC = "ed25519:11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
"""The pair of RFC 8037, appendix A."""
NOW_S = 1_800_000_000
NOW = Timestamp(NOW_S * 1000)
LATER = Timestamp(NOW + 60_000)


def ticket(**changes: Any) -> Ticket:
    claims: dict[str, Any] = {"sub": "alice", "jti": "t-1", "iat": NOW_S, "exp": NOW_S + 60, "nodes": ("access-1",)}
    return Ticket(**{**claims, **changes})


def signed(key: str = KEY, *, kid: object = KID, algorithm: str = "HS256", **changes: object) -> str:
    """A ticket with some claims changed, or left out where the change is None, signed by whoever has the key."""
    claims = {"sub": "alice", "jti": "t-1", "iat": NOW_S, "exp": NOW_S + 60, "aud": TICKET_AUDIENCE, **changes}
    kept = {name: claim for name, claim in claims.items() if claim is not None}
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(kept, key, algorithm=algorithm, headers=headers)


def unsigned(header: object, payload: object = None) -> str:
    """Any header and payload, with a signature of nothing."""
    parts = (json.dumps(part).encode() for part in (header, payload or {"sub": "alice"}))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts) + ".AAAA"


def user_token(key: str = KEY, **changes: object) -> str:
    claims = {"sub": "alice", "exp": NOW_S + 60, **changes}
    return jwt.encode({name: claim for name, claim in claims.items() if claim is not None}, key, algorithm="HS256")


def tampered(token: str, **changes: object) -> str:
    """The same header and signature with other claims."""
    header, payload, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    changed = base64.urlsafe_b64encode(json.dumps({**claims, **changes}).encode()).rstrip(b"=").decode()
    return f"{header}.{changed}.{signature}"


@pytest.fixture
def verifier() -> TicketVerifier:
    return TicketVerifier(KeyRing.of({KID: KEY, "k2": OTHER_KEY}), node=NodeId("access-1"))


# ---------------------------------------------------------------- tickets that are good


def test_a_ticket_comes_back_as_it_was_minted(verifier: TicketVerifier):
    """Every claim."""
    minted = ticket(device="phone", platform="ios", nodes=("access-2", "access-1"))
    assert verifier.verify(mint_ticket(minted, kid=KID, key=KEY), NOW) == minted


def test_while_keys_are_rotated_both_are_good(verifier: TicketVerifier):
    """Each under its own key id."""
    assert verifier.verify(mint_ticket(ticket(), kid="k2", key=OTHER_KEY), NOW).sub == "alice"


def test_a_ticket_of_a_backend_is_good_for_any_node(verifier: TicketVerifier):
    """It names none, and leaves out what it may."""
    assert verifier.verify(signed(), NOW) == ticket(nodes=())


def test_claims_that_nobody_knows_are_ignored(verifier: TicketVerifier):
    """RFC 7519, section 4."""
    assert verifier.verify(signed(iss="backend", tenant=7), NOW).sub == "alice"


def test_a_ticket_from_a_clock_ahead_of_ours_is_good(verifier: TicketVerifier):
    """A scheduler's clock and a node's differ by seconds; only the expiry is about time."""
    far_ahead = 4_000_000_000
    minted = ticket(iat=far_ahead, exp=far_ahead + 60)
    assert verifier.verify(mint_ticket(minted, kid=KID, key=KEY), Timestamp((far_ahead - 5) * 1000)) == minted


def test_a_ticket_says_no_more_than_it_has_to(verifier: TicketVerifier):
    """It comes with every connect; but what any verifier asks for is there, whatever it is by default."""
    token = mint_ticket(Ticket(sub="alice", jti="s-1", exp=NOW_S + 60), kid=KID, key=KEY)
    claims = jwt.decode(token, KEY, algorithms=["HS256"], audience=TICKET_AUDIENCE, options={"verify_exp": False})
    assert claims == {"sub": "alice", "jti": "s-1", "exp": NOW_S + 60, "aud": TICKET_AUDIENCE}
    assert verifier.verify(token, NOW).iat == 0


def test_a_ticket_that_is_valid_from_now_on_is_good(verifier: TicketVerifier):
    """Give or take what clocks differ by."""
    assert verifier.verify(signed(nbf=NOW_S + LEEWAY_S), NOW).sub == "alice"


def test_schedulers_may_sign_with_a_key_that_access_nodes_do_not_have(verifier: TicketVerifier):
    """Beside one that they share. What they sign themselves for each other, they sign with that one."""
    keys = {KID: KEY, "ed": ED25519_PUBLIC}
    mixed = TicketVerifier(KeyRing.of(keys), node=NodeId("access-1"))
    minted = ticket(sid="scheduler-1.1", seq=7, arm="canary", app="5.1.0")
    for kid, key in ((KID, KEY), ("ed", ED25519_PRIVATE)):
        token = TicketSigner(kid, key).sign(minted)
        assert mixed.is_ticket(token)
        assert mixed.verify(token, NOW) == minted
    with pytest.raises(Unauthenticated):
        verifier.verify(TicketSigner("ed", ED25519_PRIVATE).sign(minted), NOW)
    with pytest.raises(Unauthenticated):  # who has the public key only
        mixed.verify(signed(ED25519_PUBLIC, kid="ed"), NOW)
    signer = TicketSigners(KeyRing.of(keys)).signer()
    assert signer is not None
    assert signer.kid == KID
    assert TicketSigners(KeyRing.of({"ed": ED25519_PUBLIC})).signer() is None
    first = TicketSigners(KeyRing.of({"ed": ED25519_PUBLIC, "k9": ED25519_PRIVATE, **keys})).signer()
    assert first is not None
    assert first.kid == "k9"
    with pytest.raises(ConfigError):
        TicketSigner("ed", ED25519_PUBLIC)


@pytest.mark.parametrize("sid", ["s" * 33, "é"])
def test_an_issuer_that_no_node_would_take_signs_nothing(sid: str):
    """It is seen where the name is made, and not at the first client."""
    with pytest.raises(AssertionError):
        TicketSigner(KID, KEY).sign(ticket(sid=sid))


def test_a_verifier_needs_a_key():
    """Without one it could let nobody in."""
    with pytest.raises(AssertionError):
        TicketVerifier(KeyRing.of({}), node=NodeId("access-1"))


# ---------------------------------------------------------------- tickets that are not


@pytest.mark.parametrize(
    "token",
    [
        "",
        "nonsense",
        "a.b.c",
        "\ud800",
        "ä.ö.ü",
        pytest.param(mint_ticket(ticket(), kid=KID, key=OTHER_KEY), id="signed with the key of another kid"),
        pytest.param(mint_ticket(ticket(), kid="k9", key=KEY), id="unknown kid"),
        pytest.param(signed(kid=None), id="no kid"),
        pytest.param(unsigned({"alg": "HS256", "kid": 7}), id="kid is no text"),
        pytest.param(unsigned({"alg": "none", "kid": KID}), id="alg none"),
        pytest.param(jwt.encode({"sub": "alice"}, None, algorithm="none", headers={"kid": KID}), id="unsigned"),
        pytest.param(unsigned({"alg": "HS256", "kid": KID}), id="a signature of nothing"),
        pytest.param(unsigned({"kid": KID}), id="no alg"),
        pytest.param(unsigned([]), id="a header that is no object"),
        pytest.param("W1tb" * 2_000 + ".e30.AAAA", id="a header nested too deeply"),
        pytest.param(signed(KEY * 2, algorithm="HS512"), id="another algorithm"),
        pytest.param(tampered(signed(), sub="bob"), id="another user"),
        pytest.param(tampered(signed(exp=NOW_S - 99), exp=NOW_S + 60), id="another expiry"),
        pytest.param(signed(aud="roadstead-other"), id="another audience"),
        pytest.param(signed(aud=None), id="no audience"),
        pytest.param(signed(aud=7), id="audience is no text"),
        pytest.param(user_token(), id="a user token"),
        pytest.param(signed(sub=None), id="no sub"),
        pytest.param(signed(sub=""), id="empty sub"),
        pytest.param(signed(sub=7), id="sub is no text"),
        pytest.param(signed(sub="a" * 129), id="sub of over 128 bytes"),
        pytest.param(signed(sub="a\nb"), id="sub with a control character"),
        pytest.param(signed(jti=None), id="no jti"),
        pytest.param(signed(jti=7), id="jti is no text"),
        pytest.param(signed(iat="now"), id="iat is no number"),
        pytest.param(signed(nbf=NOW_S + LEEWAY_S + 1), id="not valid yet"),
        pytest.param(signed(sid="s" * 33), id="an issuer that is too long to be counted"),
        pytest.param(signed(sid="é"), id="an issuer that is not ASCII"),
        pytest.param(signed(seq="1"), id="seq is no number"),
        pytest.param(signed(exp=None), id="no exp"),
        pytest.param(signed(exp="soon"), id="exp is no number"),
        pytest.param(signed(exp=math.inf), id="exp is not finite"),
        pytest.param(signed(nodes="access-1"), id="nodes is no list"),
        pytest.param(signed(nodes=[1]), id="nodes are no texts"),
        pytest.param(signed(device=[]), id="device is no text"),
    ],
)
def test_what_is_no_ticket_of_ours_is_refused(verifier: TicketVerifier, token: str):
    """With one error, whatever is wrong with it."""
    with pytest.raises(Unauthenticated):
        verifier.verify(token, NOW)


def test_an_expired_ticket_is_told_so(verifier: TicketVerifier):
    """After a leeway for clocks that differ; its holder may get another."""
    token = mint_ticket(ticket(exp=NOW_S), kid=KID, key=KEY)
    last = Timestamp((NOW_S + LEEWAY_S) * 1000 + 999)
    assert verifier.verify(token, last).exp == NOW_S
    with pytest.raises(TokenExpired):
        verifier.verify(token, Timestamp(last + 1))


def test_a_forged_ticket_is_not_called_expired(verifier: TicketVerifier):
    """Who forged it learns nothing from its times."""
    with pytest.raises(Unauthenticated):
        verifier.verify(mint_ticket(ticket(exp=1), kid=KID, key=OTHER_KEY), NOW)


def test_a_ticket_for_other_nodes_is_denied(verifier: TicketVerifier):
    """It is genuine, and may be used where it is for."""
    with pytest.raises(PermissionDenied):
        verifier.verify(mint_ticket(ticket(nodes=("access-2", "access-3")), kid=KID, key=KEY), NOW)


# ---------------------------------------------------------------- user tokens


def test_a_user_token_speaks_for_its_user():
    """Until its last second."""
    token = mint_user_token("alice", key=KEY, expires_at=LATER)
    assert user_of(token, keys=[KEY], now=LATER) == "alice"
    with pytest.raises(TokenExpired):
        user_of(token, keys=[KEY], now=Timestamp(LATER + 1_000))


def test_a_user_token_is_not_minted_for_what_is_no_user_id():
    """A backend learns of its bug here."""
    with pytest.raises(BadRequest):
        mint_user_token("", key=KEY, expires_at=LATER)


def test_a_user_token_from_a_clock_ahead_of_ours_is_good():
    """A backend's `iat` says nothing about expiry."""
    assert user_of(user_token(iat=4_000_000_000), keys=[KEY], now=NOW) == "alice"


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a.b.c",
        "\ud800",
        pytest.param(user_token(OTHER_KEY), id="another key"),
        pytest.param(tampered(user_token(), sub="bob"), id="another user"),
        pytest.param(unsigned({"alg": "none"}), id="alg none"),
        pytest.param(signed(), id="a ticket under the same key"),
        pytest.param(user_token(nbf=NOW_S + 1), id="not valid yet"),
        pytest.param(user_token(exp=None), id="no exp"),
        pytest.param(user_token(exp="soon"), id="exp is no number"),
        pytest.param(user_token(exp=[1]), id="exp is a list"),
        pytest.param(user_token(exp=math.inf), id="exp is not finite"),
        pytest.param(user_token(exp=math.nan), id="exp is not a number"),
        pytest.param(user_token(sub=None), id="no sub"),
        pytest.param(user_token(sub=7), id="sub is no text"),
        pytest.param(user_token(sub=""), id="empty sub"),
        pytest.param(user_token(sub="a\x00b"), id="sub with a control character"),
        pytest.param(user_token(sub="a" * 129), id="sub of over 128 bytes"),
    ],
)
def test_what_is_no_user_token_is_refused(token: str):
    """With one error, whatever is wrong with it."""
    with pytest.raises(Unauthenticated):
        user_of(token, keys=[KEY], now=NOW)


# ---------------------------------------------------------------- anything

JUNK = st.one_of(
    st.text(st.characters(), max_size=40),
    st.lists(st.binary(max_size=12).map(lambda part: base64.urlsafe_b64encode(part).decode()), max_size=4).map(
        ".".join
    ),
    st.builds(unsigned, st.recursive(st.none() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2))),
    st.builds(
        unsigned,
        st.dictionaries(
            st.sampled_from(["alg", "kid", "crit", "b64", "typ"]), st.sampled_from(["HS256", KID, 1, [], ""])
        ),
    ),
)


@given(token=JUNK)
def test_junk_is_refused_and_nothing_else_happens(token: str):
    """No exception but ours."""
    for refuse in (
        lambda: TicketVerifier(KeyRing.of({KID: KEY}), node=NodeId("access-1")).verify(token, NOW),
        lambda: user_of(token, keys=[KEY], now=NOW),
    ):
        with pytest.raises(RoadsteadError) as caught:
            refuse()
        assert caught.type is Unauthenticated


CLAIM = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.text(max_size=3))


@given(claims=st.dictionaries(st.sampled_from(["sub", "jti", "iat", "exp", "nodes", "device", "aud", "nbf"]), CLAIM))
def test_genuine_tokens_with_odd_claims_are_good_or_refused(claims: dict[str, object]):
    """A backend's bug is told to it, not raised here."""
    tokens = (signed(**claims), user_token(**claims))
    verifier = TicketVerifier(KeyRing.of({KID: KEY}), node=NodeId("access-1"))
    for check in (lambda: verifier.verify(tokens[0], NOW).sub, lambda: user_of(tokens[1], keys=[KEY], now=NOW)):
        with suppress(Unauthenticated, TokenExpired, PermissionDenied):
            assert check()
