"""What clients are told: entries of logs and notes as publications, JSON without line breaks.

Ids are text in JSON, because 63 bits do not fit a JavaScript number. A message is shown as its overlay has it: edited,
or without a body once it was recalled. What is only of the moment (typing, receipts, hints) has no place in any log; it
is pushed with the offset 0 and kept nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from base.clock import Timestamp
from im.core.model import Form, Message, Overlay

__all__ = ["publication", "receipt", "shown", "sync_hint", "typing", "with_version", "without_body"]

_NULL = msgspec.Raw(b"null")


class _Entry(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    kind: str
    mid: str
    cid: str
    seq: int
    cseq: int
    sender: str = msgspec.field(name="from")
    device: str
    to: str
    client_msg_id: str
    type: str
    body: msgspec.Raw
    at: Timestamp
    reply_to: int = 0
    target: int = 0
    """The seq of the message that an edit or recall is about."""
    mentions: msgspec.Raw | UnsetType = UNSET
    edited: int = 0
    """Of a message the seq of the edit that is shown; of an edit that says nothing any more that of what came after."""
    recalled: int = 0
    """The seq of the recall."""


class _Typing(msgspec.Struct, frozen=True, tag_field="kind", tag="typing"):
    cid: str
    sender: str = msgspec.field(name="from")


class _Receipt(msgspec.Struct, frozen=True, tag_field="kind", tag="receipt"):
    cid: str
    sender: str = msgspec.field(name="from")
    read_seq: int
    delivered_seq: int


class _Sync(msgspec.Struct, frozen=True, tag_field="kind", tag="sync"):
    sync_version: int


_KINDS: Mapping[int, Literal["message", "edit", "recall", "group"]] = {
    Form.MESSAGE: "message",
    Form.EDIT: "edit",
    Form.RECALL: "recall",
    Form.EVENT: "group",
}

_encode = msgspec.json.Encoder().encode


def shown(message: Message, overlay: Overlay | None) -> _Entry:
    """Return the entry as JSON has it: to be encoded with others, or alone by `publication`."""
    form = message.form
    mentions, body, edited, recalled = message.mentions, message.body, 0, 0
    if overlay is not None:
        mentions, body = overlay.mentions, overlay.body
        if overlay.is_recalled:
            recalled = overlay.version
        else:
            edited = overlay.version
    is_message = form == Form.MESSAGE
    # By position: each entry that is pushed is made here, and names would cost as much as all the rest.
    return _Entry(
        _KINDS.get(form, message.kind),
        str(message.mid),
        str(message.cid),
        message.seq,
        message.cseq,
        message.sender,
        message.device,
        message.recipient,
        message.client_msg_id,
        message.kind,
        msgspec.Raw(body) if body else _NULL,
        message.at,
        message.ref if is_message else 0,
        0 if is_message else message.ref,
        msgspec.Raw(mentions) if mentions else UNSET,
        edited,
        recalled,
    )


def without_body(entry: _Entry) -> _Entry:
    """Return the entry without what it says."""
    return msgspec.structs.replace(entry, body=_NULL)


def publication(message: Message, overlay: Overlay | None = None) -> bytes:
    """Encode an entry or a note as the data of a publication."""
    return _encode(shown(message, overlay))


def with_version(data: bytes, sync_version: int) -> bytes:
    """Return the publication with the receiver's sync version, which differs from receiver to receiver."""
    return b'%b,"sync_version":%d}' % (data[:-1], sync_version)


def typing(cid: int, sender: str) -> bytes:
    """Encode that the user is writing something."""
    return _encode(_Typing(str(cid), sender))


def receipt(cid: int, sender: str, *, read_seq: int, delivered_seq: int) -> bytes:
    """Encode how far the user has read, and was given, a conversation."""
    return _encode(_Receipt(str(cid), sender, read_seq, delivered_seq))


def sync_hint(sync_version: int) -> bytes:
    """Encode that the receiver may have missed something, if its version is another one."""
    return _encode(_Sync(sync_version))
