"""What waits for one client that does not read as fast as it is written to: in order, bounded, of states only the last.

A frame that carries a state (somebody's presence) names a slot, and takes the place of the frame that waits there: a
slow client is given the newest state rather than all that it was between. What does not fit into the budget is not
taken: the client has to be closed, and recovers by its positions.

Invariants:
    I1  What is taken comes in the order in which it was put, a replaced frame at the place of the one that it replaced.
    I2  `size` is the sum of the lengths of what waits, and at most `bytes_max`.
    I3  Of the frames that wait at most one names any one slot.
"""

from __future__ import annotations

__all__ = ["Backlog"]


class Backlog:
    """See the module."""

    __slots__ = ("_bytes_max", "_frames", "_slots", "size")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._frames: list[bytes] = []
        self._slots: dict[int, int] = {}
        """Where the frame of a slot waits."""
        self.size = 0

    def __bool__(self) -> bool:
        """Return whether anything waits."""
        return bool(self._frames)

    def put(self, frame: bytes, replaces: int | None = None) -> bool:
        """Let a frame wait, in the place of the one with the same `replaces` if that is still here.

        False, and nothing changed, when that would be over the budget.
        """
        at = None if replaces is None else self._slots.get(replaces)
        size = self.size + len(frame) - (0 if at is None else len(self._frames[at]))
        if size > self._bytes_max:
            return False
        self.size = size
        if at is not None:
            self._frames[at] = frame
            return True
        if replaces is not None:
            self._slots[replaces] = len(self._frames)
        self._frames.append(frame)
        return True

    def take(self) -> list[bytes]:
        """Return all that waits, and forget it."""
        frames = self._frames
        self._frames, self._slots, self.size = [], {}, 0
        return frames

    def check_invariants(self) -> None:
        """Assert I2 and I3."""
        assert self.size == sum(map(len, self._frames)) <= self._bytes_max, "I2"
        assert len(set(self._slots.values())) == len(self._slots), "I3"
        assert all(0 <= at < len(self._frames) for at in self._slots.values()), "I3"
