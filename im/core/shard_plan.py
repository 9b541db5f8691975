"""Which shards to move so that each process has as many as any other one, or one more, by the fewest moves.

A shard that is moved is out of service for a moment, so that what is right already stays. Processes that are not named
keep nothing: to empty one, name the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["Move", "moves_to_even"]


class Move(NamedTuple):
    """A shard, the process that has it, and the one that it goes to."""

    shard: int
    source: str
    target: str


def moves_to_even(owners: Sequence[str], nodes: Iterable[str]) -> list[Move]:
    """Return the fewest moves after which only these processes have shards, and none has two more than another one.

    `owners`: of each shard by its number; some may not be among `nodes`, of which there is one at least.
    """
    names = sorted(nodes)
    counts = Counter(dict.fromkeys(names, 0))
    counts.update(owner for owner in owners if owner in counts)
    least, more = divmod(len(owners), len(names))
    # Those that have the most may keep one more than the others, for as many as one more is left over for.
    most = {name: least + (rank < more) for rank, name in enumerate(sorted(names, key=lambda name: -counts[name]))}
    moves: list[Move] = []
    for shard, owner in enumerate(owners):
        if counts[owner] > most.get(owner, 0) or owner not in most:
            target = min(names, key=lambda name: (counts[name] - most[name], name))
            counts[owner] -= 1
            counts[target] += 1
            moves.append(Move(shard, owner, target))
    return moves
