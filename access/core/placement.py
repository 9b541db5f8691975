"""Which node owns a channel: rendezvous hashing over the live access nodes.

Every node weighs every channel by a hash of both. The nodes in falling order of weight are the channel's *order*: the
first is its owner, the second its backup. When a node comes or goes, only the channels that it is first or second for
change hands. A draining node leaves the order, unless all nodes drain.

Nodes decide by their own view of the cluster, which may be old. Two that disagree are kept apart by `custody`.

Source: D. Thaler and C. Ravishankar, "Using name-based mappings to increase hit rates" (IEEE/ACM ToN, 1998).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

__all__ = ["Node", "View"]

_REMEMBERED_MAX = 100_000


class Node(NamedTuple):
    """A live access node; `life` is its restart number."""

    name: str
    life: int
    is_draining: bool = False


class View:
    """The live nodes, as one node sees them at one time. Immutable; a change makes a new one."""

    __slots__ = ("_all", "_orders", "_seeds", "lives")

    def __init__(self, nodes: Iterable[Node] = ()) -> None:
        listed = list(nodes)
        self.lives = {node.name: node.life for node in listed}
        """The restart number of each live node."""
        staying = [node.name for node in listed if not node.is_draining] or [node.name for node in listed]
        self._all = {name: xxh3_64_intdigest(name.encode()) for name in self.lives}
        self._seeds = {name: self._all[name] for name in staying}
        self._orders: dict[str, tuple[str, ...]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.lives

    def order(self, channel: str) -> tuple[str, ...]:
        """Return owner and backup of a channel, as far as there are as many nodes."""
        order = self._orders.get(channel)
        if order is None:
            if len(self._orders) >= _REMEMBERED_MAX:
                self._orders.clear()
            order = self._orders[channel] = _by_weight(self._seeds, channel)[:2]
        return order

    def owner(self, channel: str) -> str | None:
        """Return the owner; None while no node is known."""
        return next(iter(self.order(channel)), None)

    def backup(self, channel: str) -> str | None:
        """Return the backup; None if there is no second node."""
        return next(iter(self.order(channel)[1:]), None)

    def nearest(self, channel: str, count: int, *, beside: str) -> tuple[str, ...]:
        """Return the first nodes of the order with the draining ones in it: whoever held the channel is near."""
        names = [name for name in _by_weight(self._all, channel) if name != beside]
        return tuple(names[:count])


def _by_weight(seeds: dict[str, int], channel: str) -> tuple[str, ...]:
    key = channel.encode()
    return tuple(sorted(seeds, key=lambda name: (-xxh3_64_intdigest(key, seed=seeds[name]), name)))
