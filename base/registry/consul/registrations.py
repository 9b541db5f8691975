"""The registrations of this process in Consul: two keys each, held by a session that lives as long as its heartbeats.

One key says whose the name is, and fences older lives of it; the other has the instance with its newest note, where
those who follow the service see it change at once. Both go with the session. The Consul service beside them is for
others than us: what it says of an instance is written once, and its check's state late.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import msgspec

from base.core.registry import ServiceInstance
from base.errors import SessionLost, StoreUnavailable
from base.registry.consul.client import ConsulClient, Refused, bounded
from base.registry.consul.codec import Keys, Name, decode_name, encode, meta_of
from base.registry.consul.lives import Life, Lives

__all__ = ["Registrations"]

TRIES = 5
"""Of taking a name that others take at the same time."""


@dataclass(slots=True)
class _Registration:
    instance: ServiceInstance
    """As it was written last."""
    life: Life
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Keeps heartbeats in their order."""


class Registrations:
    """See the module."""

    def __init__(self, client: ConsulClient, lives: Lives, keys: Keys) -> None:
        self._client = client
        self._lives = lives
        self._keys = keys
        self._registered: dict[str, _Registration] = {}

    @bounded
    async def register(self, instance: ServiceInstance, ttl_ms: int) -> None:
        """Register, in place of every older life. Raises SessionLost when a newer one is registered."""
        address, port, meta = meta_of(instance)
        service = self._keys.consul_name(instance.service)
        await self._holder(instance)
        life = await self._lives.begin(
            service,
            self._keys.consul_name(instance.id),
            ttl_ms=ttl_ms,
            behavior="delete",
            fields={"address": address, "port": port, "meta": meta},
        )
        try:
            await self._take_name(instance, life)
        except BaseException:
            await self._lives.abandon(life)
            raise
        self._registered[instance.id] = _Registration(instance, life)

    @bounded
    async def heartbeat(self, instance_id: str, incarnation: int, note: bytes) -> None:
        """Renew, and write the note if it changed. Raises SessionLost when the registration lapsed."""
        mine = self._registered.get(instance_id)
        if mine is None or mine.instance.incarnation != incarnation:
            raise SessionLost(f"the registration of {instance_id} lapsed", instance=instance_id)
        async with mine.lock:
            try:
                await self._lives.renew(mine.life)
                if note != mine.instance.note:
                    await self._write_note(mine, note)
            except SessionLost as error:
                if self._registered.get(instance_id) is mine:
                    del self._registered[instance_id]
                raise SessionLost(f"the registration of {instance_id} lapsed", instance=instance_id) from error

    @bounded
    async def deregister(self, instance_id: str, incarnation: int) -> None:
        """Take a registration back, if it is there and of this life."""
        mine = self._registered.get(instance_id)
        if mine is not None and mine.instance.incarnation == incarnation:
            del self._registered[instance_id]
            await self._lives.end(mine.life)
            return
        session, name = await self._name(instance_id)
        if session is not None and name is not None and name.incarnation == incarnation:
            await self._client.end_session(session)

    async def _name(self, instance_id: str) -> tuple[str | None, Name | None]:
        """Return which session holds a name, and for whom."""
        item = await self._client.get(self._keys.name(instance_id))
        return (item.get("Session"), decode_name(item["Value"])) if item is not None else (None, None)

    async def _holder(self, instance: ServiceInstance) -> tuple[str | None, Name | None]:
        """Return the same for the name of an instance. Raises SessionLost when a newer life has it."""
        session, name = await self._name(instance.id)
        if session is not None and name is not None and name.incarnation > instance.incarnation:
            raise SessionLost(f"a newer life of {instance.id} is registered", instance=instance.id)
        return session, name

    async def _take_name(self, instance: ServiceInstance, life: Life) -> None:
        """Register under the name. Who had it before has nothing any more, and learns that with the next heartbeat."""
        name = Name(instance.service, instance.incarnation, life.check)
        reasons = ""
        for _ in range(TRIES):
            session, before = await self._holder(instance)
            if session is not None:
                await self._client.end_session(session)
            if before is not None:
                await self._lives.forget(before.check)
            done = await self._client.transact(
                self._client.lock(self._keys.name(instance.id), life.session, encode(name)),
                self._client.lock(self._keys.instance(instance.service, instance.id), life.session, encode(instance)),
            )
            if not isinstance(done, Refused):
                return
            reasons = done.reasons
        raise StoreUnavailable(f"{instance.id} is not registered: {reasons}")

    async def _write_note(self, mine: _Registration, note: bytes) -> None:
        instance = msgspec.structs.replace(mine.instance, note=note)
        key = self._keys.instance(instance.service, instance.id)
        done = await self._client.transact(self._client.lock(key, mine.life.session, encode(instance)))
        if isinstance(done, Refused):
            raise SessionLost("the instance is not held any more")
        mine.instance = instance
