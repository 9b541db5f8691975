"""Arguments: what each method makes of them, and tables of what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from base.clock import Timestamp
from base.errors import BadRequest, LimitExceeded
from im.core.arguments import (
    ChangeGroupArguments,
    ConversationView,
    CreateGroupArguments,
    EditArguments,
    HistoryArguments,
    MarkArguments,
    RecallArguments,
    Send,
    SetArguments,
    SyncArguments,
    change_of,
    cid_of,
    draft_of,
    group_of,
    mark_of,
    revise_of,
)
from im.core.commands import ChangeGroup, CreateGroup, Draft, Mark, Revise

AT = Timestamp(77)
WHO: Any = {"sender": "a", "device": "phone", "mid": 9, "at": AT}


def send(**fields: Any) -> Draft:
    fields = {"client_msg_id": "k1", "body": {"text": "hi"}, "to": "b"} | fields
    arguments = msgspec.json.decode(msgspec.json.encode(fields), type=Send)
    return draft_of(arguments, **WHO, body_bytes_max=20)


# ---------------------------------------------------------------- conversations' names


@given(st.integers(1, 2**63 - 1))
def test_a_conversation_is_named_by_its_digits(cid: int):
    """Up to what 63 bits can hold."""
    assert cid_of(str(cid)) == cid


@pytest.mark.parametrize(
    "text", ["", "0", "07", "-1", "+1", "1.0", " 1", "x", "\u0663", "\u00b2", "1_0", str(2**63), "9" * 5_000]
)
def test_no_other_text_names_a_conversation(text: str):
    """Or two texts would name the same one."""
    with pytest.raises(BadRequest):
        cid_of(text)


# ---------------------------------------------------------------- messages


def test_a_send_becomes_a_draft():
    """To a user, or into a conversation."""
    assert send() == Draft(9, "a", "phone", "b", 0, "k1", "text", b'{"text":"hi"}', AT)
    assert send(to="", cid="12", type="image", reply_to=3, mentions=["c", "*", "c"], ack="queued") == Draft(
        9, "a", "phone", "", 12, "k1", "image", b'{"text":"hi"}', AT, 3, b'["c","*"]', True
    )


@pytest.mark.parametrize("fields", [
    {"to": ""}, {"cid": "7"}, {"to": "", "cid": "x"}, {"to": "b\x00"}, {"to": "b" * 129}, {"client_msg_id": ""},
    {"client_msg_id": "k\n"}, {"type": ""}, {"type": "t" * 33}, {"type": "\u00e9" * 17}, {"type": "a\tb"},
    {"mentions": [""]}, {"mentions": ["a\x7f"]},
])  # fmt: skip
def test_a_send_that_makes_no_sense_is_refused(fields: dict[str, Any]):
    """Nowhere, to two places, or with names that are none."""
    with pytest.raises(BadRequest):
        send(**fields)


@pytest.mark.spec("CC-02")
def test_types_up_to_their_bound_are_taken():
    """In bytes, since they are stored."""
    assert send(type="\u00e9" * 16).kind == "\u00e9" * 16


@pytest.mark.spec("CC-02")
def test_what_is_too_large_says_the_limit():
    """The body in bytes, and how many are mentioned."""
    assert send(body="x" * 18).body == b'"%b"' % (b"x" * 18)
    with pytest.raises(LimitExceeded, match="21 bytes, the limit is 20"):
        send(body="x" * 19)
    assert msgspec.json.decode(send(mentions=[f"u{n}" for n in range(100)]).mentions)[-1] == "u99"
    with pytest.raises(LimitExceeded, match="100"):
        send(mentions=[f"u{n}" for n in range(101)])


def test_a_body_has_no_line_breaks():
    """They part the commands of a frame. In JSON they stand between tokens only, so that the value is the same."""
    arguments = msgspec.json.decode(b'{"client_msg_id":"k","to":"b","body":{"a":\r\n1}}', type=Send)
    body = draft_of(arguments, **WHO, body_bytes_max=20).body
    assert (body, msgspec.json.decode(body)) == (b'{"a":  1}', {"a": 1})


def test_a_body_that_is_no_text_is_refused():
    """The JSON decoder does not look into it."""
    with pytest.raises(BadRequest, match="UTF-8"):
        draft_of(Send("k", Raw(b'"\xff"'), "b"), **WHO, body_bytes_max=20)


def test_edits_and_recalls_become_revisions():
    """A recall has neither body nor mentions."""
    edit = EditArguments("12", 5, "k1", Raw(b"2"), ["c"])
    assert revise_of(edit, **WHO, body_bytes_max=20) == Revise(9, "a", "phone", 12, 5, "k1", False, b"2", AT, b'["c"]')
    plain = EditArguments("12", 5, "k1", Raw(b"2"))
    assert revise_of(plain, **WHO, body_bytes_max=20).mentions == b""
    recall = revise_of(RecallArguments("12", 5, "k1"), **WHO, body_bytes_max=20)
    assert recall == Revise(9, "a", "phone", 12, 5, "k1", True, b"", AT)
    with pytest.raises(LimitExceeded):
        revise_of(EditArguments("12", 5, "k1", Raw(b"222")), **WHO, body_bytes_max=2)


# ---------------------------------------------------------------- marks


def test_marks_and_settings_become_one_command():
    """What is not named stays as it is."""
    who: Any = {"user": "a", "device": "phone", "at": AT}
    mark = Mark("a", "phone", 12, AT)
    assert mark_of(MarkArguments("12", 0, 4, unread=False), **who) == Mark("a", "phone", 12, AT, 0, 4, False)
    for name, meant in (("mute", "is_muted"), ("pin", "is_pinned"), ("hide", "is_hidden")):
        for value in (True, False):
            marked = mark_of(SetArguments("12", **{name: value}), **who)
            assert marked == msgspec.structs.replace(mark, **{meant: value})
    for nothing in (MarkArguments("12"), SetArguments("12")):
        with pytest.raises(BadRequest, match="nothing"):
            mark_of(nothing, **who)


# ---------------------------------------------------------------- groups


def test_groups_are_made_and_changed():
    """The names are checked, the rules are not: they are the ledger's."""
    made = group_of(
        CreateGroupArguments("k1", "club", ["b"], {"history": "all"}), owner="a", device="phone", mid=9, at=AT
    )
    assert made == CreateGroup(9, "a", "phone", "k1", "club", ("b",), AT, (("history", "all"),))
    changed = change_of(ChangeGroupArguments("12", "role", ["b"], "admin", {"x": "y"}), by="", device="", mid=9, at=AT)
    assert changed == ChangeGroup(9, "", "", 12, "role", AT, ("b",), "admin", (("x", "y"),))


@pytest.mark.parametrize("fields", [
    {"name": "a\nb"}, {"members": [""]}, {"members": ["b\x00"]}, {"client_msg_id": ""},
])  # fmt: skip
def test_a_group_with_bad_names_is_refused(fields: dict[str, Any]):
    """They would be shown to others, or be users that cannot be."""
    arguments = CreateGroupArguments(**({"client_msg_id": "k1", "name": "club"} | fields))
    with pytest.raises(BadRequest):
        group_of(arguments, owner="a", device="phone", mid=9, at=AT)


@pytest.mark.parametrize("fields", [{"value": "a\x00"}, {"users": [""]}, {"cid": "0"}])
def test_a_change_with_bad_names_is_refused(fields: dict[str, Any]):
    """As when a group is made."""
    arguments = ChangeGroupArguments(**({"cid": "12", "action": "rename", "value": "new"} | fields))
    with pytest.raises(BadRequest):
        change_of(arguments, by="a", device="phone", mid=9, at=AT)


# ---------------------------------------------------------------- what the decoder refuses


@pytest.mark.parametrize(("of", "text"), [
    (Send, '{"to":"b","client_msg_id":"k"}'), (Send, '{"to":"b","client_msg_id":"k","body":1,"ack":"none"}'),
    (Send, '{"to":"b","client_msg_id":"k","body":"a\nb"}'),
    (Send, '{"to":"b","client_msg_id":"k","body":1,"reply_to":-1}'),
    (EditArguments, '{"cid":"0","seq":1,"client_msg_id":"k","body":1}'), (SyncArguments, '{"limit":0}'),
    (SyncArguments, '{"limit":1001}'), (SyncArguments, '{"since":9223372036854775808}'),
    (HistoryArguments, '{"cid":"1x"}'), (CreateGroupArguments, '{"client_msg_id":"k","name":""}'),
    (ChangeGroupArguments, '{"cid":"1","action":"explode"}'),
])  # fmt: skip
def test_the_documents_bounds_hold_before_anything_is_done(of: type, text: str):
    """The same bounds are in the reference, which is made from these types."""
    with pytest.raises(msgspec.ValidationError if "\n" not in text else msgspec.DecodeError):
        msgspec.json.decode(text.encode(), type=of)


def test_unknown_fields_are_ignored():
    """Newer clients talk to older servers."""
    assert msgspec.json.decode(b'{"since":3,"later":true}', type=SyncArguments) == SyncArguments(3)


def test_a_listed_conversation_is_short_when_nothing_is_special():
    """A list has hundreds of them."""
    view = ConversationView("12", "single", "write", "inbox", 5, 4, 3, 1, 1, 2, peer="b")
    assert set(msgspec.json.decode(msgspec.json.encode(view))) == {
        "cid", "kind", "fan_out", "channel", "max_seq", "max_cseq", "read_seq", "unread", "first_seq", "members",
        "peer",
    }  # fmt: skip
