"""Which of many equal buckets a key falls into: how a share of all users is the same users, everywhere and always.

A rollout's share is a threshold in the buckets, 0 to it: raising it adds users and drops none. Each rollout has its own
seed, so that not the same users are first in every one of them. The arithmetic is on integers and the hash is exact,
so that every scheduler, and an application that evaluates the exported flag, places a user alike.

It is flagd's: `(murmur3_32(cbor(seed + key)) * total) >> 32`, the hash x86 of 32 bits with seed 0, of the text as
CBOR encodes it. The bias of the multiplication is below total / 2**32: with 100,000 buckets some 0.002 % of a bucket.

Source: flagd, specification of `fractional` in its third form (integer weights, CBOR); RFC 8949, section 3.1 (text).
"""

from __future__ import annotations

from typing import Final

from mmh3 import mmh3_32_uintdigest

__all__ = ["BUCKETS", "bucket"]

BUCKETS: Final = 100_000
"""As many as a share has steps: thousandths of a percent."""

_TEXT = 0x60
_LENGTH_IN_1_BYTE = 0x78
_LENGTH_IN_2_BYTES = 0x79
_LENGTH_IN_4_BYTES = 0x7A
_SHORT_HEADS: Final = tuple(
    bytes([_TEXT + size]) if size < 24 else bytes([_LENGTH_IN_1_BYTE, size]) for size in range(256)
)


def bucket(seed: str, key: str, total: int = BUCKETS) -> int:
    """Return the key's bucket, 0 to `total` - 1; `total` is below 2**31."""
    text = (seed + key).encode(errors="surrogatepass")
    size = len(text)
    head = _SHORT_HEADS[size] if size < 256 else _long_head(size)
    return mmh3_32_uintdigest(head + text) * total >> 32


def _long_head(size: int) -> bytes:
    """Return what stands before a text of 256 bytes or more: its type and its length."""
    if size < 1 << 16:
        return bytes([_LENGTH_IN_2_BYTES]) + size.to_bytes(2, "big")
    return bytes([_LENGTH_IN_4_BYTES]) + size.to_bytes(4, "big")
