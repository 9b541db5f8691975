"""What viewers see of the users that this node owns: the audience, applied before anything leaves the owner.

One place for both ways of looking: lookups on behalf of a viewer, and watches.

Who is shown is decided by what access nodes vouch for; who may see that, by all sessions that are stored here: one
whose access node is late still hides its user.
"""

from __future__ import annotations

from base.clock import Instant
from status.api import UNKNOWN_SHOWN, Shown, UserStatus, audience_of, status_of
from status.core.ownership import Ownership
from status.core.partitions import partition_of
from status.core.visibility import (
    UNKNOWN,
    Audience,
    Divided,
    Known,
    Presence,
    SessionState,
    Sight,
    best_of,
    seen_by,
    sight,
)
from status.ports import Contacts

__all__ = ["Sights", "is_unknown"]

NOBODY = ""
"""No user has this id: what is shown of it is what is shown of who never came."""


class Sights:
    """See the module."""

    def __init__(self, ownership: Ownership, contacts: Contacts) -> None:
        self._ownership = ownership
        self._contacts = contacts

    def sight(self, now: Instant, user: str) -> Sight:
        """Return what whoever looks sees of the user now, `UNKNOWN` where this node cannot tell."""
        partition = partition_of(user)
        (shown,) = self._ownership.lookup(now, [partition], [user])
        known, audience = self._known(now, user, partition, shown)
        return sight(user, known, audience, self._contacts.is_contact)

    def seen_by(self, now: Instant, viewer: str, user: str, partition: int, shown: Shown) -> Presence:
        """Return what the viewer sees of a user of whom that is to be shown to those who may see all."""
        known, audience = self._known(now, user, partition, shown)
        return seen_by(viewer, user, known, audience, self._contacts.is_contact)

    def _known(self, now: Instant, user: str, partition: int, shown: Shown) -> tuple[Known, Audience]:
        store = self._ownership.store(partition)
        stored = status_of(store.open_of(user) or None) if store is not None else UserStatus("unknown")
        audience = audience_of(stored)
        states = _states(status_of(shown))
        if audience.mode == "everyone" and best_of(states) not in (None, "invisible"):
            return Known(states), audience  # nearly all who are there: nobody sees anything else
        last_seen = store.last_visible(user) if store is not None else None
        late = _states(stored) if shown is UNKNOWN_SHOWN else ()
        return Known(states, last_seen, self._is_complete(now, partition, shown), late), audience

    def _is_complete(self, now: Instant, partition: int, shown: Shown) -> bool:
        """Return whether this node can tell of who has no session in the partition."""
        if shown is None or (isinstance(shown, int) and not isinstance(shown, bool)):
            return True  # it just did
        return self._ownership.lookup(now, [partition], [NOBODY]) == [None]


def _states(status: UserStatus) -> tuple[SessionState, ...]:
    return tuple(view.state for view in status.sessions)


def is_unknown(seen: Sight) -> bool:
    """Return whether somebody cannot be told anything: that may change without anything happening."""
    return seen == UNKNOWN or (isinstance(seen, Divided) and UNKNOWN in {seen.whole, seen.allowed, seen.denied})
