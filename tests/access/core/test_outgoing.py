"""A push in every form, read by what reads that form at the client's side: its framing, then the SDK's own schema."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import centrifuge.protocol.client_pb2 as sdk
import msgspec
import pytest
from google.protobuf.json_format import MessageToDict

from access.core.deflate import DeflateTerms
from access.core.encoding import Encoding
from access.core.outgoing import COMPRESSED_BYTES_MIN, ENCODINGS, FORMS, PINGS, Form, Outgoing, wrap
from access.core.protocol import Close, Disconnect, Message, Publication, Push, ReplyError, Unsubscribed
from access.core.websocket import FrameReader, Opcode, encode_frame

WEBSOCKET = {
    Form.WS_JSON: (Opcode.TEXT, False),
    Form.WS_PROTOBUF: (Opcode.BINARY, False),
    Form.WS_JSON_DEFLATED: (Opcode.TEXT, True),
    Form.WS_PROTOBUF_DEFLATED: (Opcode.BINARY, True),
}
DEFLATED = [form for form, (_, is_deflated) in WEBSOCKET.items() if is_deflated]
NOISE = base64.b64encode(random.Random(7).randbytes(600))
"""Letters that a compressor can make a quarter shorter at most."""

PUSHES: list[tuple[str, Push]] = [
    ("inbox:u", Publication(msgspec.Raw(b'{"text":"hello"}'), 7)),
    ("conv:c", Publication(msgspec.Raw(b'"' + b"long and dull, " * 5_000 + b'"'), 8)),
    ("conv:c", Publication(msgspec.Raw(b'"' + NOISE + b'"'), 9)),
    ("", Message(msgspec.Raw(b'{"move":{"after_ms":5}}'))),
    ("conv:\u00fc\U0001f600", Unsubscribed.EXPIRED.wire),
    ("", Disconnect(Close.SHUTDOWN.code, "shutdown", reconnect=True)),
]


def lines_of(stream: bytes, form: Form) -> list[bytes]:
    """The messages of a stream of lines, or of server-sent events."""
    if form is Form.STREAM_JSON:
        assert stream.endswith(b"\n")
        return stream.removesuffix(b"\n").split(b"\n")
    assert stream.endswith(b"\n\n")
    events = stream.removesuffix(b"\n\n").split(b"\n\n")
    assert all(event.startswith(b"data: ") and not {*b"\r\n"} & {*event} for event in events)
    return [event.removeprefix(b"data: ") for event in events]


def messages_of(stream: bytes, form: Form) -> list[bytes]:
    """Take a client's stream apart into messages, as the client's transport does."""
    if form in WEBSOCKET:
        opcode, is_deflated = WEBSOCKET[form]
        inflate = DeflateTerms().inflate(is_server=False) if is_deflated else None
        reader = FrameReader(is_server=False, message_bytes_max=1 << 20, inflate=inflate)
        received = reader.feed(stream)
        assert reader.violation is None
        assert reader.buffered == 0
        assert {found for found, _ in received} == {opcode}
        return [payload for _, payload in received]
    return [stream] if form is Form.STREAM_PROTOBUF else lines_of(stream, form)


def replies_of(stream: bytes, form: Form) -> list[dict[str, Any]]:
    """Read a client's stream, whatever its encoding, into what the JSON one shows. `{}` is a ping."""
    messages = messages_of(stream, form)
    if ENCODINGS[form] is Encoding.JSON:
        return [json.loads(message) for message in messages]
    found = []
    data = b"".join(messages)
    while data:
        length = shift = 0
        while True:
            byte, data = data[0], data[1:]
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        reply = MessageToDict(sdk.Reply.FromString(data[:length]), preserving_proto_field_name=True)
        found.append(_as_json(reply))
        data = data[length:]
    return found


def _as_json(value: Any) -> Any:
    """Undo what a dictionary of protobuf does: bytes in base64, 64-bit numbers as text."""
    if not isinstance(value, dict):
        return value
    decoded = {name: _as_json(item) for name, item in value.items()}
    if "data" in decoded:
        decoded["data"] = json.loads(base64.b64decode(decoded["data"]))
    if "offset" in decoded:
        decoded["offset"] = int(decoded["offset"])
    return decoded


def expected(channel: str, push: Push) -> dict[str, Any]:
    """What a client has to read, by the rules of the protocol and not by our encoder."""
    name = {"Publication": "pub", "Message": "message", "Unsubscribe": "unsubscribe", "Disconnect": "disconnect"}
    fields = {field: value for field, value in msgspec.structs.asdict(push).items() if value not in (None, {}, 0, "")}
    if "data" in fields:
        fields["data"] = json.loads(bytes(fields["data"]))
    inner = {name[type(push).__name__]: fields}
    return {"push": {"channel": channel, **inner} if channel else inner}


def test_every_form_has_an_encoding_and_a_ping():
    """By its number, without a gap."""
    assert [*Form] == [*range(FORMS)]
    assert len(ENCODINGS) == len(PINGS) == FORMS
    assert all(("JSON" in form.name) is (ENCODINGS[form] is Encoding.JSON) for form in Form)


@pytest.mark.parametrize("form", Form)
def test_a_client_reads_what_was_pushed(form: Form):
    """One after the other, as on its connection: nothing of one message is needed for the next."""
    stream = b"".join(Outgoing(channel, push).frame(form) for channel, push in PUSHES)
    assert replies_of(stream, form) == [expected(channel, push) for channel, push in PUSHES]


@pytest.mark.parametrize("form", Form)
def test_a_client_may_come_in_at_any_message(form: Form):
    """What is compressed for one is good for all, whatever each got before."""
    for channel, push in PUSHES:
        assert replies_of(Outgoing(channel, push).frame(form), form) == [expected(channel, push)]


@pytest.mark.parametrize("form", Form)
def test_a_ping_is_an_empty_message(form: Form):
    """In front of, between and behind others."""
    channel, push = PUSHES[0]
    frame = Outgoing(channel, push).frame(form)
    stream = PINGS[form] + frame + PINGS[form] + PINGS[form]
    assert replies_of(stream, form) == [{}, expected(channel, push), {}, {}]


@pytest.mark.parametrize("form", Form)
def test_a_reply_is_framed_as_a_push_is(form: Form):
    """`wrap` takes what is encoded."""
    message = ENCODINGS[form].encode_reply(5, "error", ReplyError(107, "no"))
    assert replies_of(wrap(form, message), form) == [{"id": 5, "error": {"code": 107, "message": "no"}}]


def test_a_text_of_any_length_has_the_header_that_the_codec_writes():
    """Most that is ever sent takes a shorter way to it."""
    for size in (*range(130), 0xFFFF, 0x10000):
        assert wrap(Form.WS_JSON, b"x" * size) == encode_frame(Opcode.TEXT, b"x" * size)


def test_it_is_encoded_once_an_encoding_and_framed_once_a_form(monkeypatch: pytest.MonkeyPatch):
    """However many clients get it: the second one of a form gets the very same bytes."""
    encoded: list[Encoding] = []
    for encoding in Encoding:
        original = encoding.encode_push

        def counted(channel: str, push: Push, encoding: Encoding = encoding, original: Any = original) -> bytes:
            encoded.append(encoding)
            result: bytes = original(channel, push)
            return result

        monkeypatch.setattr(encoding, "encode_push", counted)
    outgoing = Outgoing(*PUSHES[1])
    assert encoded == [], "not before somebody wants it"
    frames = [outgoing.frame(form) for form in Form]
    assert sorted(found.value for found in encoded) == ["json", "protobuf"]
    assert all(outgoing.frame(form) is frame for form, frame in zip(Form, frames, strict=True))
    assert len(encoded) == 2


def framed(form: Form, message: bytes) -> tuple[bool, bytes]:
    """Frame a message; return whether its frame says that it is compressed (the first reserved bit), and the frame."""
    frame = wrap(form, message)
    return bool(frame[0] & 0x40), frame


@pytest.mark.parametrize("form", DEFLATED)
@pytest.mark.parametrize("size", [0, 1, COMPRESSED_BYTES_MIN - 1, COMPRESSED_BYTES_MIN, 70_000])
def test_what_is_long_enough_is_compressed(form: Form, size: int):
    """And is much shorter then; what is not is sent as to a client without the extension."""
    message = b"a" * size
    is_compressed, frame = framed(form, message)
    assert is_compressed is (size >= COMPRESSED_BYTES_MIN)
    if is_compressed:
        assert len(frame) < size / 4
    else:
        assert frame == wrap(Form(form - Form.WS_JSON_DEFLATED), message)
    assert messages_of(frame, form) == [message]


def test_what_would_become_longer_is_not_compressed():
    """A picture, say: no frame of a client with compression is longer than one of a client without."""
    chance = random.Random(11)
    for size in [*range(COMPRESSED_BYTES_MIN - 2, COMPRESSED_BYTES_MIN + 40), 1_000, 65_530, 65_536]:
        message = chance.randbytes(size)
        is_compressed, frame = framed(Form.WS_PROTOBUF_DEFLATED, message)
        assert not is_compressed
        assert frame == wrap(Form.WS_PROTOBUF, message)
    for _ in range(200):
        message = bytes(chance.choices(b"abcdefgh"[: chance.randint(1, 8)] + chance.randbytes(4), k=300))
        is_compressed, frame = framed(Form.WS_PROTOBUF_DEFLATED, message)
        assert len(frame) <= len(wrap(Form.WS_PROTOBUF, message))
        assert messages_of(frame, Form.WS_PROTOBUF_DEFLATED) == [message]
