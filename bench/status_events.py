"""To log a session event costs a status node at most 1 microsecond, told one by one, while nobody reads.

`details` has the same for events that come by the hundred, as after an access node's start, and what it costs to read
them: from the log, and as JSON for a reader.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import cycle, islice

import msgspec

from base.clock import Timestamp
from base.ids import Epoch, Incarnation, NodeId
from bench.result import Options, Result
from status.api import SessionView
from status.core.events import EventLog, Place, Resync
from status.core.records import Kind, Merged, packed
from status.events_api import shown

__all__ = ["run"]

PARTITIONS = 1_365
AT = Timestamp(1_795_459_615_000)
Change = tuple[int, str, bytes, Merged]


def run(options: Options) -> Result:
    """Measure, see the module."""
    changes = _changes(20_000)
    rounds = 3 if options.quick else 30
    log = _log()
    one_by_one = min(_log_all(log, changes, 1) for _ in range(rounds))
    by_the_hundred = min(_log_all(log, changes, 100) for _ in range(rounds))
    began = time.perf_counter()
    page = log.read(Place(log.feed, log.head.after - 1_000), 1_000)
    read = time.perf_counter() - began
    began = time.perf_counter()
    msgspec.json.encode([shown(item) for item in page.items if not isinstance(item, Resync)])
    told = time.perf_counter() - began
    return Result(
        name="status_events",
        value=round(one_by_one, 3),
        unit="us an event, one by one, best round",
        goal=1.0,
        better="lower",
        details={
            "by_the_hundred_us": round(by_the_hundred, 3),
            "read_us": round(read * 1_000, 3),
            "as_json_us": round(told * 1_000, 3),
            "log": log.statistics(),
        },
    )


def _log() -> EventLog:
    log = EventLog(NodeId("status-1"), Incarnation(1))
    for partition in range(PARTITIONS):
        log.owned(partition, Epoch(9))
    return log


def _changes(count: int) -> list[Change]:
    kinds = islice(cycle([Merged.OPENED, Merged.CHANGED, Merged.CLOSED]), count)
    return [(number * 7 % PARTITIONS, f"user-{number}", _entry(number), merged) for number, merged in enumerate(kinds)]


def _entry(number: int) -> bytes:
    view = SessionView(f"session-{number}", "phone", "ios", "access-1", "online", AT, AT)
    return bytes(2) + packed(number, number, Kind.OPEN, msgspec.msgpack.encode(view))


def _log_all(log: EventLog, changes: Sequence[Change], together: int) -> float:
    """Return microseconds an event."""
    batches = [changes[start : start + together] for start in range(0, len(changes), together)]
    began = time.perf_counter()
    for batch in batches:
        log.extend(batch, AT)
    return (time.perf_counter() - began) * 1e6 / len(changes)
