"""What the parts of an access node need of each other."""

from __future__ import annotations

from typing import Protocol

from access.core.protocol import Close

__all__ = ["Sink"]


class Sink(Protocol):
    """Where frames for sessions go. Unknown sessions are ignored: they are gone."""

    def write(self, session: str, frame: bytes, *, replaces: int | None = None) -> None:
        """Queue a frame; a client that is too slow is closed.

        It takes the place of a frame with the same `replaces` that still waits: of states only the last one counts.
        """
        ...

    def close_all(self, close: Close) -> None:
        """Close every session."""
        ...
