"""Wire types of a shard's move from one process to another: the files come in parts, the receiver proves the whole."""

from __future__ import annotations

import msgspec

from base.peer import Method
from im.core.shards import ShardTable

__all__ = [
    "MOVE_BEGIN",
    "MOVE_DONE",
    "MOVE_END",
    "MOVE_OPEN",
    "MOVE_PARTS",
    "MoveBegin",
    "MoveDone",
    "MoveEnd",
    "MoveOpen",
    "MoveParts",
    "Moved",
]


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


class MoveOpen(msgspec.Struct, array_like=True, frozen=True):
    """The shard is yours, by this table, which the registry has. Answered once it is open."""

    shard: int
    table: ShardTable


class MoveDone(msgspec.Struct, array_like=True, frozen=True):
    """All calls were passed on that waited for the shard here: those that came to you directly are the next ones."""

    shard: int


class Moved(msgspec.Struct, array_like=True, frozen=True):
    """It is done."""


MOVE_BEGIN = Method("im.move_begin", MoveBegin, Moved)
MOVE_PARTS = Method("im.move_parts", MoveParts, Moved)
MOVE_END = Method("im.move_end", MoveEnd, Moved)
MOVE_OPEN = Method("im.move_open", MoveOpen, Moved)
MOVE_DONE = Method("im.move_done", MoveDone, Moved)
