"""What the rest of the system needs of a status backend. Adapters: `client` (our own cluster) and `redis`.

Both sides keep working when the backend is away: sessions are reported as soon as it is back, and whoever cannot be
asked about is *unknown*, which never means offline. Objects of either port work while their `run` runs.

One contract suite (`tests/contract/test_status_backend.py`) runs on every adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from status.api import Closed, Opened, UserStatus

__all__ = ["SessionReports", "StatusLookups"]


class SessionReports(Protocol):
    """An access node's reports of its sessions. The access node holds the truth; the backend shows it."""

    async def run(self) -> None:
        """Keep reporting until cancelled."""
        ...

    async def wait_ready(self) -> None:
        """Return once the backend was reached."""
        ...

    async def open(self, opened: Opened, *, deadline_ms: int) -> bool:
        """Report a session; True once whoever looks the user up finds it, False if that took longer than the deadline.

        A session that was not confirmed in time is reported all the same.
        """
        ...

    def report(self, opened: Opened) -> None:
        """Report a session, or a change of it, without waiting; only after `wait_ready`."""
        ...

    def close(self, closed: Closed) -> None:
        """Report that a session ended. Closing a connection never hides a later one of the same session."""
        ...

    def statistics(self) -> dict[str, dict[str, int]]:
        """Return a snapshot of sizes, by part."""
        ...


class StatusLookups(Protocol):
    """Who is online."""

    async def run(self) -> None:
        """Keep what lookups need until cancelled."""
        ...

    async def wait_ready(self) -> None:
        """Return once the backend was reached."""
        ...

    async def lookup(self, users: Sequence[str]) -> dict[str, UserStatus]:
        """Return the status of each user, `unknown` for whoever could not be asked about in time. Never raises."""
        ...
