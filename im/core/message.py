"""What a message looks like to clients: a send's arguments checked, a stored message as a publication.

A type that this server does not know passes through untouched, so that clients can grow new ones. `mid` is text in
JSON, because 63 bits do not fit a JavaScript number. A conversation's `cid` is counted from 1 and does fit; where names
are text it is written in decimal digits.
"""

from __future__ import annotations

import msgspec

from base.clock import Timestamp
from base.errors import BadRequest, LimitExceeded
from base.ids import checked_id
from im.ports import Appended, Draft, Message

__all__ = ["Send", "cid_of", "draft_of", "publication", "send_result"]

KIND_BYTES_MAX = 32
CID_MAX = 2**63 - 1
CID_DIGITS_MAX = len(str(CID_MAX))


class Send(msgspec.Struct, frozen=True):
    """The arguments of `im.send`. `(sender, client_msg_id)` makes a retry harmless; `body` is any JSON value."""

    to: str
    client_msg_id: str
    body: msgspec.Raw
    type: str = "text"


class _View(msgspec.Struct, frozen=True):
    kind: str
    mid: str
    cid: int
    seq: int
    sender: str = msgspec.field(name="from")
    device: str
    to: str
    client_msg_id: str
    type: str
    body: msgspec.Raw
    at: Timestamp


class _SendResult(msgspec.Struct, frozen=True):
    mid: str
    cid: int
    seq: int
    at: Timestamp
    is_new: bool


_encoder = msgspec.json.Encoder()


def draft_of(send: Send, *, sender: str, device: str, mid: int, at: Timestamp, body_bytes_max: int) -> Draft:
    """Check a send's arguments and make the draft. Raises BadRequest or LimitExceeded."""
    recipient = checked_id(send.to, "to")
    client_msg_id = checked_id(send.client_msg_id, "client_msg_id")
    if not 0 < len(send.type.encode()) <= KIND_BYTES_MAX or not send.type.isprintable():
        raise BadRequest(f"type must have 1 to {KIND_BYTES_MAX} printable bytes")
    body = bytes(send.body)
    try:
        body.decode()
    except UnicodeDecodeError as error:
        # The JSON decoder passes a Raw on unchecked, and whoever gets the message could not read the frame it is in.
        raise BadRequest("body is not valid UTF-8") from error
    if len(body) > body_bytes_max:
        raise LimitExceeded(
            f"body is {len(body)} bytes, the limit is {body_bytes_max}",
            what="body",
            limit=body_bytes_max,
            seen=len(body),
        )
    # Line breaks part the commands of a frame. In JSON they stand between tokens only, where a space says the same.
    body = body.replace(b"\n", b" ").replace(b"\r", b" ")
    return Draft(mid, sender, device, recipient, client_msg_id, send.type, body, at)


def cid_of(text: str) -> int:
    """Return the conversation that decimal digits name, 1 to 2**63 - 1.

    Raises:
        BadRequest: it is written in any other way. Two texts never name the same conversation.
    """
    is_number = text.isascii() and text.isdecimal() and not text.startswith("0") and len(text) <= CID_DIGITS_MAX
    if not is_number or (cid := int(text)) > CID_MAX:
        raise BadRequest("a conversation is named by the decimal digits of its cid")
    return cid


def publication(message: Message) -> bytes:
    """Encode a stored message as the data of a publication, JSON without line breaks."""
    return _encoder.encode(
        _View(
            kind="message",
            mid=str(message.mid),
            cid=message.cid,
            seq=message.seq,
            sender=message.sender,
            device=message.device,
            to=message.recipient,
            client_msg_id=message.client_msg_id,
            type=message.kind,
            body=msgspec.Raw(message.body),
            at=message.at,
        )
    )


def send_result(appended: Appended) -> bytes:
    """Encode the acknowledgement of a send: where the message is; `is_new` is false for a retry."""
    message = appended.message
    return _encoder.encode(_SendResult(str(message.mid), message.cid, message.seq, message.at, appended.is_new))
