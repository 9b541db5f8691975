"""Messages: what a send may say, what is stored of it, and how it looks to clients."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.clock import Timestamp
from base.errors import BadRequest, LimitExceeded
from im.core.message import CID_MAX, Send, cid_of, draft_of, publication, send_result
from im.ports import Appended, Draft, Message

BODY_BYTES_MAX = 20
MID = (1 << 62) + 1
AT = Timestamp(1_700_000_000_000)


def message(body: bytes = b'{"text":"hi"}') -> Message:
    return Message(
        cid=3,
        seq=9,
        mid=MID,
        sender="ann",
        device="phone",
        recipient="bob",
        client_msg_id="k1",
        kind="text",
        body=body,
        at=AT,
    )


def send(body: bytes = b'{"text":"hi"}', **changes: Any) -> Send:
    return Send(**{"to": "bob", "client_msg_id": "k1", "body": msgspec.Raw(body), **changes})


def draft(one: Send, *, body_bytes_max: int = BODY_BYTES_MAX) -> Draft:
    return draft_of(one, sender="ann", device="phone", mid=MID, at=AT, body_bytes_max=body_bytes_max)


# ---------------------------------------------------------------- sends


def test_a_send_becomes_a_draft_with_its_sender_and_time():
    """Nothing of it is lost, and nothing but the arguments is the client's to say."""
    assert draft(send()) == Draft(MID, "ann", "phone", "bob", "k1", "text", b'{"text":"hi"}', AT)


def test_a_type_that_nobody_here_knows_passes_through():
    """Clients grow new ones without us."""
    assert draft(send(type="acme/poll.v2")).kind == "acme/poll.v2"


@pytest.mark.parametrize("field", ["to", "client_msg_id"])
@pytest.mark.parametrize("value", ["", "x" * 129, "ä" * 65, "a\nb", "a\x00b", "\ud800"])
def test_an_id_that_may_not_cross_the_boundary_is_refused_by_name(field: str, value: str):
    """Empty, too long in bytes, with control characters, or not UTF-8."""
    with pytest.raises(BadRequest, match=field):
        draft(send(**{field: value}))


@pytest.mark.parametrize("value", ["", "x" * 33, "ä" * 17, "a\tb"])
def test_a_type_is_short_and_printable(value: str):
    """At most 32 bytes."""
    with pytest.raises(BadRequest, match="type"):
        draft(send(type=value))


def test_ids_and_types_of_the_greatest_length_are_good():
    """The limits are of bytes, inclusive."""
    one = draft(send(to="ä" * 64, client_msg_id="x" * 128, type="ä" * 16))
    assert (one.recipient, one.client_msg_id, one.kind) == ("ä" * 64, "x" * 128, "ä" * 16)


def test_a_body_over_the_limit_is_refused_with_the_numbers():
    """And one of exactly the limit is not."""
    fits = b'"' + b"x" * (BODY_BYTES_MAX - 2) + b'"'
    assert draft(send(fits)).body == fits
    with pytest.raises(LimitExceeded) as caught:
        draft(send(fits + b" "))
    assert caught.value.detail == {"what": "body", "limit": BODY_BYTES_MAX, "seen": BODY_BYTES_MAX + 1}


@pytest.mark.parametrize("body", [b'"\xff"', b'{"\xc3":1}', b'"\xed\xa0\x80"'])
def test_a_body_that_is_not_utf_8_is_refused(body: bytes):
    """The decoder does not look into a body; whoever got the message would lose the connection over it."""
    decoded = msgspec.json.decode(b'{"to":"bob","client_msg_id":"k1","body":' + body + b"}", type=Send)
    with pytest.raises(BadRequest, match="UTF-8"):
        draft(decoded)


@pytest.mark.parametrize(
    "arguments", ["{}", '{"to":"bob","client_msg_id":"k1"}', '{"to":1,"client_msg_id":"","body":1}']
)
def test_arguments_that_are_missing_or_of_another_type_are_no_send(arguments: str):
    """To, key and body are required."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(arguments, type=Send)


# ---------------------------------------------------------------- publications


def test_a_message_looks_like_this_to_clients():
    """The id is text, since JavaScript's numbers are too short for it."""
    assert json.loads(publication(message())) == {
        "kind": "message",
        "mid": str(MID),
        "cid": 3,
        "seq": 9,
        "from": "ann",
        "device": "phone",
        "to": "bob",
        "client_msg_id": "k1",
        "type": "text",
        "body": {"text": "hi"},
        "at": 1_700_000_000_000,
    }


def test_a_body_in_several_lines_stays_on_one_in_its_publication():
    """Line breaks part the commands of a frame; in JSON they are as good as spaces."""
    line = publication(message(draft(send(b'{\r\n"text":\n"h\\ni"\n}')).body))
    assert not {b"\n"[0], b"\r"[0]} & set(line)
    assert json.loads(line)["body"] == {"text": "h\ni"}


@pytest.mark.parametrize("is_new", [True, False])
def test_an_acknowledgement_says_where_the_message_is(*, is_new: bool):
    """And whether this send stored it."""
    assert json.loads(send_result(Appended(message(), is_new=is_new, positions=()))) == {
        "mid": str(MID),
        "cid": 3,
        "seq": 9,
        "at": 1_700_000_000_000,
        "is_new": is_new,
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(body=JSON, indent=st.sampled_from([None, 0, 2]))
def test_any_body_arrives_as_it_was_sent_on_one_line(body: object, indent: int | None):
    """However it was laid out."""
    text = json.dumps(body, indent=indent).encode()
    one = msgspec.json.decode(b'{"to":"bob","client_msg_id":"k1","body":' + text + b"}", type=Send)
    line = publication(message(draft(one, body_bytes_max=1_000_000).body))
    assert b"\n" not in line
    assert json.loads(line)["body"] == body


# ---------------------------------------------------------------- names of conversations


@pytest.mark.parametrize("cid", [1, 9, 10, 2**31, CID_MAX - 1, CID_MAX])
def test_a_conversation_is_named_by_its_number(cid: int):
    """As publications write it."""
    assert cid_of(str(cid)) == cid


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "01",
        "-1",
        "+1",
        " 1",
        "1\n",
        "1_0",
        "1.0",
        "0x1",
        "\u0661",
        "\u00b2",
        "one",
        str(CID_MAX + 1),
        "9" * 5_000,
    ],
)
def test_any_other_name_is_refused(text: str):
    """Neither other digits nor other ways to write a number, nor one that is too great."""
    with pytest.raises(BadRequest, match="decimal digits"):
        cid_of(text)


@given(st.text("0123456789", max_size=21))
def test_no_conversation_has_two_names(text: str):
    """Whoever is let in by a name is let in by that one only."""
    try:
        cid = cid_of(text)
    except BadRequest:
        assert text[:1] in ("", "0") or int(text) > CID_MAX
    else:
        assert str(cid) == text
