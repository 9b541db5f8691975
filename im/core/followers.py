"""Which access nodes follow which conversations: the serving side of `im.follow`.

A node tells changes, and now and then everything anew. It may fall silent, lose a message or start over, and it never
says goodbye. So what is known of a node is a lease that each of its messages renews, and a message says its number, so
that a hole is seen. What is not sure is kept all the same: to push too much costs little, the node drops what none of
its clients wants.

While a node says everything anew, what it named before is *unnamed* until it is named again. At the end of that the
unnamed is dropped, unless a message is missing: then it is kept until the node has said everything again.

Invariants:
    I1  The nodes of a conversation are those that have it, named or unnamed; none has it twice.
    I2  A node is whole if it began to say everything, and no message since then is missing. Only then, at the end,
        is something dropped that the node did not take back.
    I3  No node is known that was not heard for `LEASE_MS` at the last `expire`.
    I4  There are at most `pairs_max` pairs of a node and a conversation. What would be more is refused, and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from base.clock import Instant

__all__ = ["LEASE_MS", "Followers", "Taken"]

LEASE_MS = 30_000
"""Three rounds of who says everything anew."""


class Taken(NamedTuple):
    """What became of a message: whether its node is whole, and how many conversations were too many."""

    is_whole: bool
    refused: int


@dataclass(slots=True)
class _Node:
    alone: tuple[str]
    """The node's name as the only one: shared by the conversations that no other node follows, which are most."""
    heard_at: Instant
    number: int = 0
    is_whole: bool = False
    named: set[int] = field(default_factory=set)
    unnamed: set[int] = field(default_factory=set)


class Followers:
    """The table. Conversations are numbers, nodes are names."""

    def __init__(self, *, pairs_max: int) -> None:
        assert pairs_max > 0
        self._pairs_max = pairs_max
        self._pairs = 0
        self._nodes: dict[str, _Node] = {}
        self._by_cid: dict[int, tuple[str, ...]] = {}

    def __len__(self) -> int:
        """Return the number of pairs of a node and a conversation."""
        return self._pairs

    def nodes(self) -> tuple[str, ...]:
        """Return the nodes that are known."""
        return tuple(self._nodes)

    def of(self, cid: int) -> tuple[str, ...]:
        """Return the nodes that follow the conversation."""
        return self._by_cid.get(cid, ())

    def told(
        self,
        now: Instant,
        name: str,
        number: int,
        added: Iterable[int],
        removed: Iterable[int],
        *,
        is_first: bool = False,
        is_last: bool = False,
    ) -> Taken:
        """Take a node's message: `number` grows by one a message, `is_first` and `is_last` enclose everything anew."""
        node = self._nodes.get(name)
        if node is None:
            node = self._nodes[name] = _Node((name,), now)
        if is_first:
            node.is_whole = True
            node.unnamed |= node.named
            node.named = set()
        elif number != node.number + 1:
            node.is_whole = False
        node.number = number
        node.heard_at = now
        for cid in removed:
            self._drop(node, cid)
        refused = sum(not self._add(node, cid) for cid in added)
        if is_last and node.is_whole:
            for cid in tuple(node.unnamed):
                self._drop(node, cid)
        return Taken(node.is_whole, refused)

    def forget(self, name: str) -> None:
        """Drop what a node follows; one that is not known does not matter."""
        node = self._nodes.pop(name, None)
        if node is not None:
            for cid in (*node.named, *node.unnamed):
                self._drop(node, cid)

    def expire(self, now: Instant) -> Sequence[str]:
        """Forget the nodes whose lease ended and return them."""
        silent = [name for name, node in self._nodes.items() if node.heard_at + LEASE_MS <= now]
        for name in silent:
            self.forget(name)
        return silent

    def _add(self, node: _Node, cid: int) -> bool:
        """Note that the node follows the conversation; False if that is one too many."""
        if cid in node.named:
            return True
        if cid in node.unnamed:
            node.unnamed.remove(cid)
        elif self._pairs == self._pairs_max:
            return False
        else:
            self._pairs += 1
            others = self._by_cid.get(cid)
            self._by_cid[cid] = node.alone if others is None else others + node.alone
        node.named.add(cid)
        return True

    def _drop(self, node: _Node, cid: int) -> None:
        if cid not in node.named and cid not in node.unnamed:
            return
        node.named.discard(cid)
        node.unnamed.discard(cid)
        self._pairs -= 1
        others = tuple(name for name in self._by_cid[cid] if name not in node.alone)
        if others:
            self._by_cid[cid] = others
        else:
            del self._by_cid[cid]

    def check_invariants(self) -> None:
        """Assert what can be read off one state (I1, I4); tests call it after every step."""
        for node in self._nodes.values():
            assert not node.named & node.unnamed, "I1"
        pairs = {(name, cid) for name, node in self._nodes.items() for cid in node.named | node.unnamed}
        assert pairs == {(name, cid) for cid, names in self._by_cid.items() for name in names}, "I1"
        assert sum(map(len, self._by_cid.values())) == len(pairs) == self._pairs <= self._pairs_max, "I1, I4"
        assert all(self._by_cid.values()), "I1"
