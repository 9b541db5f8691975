"""Who missed what while offline: a bounded feed for whoever sends push notifications to phones.

An item is a message that found its receiver offline, or *suspect*: its session ended without a sign of life after the
message was written to it. A reader keeps a cursor, which says how far it has read, and of which life of the feed.
The feed forgets its oldest items; a reader who was away for longer is told that some are lost, and goes on: what was
said is in the timelines, a notification is a courtesy.

Invariants:
    I1  Items are numbered 1, 2, 3 ... in the order in which they came; the newest `items_max` are kept.
    I2  A reader gets each item that is kept once, in order.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import NamedTuple

from im.core.model import Message

__all__ = ["Missed", "MissedPage", "OfflineFeed"]


class Missed(NamedTuple):
    """A message that the user has not been shown, as far as can be told."""

    user: str
    message: Message


class MissedPage(NamedTuple):
    """Items after a cursor, the cursor after them, and how many between were forgotten."""

    items: list[Missed]
    cursor: str
    lost: int


class OfflineFeed:
    """See the module."""

    def __init__(self, life: str, *, items_max: int) -> None:
        """`life` names this feed and no other: a cursor of another one begins at the oldest item that is kept."""
        assert items_max > 0
        self._life = life
        self._items: deque[Missed] = deque(maxlen=items_max)
        self._last = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def last(self) -> int:
        """The number of the newest item."""
        return self._last

    @property
    def end(self) -> str:
        """The cursor after everything."""
        return self._cursor(self._last)

    def add(self, user: str, message: Message) -> None:
        """The user missed the message."""
        self._last += 1
        self._items.append(Missed(user, message))

    def read(self, cursor: str, *, limit: int) -> MissedPage | None:
        """Return what comes after the cursor, "" for the oldest that is kept; None: that is no cursor."""
        oldest = self._last - len(self._items)
        after = oldest
        lost = 0
        if cursor:
            life, _, number = cursor.rpartition("-")
            if not life or not (number.isascii() and number.isdecimal()) or len(number) > 18:
                return None
            if life == self._life:
                after = min(int(number), self._last)
                lost = max(0, oldest - after)
                after = max(after, oldest)
        items = list(islice(self._items, after - oldest, after - oldest + limit))
        return MissedPage(items, self._cursor(after + len(items)), lost)

    def _cursor(self, number: int) -> str:
        return f"{self._life}-{number}"
