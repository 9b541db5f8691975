"""What happened when, in equal parts of the time: how much was sent, how long it took, who came and went.

Times are ms since the replay began. A part of the time in which nothing was sent has no latencies: None.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

__all__ = ["Happened", "Mark", "Sample", "Series", "percentile", "series"]

PARTS_MAX = 120
"""Of a chart; more would not be seen."""
PART_MS_MIN = 1_000


class Sample(msgspec.Struct, frozen=True):
    """How many connections each access node had at a time, as it reported."""

    at_ms: int
    connections: dict[str, int]


class Mark(msgspec.Struct, frozen=True):
    """Something that was done to the system, from when to when, and what came of it."""

    name: str
    begin_ms: int
    end_ms: int
    says: str
    is_done: bool = True


class Happened(msgspec.Struct):
    """What was noted while it ran."""

    sends: list[tuple[int, int]] = []
    """When each acknowledgement came, and how many ms after the first try."""
    deliveries: list[tuple[int, int]] = []
    """When each device that was connected was given a message, and how many ms after its first try."""
    presence: list[tuple[int, int]] = []
    """When a device was connected (1), or left (-1)."""
    unknown: int = 0
    """Tries of a call without an answer: each was made again, with the same id."""
    ends: int = 0
    """Connections that the server, or what happened to it, ended for good: the device came again."""

    def add(self, other: Happened) -> None:
        """Add what another process noted, by the same clock."""
        self.sends += other.sends
        self.deliveries += other.deliveries
        self.presence += other.presence
        self.unknown += other.unknown
        self.ends += other.ends


class Series(msgspec.Struct, frozen=True):
    """One value for each part of the time. `at_s`: where each begins."""

    part_ms: int
    at_s: list[float]
    messages_per_s: list[float]
    send_p50_ms: list[int | None]
    send_p99_ms: list[int | None]
    delivery_p50_ms: list[int | None]
    delivery_p99_ms: list[int | None]
    came_per_s: list[float]
    left_per_s: list[float]
    connections: dict[str, list[int]]
    """By access node: the last that it reported in each part, or before."""


def percentile(values: Sequence[int], percent: float) -> int | None:
    """Return the percentile of sorted values by the nearest rank; None of none."""
    if not values:
        return None
    return values[max(0, -int(-len(values) * percent // 100) - 1)]


def series(happened: Happened, samples: Sequence[Sample]) -> Series:
    """Return the series, of parts of a second or longer."""
    last_ms = max((at_ms for at_ms, _ in (*happened.sends, *happened.deliveries, *happened.presence)), default=0)
    part_ms = max(PART_MS_MIN, -(-(last_ms + 1) // PARTS_MAX))
    count = last_ms // part_ms + 1
    sends = _parts(happened.sends, part_ms, count)
    deliveries = _parts(happened.deliveries, part_ms, count)
    changes = _parts(happened.presence, part_ms, count)
    per_s = 1_000 / part_ms
    return Series(
        part_ms=part_ms,
        at_s=[number * part_ms / 1_000 for number in range(count)],
        messages_per_s=[len(part) * per_s for part in sends],
        send_p50_ms=[percentile(part, 50) for part in sends],
        send_p99_ms=[percentile(part, 99) for part in sends],
        delivery_p50_ms=[percentile(part, 50) for part in deliveries],
        delivery_p99_ms=[percentile(part, 99) for part in deliveries],
        came_per_s=[part.count(1) * per_s for part in changes],
        left_per_s=[part.count(-1) * per_s for part in changes],
        connections=_connections(samples, part_ms, count),
    )


def _parts(timed: Iterable[tuple[int, int]], part_ms: int, count: int) -> list[list[int]]:
    parts: list[list[int]] = [[] for _ in range(count)]
    for at_ms, value in timed:
        parts[at_ms // part_ms].append(value)
    for part in parts:
        part.sort()
    return parts


def _connections(samples: Sequence[Sample], part_ms: int, count: int) -> dict[str, list[int]]:
    nodes = sorted({node for sample in samples for node in sample.connections})
    found: dict[str, list[int]] = {node: [] for node in nodes}
    rest, latest = iter(samples), Sample(0, {})
    ahead = next(rest, None)
    for number in range(count):
        while ahead is not None and ahead.at_ms < (number + 1) * part_ms:
            latest, ahead = ahead, next(rest, None)
        for node in nodes:
            found[node].append(latest.connections.get(node, 0))
    return found
