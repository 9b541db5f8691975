"""What the viewers of one user on one access node were told, and what they are to be told when.

Viewers who stand alike are held as one group, since most see the same: a user whom everybody may see has one group a
node, and a change moves the group as a whole, whatever its size.

```
    told ── sees something else ──▶ pending ── tell, at its instant or later ──▶ told
              ▲                       │
              └───────────────────────┘ sees what was told, or unknown: nothing leaves
```

Most changes may be told from the moment at which they are seen. Offline, to a viewer who was told a presence before,
waits for the end of a grace, since most who go come back: it runs as long as the viewer sees nothing but offline. Who
was told unknown, or offline already, is spared nothing by waiting.

Invariants:
    I1  A viewer is in one group, and no group is empty.
    I2  What is pending differs from what was told, and is never unknown.
    I3  Offline after a presence is pending until the grace that began when the viewer first saw it has ended.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from typing import NamedTuple

import msgspec

from base.clock import Instant
from status.core.visibility import Presence, Sight

__all__ = ["Shown", "Subscription"]

_PRESENT = frozenset({"online", "away", "busy", "invisible"})


class Shown(msgspec.Struct, frozen=True, array_like=True):
    """What some viewers see: those named, in order, or all viewers of the access node if `viewers` is None."""

    presence: Presence
    viewers: tuple[str, ...] | None


class _Standing(NamedTuple):
    """Where some viewers stand: what they were told, and what they shall be told from an instant on."""

    told: Presence
    pending: Presence | None = None
    at: Instant = Instant(0)

    def after(self, now: Instant, seen: Presence, offline_at: Instant) -> _Standing:
        """Return where viewers stand who see that from now on."""
        if seen == self.told or seen.state == "unknown":
            return _Standing(self.told)
        if seen.state != "offline" or self.told.state not in _PRESENT:
            return _Standing(self.told, seen, now)
        is_waiting = self.pending is not None and self.pending.state == "offline"
        return _Standing(self.told, seen, self.at if is_waiting else offline_at)


class Subscription:
    """The viewers of one user on one access node."""

    __slots__ = ("_groups",)

    def __init__(self) -> None:
        self._groups: dict[_Standing, set[str]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def __contains__(self, viewer: str) -> bool:
        return any(viewer in held for held in self._groups.values())

    def viewers(self) -> set[str]:
        """Return all viewers."""
        return set().union(*self._groups.values())

    def add(self, viewers: Iterable[str], sight: Sight) -> tuple[Shown, ...]:
        """Add viewers, or take those who are here anew; return what they see, which they have been told with that."""
        added = set(viewers)
        seen = _parts(added, sight)
        shown = _shown({presence: [alike] for presence, alike in seen.items()})
        self.remove(added)
        for presence, alike in seen.items():
            self._put(_Standing(presence), alike)
        return shown

    def remove(self, viewers: Collection[str]) -> set[str]:
        """Remove viewers; return which of them were here."""
        removed: set[str] = set()
        for standing, held in list(self._groups.items()):
            found = held.intersection(viewers)
            removed |= found
            if len(found) == len(held):
                del self._groups[standing]
            else:
                held.difference_update(found)
        return removed

    def see(self, now: Instant, sight: Sight, offline_at: Instant) -> Instant | None:
        """Take note of what viewers see from now on; a grace that begins ends at `offline_at`.

        Returns when something is to be told, None if nothing is.
        """
        parts = [
            (standing.after(now, seen, offline_at), alike)
            for standing, viewers in self._groups.items()
            for seen, alike in _parts(viewers, sight).items()
        ]
        self._groups = {}
        for standing, alike in parts:
            self._put(standing, alike)
        return self.next_at()

    def next_at(self) -> Instant | None:
        """Return when something is to be told, None if nothing is."""
        return min((standing.at for standing in self._groups if standing.pending is not None), default=None)

    def tell(self, now: Instant) -> tuple[Shown, ...]:
        """Return what viewers are to be told by now, and take it as told."""
        ready = [(one, one.pending) for one in self._groups if one.pending is not None and one.at <= now]
        is_all = len(ready) == len(self._groups)
        told: dict[Presence, list[set[str]]] = {}
        for standing, presence in ready:
            told.setdefault(presence, []).append(self._groups.pop(standing))
        shown = _shown(told, is_all=is_all)
        for presence, parts in told.items():
            for viewers in parts:
                self._put(_Standing(presence), viewers)
        return shown

    def check_invariants(self) -> None:
        """Assert I1 and I2."""
        assert all(self._groups.values()), "I1"
        assert len(self) == len(self.viewers()), "I1"
        for told, pending, _ in self._groups:
            assert pending is None or (pending != told and pending.state != "unknown"), "I2"

    def _put(self, standing: _Standing, viewers: set[str]) -> None:
        """Add viewers who are in no group. Takes the set over."""
        held = self._groups.setdefault(standing, viewers)
        if held is not viewers:
            held.update(viewers)


def _parts(viewers: set[str], sight: Sight) -> dict[Presence, set[str]]:
    """Return the viewers by what they see."""
    if isinstance(sight, Presence):
        return {sight: viewers}
    parts: defaultdict[Presence, set[str]] = defaultdict(set)
    for viewer in viewers:
        parts[sight(viewer)].add(viewer)
    return parts


def _shown(parts: Mapping[Presence, Iterable[set[str]]], *, is_all: bool = False) -> tuple[Shown, ...]:
    """Return presences with their viewers, in an order that does not depend on hashes."""
    if is_all and len(parts) == 1:
        return tuple(Shown(presence, None) for presence in parts)
    named = ((tuple(sorted(chain.from_iterable(sets))), presence) for presence, sets in parts.items())
    return tuple(Shown(presence, viewers) for viewers, presence in sorted(named, key=lambda one: one[0]))
