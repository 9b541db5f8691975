"""What the adapter asks of a Consul agent, in typed calls with deadlines; whatever fails outside is StoreUnavailable.

Reads that somebody decides by are `consistent`: the leader asks a majority whether it still leads. Blocking reads are
of the default mode, which a leader answers at once from what it believes; they are only ever waited on for *newer*
indexes, so a leader that was replaced without knowing can delay what they tell, by its lease at most, and not undo it.
`stale` reads, which followers answer, could be older than what was told before, and would look like a Consul that
started over.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, ParamSpec, TypedDict, TypeVar

import aiohttp
import msgspec
from consul.base import Consul, Response  # type: ignore[import-untyped]
from consul.callback import CB  # type: ignore[import-untyped]
from consul.exceptions import (  # type: ignore[import-untyped]
    ACLDisabled,
    ACLPermissionDenied,
    ClientError,
    ConsulException,
    NotFound,
)

from base.clock import Clock
from base.errors import StoreUnavailable
from base.ids import entropy
from base.registry.config import RegistryConfig
from base.registry.consul.metrics import ConsulMetrics
from base.registry.consul.transport import Secrets, Transport

__all__ = ["CALL_DEADLINE_MS", "IN_TRANSACTION_MAX", "ConsulClient", "Item", "KeyWrite", "Refused", "Seen", "bounded"]

CALL_DEADLINE_MS = 2_000
OPERATION_DEADLINE_MS = 2 * CALL_DEADLINE_MS
"""Of what takes several calls."""
CALLS_MAX = 32
"""Connections for what does not wait."""
MARK_BITS = 53
"""What every reader of JSON keeps whole."""
JITTER = 16
"""A blocking read may take longer than its wait by this part of it."""

IN_TRANSACTION_MAX = 380 * 1024
"""A transaction is 512 kB at most, in base64. Longer values are written by themselves."""

P = ParamSpec("P")
T = TypeVar("T")

Item = Mapping[str, Any]
"""An entry as Consul tells it; `Value` is decoded."""


class _Item(TypedDict):
    """What is read of an entry."""

    Key: str
    Value: bytes | None
    ModifyIndex: int
    Flags: int
    Session: NotRequired[str]


NONSENSE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What reading an answer raises that is not of the form that Consul's have: a proxy's, or another server's."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The answer to a read of a prefix."""

    index: int
    items: Sequence[Item]


@dataclass(frozen=True, slots=True)
class Refused:
    """A transaction was not carried out, for these reasons."""

    reasons: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyWrite:
    """An operation of a transaction; `mark` tells this write from every other (kept in the entry's flags)."""

    verb: str
    key: str
    value: bytes = b""
    mark: int = 0
    index: int | None = None
    session: str | None = None

    def payload(self) -> dict[str, Any]:
        """Return it as Consul reads it."""
        operation: dict[str, Any] = {"Verb": self.verb, "Key": self.key}
        if self.verb not in {"delete-cas", "check-index"}:
            operation |= {"Value": base64.b64encode(self.value).decode(), "Flags": self.mark}
        if self.index is not None:
            operation["Index"] = self.index
        if self.session is not None:
            operation["Session"] = self.session
        return {"KV": operation}


class _Api(Consul):  # type: ignore[misc]
    """py-consul's endpoints over a carrier of ours."""

    def __init__(self, transport: Transport, datacenter: str) -> None:
        self._transport = transport
        super().__init__(transport.host, transport.port, scheme=transport.scheme, verify=True, dc=datacenter or None)

    def http_connect(self, *_: object) -> Transport:
        return self._transport


class ConsulClient:
    """See the module. Requests that wait have connections of their own, so that others never wait for these."""

    def __init__(self, config: RegistryConfig, clock: Clock, *, node: str, waiting_max: int) -> None:
        """Nothing is opened yet. Raises ConfigError when files of the configuration cannot be used."""
        secrets = Secrets(config, clock, node=node)

        def api(connections_max: int) -> _Api:
            transport = Transport(config, secrets, connections_max=connections_max, deadline_ms=CALL_DEADLINE_MS)
            return _Api(transport, config.consul_datacenter)

        self._calls = api(CALLS_MAX)
        self._waits = api(waiting_max)
        self._params = [("dc", config.consul_datacenter)] if config.consul_datacenter else []
        self._random = entropy()
        self.life: object = object()
        """Another one after each answer that failed to come: Consul may have been replaced meanwhile."""
        self.metrics: ConsulMetrics | None = None
        self._clock = clock

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        await self._calls.http.close()
        await self._waits.http.close()

    def mark(self) -> int:
        """Return what tells a write from every other. Consul takes one that changes nothing for none at all."""
        return self._random.getrandbits(MARK_BITS)

    def lock(self, key: str, session: str, value: bytes) -> KeyWrite:
        """Return the operation that takes a key, or gives one that the session holds a new value."""
        return KeyWrite(verb="lock", key=key, value=value, mark=self.mark(), session=session)

    # ---------------------------------------------------------------- keys

    async def get(self, key: str) -> Item | None:
        """Return the entry, as a majority has it."""
        return await self._ask("get", self._calls.kv.get(key, consistency="consistent"), _item)

    async def scan(self, prefix: str) -> Seen:
        """Return the entries under a prefix, as a majority has them."""
        return await self._ask("scan", self._calls.kv.get(prefix, recurse=True, consistency="consistent"), _seen)

    async def wait(self, prefix: str, index: int, wait_ms: int) -> Seen:
        """Return the entries under a prefix once its index is over this one, or when the time is over."""
        timeout_s = (wait_ms + wait_ms // JITTER + CALL_DEADLINE_MS) / 1000
        asking = self._waits.kv.get(
            prefix, recurse=True, index=index, wait=f"{wait_ms}ms", connections_timeout=timeout_s
        )
        return await self._ask("wait", asking, _seen)

    async def transact(self, *writes: KeyWrite) -> list[int] | Refused:
        """Carry out all or none; return the present index of each entry that was not deleted."""
        body = json.dumps([write.payload() for write in writes])
        asking = self._calls.http.put(_transacted, "/v1/txn", params=self._params, data=body)
        count = sum(write.verb != "delete-cas" for write in writes)
        return await self._ask("transact", asking, lambda results: _done(results, count))

    async def put(self, write: KeyWrite) -> bool:
        """Store a value that is too long for a transaction; False when its index is not the one that is asked for."""
        asking = self._calls.kv.put(write.key, write.value, cas=write.index, flags=write.mark)
        return await self._ask("put", asking, bool)

    # ---------------------------------------------------------------- sessions

    async def open_session(self, body: Mapping[str, Any]) -> str:
        """Create a session and return its id."""
        data = msgspec.json.encode(body)
        asking = self._calls.http.put(CB.json(is_id=True), "/v1/session/create", params=self._params, data=data)
        return await self._ask("open_session", asking, _text)

    async def renew_session(self, session: str) -> bool:
        """Renew; False when it ended."""
        try:
            asking = self._calls.session.renew(session)
            return await self._ask("renew_session", asking, lambda answer: _is_of(session, answer))
        except NotFound:
            return False

    async def end_session(self, session: str) -> None:
        """End it, and what it holds. No error when it ended before."""
        await self._ask("end_session", self._calls.session.destroy(session), bool)

    async def is_alive(self, session: str) -> bool:
        """Return whether the session is there, as a majority has it."""
        asking = self._calls.session.info(session, consistency="consistent")
        return await self._ask("session", asking, lambda answer: answer[1] is not None)

    # ---------------------------------------------------------------- this machine's agent

    async def register_service(self, name: str, service_id: str, **fields: Any) -> None:
        """Register a service at the agent, or replace it."""
        await self._ask("register_service", self._calls.agent.service.register(name, service_id, **fields), bool)

    async def deregister_service(self, service_id: str) -> None:
        """Take a service and its check from the agent. No error when it is not there."""
        await self._ask("deregister_service", self._calls.agent.service.deregister(service_id), bool)

    async def pass_check(self, check_id: str) -> bool:
        """Vouch for the check's TTL; False when the agent does not know the check."""
        try:
            return await self._ask("pass_check", self._calls.agent.check.ttl_pass(check_id), bool)
        except StoreUnavailable as error:
            # Older agents say that they do not know it as they say that something failed.
            if "associated TTL" in str(error) or "Unknown check" in str(error):
                return False
            raise

    async def _ask(self, name: str, answer: Awaitable[Any], read: Callable[[Any], T]) -> T:
        asked_at, is_answered = self._clock.stopwatch(), True
        try:
            return read(await answer)
        except NotFound:
            raise
        except (ConsulException, aiohttp.ClientError, TimeoutError, OSError, *NONSENSE) as error:
            is_answered = False
            if not isinstance(error, (ACLPermissionDenied, ACLDisabled, ClientError)):  # it refuses: it is there
                self.life = object()
            raise StoreUnavailable(f"Consul, {name}: {_reason(error)}") from error
        finally:
            if self.metrics is not None:
                self.metrics.called(name, self._clock.stopwatch() - asked_at, is_answered=is_answered)


def bounded(operation: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let an operation of several calls take no longer than `OPERATION_DEADLINE_MS`; then it is StoreUnavailable."""

    @functools.wraps(operation)
    async def within(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            async with asyncio.timeout(OPERATION_DEADLINE_MS / 1000):
                return await operation(*args, **kwargs)
        except TimeoutError as error:
            raise StoreUnavailable(f"Consul, {operation.__name__}: no answer in time") from error

    return within


def _reason(error: Exception) -> str:
    if isinstance(error, (ACLPermissionDenied, ACLDisabled)):
        return f"the ACL token does not allow it: {error}"
    if isinstance(error, ClientError) and str(error).startswith("429"):
        return f"it takes no more requests of us: {error}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, NONSENSE):
        return f"the answer is none of Consul's: {type(error).__name__}: {error}"
    return str(error) or type(error).__name__


def _item(answer: tuple[str, object]) -> Item | None:
    index, item = answer
    items = _seen((index, None if item is None else [item])).items
    return items[0] if items else None


def _seen(answer: tuple[str, object]) -> Seen:
    index, items = answer
    return Seen(int(index), msgspec.convert(items, list[_Item] | None) or ())


def _transacted(response: Response) -> Any:
    if response.code != 409:
        return CB.json()(response)["Results"]
    reasons = "; ".join(error["What"] for error in json.loads(response.body)["Errors"])
    if "Permission denied" in reasons:  # Consul tells this as it tells that an index is stale
        raise ACLPermissionDenied(reasons)
    return Refused(reasons)


def _done(results: Any, count: int) -> list[int] | Refused:
    """Read the answer to a transaction that leaves `count` entries."""
    if isinstance(results, Refused):
        return results
    indexes = [int(result["KV"]["ModifyIndex"]) for result in results or ()]
    if len(indexes) != count:
        raise ValueError(f"{len(indexes)} results, and not {count}")
    return indexes


def _text(answer: Any) -> str:
    return msgspec.convert(answer, str)


def _is_of(session: str, answer: Any) -> bool:
    """Return True for an answer that is the session. Who leads goes by it: nothing else is an answer."""
    if answer["ID"] != session:
        raise ValueError("it is of another session")
    return True
