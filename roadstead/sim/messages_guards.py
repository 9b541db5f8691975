"""What keeps the promises of the message services in a simulated history, and what they tell access nodes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import msgspec

from roadstead.client.rows import Publication

__all__ = ["Guards", "Presence", "Pushed", "Shape"]


@dataclass(frozen=True, slots=True)
class Guards:
    """What keeps the promises. All hold, but for the sensitivity test, which removes one at a time."""

    seq_in_transaction: bool = True
    """A seq is given by the transaction that stores its entry, and not before it."""
    commit_first: bool = True
    """Callers are answered when it is durable."""
    dedupe: bool = True
    """Keys are known for ever, in the next life too."""
    dequeue_with_write: bool = True
    """A draft leaves the queue in the transaction that makes it a message."""
    failure_notes: bool = True
    """Who queued what is refused is told so."""
    fan_out_resumed: bool = True
    """A new life goes on with the fan-outs of the one before."""
    fan_out_place: bool = True
    """It goes on where they were."""
    boundaries: bool = True
    """Nobody reads what was before it came or after it left."""
    overlays: bool = True
    """A page shows edits and recalls."""
    read_forward: bool = True
    """A read pointer never goes back."""
    lanes_by_sender: bool = True
    """Commands of one sender keep their order."""
    cursor_closed: bool = True
    """A position is passed on when everything up to it was passed on."""
    audit: bool = True
    """Positions are compared with the heads of timelines."""
    sync_versions: bool = True
    """Clients compare versions, for what has no position."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the name of each guard."""
        return tuple(guard.name for guard in fields(cls))

    def without(self, *names: str) -> Guards:
        """Return the guards with these removed."""
        return replace(self, **dict.fromkeys(names, False))


@dataclass(frozen=True, slots=True)
class Shape:
    """What the services are like in one history."""

    group_max: int
    """Commands in a transaction."""
    commit_ms_max: int
    """The longest that one takes."""
    keep: int
    """Entries that are kept of a timeline; 0: all."""


class Presence(msgspec.Struct, frozen=True):
    """An access node says whose sessions it has."""

    users: tuple[str, ...]

    def __str__(self) -> str:
        return f"presence {len(self.users)}"


class Pushed(msgspec.Struct, frozen=True):
    """Entries of timelines (user, offset, publication); the offset is 0 for what has no place there."""

    entries: tuple[tuple[str, int, Publication], ...]

    def __str__(self) -> str:
        return f"pushed {len(self.entries)}"
