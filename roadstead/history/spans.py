"""What certainly came before what, and whether positions agree with it.

Nobody knows when a call took effect: somewhere in its *span*, between the event that began it and the one that ended
it. One span is before another if it ended before the other began. Two events are in order if they are of one process,
or if their times differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Span", "Stamp", "inversions"]

T = TypeVar("T")


class Stamp(NamedTuple):
    """Where an event is: `order` is its place in the merged history, which goes by `at`."""

    at: int
    process: str
    order: int

    def is_before(self, other: Stamp) -> bool:
        """Return whether this event certainly came first."""
        return self.at < other.at or (self.process == other.process and self.order < other.order)


class Span(NamedTuple, Generic[T]):
    """`what` took effect between `begin` and `end`, None: perhaps never ended; its effect is at `position`."""

    begin: Stamp
    end: Stamp | None
    position: int
    what: T


def inversions(spans: Iterable[Span[T]]) -> Iterator[tuple[Span[T], Span[T]]]:
    """Yield (earlier, later): the one is certainly before the other, but its position is above the other's.

    For each `later` one witness is given, the one with the highest position. O(n log n).
    """
    marks: list[tuple[int, int, int, Span[T]]] = []
    for span in spans:
        marks.append((span.begin.at, span.begin.order, 0, span))
        if span.end is not None:
            marks.append((span.end.at, span.end.order, 1, span))
    marks.sort(key=lambda mark: mark[:3])
    now = -1
    highest: Span[T] | None = None  # of those that ended at an earlier time
    highest_now: dict[str, Span[T]] = {}  # of those that ended at this very time, by process
    for _, _, is_end, span in marks:
        stamp = span.end if is_end and span.end is not None else span.begin
        if stamp.at != now:
            for ended in highest_now.values():
                highest = _higher(highest, ended)
            highest_now.clear()
            now = stamp.at
        if is_end:
            highest_now[stamp.process] = _higher(highest_now.get(stamp.process), span)
            continue
        earlier = highest
        if stamp.process in highest_now:
            earlier = _higher(earlier, highest_now[stamp.process])
        if earlier is not None and earlier.position > span.position:
            yield earlier, span


def _higher(one: Span[T] | None, other: Span[T]) -> Span[T]:
    return other if one is None or other.position > one.position else one
