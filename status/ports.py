"""What the rest of the system needs of a status backend. Adapters: `client` (our own cluster) and `redis`.

Both sides keep working when the backend is away: sessions are reported as soon as it is back, and whoever cannot be
asked about is *unknown*, which never means offline. Objects of either port work while their `run` runs.

One contract suite (`tests/contract/test_status_backend.py`) runs on every adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from status.api import Closed, Evict, Opened, UserStatus
from status.core.records import Digest

__all__ = ["Contacts", "NoContacts", "SessionReports", "StatusLookups"]


class Contacts(Protocol):
    """Who has whom among the contacts: asked on the owner of the user for the audience "contacts".

    Answers come from memory: this is asked for each viewer, between other things. What changes here shows when the
    user's sessions change the next time, or when a viewer looks anew.
    """

    def is_contact(self, user: str, viewer: str) -> bool:
        """Return whether the user has the viewer among the contacts."""
        ...


class NoContacts:
    """Nobody is anybody's contact: what holds until a service of relations tells otherwise."""

    def is_contact(self, user: str, viewer: str) -> bool:  # noqa: ARG002 - see `Contacts`
        """See `Contacts`."""
        return False


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

        A session that was not confirmed in time is reported all the same. Raises Overloaded as `report` does.
        """
        ...

    def report(self, opened: Opened) -> None:
        """Report a session, or a change of it, without waiting; only after `wait_ready`.

        Raises Overloaded, and nothing is reported, if there is no room now for the users whom its audience lists.
        """
        ...

    def close(self, closed: Closed) -> None:
        """Report that a session ended. Closing a connection never hides a later one of the same session."""
        ...

    def digest(self) -> Digest | None:
        """Return the digest of all open sessions, to be compared with what the backend has; None if it has none."""
        ...

    def on_evict(self, listener: Callable[[Evict], None]) -> None:
        """Call the listener for each session that the device policy wants closed, until it is. Before `run`."""
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

    async def lookup(self, users: Sequence[str], *, viewer: str | None = None) -> Mapping[str, UserStatus]:
        """Return the status of each user, `unknown` for whoever could not be asked about in time. Never raises.

        With a viewer, as that user may see it, without sessions. None is a trusted service, which sees all.
        """
        ...
