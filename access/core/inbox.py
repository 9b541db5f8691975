"""Who gets which timeline entry: every session of a user sees every offset once and in order, or is told to fetch.

The message services send each new entry to the access nodes that hold the user's sessions, and may send it twice,
late, or not at all. The offsets are 1, 2, 3 ... without a hole, so that each session's own position tells what to do
with an entry:

    offset <= position       seen: drop
    offset == position + 1   next: write, position + 1
    offset >  position + 1   something is missing: fetch from the timeline, which has it

While a session is loading (its start is being read from the timeline, or a gap fetched), entries for it are not
written; if any came by, the session fetches once more when it has loaded. Nothing is buffered, since the timeline has
it all.

Invariants:
    I1  A session's writes have offsets position + 1, position + 2, ... without gap or repeat.
    I2  A session that missed an entry is loading, or is behind only by entries that nobody told this node about, or
        its last fetch failed: then the next entry or audit makes it fetch.
    I3  The sessions by user and the sessions by id are the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["InboxHub", "Routing"]


@dataclass(slots=True)
class _Subscriber:
    user: str
    position: int = 0
    is_loading: bool = True
    newest_heard: int = 0
    """Greatest offset that came by; above `position` after loading, there is more to fetch."""


@dataclass(frozen=True, slots=True)
class Routing:
    """What to do with one entry: write it to these sessions, and fetch for those."""

    write: tuple[str, ...]
    fetch: tuple[str, ...]


class InboxHub:
    """All inbox subscriptions of one access node."""

    def __init__(self) -> None:
        self._sessions: dict[str, _Subscriber] = {}
        self._users: dict[str, dict[str, _Subscriber]] = {}

    def attach(self, session: str, user: str) -> None:
        """Add a session, loading: call `loaded` when its start was read. Must precede the reading."""
        assert session not in self._sessions
        subscriber = _Subscriber(user)
        self._sessions[session] = subscriber
        self._users.setdefault(user, {})[session] = subscriber

    def detach(self, session: str) -> None:
        """Remove a session. Unknown sessions are no error."""
        subscriber = self._sessions.pop(session, None)
        if subscriber is not None:
            sessions = self._users[subscriber.user]
            del sessions[session]
            if not sessions:
                del self._users[subscriber.user]

    def loaded(self, session: str, position: int) -> bool:
        """The session has been given everything up to `position`. Returns whether it must fetch once more.

        A session that is already beyond the position stays where it is (a client read its own start again).
        """
        subscriber = self._sessions.get(session)
        if subscriber is None:
            return False
        subscriber.position = max(subscriber.position, position)
        subscriber.is_loading = subscriber.newest_heard > subscriber.position
        return subscriber.is_loading

    def load_failed(self, session: str) -> None:
        """The fetch failed. The next entry, or the next audit, will find the session behind and fetch again."""
        subscriber = self._sessions.get(session)
        if subscriber is not None:
            subscriber.is_loading = False

    def route(self, user: str, offset: int, *, has_data: bool) -> Routing:
        """Decide on one entry. Without data (only the offset is news) nobody is written to, who is behind fetches."""
        write: list[str] = []
        fetch: list[str] = []
        for session, subscriber in self._users.get(user, {}).items():
            subscriber.newest_heard = max(subscriber.newest_heard, offset)
            if subscriber.is_loading or offset <= subscriber.position:
                continue
            if has_data and offset == subscriber.position + 1:
                subscriber.position = offset
                write.append(session)
            else:
                subscriber.is_loading = True
                fetch.append(session)
        return Routing(tuple(write), tuple(fetch))

    def position(self, session: str) -> int | None:
        """Return the offset up to which the session was written to, None when it is not attached."""
        subscriber = self._sessions.get(session)
        return subscriber.position if subscriber is not None else None

    def user(self, session: str) -> str | None:
        """Return whose session it is, None when it is not attached."""
        subscriber = self._sessions.get(session)
        return subscriber.user if subscriber is not None else None

    def has_user(self, user: str) -> bool:
        """Return whether any session of the user is attached."""
        return user in self._users

    def users(self) -> tuple[str, ...]:
        """Return the users with an attached session: whose heads an audit compares."""
        return tuple(self._users)

    def audit(self, heads: Mapping[str, int]) -> tuple[str, ...]:
        """Compare with the timelines' heads; return the sessions that are behind and must fetch.

        This is what finds a lost *last* entry, which no later entry would ever reveal.
        """
        return tuple(
            session for user, head in heads.items() for session in self.route(user, head, has_data=False).fetch
        )

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes."""
        loading = sum(subscriber.is_loading for subscriber in self._sessions.values())
        return {"sessions": len(self._sessions), "users": len(self._users), "loading": loading}

    def check_invariants(self) -> None:
        """Assert I3."""
        by_user: Iterable[str] = (session for sessions in self._users.values() for session in sessions)
        assert sorted(by_user) == sorted(self._sessions), "I3"
        assert all(self._users.values()), "I3"
