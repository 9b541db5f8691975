"""Wire types of a shard's move from one process to another: the files come in parts, the receiver proves the whole."""

from __future__ import annotations

import msgspec

from base.peer import Method

__all__ = ["MOVE_BEGIN", "MOVE_END", "MOVE_PARTS", "MoveBegin", "MoveEnd", "MoveParts", "Moved"]


class MoveBegin(msgspec.Struct, array_like=True, frozen=True):
    """Make room for a shard, one of `shards`: whatever came of it before is of no use."""

    shard: int
    shards: int


class MoveParts(msgspec.Struct, array_like=True, frozen=True):
    """Parts of a file: (offset, bytes)."""

    shard: int
    file: str
    parts: list[tuple[int, bytes]]


class MoveEnd(msgspec.Struct, array_like=True, frozen=True):
    """All parts were sent: (file, length, digest as `im.core.pages`) each. Make them durable, if they are right."""

    shard: int
    files: list[tuple[str, int, bytes]]


class Moved(msgspec.Struct, array_like=True, frozen=True):
    """It is done."""


MOVE_BEGIN = Method("im.move_begin", MoveBegin, Moved)
MOVE_PARTS = Method("im.move_parts", MoveParts, Moved)
MOVE_END = Method("im.move_end", MoveEnd, Moved)
