"""Runs all invariants over one history."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator

from roadstead.history.conversations import check_i3, check_i4, check_i5, check_i6, check_i7, check_i11, check_i12
from roadstead.history.devices import check_i1, check_i2, check_i8, check_i9, check_i10, check_i13
from roadstead.history.events import Event
from roadstead.history.index import History
from roadstead.history.report import Finding, Report
from roadstead.history.views import Views

__all__ = ["INVARIANTS", "check"]

INVARIANTS: dict[str, Callable[[Views], Finding]] = {
    "I1": check_i1,
    "I2": check_i2,
    "I3": check_i3,
    "I4": check_i4,
    "I5": check_i5,
    "I6": check_i6,
    "I7": check_i7,
    "I8": check_i8,
    "I9": check_i9,
    "I10": check_i10,
    "I11": check_i11,
    "I12": check_i12,
    "I13": check_i13,
}


def check(events: Iterable[Event], *, shards: int = 1) -> Report:
    """Check a history, as `load` gives it, against all invariants. O(n log n).

    `shards` says in how many the system's messages are: a timeline is in order for each of them (I6).

    100,000 messages to 20 devices, 2,000,000 deliveries, took 19 s of one core, reading the file included, and 1.5 GB.
    """
    was_enabled = gc.isenabled()
    gc.disable()  # millions of values without a cycle: looking for cycles would cost a quarter of the time
    try:
        history = History(events)
        views = Views(history, shards=shards)
        findings = tuple(invariant(views) for invariant in INVARIANTS.values())
        return Report(dict(history.counts), findings, tuple(_blind(history)))
    finally:
        if was_enabled:
            gc.enable()


def _blind(history: History) -> Iterator[str]:
    """Say what was not written down, so that something could not be judged."""
    yield from history.unmatched
    cids = {claim.cid for claim in history.claims} | {cid for cid, _, _ in history.placed}
    for cid in sorted(cids - history.logs.keys()):
        yield f"conversation {cid} has no final log"
    for cid in sorted(history.logs.keys() - history.members.keys()):
        yield f"conversation {cid} has no members"
    if history.quiet is None:
        yield "it never got quiet: nobody knows what devices should have seen"
    elif not history.quiet_devices:
        yield "no device was there when it got quiet"
