"""What processes say to each other when one uses the registry of another: the port's methods as peer methods.

Entries and instances travel as they are. A view carries the *life* of the server beside its index, see `remote`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from base.core.registry import Entry, ServiceInstance
from base.peer.wire import Method

__all__ = [
    "ACQUIRE",
    "CLOSE_SESSION",
    "DELETE",
    "DEREGISTER",
    "GET",
    "HEARTBEAT",
    "OPEN_SESSION",
    "PUT",
    "REGISTER",
    "RELEASE",
    "RENEW_SESSION",
    "SCAN",
    "SERVICES",
    "WAIT_MS_MAX",
    "Delete",
    "Done",
    "Entries",
    "Found",
    "Get",
    "Instances",
    "Life",
    "Lock",
    "Locked",
    "OpenSession",
    "Put",
    "Read",
    "Register",
    "Session",
    "Written",
]

WAIT_MS_MAX = 30_000

Ttl = Annotated[int, Meta(ge=1, le=86_400_000)]


class Read(msgspec.Struct, array_like=True, frozen=True):
    """Read a prefix, or a service; wait while its index is `after`, seen in the server's life `life`."""

    name: str
    after: int
    wait_ms: Annotated[int, Meta(ge=0, le=WAIT_MS_MAX)]
    life: str


class Entries(msgspec.Struct, array_like=True, frozen=True):
    """A view of keys, and the server's life."""

    life: str
    index: int
    items: list[Entry]


class Instances(msgspec.Struct, array_like=True, frozen=True):
    """A view of a service, and the server's life."""

    life: str
    index: int
    items: list[ServiceInstance]


class Get(msgspec.Struct, array_like=True, frozen=True):
    """Read one key."""

    key: str


class Found(msgspec.Struct, array_like=True, frozen=True):
    """The entry, if there is one."""

    entry: Entry | None


class Put(msgspec.Struct, array_like=True, frozen=True):
    """Store a value."""

    key: str
    value: bytes
    expect: int | None


class Delete(msgspec.Struct, array_like=True, frozen=True):
    """Remove a key."""

    key: str
    expect: int | None


class Register(msgspec.Struct, array_like=True, frozen=True):
    """Announce a live process."""

    instance: ServiceInstance
    ttl_ms: Ttl


class Life(msgspec.Struct, array_like=True, frozen=True):
    """One life of a registered process; `note` is for heartbeats."""

    instance_id: str
    incarnation: int
    note: bytes = b""


class OpenSession(msgspec.Struct, array_like=True, frozen=True):
    """Start a session."""

    name: str
    ttl_ms: Ttl


class Session(msgspec.Struct, array_like=True, frozen=True):
    """A session's id."""

    id: str


class Lock(msgspec.Struct, array_like=True, frozen=True):
    """A key as a lock; `value` is for acquiring."""

    key: str
    session: str
    value: bytes = b""


class Written(msgspec.Struct, array_like=True, frozen=True):
    """The entry's new index."""

    index: int


class Locked(msgspec.Struct, array_like=True, frozen=True):
    """The fencing token, None when another session holds the lock."""

    token: int | None


class Done(msgspec.Struct, array_like=True, frozen=True):
    """Whether anything was done."""

    is_done: bool = True


GET = Method("registry.get", Get, Found)
SCAN = Method("registry.scan", Read, Entries)
PUT = Method("registry.put", Put, Written)
DELETE = Method("registry.delete", Delete, Done)
REGISTER = Method("registry.register", Register, Done)
HEARTBEAT = Method("registry.heartbeat", Life, Done)
DEREGISTER = Method("registry.deregister", Life, Done)
SERVICES = Method("registry.services", Read, Instances)
OPEN_SESSION = Method("registry.open_session", OpenSession, Session)
RENEW_SESSION = Method("registry.renew_session", Session, Done)
CLOSE_SESSION = Method("registry.close_session", Session, Done)
ACQUIRE = Method("registry.acquire", Lock, Locked)
RELEASE = Method("registry.release", Lock, Done)
