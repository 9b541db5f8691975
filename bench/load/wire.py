"""What a benchmark and its load processes say to each other: JSON, one message a line, each order with one answer."""

from __future__ import annotations

from enum import Enum

import msgspec

__all__ = [
    "Answer",
    "Clear",
    "Close",
    "Deafen",
    "Kind",
    "Look",
    "Open",
    "Order",
    "Probe",
    "Report",
    "Send",
    "Setup",
    "Subscribe",
]
__all__ += ["decode_answer", "decode_order", "encode", "user_name"]


class Kind(Enum):
    """What a connection is."""

    TCP = "tcp"
    """Nothing but a socket that is read."""
    WEBSOCKET = "websocket"
    """Open after the upgrade; what comes is counted in bytes and not looked at."""
    SESSION = "session"
    """A client of the access server: connects with a ticket, answers pings, reads publications."""


class Setup(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The first order. The worker signs tickets itself, as a scheduler would."""

    sources: list[str]
    """Own addresses, taken in turn."""
    ticket_kid: str = ""
    ticket_key: str = ""
    ticket_ttl_s: int = 60


class Open(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Open `count` more connections; answered when all are open, or `deadline_s` is over."""

    urls: list[str]
    """Addresses, taken in turn by the client's number: the first is tried first, then the ones after it."""
    fallbacks: list[str] = []
    """Addresses for whoever was not let in at its first one; empty for the same ones."""
    first: int
    count: int
    kind: Kind = Kind.SESSION
    rate: float
    """Connections begun a second."""
    in_flight: int = 200
    """Most that may be begun and not yet open."""
    reconnects: bool = False
    """Whether a client whose connection ends comes back, with its position."""
    backoff_ms: int = 200
    backoff_ceiling_ms: int = 20_000
    deadline_s: float = 600


class Subscribe(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Subscribe all sessions to a channel; answered when every one of them had its reply."""

    channel: str
    rate: float = 0
    """A second; 0: all at once."""
    deadline_s: float = 60


class Deafen(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """From now on sessions count the bytes that come and do not look at them; nor answer pings."""


class Send(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Send `rate` messages a second, from the worker's clients in turn to users `first` to `first + count - 1` in turn.

    Answered when the last one is acknowledged or `deadline_s` after that it was due.
    """

    rate: float
    seconds: float
    first: int
    count: int
    pad: int = 64
    deadline_s: float = 20


class Probe(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Measure round trips of a small command, from the worker's clients in turn."""

    rate: float
    seconds: float


class Close(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Close all connections; answered when they are closed."""


class Look(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Answer with how it is now."""


class Clear(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Forget counts and latencies."""


Order = Setup | Open | Subscribe | Deafen | Send | Probe | Close | Look | Clear


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How it is. `counts` and `latencies` are of everything since the last `Clear`; latencies in us by bucket."""

    open: int
    flying: int
    resident: int
    """Bytes."""
    cpu_s: float
    counts: dict[str, int]
    latencies: dict[str, list[tuple[int, int]]]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The order of this number is carried out, as far as its time allowed; and how it is now."""

    number: int
    report: Report


class _Numbered(msgspec.Struct, frozen=True):
    number: int
    order: Order


_orders = msgspec.json.Decoder(_Numbered)
_answers = msgspec.json.Decoder(Answer)
_encoder = msgspec.json.Encoder()


def encode(message: Answer | tuple[int, Order]) -> bytes:
    """Encode an answer, or an order with its number, as a line."""
    return _encoder.encode(_Numbered(*message) if isinstance(message, tuple) else message) + b"\n"


def decode_order(line: bytes) -> tuple[int, Order]:
    """Return an order and its number."""
    numbered = _orders.decode(line)
    return numbered.number, numbered.order


def decode_answer(line: bytes) -> Answer:
    """Return an answer."""
    return _answers.decode(line)


def user_name(number: int) -> str:
    """Return the user that a client is."""
    return f"load-{number:07d}"
