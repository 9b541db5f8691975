"""What is shown of one user, decided entry by entry: who vouches for it now, and is the silence about it proof?

The slow way to an answer, for whoever is in a partition that is not clean (`ownership`), where it is a dictionary look.

Invariants:
    I1  An entry is shown exactly while the life that reported it vouches for it: by its beats here, or by what was
        said of it at the last owner.
    I2  "Offline" is said only if the partition is served, and of each open entry it is proven that nobody vouches.
"""

from __future__ import annotations

from base.clock import Instant
from base.ids import Incarnation
from status.api import UNKNOWN_SHOWN, Shown
from status.core.holding import Held
from status.core.records import Sources
from status.core.vouching import Vouching

__all__ = ["Showing"]


class Showing:
    """See the module; it keeps nothing."""

    def __init__(self, sources: Sources, vouching: Vouching) -> None:
        self._sources = sources
        self._vouching = vouching

    def show(self, now: Instant, held: Held, user: str, *, is_serving: bool) -> Shown:
        """Return what to show of a user in a partition that this node serves or, if not `is_serving`, recovers."""
        found = held.records.users.get(user)
        if found is None or isinstance(found, int):
            return found if is_serving else UNKNOWN_SHOWN
        shown: list[bytes] = []
        for entry in held.records.open_of(user):
            life = self._sources.life(entry[:2])
            if self._vouching.is_over(life):
                continue  # that life is over, and its sockets with it
            if self._is_vouched(now, held, entry):
                shown.append(entry)
            elif not self._vouching.proves_silence(now, life, held.vouch_from, held.grace_until):
                is_serving = False
        if shown:
            return shown[0] if len(shown) == 1 else tuple(shown)
        return None if is_serving else UNKNOWN_SHOWN

    def is_vouched_by_beats(self, held: Held) -> bool:
        """Return whether beats here speak for all lives with entries in the store, be it that one is silent now."""
        lives = map(self._sources.life, held.records.sources())
        return all(self._vouching.by_beats(life, held.vouch_from) is not None for life in lives)

    def _is_vouched(self, now: Instant, held: Held, entry: bytes) -> bool:
        life = self._sources.life(entry[:2])
        beats = self._vouching.by_beats(life, held.vouch_from)
        if beats is not None and now < beats.until and not held.is_sealed():
            return True
        incarnation, until = held.vouches.get(life.node, (Incarnation(0), Instant(0)))
        return incarnation == life.incarnation and now < until
