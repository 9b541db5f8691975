"""Who on this node looks at whose presence, and at which place in that channel each of them is.

What a viewer sees of a user is one channel with one state, shared by all sessions of the viewer here: a *view*. Its
epoch names its life, which ends with the last session in it, and its offset counts what was published in it. So a
position says nothing about what anybody else may see. Whoever comes back with the position of a view that lives has its
state; whoever comes with any other one is given the state anew. Nothing is ever too old to recover.

```
    attach ──▶ loading ──started──▶ live ──detach──▶ gone
                  └──────────────detach───────────────▲
```

Invariants:
    I1  A session is told of a change only while it is live; what it started with is the state at that instant.
    I2  Offsets of a view grow by one a publication, from 1, which stands for the state that it began with.
    I3  A view lives while a session is in it, and no view is kept without one.
    I4  A session looks at no more than `channels_max` users.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from base.errors import LimitExceeded

__all__ = ["PresenceHub", "Published", "Start"]

S = TypeVar("S")
"""A session, as the caller knows it."""


class Published(NamedTuple, Generic[S]):
    """A change to be written to these sessions: for each, the number of its subscription."""

    offset: int
    sessions: tuple[tuple[S, int], ...]


class Start(NamedTuple):
    """Where a subscription starts. `is_known`: the client has the state already, by the position with which it came."""

    epoch: str
    offset: int
    is_known: bool


@dataclass(slots=True)
class _View(Generic[S]):
    epoch: str
    offset: int = 1
    was_read: bool = False
    """Whether anybody was ever given the offset."""
    sessions: dict[S, int] = field(default_factory=dict)
    """The number of each session's subscription."""
    live: set[int] = field(default_factory=set)


class PresenceHub(Generic[S]):
    """All presence subscriptions of one access node."""

    def __init__(self, *, channels_max: int) -> None:
        """`channels_max` bounds the users at whom one session looks."""
        self._channels_max = channels_max
        self._views: dict[tuple[str, str], _View[S]] = {}
        self._sessions: dict[S, dict[str, str]] = {}
        """By session: its viewer by user."""
        self._numbered = 0

    def attach(self, session: S, viewer: str, user: str, *, new_epoch: str) -> int | None:
        """Add a subscription, loading. `new_epoch` names the view if it begins with this.

        Returns the subscription's number, by which it is named later on; None if the session has one already.

        Raises:
            LimitExceeded: the session looks at as many users as it may.
        """
        users = self._sessions.get(session, {})
        if user in users:
            return None
        if len(users) >= self._channels_max:
            limit = self._channels_max
            raise LimitExceeded("too many presence channels on one connection", what="presence_channels", limit=limit)
        self._sessions.setdefault(session, {})[user] = viewer
        view = self._views.setdefault((user, viewer), _View(new_epoch))
        self._numbered += 1
        view.sessions[session] = self._numbered
        return self._numbered

    def started(self, session: S, user: str, subscription: int, position: tuple[str, int]) -> Start | None:
        """The subscription is given the state of this instant. None if it has ended meanwhile.

        `position` is the epoch and offset with which the client came.
        """
        view = self._view(session, user)
        if view is None or view.sessions[session] != subscription:
            return None
        view.live.add(subscription)
        view.was_read = True
        return Start(view.epoch, view.offset, position == (view.epoch, view.offset))

    def published(self, user: str, viewer: str) -> Published[S] | None:
        """What the viewer sees has changed; return whom to tell. None where nobody was told anything yet."""
        view = self._views.get((user, viewer))
        if view is None or not view.was_read:
            return None
        view.offset += 1
        told = tuple((session, number) for session, number in view.sessions.items() if number in view.live)
        return Published(view.offset, told)

    def detach(self, session: S, user: str, subscription: int | None = None) -> tuple[str, str] | None:
        """Remove a subscription, that one if it is named; return user and viewer if that ended the view."""
        view = self._view(session, user)
        if view is None or (subscription is not None and view.sessions[session] != subscription):
            return None
        viewer = self._sessions[session].pop(user)
        if not self._sessions[session]:
            del self._sessions[session]
        view.live.discard(view.sessions.pop(session))
        if view.sessions:
            return None
        del self._views[user, viewer]
        return (user, viewer)

    def users(self, session: S) -> tuple[str, ...]:
        """Return the users at whom the session looks."""
        return tuple(self._sessions.get(session, ()))

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes."""
        return {"views": len(self._views), "channels": sum(map(len, self._sessions.values()))}

    def check_invariants(self) -> None:
        """Assert I3, I4 and that both sides agree."""
        pairs = {(user, viewer, session) for session, users in self._sessions.items() for user, viewer in users.items()}
        assert pairs == {
            (user, viewer, session) for (user, viewer), view in self._views.items() for session in view.sessions
        }, "I3"
        for view in self._views.values():
            assert view.sessions, "I3"
            assert view.live <= set(view.sessions.values()), "I1"
            assert view.offset >= 1, "I2"
        assert all(0 < len(users) <= self._channels_max for users in self._sessions.values()), "I4"

    def _view(self, session: S, user: str) -> _View[S] | None:
        viewer = self._sessions.get(session, {}).get(user)
        return None if viewer is None else self._views[user, viewer]
