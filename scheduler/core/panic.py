"""Whether to believe that many access nodes vanished at once.

A registry that loses its registrations, or a network cut between it and the nodes, looks like the death of most of the
fleet. To send everybody to the few that are left would bring those down too. So when the registry shows fewer than
`percent` of the nodes that it showed within the last minute, the vanished ones stay in the snapshot as they were, until
enough are back, or it has lasted `hold_ms`: then it is the truth, and clients should not be sent to dead nodes longer.

Registrations that run out do so over some seconds, a few in each view; hence a minute and not the view before. It is
counted from the view before: a registry that was away for an hour is not believed more easily. Nodes that were draining
or cordoned when they were seen last were expected to leave, and are not missed.

Invariants:
    I1  Outside of panic, of the nodes that the views of a minute showed, neither draining nor cordoned, at least
        `percent` percent are left, or as many new ones came. In panic all of them are.
    I2  What a node reports now always counts, whether in panic or not.

Source: Envoy's panic threshold; Eureka's self-preservation.
"""

from __future__ import annotations

from collections.abc import Iterable

from base.ids import NodeId
from scheduler.core.node import AccessNode

__all__ = ["REMEMBER_MS", "PanicGuard"]

REMEMBER_MS = 60_000


class PanicGuard:
    """See the module. `now` is monotonic, in ms."""

    def __init__(self, *, percent: int, hold_ms: int) -> None:
        assert 0 <= percent <= 100
        self._percent = percent
        self._hold_ms = hold_ms
        # As they were seen last, and when: those of the last minute; in panic, those of the minute before it.
        self._known: dict[NodeId, tuple[AccessNode, int]] = {}
        self._viewed_at = 0
        self._since: int | None = None

    @property
    def is_panic(self) -> bool:
        """Whether nodes that are not registered any more are kept."""
        return self._since is not None

    def sees(self, view: Iterable[AccessNode], now: int) -> tuple[AccessNode, ...]:
        """Return the nodes to go on with after the registry showed `view`."""
        fresh = {node.id: node for node in view}
        known = self._known
        if self._since is None:
            oldest = self._viewed_at - REMEMBER_MS
            known = {name: seen for name, seen in known.items() if seen[1] >= oldest}
        missed = [node for name, (node, _) in known.items() if name not in fresh and _is_expected(node)]
        expected = len(missed) + sum(name in known for name in fresh)
        is_over = self._since is not None and now - self._since >= self._hold_ms
        self._viewed_at = now
        # New ones count as if they were old ones: a fleet may be replaced at once.
        if is_over or len(fresh) * 100 >= expected * self._percent:
            if self._since is not None:
                self._since = None
                known = {}
            self._known = known | {name: (node, now) for name, node in fresh.items()}
            return tuple(fresh.values())
        if self._since is None:
            self._since, self._known = now, known
        # Who is new in panic is not missed when it goes again: it is not what panic waits for.
        self._known.update((name, (node, now)) for name, node in fresh.items() if name in known)
        return (*fresh.values(), *missed)

    def accept(self) -> None:
        """An operator says that the vanished nodes are dead: the next view is the truth."""
        self._since = None
        self._known = {}

    def check_invariants(self) -> None:
        """Assert that nobody is remembered as seen after the last view, and that panic remembers whom it keeps."""
        assert all(at <= self._viewed_at for _, at in self._known.values())
        assert not self.is_panic or self._known


def _is_expected(node: AccessNode) -> bool:
    return not (node.is_draining or node.is_cordoned)
