"""The registry port: services with TTLs, keys with compare-and-set, blocking reads, sessions and locks.

Shaped after Consul, the distributed adapter's server. Every method may raise `StoreUnavailable`; after that a write's
outcome is unknown and must be read back. Nothing here waits longer than `wait_ms` and the adapter's own deadline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from base.core.registry import Entry, ServiceInstance

__all__ = ["Registry", "View"]

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class View(Generic[T_co]):
    """What a read saw, and the index to pass as `after` so that the next read waits for something newer."""

    index: int
    items: tuple[T_co, ...]
    own_index: int | None = None
    """The registry's own index, where `index` may be lower to tell that it may have started over; None: the same."""

    @property
    def seen(self) -> int:
        """The registry's own index. It falls where the registry lost something, and not where it was merely away."""
        return self.index if self.own_index is None else self.own_index


class Registry(Protocol):
    """See the module. Keys are paths (`status/table`), values at most 512 kB (Consul's bound)."""

    async def get(self, key: str) -> Entry | None:
        """Return the entry, None when there is none."""
        ...

    async def scan(self, prefix: str, *, after: int = -1, wait_ms: int = 0) -> View[Entry]:
        """Return the entries under the prefix, by key.

        While the prefix's index is at most `after`, wait for a change, up to `wait_ms`. The answer may come early and
        unchanged. An index below `after` means that the registry started over: forget what you knew.
        """
        ...

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        """Store the value and return the entry's new index.

        Args:
            key: the path.
            value: the whole new value.
            expect: the index that the entry must have, 0 for no entry, None to overwrite whatever is there.

        Raises:
            CasConflict: the entry's index is not `expect`.
        """
        ...

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        """Remove the key; False when there was none. Raises CasConflict like `put`."""
        ...

    async def register(self, instance: ServiceInstance, *, ttl_ms: int) -> None:
        """Announce a live process. Without a heartbeat for `ttl_ms` it is gone.

        Raises:
            SessionLost: a newer incarnation of the same id is registered; this process must stop.
        """
        ...

    async def heartbeat(self, instance_id: str, incarnation: int, note: bytes = b"") -> None:
        """Renew the registration and replace its note (at most 4 kB).

        Raises:
            SessionLost: the registration lapsed, or belongs to another life; registering again tells which.
        """
        ...

    async def deregister(self, instance_id: str, incarnation: int) -> None:
        """Take this life's registration back. No error when there is none."""
        ...

    async def services(self, service: str, *, after: int = -1, wait_ms: int = 0) -> View[ServiceInstance]:
        """Return the live instances of a service, by id; waits like `scan`."""
        ...

    async def open_session(self, name: str, *, ttl_ms: int) -> str:
        """Start a session and return its id. It must be renewed within `ttl_ms`, counted from the asking."""
        ...

    async def renew_session(self, session: str) -> None:
        """Keep the session alive. Raises SessionLost when it ended."""
        ...

    async def close_session(self, session: str) -> None:
        """End the session and free its locks. No error when it ended before."""
        ...

    async def acquire(self, key: str, session: str, value: bytes) -> int | None:
        """Take the key as a lock; return the fencing token, None when another session holds it.

        Tokens of one key strictly increase. Acquiring again with the same session stores the value and gives a new
        token. Raises SessionLost when the session ended.
        """
        ...

    async def release(self, key: str, session: str) -> bool:
        """Free the lock; False when the session does not hold it."""
        ...

    async def close(self) -> None:
        """Release files and connections. Idempotent."""
        ...
