"""Who gets which timeline entry: every client of a user sees every offset once and in order, or is told to fetch.

The message services send each new entry to the access nodes that hold the user's sessions, and may send it twice,
late, or not at all. The offsets are 1, 2, 3 ... without a hole, so that each client's own position tells what to do
with an entry:

    offset <= position       seen: drop
    offset == position + 1   next: write, position + 1
    offset >  position + 1   something is missing: fetch from the timeline, which has it

While a client is loading (its start is being read from the timeline, or a gap fetched), entries for it are not
written; if any came by, it fetches once more when it has loaded. Nothing is buffered, since the timeline has it all.

A client may read its start anew, by a subscription of its own. It is given the reply as of when the timeline was read,
so that nothing may be written to it between that and the reply: it would be overtaken by what is older.

What a client has for certain is *proven*: it answered a ping that was written after it, or it came with that position.
So when it is gone without a goodbye, it is known from where on it may have missed what was written to it.

A client's place in the hub is its *reader*. Nearly all users have one client, so that the hub keeps the reader itself
by user, and a tuple only where there are several.

Invariants:
    I1  A client's writes have offsets position + 1, position + 2, ... without gap or repeat.
    I2  A client that missed an entry is loading or reads its start anew, or is behind only by entries that nobody told
        this node about, or its last fetch failed: then the next entry or audit makes it fetch.
    I3  A reader is in the hub from `attach` to `detach`, under its user.
    I4  proven <= asked <= position, once it was given its start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

__all__ = ["InboxHub", "Reader", "Routing"]

_new_tuple = tuple.__new__  # the constructor of a named tuple is a function in Python

C = TypeVar("C")


class Reader(Generic[C]):
    """A client's place in its user's timeline."""

    __slots__ = ("asked", "client", "is_loading", "newest_heard", "position", "proven", "starts", "user", "version")

    def __init__(self, client: C, user: str) -> None:
        self.client = client
        self.user = user
        self.position = 0
        """Offset up to which the client was written to."""
        self.is_loading = True
        self.newest_heard = 0
        """Greatest offset that came by; above `position` after loading, there is more to fetch."""
        self.starts = 0
        """How many starts are being read anew: nothing else may be written meanwhile."""
        self.proven = 0
        """Offset up to which the client has everything, for certain, but for its answer to the last ping."""
        self.asked = 0
        """The position at its last ping."""
        self.version = 0
        """The sync version that it was told last, 0: none."""

    def stands(self, position: int) -> None:
        """The client has everything up to here, as it says itself, or nothing before it is this reader's concern."""
        self.proven = self.asked = position

    def pinged(self, *, has_answered: bool) -> None:
        """The client is pinged, after all that was written to it. `has_answered`: it did so to the ping before."""
        if has_answered:
            self.proven = self.asked
        self.asked = self.position

    def unproven(self, *, has_answered: bool) -> int | None:
        """Return the offset after which the client may have missed something; None: it has all that there was."""
        proven = self.asked if has_answered else self.proven
        return proven if max(self.position, self.newest_heard) > proven else None


class Routing(NamedTuple, Generic[C]):
    """What to do with one entry: write it to these clients, and fetch for those."""

    write: list[C]
    fetch: list[Reader[C]]


class InboxHub(Generic[C]):
    """All inbox subscriptions of one access node."""

    def __init__(self) -> None:
        self._readers: dict[str, Reader[C] | tuple[Reader[C], ...]] = {}

    def attach(self, client: C, user: str) -> Reader[C]:
        """Add a client, loading: call `loaded` when its start was read. Must precede the reading."""
        reader = Reader(client, user)
        here = self._readers.get(user)
        if here is None:
            self._readers[user] = reader
        else:
            self._readers[user] = (*_each(here), reader)
        return reader

    def detach(self, reader: Reader[C]) -> None:
        """Remove a reader. One that is gone already is no error."""
        left = tuple(other for other in self._of(reader.user) if other is not reader)
        if len(left) > 1:
            self._readers[reader.user] = left
        elif left:
            self._readers[reader.user] = left[0]
        else:
            self._readers.pop(reader.user, None)

    def loaded(self, reader: Reader[C], position: int) -> bool:
        """The client has been given everything up to `position`. Returns whether it must fetch once more.

        One that is already beyond the position stays where it is (a client read its own start again).
        """
        reader.position = max(reader.position, position)
        reader.is_loading = reader.newest_heard > reader.position and self.has(reader)
        return reader.is_loading

    def restart(self, reader: Reader[C]) -> None:
        """The client reads its start anew: call `restarted` when it was given that. Must precede the reading."""
        reader.starts += 1

    def restarted(self, reader: Reader[C], position: int | None) -> bool:
        """It has been given everything up to `position`; None: that came to nothing. Returns whether it must fetch."""
        reader.starts -= 1
        if position is not None:
            reader.position = max(reader.position, position)
            reader.is_loading = False
        if reader.starts or reader.is_loading:
            return False
        reader.is_loading = reader.newest_heard > reader.position and self.has(reader)
        return reader.is_loading

    def load_failed(self, reader: Reader[C]) -> None:
        """The fetch failed. The next entry, or the next audit, will find the client behind and fetch again."""
        reader.is_loading = False

    def route(self, user: str, offset: int, *, has_data: bool) -> Routing[C]:
        """Decide on one entry. Without data (only the offset is news) nobody is written to, who is behind fetches."""
        here = self._readers.get(user)
        if isinstance(here, Reader) and offset == here.position + 1 and has_data:
            # The next entry for the only client, as nearly always.
            here.newest_heard = max(here.newest_heard, offset)
            if here.is_loading or here.starts:
                return _new_tuple(Routing, ([], []))
            here.position = offset
            return _new_tuple(Routing, ([here.client], []))
        write: list[C] = []
        fetch: list[Reader[C]] = []
        for reader in self._of(user):
            reader.newest_heard = max(reader.newest_heard, offset)
            if reader.is_loading or reader.starts or offset <= reader.position:
                continue
            if has_data and offset == reader.position + 1:
                reader.position = offset
                write.append(reader.client)
            else:
                reader.is_loading = True
                fetch.append(reader)
        return Routing(write, fetch)

    def ready(self, user: str) -> list[C]:
        """Return the user's clients to whom something beside the timeline may be written now."""
        return [reader.client for reader in self._of(user) if not (reader.is_loading or reader.starts)]

    def tell(self, user: str, version: int) -> list[C]:
        """Return the user's clients to whom the sync version is news, to be told it now."""
        told = [each for each in self._of(user) if each.version != version and not (each.is_loading or each.starts)]
        for reader in told:
            reader.version = version
        return [reader.client for reader in told]

    def has(self, reader: Reader[C]) -> bool:
        """Return whether the reader is still here."""
        return any(other is reader for other in self._of(reader.user))

    def has_user(self, user: str) -> bool:
        """Return whether any client of the user is attached."""
        return user in self._readers

    def users(self) -> tuple[str, ...]:
        """Return the users with an attached client: whose heads an audit compares."""
        return tuple(self._readers)

    def clients(self) -> list[C]:
        """Return everybody who is attached."""
        return [reader.client for user in self._readers for reader in self._of(user)]

    def clients_of(self, user: str) -> list[C]:
        """Return the user's clients."""
        return [reader.client for reader in self._of(user)]

    def audit(self, heads: Mapping[str, int]) -> list[Reader[C]]:
        """Compare with the timelines' heads; return the readers that are behind and must fetch.

        This is what finds a lost *last* entry, which no later entry would ever reveal.
        """
        return [reader for user, head in heads.items() for reader in self.route(user, head, has_data=False).fetch]

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes."""
        readers = [reader for user in self._readers for reader in self._of(user)]
        loading = sum(reader.is_loading or reader.starts > 0 for reader in readers)
        return {"clients": len(readers), "users": len(self._readers), "loading": loading}

    def check_invariants(self) -> None:
        """Assert I3, and I4 as far as it can be seen here."""
        for user, here in self._readers.items():
            assert all(reader.user == user for reader in _each(here)), "I3"
            assert isinstance(here, Reader) or len(here) > 1, "I3"
            assert all(reader.starts >= 0 for reader in _each(here))
            assert all(reader.proven <= reader.asked for reader in _each(here)), "I4"

    def _of(self, user: str) -> Iterator[Reader[C]]:
        here = self._readers.get(user)
        return iter(()) if here is None else _each(here)


def _each(here: Reader[C] | tuple[Reader[C], ...]) -> Iterator[Reader[C]]:
    return iter((here,)) if isinstance(here, Reader) else iter(here)
