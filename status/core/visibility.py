"""Who may see a user's status, and what each viewer sees.

A user has an *audience*. Who is not in it sees what there would be to see if the user had left when everybody could
see the user last: offline, and that time. The owner of the user applies this before anything leaves it, so that no
other node, log or client can tell the difference.

That holds at all times. While the owner cannot tell "offline" from "not heard of yet", it says unknown of every user
without a known session: a denied viewer that is told offline at such a time would know that it is denied. While it only
waits for the access node of a hidden session, it says offline of those who have none, and so to the denied.

Of several sessions the best state stands for all: busy, since it asks not to be disturbed wherever it was set, then
online, then away. An invisible session is there for the user and for trusted services only.

Invariants:
    I1  A user and a trusted service see everything.
    I2  What a denied viewer sees depends on nothing but whether the owner is complete, and `last_seen`.
    I3  "invisible" is shown to nobody but the user and trusted services.
    I4  `sight` shows each viewer what `seen_by` does.
    I5  What others see of a user with invisible sessions only is what they see of a user without any.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec

from base.clock import Timestamp
from base.errors import BadRequest, LimitExceeded
from base.ids import checked_id

__all__ = ["AUDIENCE_BYTES_MAX", "AUDIENCE_MAX", "EVERYONE", "OFFLINE", "UNKNOWN", "Audience", "Divided", "IsContact"]
__all__ += ["Known", "Presence", "Sight", "best_of", "checked_audience", "may_see", "seen_by", "sight"]

AUDIENCE_MAX = 1_000
AUDIENCE_BYTES_MAX = 16_000
"""An audience is part of its session's entry, which is kept in memory, copied and sent as a whole."""

Mode = Literal["everyone", "contacts", "listed", "nobody"]
SessionState = Literal["online", "away", "busy", "invisible"]

IsContact = Callable[[str, str], bool]
"""Whether the first user, who is seen, has the second one, who looks, among the contacts."""


class Audience(msgspec.Struct, frozen=True, array_like=True):
    """Who may see a user. `users` belong to the mode "listed", sorted and each once: see `checked_audience`."""

    mode: Mode = "everyone"
    users: tuple[str, ...] = ()


EVERYONE = Audience()


class Presence(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one viewer sees of one user. `last_seen` goes with "offline", in ms since the Unix epoch, if it is known."""

    state: Literal["online", "away", "busy", "invisible", "offline", "unknown"]
    last_seen: Timestamp | None = None


Sight = Presence | Callable[[str], Presence]
"""What viewers see of one user at one moment: one presence where all see the same, else a function of the viewer."""

OFFLINE = Presence("offline")
UNKNOWN = Presence("unknown")
_PRESENCES: dict[SessionState, Presence] = {
    "busy": Presence("busy"),
    "online": Presence("online"),
    "away": Presence("away"),
    "invisible": Presence("invisible"),
}
_RANKS: dict[SessionState, int] = {"busy": 3, "online": 2, "away": 1, "invisible": 0}


class Known(NamedTuple):
    """What the owner knows of a user.

    `states` are those of the open sessions, `late` those of sessions of which it cannot tell whether they are still
    open. `last_seen` is when everybody could see the user last: neither a hidden session nor its end may change it, or
    they would show. `is_complete`: of who has no session at all it can tell.
    """

    states: tuple[SessionState, ...] = ()
    last_seen: Timestamp | None = None
    is_complete: bool = True
    late: tuple[SessionState, ...] = ()


@dataclass(frozen=True, slots=True)
class Divided:
    """A sight where viewers see different things: the user, who may see the user, and who may not.

    It asks `is_contact` when it is called, and nothing else that can change.
    """

    user: str
    audience: Audience
    is_contact: IsContact
    whole: Presence
    allowed: Presence
    denied: Presence

    def __call__(self, viewer: str) -> Presence:
        """Return what the viewer sees."""
        if viewer == self.user:
            return self.whole
        return self.allowed if may_see(viewer, self.user, self.audience, self.is_contact) else self.denied


def checked_audience(mode: Mode, users: Iterable[str] = ()) -> Audience:
    """Return an audience as somebody outside asks for it.

    Raises:
        BadRequest: one of the ids must not cross our boundary, or users go with a mode that lists none.
        LimitExceeded: more than 1,000 users, or ids of more than 16,000 bytes together (in UTF-8).
    """
    listed = {checked_id(user, "user") for user in users}
    if listed and mode != "listed":
        raise BadRequest(f"the audience {mode!r} takes no users")
    if len(listed) > AUDIENCE_MAX:
        raise LimitExceeded("too many users in an audience", what="audience", limit=AUDIENCE_MAX, seen=len(listed))
    size = sum(len(user.encode()) for user in listed)
    if size > AUDIENCE_BYTES_MAX:
        message = "the ids in an audience are too long together"
        raise LimitExceeded(message, what="audience_bytes", limit=AUDIENCE_BYTES_MAX, seen=size)
    return Audience(mode, tuple(sorted(listed)))


def may_see(viewer: str | None, user: str, audience: Audience, is_contact: IsContact) -> bool:
    """Return whether the viewer may see the user. None is a trusted service, which may always (I1)."""
    if viewer is None or viewer == user or audience.mode == "everyone":
        return True
    if audience.mode == "contacts":
        return is_contact(user, viewer)
    at = bisect_left(audience.users, viewer)
    return audience.mode == "listed" and audience.users[at : at + 1] == (viewer,)


def best_of(states: Iterable[SessionState]) -> SessionState | None:
    """Return the state that stands for all, None for none: busy before online before away before invisible."""
    return max(states, key=_RANKS.__getitem__, default=None)


def seen_by(viewer: str | None, user: str, known: Known, audience: Audience, is_contact: IsContact) -> Presence:
    """Return what the viewer sees of the user. None is a trusted service."""
    if not may_see(viewer, user, audience, is_contact):
        return _absent(known)
    return _allowed(known) if viewer not in (None, user) else _whole(known)


def sight(user: str, known: Known, audience: Audience, is_contact: IsContact) -> Sight:
    """Return what users who look see of the user: one presence if all see the same, as they mostly do."""
    whole, allowed, denied = _whole(known), _allowed(known), _absent(known)
    if whole == allowed and (audience.mode == "everyone" or allowed == denied):
        return allowed
    return Divided(user, audience, is_contact, whole, allowed, denied)


def _whole(known: Known) -> Presence:
    best = best_of(known.states)
    if best is None:
        return UNKNOWN if known.late else _absent(known)
    return _PRESENCES[best]


def _allowed(known: Known) -> Presence:
    best = best_of(known.states)
    if best in (None, "invisible"):
        return UNKNOWN if best_of(known.late) not in (None, "invisible") else _absent(known)
    return _PRESENCES[best]


def _absent(known: Known) -> Presence:
    """Return what there would be to see of the user without the hidden sessions, if there are no others (I2, I5)."""
    if not known.is_complete:
        return UNKNOWN
    return OFFLINE if known.last_seen is None else Presence("offline", known.last_seen)
