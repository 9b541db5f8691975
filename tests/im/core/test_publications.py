"""Publications: each kind as a client reads it, and that none has a line break or a number too large."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from base.clock import Timestamp
from im.core.model import Form, Message, Overlay
from im.core.publications import publication, receipt, shown, sync_hint, typing, with_version, without_body

CID = 2**62 + 1
MESSAGE = Message(
    9, CID, 5, 4, 2**62, "a", "phone", "b", "k1", Form.MESSAGE, "text", 0, b'{"text":"hi"}', b"", Timestamp(77)
)
COMMON = {
    "mid": str(2**62), "cid": str(CID), "seq": 5, "cseq": 4, "from": "a", "device": "phone", "to": "b",
    "client_msg_id": "k1", "at": 77,
}  # fmt: skip


def read(data: bytes) -> dict[str, Any]:
    assert b"\n" not in data
    decoded: dict[str, Any] = msgspec.json.decode(data)
    return decoded


def test_a_message_has_its_place_and_body():
    """Ids are text; what is not there is left out."""
    assert read(publication(MESSAGE)) == COMMON | {"kind": "message", "type": "text", "body": {"text": "hi"}}


def test_a_reply_and_mentions_are_said():
    """`reply_to` is of messages only."""
    said = read(publication(replace(MESSAGE, ref=3, mentions=b'["b","*"]')))
    assert (said["reply_to"], said["mentions"], "target" in said) == (3, ["b", "*"], False)


@pytest.mark.parametrize(("form", "kind"), [(Form.EDIT, "edit"), (Form.RECALL, "recall")])
def test_edits_and_recalls_say_what_they_are_about(form: Form, kind: str):
    """By `target`, the seq of the message."""
    body = b"" if form == Form.RECALL else b"2"
    said = read(publication(replace(MESSAGE, form=form, kind=kind, ref=3, body=body)))
    assert (said["kind"], said["type"], said["target"], "reply_to" in said) == (kind, kind, 3, False)
    assert said["body"] == (None if form == Form.RECALL else 2)


@pytest.mark.parametrize("kind", ["read", "settings", "failure"])
def test_a_note_is_of_its_own_kind(kind: str):
    """It is in no log: its seq is 0."""
    said = read(publication(replace(MESSAGE, form=Form.NOTE, kind=kind, seq=0, mid=0)))
    assert (said["kind"], said["seq"], said["mid"]) == (kind, 0, "0")


def test_an_event_of_a_group_is_group():
    """Whoever asked is `from`."""
    said = read(publication(replace(MESSAGE, form=Form.EVENT, kind="group", recipient="", body=b'{"event":"leave"}')))
    assert (said["kind"], said["body"], said["from"], said["to"]) == ("group", {"event": "leave"}, "a", "")


def test_an_edited_message_is_shown_as_edited():
    """Body and mentions are the edit's, even if it mentions nobody any more."""
    message = replace(MESSAGE, mentions=b'["b"]')
    said = read(publication(message, Overlay(CID, 5, 8, False, 4, b"2", b"")))
    assert (said["body"], said["edited"], "mentions" in said, "recalled" in said) == (2, 8, False, False)


def test_a_recalled_message_is_shown_without_a_body():
    """Nor whom it mentioned."""
    message = replace(MESSAGE, mentions=b'["b"]')
    said = read(publication(message, Overlay(CID, 5, 8, True, 4, b"", b"")))
    assert (said["body"], said["recalled"], "mentions" in said, "edited" in said) == (None, 8, False, False)


def test_one_publication_is_made_each_receivers_own():
    """The version is added to what was encoded once."""
    assert read(with_version(publication(MESSAGE), 12)) == read(publication(MESSAGE)) | {"sync_version": 12}
    assert with_version(publication(MESSAGE), 12) == b'%b,"sync_version":12}' % publication(MESSAGE)[:-1]


def test_entries_of_a_page_are_encoded_with_it():
    """As they would be alone."""
    assert msgspec.json.encode([shown(MESSAGE, None)]) == b"[%b]" % publication(MESSAGE)


def test_a_body_can_be_held_back():
    """Whoever shows it on a locked phone may not show it; all the rest is said."""
    data = msgspec.json.encode(without_body(shown(MESSAGE, None)))
    assert read(data) == read(publication(MESSAGE)) | {"body": None}


def test_what_is_of_the_moment_says_its_kind():
    """And is small."""
    assert read(typing(CID, "a")) == {"kind": "typing", "cid": str(CID), "from": "a"}
    assert read(receipt(CID, "a", read_seq=3, delivered_seq=4)) == {
        "kind": "receipt", "cid": str(CID), "from": "a", "read_seq": 3, "delivered_seq": 4,
    }  # fmt: skip
    assert read(sync_hint(7)) == {"kind": "sync", "sync_version": 7}
