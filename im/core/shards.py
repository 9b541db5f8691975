"""Which shard a user and a conversation are of, and which process has each shard.

The messages of a system are in a fixed number of *shards*. A shard is one store: logs of conversations, and timelines
of users. A user's timeline is in the shard that a hash of the name gives. A conversation's log is in the shard that
its `cid` names, which is drawn when it is made: of a single conversation that of the user whose name comes first, so
that one of the two timelines is always beside the log; of a group its owner's. An entry for a timeline of another
shard is stored in an outbox, in the log's own transaction, and taken over there exactly once.

    cid    k * CID_STRIDE + shard, for k = 1, 2, 3 ...; in a system of one shard 1, 2, 3 ..., as ever

The *table* names the process of each shard. Its `epoch` grows by one with each change, and changes are made by
compare-and-set. A shard leaves a process only with that process' consent (ADR 26), so that a process that knows an
old table is at worst asked in vain: it never has two owners.

Invariants:
    I1  A user's and a conversation's shard never change.
    I2  A table has an owner for each shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from xxhash import xxh3_64_intdigest

__all__ = [
    "CID_STRIDE",
    "SHARDS_MAX",
    "ShardTable",
    "first_table",
    "shard_of_call",
    "shard_of_cid",
    "shard_of_single",
    "shard_of_text",
    "shard_of_user",
]

SHARDS_MAX: Final = 1_024
CID_STRIDE: Final = SHARDS_MAX
CID_DIGITS_MAX: Final = 19


def shard_of_user(user: str, shards: int) -> int:
    """Return where the user's timeline is. `shards`: how many there are."""
    return 0 if shards == 1 else xxh3_64_intdigest(user.encode()) % shards


def shard_of_cid(cid: int, shards: int) -> int:
    """Return where the conversation's log is; for a number that nobody drew, where that is found out."""
    return 0 if shards == 1 else cid % CID_STRIDE % shards


def shard_of_single(one: str, other: str, shards: int) -> int:
    """Return where the log of the two users' single conversation is, or would be."""
    return shard_of_user(min(one, other), shards)


class ShardTable(msgspec.Struct, frozen=True):
    """The process of each shard, by name. As a document of the registry it is this as JSON."""

    epoch: int
    owners: tuple[str, ...]

    @property
    def shards(self) -> int:
        """How many there are."""
        return len(self.owners)

    def owned_by(self, node: str) -> tuple[int, ...]:
        """Return the shards that a process has."""
        return tuple(shard for shard, owner in enumerate(self.owners) if owner == node)

    def moved(self, shard: int, node: str) -> ShardTable:
        """Return the table after this one, in which the shard is another process'."""
        owners = (*self.owners[:shard], node, *self.owners[shard + 1 :])
        return ShardTable(self.epoch + 1, owners)


def first_table(nodes: Sequence[str], shards: int) -> ShardTable:
    """Return the table of a new system: each process has as many shards as any other one, or one more."""
    assert nodes
    assert 1 <= shards <= SHARDS_MAX
    names = sorted(nodes)
    return ShardTable(1, tuple(names[shard % len(names)] for shard in range(shards)))


class _Place(msgspec.Struct):
    """As much of a call's arguments as tells where it goes."""

    cid: str = ""
    to: str = ""


_decode_place = msgspec.json.Decoder(_Place).decode
_OF_THE_USER: Final = frozenset({"sync", "conversations", "unread", "group_create"})


def shard_of_call(user: str, name: str, data: bytes, shards: int) -> int:
    """Return the shard that carries out a client's call: the conversation's, or what has none, the user's.

    `name` is without `im.`, `data` the arguments as JSON. What cannot be read goes to the user's: there it is refused.
    """
    if shards == 1:
        return 0
    if name in _OF_THE_USER:
        return shard_of_user(user, shards)
    try:
        place = _decode_place(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return shard_of_user(user, shards)
    if place.cid:
        return shard_of_text(place.cid, shards)
    return shard_of_single(user, place.to, shards) if place.to else shard_of_user(user, shards)


def shard_of_text(cid: str, shards: int) -> int:
    """Return the shard of a conversation by its `cid` as clients write it; of what is no cid, any."""
    is_number = cid.isascii() and cid.isdecimal() and len(cid) <= CID_DIGITS_MAX
    return shard_of_cid(int(cid), shards) if is_number else 0
