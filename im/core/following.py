"""The asking side of `im.follow`: which conversations an access node follows, and what to tell the message services.

Each service is told every change at once, and everything anew in pages: over each new stream, after whatever may have
been lost, and every `RESTATE_MS`, since it forgets who is silent. Pages say what is wanted when they are made, changes
that come between them are told beside them, so that at the end of the pages the service knows what is wanted then.

Changes are told before the first page too. The service takes them though it cannot know yet that they are all, so that
whoever follows and then reads over the same stream is pushed what is stored after the read.

Invariants:
    I1  A service is known from its first stream until it leaves the registry.
    I2  The messages to a service are numbered 1, 2, 3 ... over all its streams, so that none is taken for another's.
    I3  Once everything was said over a stream, what was said since the beginning of that adds up to what is wanted,
        unless a message failed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from base.clock import Instant
from im.api import CONVERSATIONS_MAX, Follow

__all__ = ["RESTATE_MS", "RETRY_MS", "Following"]

RESTATE_MS = 10_000
"""A third of how long a service remembers."""

RETRY_MS = 1_000
"""From a failure until everything is said anew."""

Told = list[tuple[str, Follow]]
"""(service, message) in the order in which they must leave."""


@dataclass(slots=True)
class _Service:
    due: Instant
    """When to begin to say everything anew, or when to go on with it."""
    number: int = 0
    """Of the last message."""
    valid_from: int = 1
    """The first message whose failure matters: those before it are made good by what is due."""
    left: list[str] = field(default_factory=list)
    """What the pages have not named yet; empty unless they have begun."""


class Following:
    """See the module. The messages that its methods return must be sent, or `failed` be told."""

    def __init__(self, *, page_max: int = CONVERSATIONS_MAX) -> None:
        """`page_max`: how many conversations a message names at most."""
        self._page_max = page_max
        self._wanted: dict[str, None] = {}
        self._services: dict[str, _Service] = {}

    def __len__(self) -> int:
        """Return how many conversations are followed."""
        return len(self._wanted)

    @property
    def due(self) -> Instant | None:
        """When `restate` has something to say, None while there is nobody to say it to."""
        return min((service.due for service in self._services.values()), default=None)

    def follow(self, cids: Iterable[str]) -> Told:
        """Follow these as well."""
        added = [cid for cid in dict.fromkeys(cids) if cid not in self._wanted]
        self._wanted.update(dict.fromkeys(added))
        return self._changes(added, is_added=True)

    def unfollow(self, cids: Iterable[str]) -> Told:
        """Follow these no longer."""
        removed = [cid for cid in dict.fromkeys(cids) if cid in self._wanted]
        for cid in removed:
            del self._wanted[cid]
        return self._changes(removed, is_added=False)

    def connected(self, now: Instant, name: str) -> None:
        """There is a new stream to the service."""
        before = self._services.get(name)
        number = before.number if before is not None else 0
        self._services[name] = _Service(due=now, number=number, valid_from=number + 1)

    def keep(self, names: Collection[str]) -> None:
        """Forget the services that are not among these."""
        self._services = {name: service for name, service in self._services.items() if name in names}

    def restate(self, now: Instant) -> Told:
        """Return a page for each service to which one is due. Call it again until it returns nothing."""
        return [(name, self._page(service, now)) for name, service in self._services.items() if service.due <= now]

    def failed(self, now: Instant, name: str, number: int) -> None:
        """The message did not arrive, or the service said that it lacks something: say everything anew, soon."""
        service = self._services.get(name)
        if service is None or number < service.valid_from:
            return
        service.due = Instant(now + RETRY_MS)
        service.valid_from = service.number + 1
        service.left = []

    def _changes(self, cids: list[str], *, is_added: bool) -> Told:
        told: Told = []
        for begin in range(0, len(cids), self._page_max):
            page = cids[begin : begin + self._page_max]
            for name, service in self._services.items():
                service.number += 1
                told.append((name, Follow(service.number, *((page, []) if is_added else ([], page)))))
        return told

    def _page(self, service: _Service, now: Instant) -> Follow:
        service.number += 1
        is_first = not service.left
        if is_first:
            service.left = list(self._wanted)
            service.valid_from = service.number
        page = [cid for cid in service.left[-self._page_max :] if cid in self._wanted]
        del service.left[-self._page_max :]
        is_last = not service.left
        if is_last:
            service.due = Instant(now + RESTATE_MS)
        return Follow(service.number, page, [], is_first, is_last)

    def check_invariants(self) -> None:
        """Assert what can be read off one state (I2, and that pages begin before they go on); tests call it."""
        for service in self._services.values():
            assert service.number >= 0, "I2"
            assert 1 <= service.valid_from <= service.number + 1, "I2"
            assert not service.left or service.valid_from <= service.number, "pages that failed are not gone on with"
