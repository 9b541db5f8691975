"""The sync versions of the users that are asked about: one number that changes with whatever a user can be told.

With write fan-out a lost push is found by comparing offsets with the timeline's head. Small conversations with read
fan-out have no entries there, and a user has many: instead of asking each of them, a user's version is compared, which
is the timeline's head plus where all those conversations end. It is derived from what is stored, so that nothing is
written for it; here it is only kept up to date for the users who were asked about lately.

Versions are compared for equality. Whoever sees another one than it knows asks for its list of conversations.

Invariants:
    I1  A version that is told is what the store would give, once all that was committed has been told here.
    I2  At most `users_max` are kept, the ones asked about least lately go first.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Versions"]


class Versions:
    """See the module. Where no small conversation has read fan-out it is not `is_on`, and costs nothing."""

    def __init__(self, *, is_on: bool, users_max: int = 100_000) -> None:
        """`users_max`: at about 150 bytes each."""
        self.is_on = is_on
        self._users_max = users_max
        self._versions: dict[str, int] = {}
        self._loading: dict[str, int] = {}
        """Users who are being read from the store, with the newest read's ticket, while nothing of theirs changed."""
        self._last_ticket = 0

    def __len__(self) -> int:
        return len(self._versions)

    def known(self, user: str) -> int | None:
        """Return the user's version, None if it must be loaded."""
        version = self._versions.pop(user, None)
        if version is not None:
            self._versions[user] = version  # asked about last
        return version

    def changed(self, users: Iterable[str]) -> None:
        """Each of the users was told something new."""
        for user in users:
            self.changed_one(user)

    def changed_one(self, user: str) -> int | None:
        """Return the user's version after one more thing, None if it is not known."""
        self._loading.pop(user, None)
        if user not in self._versions:
            return None
        self._versions[user] += 1
        return self._versions[user]

    def begin(self, user: str) -> int:
        """The user is read from the store from now on. Return a ticket for `loaded`.

        Of several who read at a time the last one to begin counts: the others may have read before a change.
        """
        while len(self._loading) >= self._users_max:  # reads that failed are never ended
            del self._loading[next(iter(self._loading))]
        self._last_ticket += 1
        self._loading[user] = self._last_ticket
        return self._last_ticket

    def loaded(self, user: str, version: int, ticket: int) -> int | None:
        """Take what the store says, if nothing changed while it was read; return the version, None to read it again."""
        if self._loading.get(user) != ticket:
            return None
        del self._loading[user]
        self._versions.pop(user, None)
        while len(self._versions) >= self._users_max:
            del self._versions[next(iter(self._versions))]
        self._versions[user] = version
        return version

    def forget(self, user: str) -> None:
        """The user's conversations are other ones now."""
        self._versions.pop(user, None)
        self._loading.pop(user, None)
