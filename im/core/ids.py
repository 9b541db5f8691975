"""Which ids messages get: snowflakes, or UUIDs of version 7 or 4, behind one protocol.

| kind | form | sorts by time | needs |
|---|---|---|---|
| `snowflake` | integer of 63 bits | yes, to the millisecond between workers | a worker number, a clock |
| `uuid7` | text of 36 characters | yes, to the millisecond between processes | a clock |
| `uuid4` | text of 36 characters | no | nothing |

The version 7 here counts within the millisecond (RFC 9562, section 6.2, method 1): 42 bits that start at random in
their lower half, so that there is always room to count, then 32 random bits that are drawn for each id. Time and
counter are kept as one number: if the counter ever ran over, it would borrow from the next millisecond by itself.
A clock that goes back is treated as in `im.core.snowflake`: numbering goes on, or there is no id.

Nobody may take an id for a secret, whatever its kind: who may read a message is decided by its conversation.

Invariants:
    I1  One process' snowflakes and version 7 UUIDs strictly increase, whatever the clock does.
    I2  The time in a version 7 UUID is the greatest time seen.

Source: RFC 9562, "Universally Unique IDentifiers (UUIDs)", sections 5.4, 5.7, 6.2.
"""

from __future__ import annotations

from typing import Literal, Protocol, assert_never

from base.clock import Timestamp
from im.core.snowflake import EPOCH_MS, STEP_BACK_MS_MAX, ClockWentBack, Entropy, Snowflake

__all__ = ["MessageIdKind", "MessageIds", "Uuid4", "Uuid7", "message_ids"]

MessageIdKind = Literal["snowflake", "uuid7", "uuid4"]

_COUNTER_BITS = 42
_START_BITS = _COUNTER_BITS - 1
_LOW_BITS = 30
"""The counter's bits after the variant field; the 12 before it stand after the version field."""
_TAIL_BITS = 32
_VARIANT = 0b10 << 62
_VERSION_4 = 0x4 << 76
_VERSION_7 = 0x7 << 76
_RANDOM_BITS = (1 << 128) - 1 & ~(0xF << 76 | 0b11 << 62)
"""What version and variant leave of 128 bits."""


class MessageIds(Protocol):
    """A process' source of message ids."""

    def next(self, now_ms: Timestamp, /) -> int | str | ClockWentBack:
        """Return the next id at this wall-clock time, or why there is none."""
        ...


class Uuid4:
    """122 random bits. Neighbours in time are nowhere near each other in an index: for comparison, and for habit."""

    __slots__ = ("_entropy",)

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy

    def next(self, _now_ms: Timestamp, /) -> str:
        """Return the next id; the time does not matter."""
        return _text(self._entropy.getrandbits(128) & _RANDOM_BITS | _VERSION_4 | _VARIANT)


class Uuid7:
    """Milliseconds since 1970, a counter, and random bits."""

    __slots__ = ("_entropy", "_last", "_seen_ms")

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self._seen_ms = EPOCH_MS
        """The greatest time that the clock showed. One from before our time, as a flat battery gives, has no ids."""
        self._last = EPOCH_MS << _COUNTER_BITS
        """Time and counter of the last id, as one number."""

    def next(self, now_ms: Timestamp, /) -> str | ClockWentBack:
        """Return the next id."""
        if now_ms > self._seen_ms:
            self._seen_ms = now_ms
        elif self._seen_ms - now_ms > STEP_BACK_MS_MAX:
            return ClockWentBack(self._seen_ms - now_ms)
        fresh = now_ms << _COUNTER_BITS | self._entropy.getrandbits(_START_BITS)
        self._last = fresh if now_ms > self._last >> _COUNTER_BITS else self._last + 1
        head, low = self._last >> _LOW_BITS, self._last & (1 << _LOW_BITS) - 1
        time_ms, high = head >> 12, head & 0xFFF
        tail = self._entropy.getrandbits(_TAIL_BITS)
        return _text(time_ms << 80 | _VERSION_7 | high << 64 | _VARIANT | low << _TAIL_BITS | tail)


def message_ids(
    kind: MessageIdKind, *, entropy: Entropy, worker: int, not_before_ms: Timestamp = EPOCH_MS
) -> MessageIds:
    """Return a source of ids of this kind.

    Args:
        kind: which ids.
        entropy: its own source of random bits, seeded in tests.
        worker: this process' number, 0 to 1,023. UUIDs need none and do not look at it.
        not_before_ms: see `Snowflake`; for snowflakes only, too.
    """
    match kind:
        case "snowflake":
            return Snowflake(worker, entropy, not_before_ms=not_before_ms)
        case "uuid7":
            return Uuid7(entropy)
        case "uuid4":
            return Uuid4(entropy)
        case unknown:
            assert_never(unknown)


def _text(value: int) -> str:
    """Return 128 bits as RFC 9562, section 4, writes them: as `str(uuid.UUID(int=value))` does, in half the time."""
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
