"""What viewers see of the users that this node owns: the audience, applied before anything leaves the owner.

One place for both ways of looking: lookups on behalf of a viewer, and watches.
"""

from __future__ import annotations

from base.clock import Instant
from status.api import Shown, audience_of, status_of
from status.core.holding import Role
from status.core.ownership import Ownership
from status.core.partitions import partition_of
from status.core.visibility import UNKNOWN, Audience, Known, Presence, Sight, seen_by, sight
from status.ports import Contacts

__all__ = ["Sights", "is_unknown"]


class Sights:
    """See the module."""

    def __init__(self, ownership: Ownership, contacts: Contacts) -> None:
        self._ownership = ownership
        self._contacts = contacts

    def sight(self, now: Instant, user: str) -> Sight:
        """Return what whoever looks sees of the user now, `UNKNOWN` where this node cannot tell."""
        partition = partition_of(user)
        (shown,) = self._ownership.lookup(now, [partition], [user])
        known, audience = self._known(now, partition, shown)
        return sight(user, known, audience, self._contacts.is_contact)

    def seen_by(self, now: Instant, viewer: str, user: str, partition: int, shown: Shown) -> Presence:
        """Return what the viewer sees of a user of whom that is to be shown to those who may see all."""
        known, audience = self._known(now, partition, shown)
        return seen_by(viewer, user, known, audience, self._contacts.is_contact)

    def _known(self, now: Instant, partition: int, shown: Shown) -> tuple[Known, Audience]:
        status = status_of(shown)
        is_complete = not isinstance(shown, bool) and self._ownership.role(now, partition) is Role.SERVING
        states = tuple(view.state for view in status.sessions)
        return Known(states, status.last_seen, is_complete), audience_of(status)


def is_unknown(seen: Sight) -> bool:
    """Return whether nobody can be told anything: it may change without anything happening."""
    return seen == UNKNOWN
