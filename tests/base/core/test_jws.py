"""Signed texts, with a general JWT library as the judge: what it signs is taken, what it refuses is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given
from hypothesis import strategies as st
from jwt.api_jws import PyJWS

from base.core.jws import TOKEN_BYTES_MAX, Refusal, Signer, Verifier, can_sign
from base.errors import ConfigError

SECRET = "a-secret-of-at-least-thirty-two-bytes"
OTHER = "another-secret-of-at-least-thirty-two-bytes"


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SEED = "ed25519-private:" + b64(PRIVATE.private_bytes_raw())
PUBLIC = "ed25519:" + b64(PRIVATE.public_key().public_bytes_raw())
KEYS = {"hs": SECRET, "ed": PUBLIC}
VERIFIER = Verifier(KEYS)
JUDGE_KEYS: dict[str, tuple[str, Any]] = {"hs": ("HS256", SECRET), "ed": ("EdDSA", PRIVATE.public_key())}
JUDGE = PyJWS()
PAYLOADS = st.binary(max_size=60)


def signed(header: bytes, payload: bytes, secret: str = SECRET) -> str:
    """Any header with a genuine HMAC."""
    data = f"{b64(header)}.{b64(payload)}"
    return f"{data}.{b64(hmac.digest(secret.encode(), data.encode(), hashlib.sha256))}"


def judged(token: str) -> bytes | None:
    """What the library makes of a text that names its key."""
    try:
        kid = JUDGE.get_unverified_header(token).get("kid")
        algorithm, key = JUDGE_KEYS[kid]
        payload: bytes = JUDGE.decode(token, key, algorithms=[algorithm])
    except (jwt.PyJWTError, KeyError, TypeError, UnicodeError):
        return None
    return payload


# ---------------------------------------------------------------- both directions


@given(payload=PAYLOADS, kid=st.sampled_from(["hs", "ed"]))
def test_what_is_signed_here_is_taken_here_and_by_the_library(payload: bytes, kid: str):
    """With either algorithm."""
    token = Signer({"hs": SECRET, "ed": SEED}[kid], kid=kid).sign(payload)
    assert VERIFIER.verify(token) == payload == judged(token)
    assert VERIFIER.names_key(token)


@given(
    payload=PAYLOADS,
    kid=st.sampled_from(["hs", "ed"]),
    more=st.dictionaries(st.sampled_from(["x", "typ", "cty"]), st.none() | st.integers() | st.text(max_size=4)),
)
def test_what_the_library_signs_is_taken(payload: bytes, kid: str, more: dict[str, Any]):
    """Whatever else stands in its header, in whatever order."""
    algorithm, key = ("HS256", SECRET) if kid == "hs" else ("EdDSA", PRIVATE)
    token = JUDGE.encode(payload, key, algorithm=algorithm, headers={**more, "kid": kid})
    assert VERIFIER.verify(token) == payload


@given(size=st.integers(1, 200), payload=PAYLOADS)
@example(size=64, payload=b"")
@example(size=65, payload=b"")
def test_a_secret_may_have_any_length(size: int, payload: bytes):
    """Longer than a block of the hash it is hashed first (RFC 2104)."""
    secret = "s" * size
    assert Signer(secret).sign(payload) == signed(b'{"alg":"HS256","typ":"JWT"}', payload, secret)


def test_a_private_key_verifies_what_it_signed():
    """It has the public one in it."""
    assert Verifier({"ed": SEED}).verify(Signer(SEED, kid="ed").sign(b"x")) == b"x"


def test_ed25519_signs_as_rfc_8037_shows():
    """Appendix A.4, whose header has neither `kid` nor `typ`, so only the text that it gives can be compared."""
    public = "ed25519:11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    token = (
        "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc."
        "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
    )
    assert Verifier({}, default=public).verify(token) == b"Example of Ed25519 signing"
    assert Verifier({"": public}).verify(token) == b"Example of Ed25519 signing"
    assert Verifier({"ed": public}).verify(token) is Refusal.UNKNOWN_KEY


def test_the_default_key_is_for_all_that_name_none_of_the_others():
    """An application's backend may name its key as it likes, or not at all."""
    verifier = Verifier({"hs": SECRET}, default=OTHER)
    for kid in ("", "anything"):
        assert verifier.verify(Signer(OTHER, kid=kid).sign(b"x")) == b"x"
    assert verifier.verify(Signer(SECRET, kid="hs").sign(b"x")) == b"x"
    assert verifier.verify(Signer(OTHER, kid="hs").sign(b"x")) is Refusal.SIGNATURE


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("header", "why"),
    [
        pytest.param({"alg": "none", "kid": "hs"}, Refusal.ALGORITHM, id="none"),
        pytest.param({"alg": "hs256", "kid": "hs"}, Refusal.ALGORITHM, id="another case"),
        pytest.param({"alg": "HS512", "kid": "hs"}, Refusal.ALGORITHM, id="another hash"),
        pytest.param({"alg": "HS256", "kid": "ed"}, Refusal.ALGORITHM, id="a public key as a secret"),
        pytest.param({"alg": "EdDSA", "kid": "hs"}, Refusal.ALGORITHM, id="a secret as a public key"),
        pytest.param({"alg": "HS256", "kid": "no"}, Refusal.UNKNOWN_KEY, id="unknown key"),
        pytest.param({"alg": "HS256"}, Refusal.UNKNOWN_KEY, id="no key"),
        pytest.param({"alg": "HS256", "kid": "hs", "crit": []}, Refusal.EXTENSION, id="empty crit"),
        pytest.param({"alg": "HS256", "kid": "hs", "crit": None}, Refusal.EXTENSION, id="crit of null"),
        pytest.param({"alg": "HS256", "kid": "hs", "crit": ["exp"]}, Refusal.EXTENSION, id="crit"),
        pytest.param({"alg": "HS256", "kid": "hs", "b64": True}, Refusal.EXTENSION, id="b64"),
        pytest.param({"kid": "hs"}, Refusal.MALFORMED, id="no algorithm"),
        pytest.param({"alg": None, "kid": "hs"}, Refusal.MALFORMED, id="algorithm is no text"),
        pytest.param({"alg": "HS256", "kid": 1}, Refusal.MALFORMED, id="kid is no text"),
        pytest.param(["HS256"], Refusal.MALFORMED, id="no object"),
    ],
)
def test_a_header_that_asks_for_something_else_is_refused(header: object, why: Refusal):
    """Though the signature is genuine."""
    token = signed(json.dumps(header).encode(), b"x", PUBLIC if why is Refusal.ALGORITHM else SECRET)
    assert VERIFIER.verify(token) is why


@pytest.mark.parametrize("header", [b"", b"{", b'{"alg":"HS256","kid":"hs","x":"\xff"}', b"[" * 9_000])
def test_a_header_that_is_no_json_is_refused(header: bytes):
    """However deep it is, and also where what is not read is wrong."""
    assert VERIFIER.verify(signed(header, b"x")) is Refusal.MALFORMED
    assert not VERIFIER.names_key(signed(header, b"x"))


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda head, body, mac: f"{head}.{body}.{mac}=", id="padding"),
        pytest.param(lambda head, body, mac: f"{head}=.{body}.{mac}", id="padded header"),
        pytest.param(lambda head, body, mac: f"{head}.{body}.{mac}.", id="four parts"),
        pytest.param(lambda head, body, _: f"{head}.{body}", id="two parts"),
        pytest.param(lambda head, body, mac: f"{head}.{body}.{mac[:-1]}", id="a character less"),
        pytest.param(lambda head, body, mac: f"{head}.{body}.{mac}\n", id="a line end"),
        pytest.param(lambda head, body, mac: f"{head}.{body}.{mac}é", id="not ASCII"),
        pytest.param(lambda head, body, mac: f"{head}.{body}.{mac}\ud800", id="no text"),
        pytest.param(lambda head, body, mac: f" {head}.{body}.{mac}", id="a space"),
        pytest.param(lambda head, body, _: f"{head}.{body}.", id="no signature"),
    ],
)
@pytest.mark.parametrize("kid", ["hs", "ed"])
def test_another_spelling_is_refused(spoil: Any, kid: str):
    """There is one text for each signature."""
    token = Signer({"hs": SECRET, "ed": SEED}[kid], kid=kid).sign(b"x")
    assert isinstance(VERIFIER.verify(spoil(*token.split("."))), Refusal)


def test_bits_behind_the_last_octet_are_refused():
    """In a payload that somebody with the key signed so, and in a signature, where others could put them."""
    for payload, spoilt in (("eA", "eB"), ("eHg", "eHh")):
        data = f"{b64(json.dumps({'alg': 'HS256', 'kid': 'hs'}).encode())}."
        for body, expected in ((payload, True), (spoilt, False)):
            mac = b64(hmac.digest(SECRET.encode(), (data + body).encode(), hashlib.sha256))
            assert (VERIFIER.verify(f"{data}{body}.{mac}") is not Refusal.MALFORMED) is expected
    token = Signer(SEED, kid="ed").sign(b"x")
    assert token[-1] in "AQgw"
    for last in set("ABCDEFGHIJKLMNOP") - {token[-1]}:
        assert VERIFIER.verify(token[:-1] + last) is Refusal.SIGNATURE


def test_a_text_that_is_too_long_is_not_looked_at():
    """One byte less is."""
    header = json.dumps({"alg": "HS256", "kid": "hs"}).encode()
    over = len(signed(header, b"")) - TOKEN_BYTES_MAX
    room = -over // 4 * 3
    assert VERIFIER.verify(signed(header, b"x" * room)) == b"x" * room
    long = signed(header, b"x" * (room + 3))
    assert VERIFIER.verify(long) is Refusal.TOO_LONG
    assert not VERIFIER.names_key(long)
    assert not VERIFIER.names_key("é")
    assert not VERIFIER.names_key("")


# ---------------------------------------------------------------- fuzz

TOKENS = [Signer(SECRET, kid="hs").sign(b'{"sub":"ann"}'), Signer(SEED, kid="ed").sign(b'{"sub":"ben"}')]
LETTERS = st.sampled_from("ABCwQgz019-_+/=. \n\x00é{\ud800")


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A genuine token with some characters replaced, put in or taken out, or parts exchanged with another's."""
    parts = [draw(st.sampled_from(TOKENS)).split(".")[part] for part in range(3)]
    text = ".".join(parts if draw(st.booleans()) else draw(st.permutations(parts)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text) - 1))
        text = text[:at] + draw(LETTERS | st.just("")) + text[at + draw(st.integers(0, 1)) :]
    return text


@given(token=mutated() | st.text(max_size=30))
@example(token="..")
@example(token="")
def test_what_is_taken_here_the_library_takes(token: str):
    """And what it takes is taken here, but for padding, which some issuers write and which is a second spelling."""
    found = VERIFIER.verify(token)
    if isinstance(found, bytes):
        assert judged(token) == found
    elif judged(token) is not None:
        assert "=" in token


@given(
    header=st.dictionaries(
        st.sampled_from(["alg", "kid", "crit", "b64", "typ", "x"]),
        st.sampled_from(["HS256", "EdDSA", "none", "hs", "ed", "", 1, None, True, [], ["b64"], {"x": []}]),
    )
    | st.lists(st.integers(), max_size=2)
)
def test_of_any_header_the_library_takes_what_is_taken_here(header: Any):
    """And what it takes beyond that names an extension."""
    token = signed(json.dumps(header).encode(), b"x")
    found = VERIFIER.verify(token)
    if isinstance(found, bytes):
        assert judged(token) == found
    elif judged(token) is not None:
        assert {"crit", "b64"} & set(header)


# ---------------------------------------------------------------- key texts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ed25519:",
        "ed25519-private:",
        PUBLIC[:-1],
        PUBLIC + "A",
        PUBLIC + "=",
        PUBLIC.replace("ed25519:", "ed25519: "),
        "ed25519:é",
        "ed25519-private:" + b64(bytes(31)),
        "ed25519-private:" + b64(bytes(64)),
        "-----BEGIN PUBLIC KEY-----\nMCow",
    ],
)
def test_a_malformed_key_is_an_error_of_the_configuration(text: str):
    """Which does not quote the key."""
    for make in (lambda: Verifier({"k": text}), lambda: Verifier({}, default=text), lambda: Signer(text)):
        with pytest.raises(ConfigError) as raised:
            make()
        secret = text.rpartition(":")[2].rpartition("\n")[2]
        assert len(secret) < 4 or secret not in str(raised.value)


def test_a_public_key_signs_nothing():
    """The other two kinds do."""
    assert [can_sign(text) for text in (SECRET, SEED, PUBLIC)] == [True, True, False]
    with pytest.raises(ConfigError):
        Signer(PUBLIC)
