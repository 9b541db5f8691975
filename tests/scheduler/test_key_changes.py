"""Keys of user tokens and of tickets that are changed while a scheduler runs, and what access nodes make of it."""

from __future__ import annotations

import asyncio
import json
from base64 import urlsafe_b64decode
from pathlib import Path

import aiohttp
import msgspec
import pytest

from access.api import SERVICE, NodeReport
from base.clock import SystemClock, Timestamp
from base.core.registry import ServiceInstance
from base.errors import ConfigError, Unauthenticated
from base.http import Credentials
from base.ids import Incarnation, NodeId
from base.keys import KeyList, KeyRing
from base.registry.memory import MemoryRegistry
from base.reload import follow
from base.site import NodeConfig, Site
from base.trust import Trust
from scheduler.client import TicketVerifier
from scheduler.config import SchedulerConfig
from scheduler.service import Scheduler
from scheduler.tokens import mint_user_token, user_of
from tests.support.certificates import Authority

SETTLE_S = 5.0
OLD, NEW = "the-old-key-of-thirty-two-bytes-1", "the-new-key-of-thirty-two-bytes-2"
PUBLIC = "ed25519:11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"


class KeyFiles:
    """The two files of keys that a scheduler has, and the one that an access node has."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.user_keys = KeyList(str(folder / "users"), setting="security.user_keys_file", verifies=True)
        self.signing = KeyRing(str(folder / "signing"), setting="security.ticket_keys_file")
        self.accepted = KeyRing(str(folder / "accepted"), setting="security.ticket_keys_file")
        self.write("users", OLD)
        self.write("signing", f"k1 {OLD}")
        self.write("accepted", f"k1 {OLD}")
        for keys in (self.user_keys, self.signing, self.accepted):
            keys.load()

    def write(self, name: str, *lines: str) -> None:
        fresh = self._folder / "fresh"
        fresh.write_text("".join(f"{line}\n" for line in lines))
        fresh.replace(self._folder / name)


def site(registry: MemoryRegistry, clock: SystemClock, trust: Trust) -> Site:
    return Site(
        name=NodeId("scheduler-1"),
        incarnation=Incarnation(1),
        host="127.0.0.1",
        port=0,
        registry=registry,
        clock=clock,
        trust=trust,
        credentials=Credentials(),
        config=NodeConfig(),
    )


def kid_of(ticket: str) -> str:
    head = ticket.partition(".")[0]
    return str(json.loads(urlsafe_b64decode(head + "=" * (-len(head) % 4)))["kid"])


async def test_keys_are_changed_while_clients_come(tmp_path: Path) -> None:
    """User tokens of both keys count while both are there; tickets are signed with the first, and always accepted."""
    clock = SystemClock()
    registry = MemoryRegistry(clock)
    note = msgspec.msgpack.encode(NodeReport(number=1, connections=3))
    meta = {"capacity": "1000000", "client_url": "http://a:80"}
    node = ServiceInstance(
        id="access-1", service=SERVICE, url="http://a:1", incarnation=Incarnation(1), meta=meta, note=note
    )
    await registry.register(node, ttl_ms=60_000)
    await registry.heartbeat(node.id, node.incarnation, node.note)
    files = KeyFiles(tmp_path)
    verifier = TicketVerifier(files.accepted, node=NodeId("access-1"))
    scheduler = Scheduler(
        SchedulerConfig(),
        site(registry, clock, Trust.of_key("peer-key")),
        user_keys=files.user_keys,
        ticket_keys=files.signing,
    )
    async with asyncio.TaskGroup() as tasks, aiohttp.ClientSession() as http, asyncio.timeout(4 * SETTLE_S):
        parts = (files.user_keys, files.signing, files.accepted)
        background = [
            tasks.create_task(scheduler.run()),
            tasks.create_task(follow(parts, interval_s=0.01, node="scheduler-1")),
        ]
        await scheduler.start()

        async def ticket(key: str) -> str | None:
            token = mint_user_token("ann", key=key, expires_at=Timestamp(clock.realtime() + 60_000))
            headers = {"Authorization": f"Bearer {token}"}
            async with http.get(f"{scheduler.node.http.url}/v1/access?user=ann", headers=headers) as answer:
                return (await answer.json())["ticket"] if answer.status == 200 else None

        async def until(users: set[str], kid: str) -> None:
            """Wait until tokens of these keys count and tickets name that key; access nodes take each of them."""
            while True:
                found = {key: await ticket(key) for key in (OLD, NEW)}
                tickets = [one for one in found.values() if one is not None]
                for one in tickets:
                    assert verifier.verify(one, clock.realtime()).sub == "ann"
                if {key for key, one in found.items() if one is not None} == users and {
                    kid_of(one) for one in tickets
                } == {kid}:
                    return
                await asyncio.sleep(0.01)

        await until({OLD}, "k1")
        files.write("users", NEW, OLD)
        files.write("accepted", f"k1 {OLD}", f"k2 {NEW}")
        await until({OLD, NEW}, "k1")
        while not {"k1", "k2"} <= files.accepted.keys.keys():  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.01)
        files.write("signing", f"k2 {NEW}", f"k1 {OLD}")
        await until({OLD, NEW}, "k2")
        files.write("users", NEW)
        files.write("signing", f"k2 {NEW}")
        files.write("accepted", f"k2 {NEW}")
        await until({NEW}, "k2")
        files.write("signing", f"p {PUBLIC}")  # nobody could be let in any more: refused, and the last one kept
        while files.signing.has_changed():  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.01)
        await until({NEW}, "k2")
        for task in background:
            task.cancel()
    await scheduler.stop()


def test_a_user_token_is_tried_with_each_key() -> None:
    """Whatever the kinds of the keys; one that is wrong in another way is not tried again."""
    now = Timestamp(1_700_000_000_000)
    token = mint_user_token("ann", key=OLD, expires_at=Timestamp(now + 1_000))
    for keys in ([OLD], [NEW, OLD], [PUBLIC, NEW, OLD], [OLD, NEW]):
        assert user_of(token, keys=keys, now=now) == "ann"
    for keys in ([NEW], [PUBLIC], [NEW, PUBLIC]):
        with pytest.raises(Unauthenticated):
            user_of(token, keys=keys, now=now)
    with pytest.raises(Unauthenticated, match="no compact JWS"):
        user_of("x.y", keys=[NEW, OLD], now=now)


def test_a_scheduler_that_cannot_sign_does_not_start() -> None:
    """Access nodes may have public keys only; a scheduler needs one that signs."""
    clock = SystemClock()
    place = site(MemoryRegistry(clock), clock, Trust.of_key("k"))
    with pytest.raises(ConfigError, match="must have a key that signs"):
        Scheduler(SchedulerConfig(), place, user_keys=KeyList.of(OLD), ticket_keys=KeyRing.of({"p": PUBLIC}))


def test_a_port_with_tls_has_no_proxy_protocol(tmp_path: Path) -> None:
    """That header comes before TLS; proxies name clients in an HTTP header instead."""
    clock = SystemClock()
    trust = Trust.load(Authority(tmp_path / "ca").config("scheduler-1"))
    config = SchedulerConfig(proxies=("10.0.0.0/8",), proxy_protocol=True)
    keys = {"user_keys": KeyList.of(OLD), "ticket_keys": KeyRing.of({"k1": OLD})}
    Scheduler(config, site(MemoryRegistry(clock), clock, Trust.of_key("k")), **keys)
    with pytest.raises(ConfigError, match=r"scheduler\.proxy_protocol is for a port without TLS"):
        Scheduler(config, site(MemoryRegistry(clock), clock, trust), **keys)
