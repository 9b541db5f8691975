"""What the users of a crowd note, all by one clock: what they saw, when what happened, and how far they are."""

from __future__ import annotations

import asyncio

from base.clock import Clock, Instant
from roadstead.replay.core.figures import Happened
from roadstead.replay.core.plan import Message
from roadstead.replay.core.proof import Entry, Place, Seen

__all__ = ["Notebook"]


class Notebook:
    """See the module. Times are ms since the replay began."""

    def __init__(self, clock: Clock, *, left: int) -> None:
        """`left`: how many messages are to be acknowledged."""
        self.seen = Seen()
        self.happened = Happened()
        self.left = left
        self.progress_ms = 0
        """When the last acknowledgement came."""
        self._clock = clock
        self._began_ms = clock.monotonic()
        self._begun: dict[str, int] = {}
        self._read: set[int] = set()

    def begin(self, began_ms: Instant) -> None:
        """Count time from an instant of the clock on."""
        self._began_ms = began_ms

    def now_ms(self) -> int:
        """Return the time."""
        return self._clock.monotonic() - self._began_ms

    async def until(self, at_ms: int) -> None:
        """Return when it is that time, at once if it was."""
        left_ms = at_ms - self.now_ms()
        if left_ms > 0:
            await asyncio.sleep(left_ms / 1_000)

    def begun(self, message: Message) -> int:
        """Note that a message is about to be sent, and return when."""
        now_ms = self._begun[message.key] = self.now_ms()
        return now_ms

    def acknowledged(self, message: Message, place: Place, began_ms: int) -> None:
        """Note that a message is stored."""
        self.seen.acknowledged[message.key] = place
        self.progress_ms = self.now_ms()
        self.happened.sends.append((self.progress_ms, self.progress_ms - began_ms))
        self.left -= 1

    def given(self, entry: Entry, *, to: str, since_ms: int | None) -> None:
        """Note that a device was given a message: how late, if it was connected before that was begun."""
        began_ms = self._begun.get(entry.key)
        if began_ms is not None and since_ms is not None and since_ms <= began_ms and entry.sender != to:
            now_ms = self.now_ms()
            self.happened.deliveries.append((now_ms, now_ms - began_ms))

    def is_to_read(self, cid: int) -> bool:
        """Return whether nobody has read the history of a conversation: the first who asks does."""
        is_new = cid not in self._read
        self._read.add(cid)
        return is_new
