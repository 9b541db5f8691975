"""One process's registry, used by others: the same port, over a peer stream.

`RegistryServer` answers for a local registry on the peer streams of its node, `RemoteRegistry` asks there. Values,
errors and their fields arrive as the local registry gave them. Whatever fails in between (no stream, one that broke, no
reply in time) is `StoreUnavailable`: a write may have happened.

A blocking read waits at the server, and its deadline is longer than its wait. One process may have `waiting_max` of
them there, so that its writes always find room within the stream's limits; further reads look every `poll_ms` instead.

A registry that started over may have come to the very index that a reader knows from before, so indexes of views carry
the *life* of the server that gave them: by another life's index nobody waits, and what is read is told as older.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

from base.core.registry import Entry, ServiceInstance
from base.errors import LimitExceeded, RoadsteadError, StoreError, StoreUnavailable
from base.ids import new_epoch
from base.peer.client import PeerClient
from base.peer.link import StreamLimits
from base.peer.server import PeerServer
from base.peer.wire import Method
from base.registry.memory import VALUE_BYTES_MAX
from base.registry.ports import Registry, View
from base.registry.wire import (
    ACQUIRE,
    CLOSE_SESSION,
    DELETE,
    DEREGISTER,
    GET,
    HEARTBEAT,
    OPEN_SESSION,
    PUT,
    REGISTER,
    RELEASE,
    RENEW_SESSION,
    SCAN,
    SERVICES,
    WAIT_MS_MAX,
    Delete,
    Done,
    Entries,
    Found,
    Get,
    Instances,
    Life,
    Lock,
    Locked,
    OpenSession,
    Put,
    Read,
    Register,
    Session,
    Written,
)
from base.trust import Trust

__all__ = ["CALL_DEADLINE_MS", "RegistryServer", "RemoteRegistry"]

CALL_DEADLINE_MS = 2_000
WAITING_MAX = 512
POLL_MS = 1_000
assert StreamLimits().inflight_max >= WAITING_MAX * 2

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class _Index(int):
    """A view's index, with the life of the server that gave it."""

    life: str

    @classmethod
    def of(cls, index: int, life: str) -> _Index:
        made = cls(index)
        made.life = life
        return made


class RemoteRegistry:
    """Implements `Registry`. `run` keeps the stream; while there is none, calls wait for it up to their deadline."""

    def __init__(
        self,
        url: str,
        *,
        node: str,
        trust: Trust,
        call_deadline_ms: int = CALL_DEADLINE_MS,
        waiting_max: int = WAITING_MAX,
        poll_ms: int = POLL_MS,
    ) -> None:
        """Name both ends.

        Args:
            url: of a node that serves its registry.
            node: who asks.
            trust: what this node shows to that one, and believes of it.
            call_deadline_ms: how long an answer may take, on top of what a read waits for by itself (ms).
            waiting_max: how many reads may wait at the server at once, at most half of what a stream allows.
            poll_ms: how often the reads beyond that look (ms).
        """
        self._call_deadline_ms = call_deadline_ms
        self._waiting_max = waiting_max
        self._poll_ms = poll_ms
        self._client = PeerClient(url, peer="registry", node=node, trust=trust)
        self._waiting = 0

    async def run(self) -> None:
        """Connect and reconnect until cancelled."""
        await self._client.run()

    async def get(self, key: str) -> Entry | None:
        """See the port."""
        return (await self._call(GET, Get(key))).entry

    async def scan(self, prefix: str, *, after: int = -1, wait_ms: int = 0) -> View[Entry]:
        """See the port."""
        seen = await self._read(SCAN, prefix, after, wait_ms)
        return View(_told_as(seen.index, seen.life, after), tuple(seen.items), seen.index)

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        """See the port."""
        if len(value) > VALUE_BYTES_MAX:  # here too, since much more does not fit into one message
            raise LimitExceeded(f"the value of {key} is over {VALUE_BYTES_MAX} bytes", what="value_bytes")
        return (await self._call(PUT, Put(key, value, expect))).index

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        """See the port."""
        return (await self._call(DELETE, Delete(key, expect))).is_done

    async def register(self, instance: ServiceInstance, *, ttl_ms: int) -> None:
        """See the port."""
        await self._call(REGISTER, Register(instance, ttl_ms))

    async def heartbeat(self, instance_id: str, incarnation: int, note: bytes = b"") -> None:
        """See the port."""
        await self._call(HEARTBEAT, Life(instance_id, incarnation, note))

    async def deregister(self, instance_id: str, incarnation: int) -> None:
        """See the port."""
        await self._call(DEREGISTER, Life(instance_id, incarnation))

    async def services(self, service: str, *, after: int = -1, wait_ms: int = 0) -> View[ServiceInstance]:
        """See the port."""
        seen = await self._read(SERVICES, service, after, wait_ms)
        return View(_told_as(seen.index, seen.life, after), tuple(seen.items), seen.index)

    async def open_session(self, name: str, *, ttl_ms: int) -> str:
        """See the port."""
        return (await self._call(OPEN_SESSION, OpenSession(name, ttl_ms))).id

    async def renew_session(self, session: str) -> None:
        """See the port."""
        await self._call(RENEW_SESSION, Session(session))

    async def close_session(self, session: str) -> None:
        """See the port."""
        await self._call(CLOSE_SESSION, Session(session))

    async def acquire(self, key: str, session: str, value: bytes) -> int | None:
        """See the port."""
        return (await self._call(ACQUIRE, Lock(key, session, value))).token

    async def release(self, key: str, session: str) -> bool:
        """See the port."""
        return (await self._call(RELEASE, Lock(key, session))).is_done

    async def close(self) -> None:
        """See the port; the stream ends with `run`."""

    async def _call(self, method: Method[Req, Rep], request: Req, *, wait_ms: int = 0) -> Rep:
        try:
            return await self._client.call(method, request, deadline_ms=wait_ms + self._call_deadline_ms)
        except (StoreError, LimitExceeded):
            raise  # the registry's own word
        except RoadsteadError as error:
            raise StoreUnavailable(f"{method.name}: {error}") from error

    async def _read(self, method: Method[Read, Rep], name: str, after: int, wait_ms: int) -> Rep:
        life = after.life if isinstance(after, _Index) else ""
        if wait_ms > 0 and self._waiting >= self._waiting_max:
            await asyncio.sleep(min(wait_ms, self._poll_ms) / 1000)
            wait_ms = 0
        read = Read(name, int(after), min(wait_ms, WAIT_MS_MAX), life)
        if read.wait_ms == 0:
            return await self._call(method, read)
        return await self._wait(method, read)

    async def _wait(self, method: Method[Read, Rep], read: Read) -> Rep:
        self._waiting += 1
        is_waiting = False
        try:
            # First, so that the time this takes is not missing from the deadline that the server gets to know.
            try:
                await self._client.wait_connected(deadline_ms=self._call_deadline_ms)
            except RoadsteadError as error:
                raise StoreUnavailable(f"{method.name}: {error}") from error
            is_waiting = True
            return await self._call(method, read, wait_ms=read.wait_ms)
        except asyncio.CancelledError:
            if is_waiting:  # the server does not learn of it, and waits on
                self._waiting += 1
                asyncio.get_running_loop().call_later(read.wait_ms / 1000, self._abandoned_is_over)
            raise
        finally:
            self._waiting -= 1

    def _abandoned_is_over(self) -> None:
        self._waiting -= 1


def _told_as(index: int, life: str, after: int) -> _Index:
    """Return the index to tell a reader: below its `after` if that is from another life of the server."""
    if isinstance(after, _Index) and after.life != life:
        index = min(index, after - 1)
    return _Index.of(index, life)


class RegistryServer:
    """Answers for a registry of this process. To other processes, each new one of these is a new life of it."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._life = new_epoch()

    def serve(self, peers: PeerServer) -> None:
        """Answer on the streams of a node."""
        peers.serve(GET, self._get)
        peers.serve(SCAN, self._scan)
        peers.serve(PUT, self._put)
        peers.serve(DELETE, self._delete)
        peers.serve(REGISTER, self._register)
        peers.serve(HEARTBEAT, self._heartbeat)
        peers.serve(DEREGISTER, self._deregister)
        peers.serve(SERVICES, self._services)
        peers.serve(OPEN_SESSION, self._open_session)
        peers.serve(RENEW_SESSION, self._renew_session)
        peers.serve(CLOSE_SESSION, self._close_session)
        peers.serve(ACQUIRE, self._acquire)
        peers.serve(RELEASE, self._release)

    async def _get(self, ask: Get, _peer: str) -> Found:
        return Found(await self._registry.get(ask.key))

    async def _scan(self, read: Read, _peer: str) -> Entries:
        view = await self._registry.scan(read.name, after=self._after(read), wait_ms=read.wait_ms)
        return Entries(self._life, view.index, list(view.items))

    async def _services(self, read: Read, _peer: str) -> Instances:
        view = await self._registry.services(read.name, after=self._after(read), wait_ms=read.wait_ms)
        return Instances(self._life, view.index, list(view.items))

    def _after(self, read: Read) -> int:
        return read.after if read.life in {"", self._life} else -1

    async def _put(self, put: Put, _peer: str) -> Written:
        return Written(await self._registry.put(put.key, put.value, expect=put.expect))

    async def _delete(self, delete: Delete, _peer: str) -> Done:
        return Done(await self._registry.delete(delete.key, expect=delete.expect))

    async def _register(self, register: Register, _peer: str) -> Done:
        await self._registry.register(register.instance, ttl_ms=register.ttl_ms)
        return Done()

    async def _heartbeat(self, life: Life, _peer: str) -> Done:
        await self._registry.heartbeat(life.instance_id, life.incarnation, life.note)
        return Done()

    async def _deregister(self, life: Life, _peer: str) -> Done:
        await self._registry.deregister(life.instance_id, life.incarnation)
        return Done()

    async def _open_session(self, ask: OpenSession, _peer: str) -> Session:
        return Session(await self._registry.open_session(ask.name, ttl_ms=ask.ttl_ms))

    async def _renew_session(self, session: Session, _peer: str) -> Done:
        await self._registry.renew_session(session.id)
        return Done()

    async def _close_session(self, session: Session, _peer: str) -> Done:
        await self._registry.close_session(session.id)
        return Done()

    async def _acquire(self, lock: Lock, _peer: str) -> Locked:
        return Locked(await self._registry.acquire(lock.key, lock.session, lock.value))

    async def _release(self, lock: Lock, _peer: str) -> Done:
        return Done(await self._registry.release(lock.key, lock.session))
