"""Which parts of a file differ from what was copied of it before: how a large file moves with a short pause.

A file is copied while it is in use, and whatever was read of it in the middle of a change is no matter: when it has
come to rest it is looked at once more, and the parts that differ are copied again. To know them, 8 bytes of each part
are remembered, 512 kB for each GB.

Two different parts have the same digest with a probability of 2**-64 each; the whole is compared by a digest of all
its parts, before anybody relies on it.
"""

from __future__ import annotations

from array import array
from typing import Final

from xxhash import xxh3_64_digest, xxh3_64_intdigest

__all__ = ["PART_BYTES", "Parts"]

PART_BYTES: Final = 16_384


class Parts:
    """The parts of one file, as they were copied last."""

    def __init__(self) -> None:
        self._digests = array("Q")

    def __len__(self) -> int:
        """Return how many parts there are."""
        return len(self._digests)

    def differs(self, place: int, part: bytes) -> bool:
        """Return whether the part at this place is another one than before, and remember it. Places go up by one."""
        digest = xxh3_64_intdigest(part)
        if place == len(self._digests):
            self._digests.append(digest)
            return True
        if self._digests[place] == digest:
            return False
        self._digests[place] = digest
        return True

    def cut(self, count: int) -> None:
        """The file has so many parts now."""
        del self._digests[count:]

    def digest(self) -> bytes:
        """Return the digest of all parts in their order."""
        return xxh3_64_digest(self._digests.tobytes())
