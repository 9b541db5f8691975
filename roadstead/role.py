"""One role as a process of its own: it finds the system through the registry, joins, works, and leaves in order.

All roles start the same way, and in any order. A process first waits for the registry, compares the settings that all
must have alike, makes sure that its name is free, and waits for what its role needs of others. Only then does it listen
and register. What it waits for is logged, the whole is bounded, and SIGTERM ends it at any point.

    scheduler   needs nobody
    status      needs nobody
    access      needs the first partition table, and a node of the message services
    im          needs the first partition table

What differs between the roles is one entry of `ROLES`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from access.api import SERVICE as ACCESS
from base.audit import Audit
from base.clock import SystemClock
from base.errors import (
    ConfigError,
    PeerUnavailable,
    SessionLost,
    StoreUnavailable,
    UnknownMethod,
)
from base.ids import NodeId
from base.log import logger
from base.node import next_incarnation
from base.notify import notify
from base.registry import Registry
from base.registry.node import SERVICE as REGISTRY
from base.service import Service, first_failure, run_services, stop_signals, unless_stopped
from base.site import Site
from base.trust import require_safe
from im.api import SERVICE as IM
from roadstead.agreed import agree, keep_agreed, require_agreed
from roadstead.config import Config
from roadstead.faults import Noted
from roadstead.keys import Keys
from roadstead.registries import OpenedRegistry, opened_registry
from scheduler.service import SERVICE as SCHEDULER
from status.api import SERVICE as STATUS
from status.table import TABLE_KEY

__all__ = ["ROLES", "Place", "Ready", "Role", "place_of", "run_node"]

CONNECT_TIMEOUT_S = 3.0
LOOK_S = 0.2
TELL_S = 10.0
"""How often a process that waits says what for."""
QUIET_S = 1.0
"""A wait so short is not worth a line."""

T = TypeVar("T")


class Ready(msgspec.Struct, frozen=True):
    """A node that is ready."""

    name: str
    url: str
    pid: int
    client_url: str | None = None
    """Where an access node's clients connect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Who a node is, where it listens, and how it finds the others."""

    name: str
    host: str
    port: int
    keys: Keys
    registry: OpenedRegistry
    start_deadline_ms: int
    """0: it waits for ever."""
    audit: Audit = field(default_factory=Audit)
    is_patient: bool = True
    """Whether it waits for a registry that cannot be reached."""

    async def close(self) -> None:
        """Give back what is open."""
        await self.registry.registry.close()
        self.audit.close()


def _none(_config: Config) -> Iterable[str]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What is special about a role."""

    build: Callable[[Config, Site, Keys], Awaitable[Service]]
    needs_table: bool = False
    """Whether it needs to know who owns which users."""
    needs_im: bool = False
    sections: tuple[str, ...] = ("status",)
    """Of the settings that all nodes of a system have alike, those that it goes by."""
    keys: tuple[str, ...] = ()
    """Which of `Keys.needs` it needs."""
    problems: Callable[[Config], Iterable[str]] = _none
    """What else is wrong with a configuration for this role."""


def place_of(role: str, config: Config) -> Place:
    """Return the place that a configuration describes, with all that its files hold.

    Raises ConfigError with every fault that keeps the role from starting.
    """
    node, security = config.node, config.security
    faults = [*ROLES[role].problems(config)]
    if not node.name:
        faults.append("node.name is required: a name that no other node of the system has, such as access-1")
    audit = Audit(security.audit_file)
    keys: Keys | None = None
    registry: OpenedRegistry | None = None
    with Noted(faults):
        require_safe(security, host=node.host, allow_remote=node.allow_remote)
    with Noted(faults):
        audit.open()
    with Noted(faults):
        keys = Keys.load(security, node=node.name, needs=ROLES[role].keys)
        registry = opened_registry(config.registry, node=node.name, trust=keys.trust)
    if faults or keys is None or registry is None:
        raise ConfigError(faults)
    return Place(
        name=node.name,
        host=node.host,
        port=node.port,
        keys=keys,
        registry=registry,
        start_deadline_ms=node.start_deadline_ms,
        audit=audit,
    )


async def run_node(
    role: str,
    config: Config,
    place: Place,
    *,
    on_ready: Callable[[Ready], None],
    stop: asyncio.Event | None = None,
) -> None:
    """Run one node until SIGTERM, SIGINT or `stop`.

    Raises:
        ConfigError: the port, a key or a setting cannot be used, or a setting is not as in the system.
        PeerUnavailable: what it needs was not there in time.
        Unauthenticated: the registry refuses the key.
        SessionLost: a node of this name is alive, or one that was started later took the name over.
    """
    if stop is None:
        stop = asyncio.Event()
        with stop_signals(stop):
            await run_node(role, config, place, on_ready=on_ready, stop=stop)
        return
    started = _Started(role, config, place, on_ready)
    try:
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(part) for part in (place.registry.run(), place.keys.follow(), started.compare_again())
            ]
            background.append(tasks.create_task(_tell_the_end(stop)))
            try:
                await started.live(stop)
            finally:
                for task in background:
                    task.cancel()
    except BaseExceptionGroup as group:
        raise first_failure(group) from group
    finally:
        await place.close()


async def _tell_the_end(stop: asyncio.Event) -> None:
    await stop.wait()
    notify("STOPPING=1")


class _Started:
    """The way from a configuration to a node that is ready."""

    def __init__(self, role: str, config: Config, place: Place, on_ready: Callable[[Ready], None]) -> None:
        self._name = role
        self._role = ROLES[role]
        self._config = config
        self._place = place
        self._on_ready = on_ready
        self._registry = place.registry.registry
        self._is_ready = asyncio.Event()
        self._waiting = _Waiting(place.name, is_patient=place.is_patient)

    async def live(self, stop: asyncio.Event) -> None:
        """Start, and run to the end."""
        loop = asyncio.get_running_loop()
        deadline_s = self._place.start_deadline_ms / 1000 or None
        began = loop.time()
        try:
            site = await unless_stopped(self._site(), stop, deadline_s=deadline_s)
        except TimeoutError as error:
            raise PeerUnavailable(f"{self._place.name} waited {deadline_s:g} s for {self._waiting}") from error
        if site is None:
            return
        service = await self._role.build(self._config, site, self._place.keys)
        self._place.registry.count_in(service.node.metrics, site.name)
        left_s = None if deadline_s is None else max(LOOK_S, deadline_s - (loop.time() - began))
        await run_services([service], on_ready=lambda: self._ready(service), stop=stop, start_deadline_s=left_s)

    async def compare_again(self) -> None:
        """Compare the settings once more after registering: of two nodes that began a system, one sees the other.

        From then on what all have alike is said again whenever the registry has lost it.
        """
        await self._is_ready.wait()
        with suppress(StoreUnavailable):
            await require_agreed(self._registry, self._config, self._role.sections)
        await keep_agreed(self._registry, SystemClock(), self._config, self._role.sections)

    def _ready(self, service: Service) -> None:
        client_url: str | None = getattr(service, "client_url", None)  # access nodes have one
        self._on_ready(Ready(self._place.name, service.node.http.url, os.getpid(), client_url))
        self._is_ready.set()
        notify("READY=1")

    async def _site(self) -> Site:
        """Wait for everything that the node needs; return its place in the system."""
        place, registry, sections = self._place, self._registry, self._role.sections
        where = f"the registry at {place.registry.url}"
        await self._waiting.for_value(where, self._probed)
        await self._waiting.for_value(where, lambda: _done(agree(registry, self._config, sections, roles=tuple(ROLES))))
        await self._waiting.for_value(where, lambda: _done(_require_free(registry, place.name)))
        if self._role.needs_table and self._config.status.backend == "cluster":
            table = f"the first partition table, which is made when {self._config.status.bootstrap_nodes} status nodes"
            await self._waiting.for_value(f"{table} are there", lambda: registry.get(TABLE_KEY))
        if self._role.needs_im:
            await self._waiting.for_value("a node of the message services", lambda: _first_of(registry, IM))
        return Site(
            name=NodeId(place.name),
            incarnation=await self._waiting.for_value(
                where, lambda: next_incarnation(registry, place.name, SystemClock())
            ),
            host=place.host,
            port=place.port,
            registry=registry,
            clock=SystemClock(),
            trust=place.keys.trust,
            credentials=place.keys.credentials,
            audit=place.audit,
            open_metrics=self._config.security.open_metrics,
            config=self._config.node,
        )

    async def _probed(self) -> bool:
        await self._place.registry.probe()
        try:
            await self._registry.services(self._name)
        except StoreUnavailable as error:
            if isinstance(error.__cause__, UnknownMethod):
                url = self._place.registry.url
                raise ConfigError([f"{url} serves no registry: name the address of registry-1"]) from error
            raise
        return True


class _Waiting:
    """Asks again and again, and says what for."""

    def __init__(self, node: str, *, is_patient: bool) -> None:
        self._what = ""
        self._reason = ""
        self._is_patient = is_patient
        self._log = logger(node=node)

    def __str__(self) -> str:
        """What is waited for, and why it is not there if that is known."""
        return f"{self._what}: {self._reason}" if self._reason else self._what

    async def for_value(self, what: str, ask: Callable[[], Awaitable[T | None]]) -> T:
        """Return the first answer that is not None. Raises PeerUnavailable if it may not wait for the registry."""
        self._what, self._reason = what, ""
        loop = asyncio.get_running_loop()
        tell_at = loop.time() + QUIET_S
        while True:
            try:
                if (answer := await ask()) is not None:
                    return answer
                self._reason = ""
            except (PeerUnavailable, StoreUnavailable) as error:
                self._reason = str(error)
                if self._is_patient:
                    pass
                elif isinstance(error, PeerUnavailable):
                    raise
                else:
                    raise PeerUnavailable(f"{what}: {error}") from error
            if loop.time() >= tell_at:
                self._log.warning("still_waiting", wanted=str(self))
                tell_at = loop.time() + TELL_S
            await asyncio.sleep(LOOK_S)


async def _done(work: Awaitable[None]) -> bool:
    await work
    return True


async def _first_of(registry: Registry, service: str) -> object | None:
    return next(iter((await registry.services(service)).items), None)


async def _require_free(registry: Registry, name: str) -> None:
    """Refuse a name that a live node has: the registry would let this later life replace it.

    A registration outlives its process for a while. Nobody listening at its address any more, the name is free.
    """
    for service in (*ROLES, REGISTRY):
        for instance in (await registry.services(service)).items:
            if instance.id == name and await _is_listening(instance.url):
                raise SessionLost(f"the name {name} is in use by a node at {instance.url}", instance=name)


async def _is_listening(url: str) -> bool:
    """Return False when that is certain: the machine answers, and the port is closed."""
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    writer.transport.abort()
    return True


# ---------------------------------------------------------------- the roles
# Each imports what it runs when it runs: a process starts sooner, and is smaller, without the others' code.


async def _scheduler(config: Config, site: Site, keys: Keys) -> Service:
    from scheduler.service import Scheduler

    assert keys.user_keys is not None
    assert keys.ticket_keys is not None
    return Scheduler(config.scheduler, site, user_keys=keys.user_keys, ticket_keys=keys.ticket_keys)


async def _status(config: Config, site: Site, _keys: Keys) -> Service:
    if config.status.backend == "redis":
        from roadstead.backends import lookups
        from status.gateway import StatusGateway

        return StatusGateway(site, statuses=lookups(config, site))
    from status.service import StatusNode

    return StatusNode(config.status, site)


async def _access(config: Config, site: Site, keys: Keys) -> Service:
    from access.service import AccessNode
    from roadstead.backends import access_side

    assert keys.ticket_keys is not None
    return AccessNode(config.access, site, ticket_keys=keys.ticket_keys, **access_side(config, site))


async def _im(config: Config, site: Site, _keys: Keys) -> Service:
    from im.files import opener
    from im.folders import claim
    from im.service import MessageService
    from roadstead.backends import lookups

    folder = Path(config.im.data)
    claim(folder)
    return MessageService(
        config.im, site, open_shard=opener(folder, site.clock), statuses=lookups(config, site), folder=folder
    )


def _im_faults(config: Config) -> Iterable[str]:
    if not config.im.data:
        yield "im.data is required: the folder of this process' messages"


ROLES: Mapping[str, Role] = {
    SCHEDULER: Role(build=_scheduler, sections=(), keys=("ticket_keys", "user_keys")),
    STATUS: Role(build=_status),
    ACCESS: Role(build=_access, needs_table=True, needs_im=True, keys=("ticket_keys",)),
    IM: Role(build=_im, needs_table=True, sections=("status", "im"), problems=_im_faults),
}
