"""A rollout as the registry keeps it: document, state, and who changed what, in one value.

One value, so that a change and its line in the history are written by the same compare-and-set: there is no change
without its author. The newest changes are kept, with every document that was in force; the oldest go first when the
value would become too large for the registry.

Invariants:
    I1  Each change raises `revision` by one and adds one line to the history.
    I2  A record encodes to at most `BYTES_MAX`.
"""

from __future__ import annotations

import mmh3
import msgspec

from scheduler.core.rollout_machine import RolloutState

__all__ = ["Change", "RolloutRecord", "changed", "created", "move_id"]

BYTES_MAX = 400_000
HISTORY_MAX = 200


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the history. `at` is wall time in ms; `document` is there when it was changed."""

    at: int
    who: str
    action: str
    detail: str = ""
    document: str = ""


class RolloutRecord(msgspec.Struct, frozen=True):
    """See the module. `document_revision` is the revision that brought the present document."""

    name: str
    document: str
    revision: int
    document_revision: int
    created_at: int
    state: RolloutState
    history: tuple[Change, ...]


def created(
    name: str, document: str, state: RolloutState, *, who: str, now: int, before: RolloutRecord | None = None
) -> RolloutRecord:
    """Return the record of a new rollout, or of a new document for the one that was there `before`."""
    revision = before.revision + 1 if before is not None else 1
    change = Change(now, who, "created" if before is None else "revised", document=document)
    history = (*before.history, change) if before is not None else (change,)
    created_at = before.created_at if before is not None else now
    return _fitting(RolloutRecord(name, document, revision, revision, created_at, state, history))


def changed(
    record: RolloutRecord, state: RolloutState, *, who: str, action: str, now: int, detail: str = ""
) -> RolloutRecord:
    """Return the record with another state."""
    change = Change(now, who, action, detail)
    return _fitting(
        msgspec.structs.replace(record, revision=record.revision + 1, state=state, history=(*record.history, change))
    )


def move_id(record: RolloutRecord) -> str:
    """Return the id of the request to move live connections that the record's state wants, at most 16 characters.

    Another one for each state that wants it, so that what was carried out or broken off is not taken for this one.
    """
    state = record.state
    key = f"{record.name} {record.document_revision} {state.phase} {state.step} {state.since}"
    return f"r{mmh3.hash(key, signed=False):08x}"


def _fitting(record: RolloutRecord) -> RolloutRecord:
    record = msgspec.structs.replace(record, history=record.history[-HISTORY_MAX:])
    while len(msgspec.json.encode(record)) > BYTES_MAX and len(record.history) > 1:
        record = msgspec.structs.replace(record, history=record.history[1:])
    return record
