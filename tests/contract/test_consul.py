"""The registry on real Consul agents, where Consul has traps: what the port's suite cannot see.

An agent that ends, hangs or starts over; answers that are lost; tokens, TLS, several agents.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from structlog.testing import capture_logs

from base.clock import SystemClock
from base.errors import CasConflict, ConfigError, SessionLost, StoreError, StoreUnavailable
from base.metrics import Metrics
from base.registry import Registry, ServiceInstance, follow
from base.registry.consul import ConsulRegistry
from base.registry.consul.client import CALL_DEADLINE_MS
from base.registry.consul.metrics import ConsulMetrics
from base.registry.consul.transport import LOOK_MS
from roadstead.ca import CertificateAuthority
from roadstead.consul import ConsulAgent, ConsulTls, find_consul
from tests.contract.consul_agent import consul, operate, registry_at

__all__ = ["consul"]

pytestmark = pytest.mark.process

SOON_S = 10.0
MANAGER = "4f8f1bd4-6d5e-4a3c-8a11-0c33b7a1d001"
NODE_TOKEN = "4f8f1bd4-6d5e-4a3c-8a11-0c33b7a1d002"
HALF_TOKEN = "4f8f1bd4-6d5e-4a3c-8a11-0c33b7a1d003"
RULES = """
key_prefix "acl/" { policy = "write" }
service_prefix "acl-" { policy = "write" }
session_prefix "" { policy = "write" }
"""


@pytest.fixture
async def registry(consul: ConsulAgent) -> AsyncIterator[ConsulRegistry]:
    async with registry_at(consul) as made:
        yield made


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[ConsulAgent]:
    """An agent that a test may break."""
    made = ConsulAgent(folder=tmp_path / "agent")
    await made.start()
    try:
        yield made
    finally:
        made.kill()


def instance(node: str = "access-1", *, incarnation: int = 1, service: str = "access") -> ServiceInstance:
    return ServiceInstance(id=node, service=service, url="http://127.0.0.1:7000", incarnation=incarnation)


async def ids(registry: Registry, service: str = "access") -> list[str]:
    return [found.id for found in (await registry.services(service)).items]


# -------------------------------------------------------------------- outages


async def test_a_restart_of_the_agent_costs_no_registration_and_no_lock(agent: ConsulAgent) -> None:
    """While it is away every call fails at once; afterwards all is as it was, and followers go on."""
    async with registry_at(agent) as registry:
        await registry.register(instance(), ttl_ms=20_000)
        session = await registry.open_session("one", ttl_ms=20_000)
        token = await registry.acquire("lock", session, b"one")
        await registry.heartbeat("access-1", 1)
        await registry.renew_session(session)
        await registry.put("a/1", b"x")
        outages: list[StoreError] = []
        views = follow(registry.scan, "a/", SystemClock(), on_outage=outages.append)
        assert [entry.value for entry in (await anext(views)).items] == [b"x"]
        agent.kill()
        for call in (registry.get("a/1"), registry.heartbeat("access-1", 1), registry.renew_session(session)):
            with pytest.raises(StoreUnavailable):
                await call
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(anext(views))
            await agent.start()
            await registry.heartbeat("access-1", 1, b"news")
            await registry.renew_session(session)
            entry = await registry.get("lock")
            assert entry is not None
            assert (entry.session, entry.index) == (session, token)
            await asyncio.wait_for(following, SOON_S)
        assert outages
        await registry.put("a/1", b"y")
        assert [entry.value for entry in (await asyncio.wait_for(anext(views), SOON_S)).items] == [b"y"]
        await views.aclose()
        (found,) = (await registry.services("access")).items
        assert found.note == b"news"


async def test_a_consul_that_starts_over_is_noticed(agent: ConsulAgent) -> None:
    """Sessions and registrations are gone and told so, followers get the new state, whatever its index is."""
    async with registry_at(agent) as registry:
        await registry.register(instance(), ttl_ms=20_000)
        session = await registry.open_session("one", ttl_ms=20_000)
        for number in range(100):
            await registry.put("a/1", b"%d" % number)
        views = follow(registry.scan, "a/", SystemClock())
        before = await anext(views)
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(anext(views))
            await asyncio.sleep(0.1)
            agent.kill()
            agent.wipe()
            await agent.start()
            after = await asyncio.wait_for(following, SOON_S)
        assert (len(before.items), after.items) == (1, ())
        assert after.index < before.index
        await registry.put("a/1", b"anew")
        assert [entry.value for entry in (await asyncio.wait_for(anext(views), SOON_S)).items] == [b"anew"]
        await views.aclose()
        with pytest.raises(SessionLost):
            await registry.renew_session(session)
        with pytest.raises(SessionLost):
            await registry.heartbeat("access-1", 1)
        await registry.register(instance(), ttl_ms=20_000)
        assert await ids(registry) == ["access-1"]


async def ask_again_and_again(registry: Registry) -> None:
    """An agent that was told to stop may answer once more."""
    while True:
        await registry.get("a/1")


async def test_an_index_falls_in_a_consul_that_was_put_back_and_not_in_one_that_was_away(agent: ConsulAgent) -> None:
    """Readers are told in both cases that it may have started over, and what its own index is."""
    async with (
        registry_at(agent, prefix="one") as registry,
        aiohttp.ClientSession(agent.url) as http,
    ):
        kept = await registry.put("a/1", b"")
        async with http.get("/v1/snapshot") as answer:
            snapshot = await answer.read()
        made = await registry.put("a/2", b"")
        before = await registry.scan("a/")
        agent.signal(signal.SIGSTOP)
        with pytest.raises(StoreUnavailable):
            await ask_again_and_again(registry)
        agent.signal(signal.SIGCONT)
        away = await registry.scan("a/", after=before.index)
        assert away.index < before.index == made
        assert away.seen == before.seen == made
        async with http.put("/v1/snapshot", data=snapshot) as answer:
            assert answer.status == 200
        restored = await registry.scan("a/", after=away.index)
        assert restored.index < away.index
        assert restored.seen == kept
        assert [(entry.key, entry.index) for entry in restored.items] == [("a/1", kept)]


async def test_an_agent_that_hangs_is_waited_for_no_longer_than_the_deadline(agent: ConsulAgent) -> None:
    """A write to it may have happened: StoreUnavailable, and all is well once it goes on."""
    clock = SystemClock()
    async with registry_at(agent) as registry:
        await registry.put("k", b"1")
        agent.signal(signal.SIGSTOP)
        asked_at = clock.monotonic()
        with pytest.raises(StoreUnavailable, match="in time"):
            await registry.put("k", b"2")
        assert CALL_DEADLINE_MS <= clock.monotonic() - asked_at < 2 * CALL_DEADLINE_MS
        agent.signal(signal.SIGCONT)
        await registry.put("k", b"3")
        entry = await registry.get("k")
        assert entry is not None
        assert entry.value in {b"2", b"3"}, "what was given up may be done after what came later"


async def test_a_read_that_waited_through_an_outage_tells_of_it(agent: ConsulAgent) -> None:
    """It is answered at last as if nothing had been; but what it shows then is to be doubted, and read anew."""
    async with registry_at(agent) as registry:
        await registry.put("a/1", b"x")
        before = await registry.scan("a/")
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(registry.scan("a/", after=before.index, wait_ms=20_000))
            await asyncio.sleep(0.1)
            agent.signal(signal.SIGSTOP)
            with pytest.raises(StoreUnavailable, match="in time"):
                await registry.get("a/1")
            agent.signal(signal.SIGCONT)
            await registry.put("a/1", b"y")
            seen = await waiting
        assert [entry.value for entry in seen.items] == [b"y"]
        assert seen.index < before.index
        again = await registry.scan("a/", after=seen.index, wait_ms=20_000)
        assert again.items == seen.items
        assert again.index < seen.index


async def test_a_write_whose_answer_was_lost_is_no_conflict(consul: ConsulAgent) -> None:
    """The HTTP client sends a request again when its connection ends; the first one was carried out."""
    host, port = consul.url.removeprefix("http://").split(":")
    async with loses_answers(host, int(port)) as proxy, registry_at(consul, consul_url=proxy.url) as registry:
        index = await registry.put("k", b"1")
        proxy.loses = b"PUT /v1/txn"
        index = await registry.put("k", b"2", expect=index)
        entry = await registry.get("k")
        assert entry is not None
        assert (entry.value, entry.index) == (b"2", index)
        session = await registry.open_session("one", ttl_ms=10_000)
        proxy.loses = b"PUT /v1/txn"
        assert await registry.acquire("lock", session, b"one") is not None
        proxy.loses = b"PUT /v1/txn"
        assert await registry.delete("k", expect=index) is True
        proxy.loses = b"PUT /v1/kv"
        await registry.put("long", bytes(500_000), expect=0)
        assert proxy.lost == 4


# -------------------------------------------------------------------- reading


async def test_writing_the_same_value_again_is_a_change(registry: ConsulRegistry) -> None:
    """Consul takes such a write for none, with the old index; the port promises a new one."""
    first = await registry.put("k", b"same")
    assert await registry.put("k", b"same", expect=first) > first


async def test_an_empty_prefix_sees_its_first_key_and_its_last_deletion(registry: ConsulRegistry) -> None:
    """Its index is that of all keys: waiting on it neither spins nor sleeps through a change."""
    await registry.put("other/1", b"")
    empty = await registry.scan("a/")
    assert empty.items == ()
    clock = SystemClock()
    asked_at = clock.monotonic()
    assert (await registry.scan("a/", after=empty.index, wait_ms=300)).items == ()
    assert clock.monotonic() - asked_at >= 250
    for change, expected in ((registry.put("a/1", b""), ["a/1"]), (registry.delete("a/1"), [])):
        before = await registry.scan("a/")
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(registry.scan("a/", after=before.index, wait_ms=60_000))
            await asyncio.sleep(0.02)
            await change
        assert [entry.key for entry in waiting.result().items] == expected
        assert waiting.result().index > before.index


async def test_registrations_are_no_keys(registry: ConsulRegistry) -> None:
    """They are kept beside the port's keys, and a scan of everything does not see them."""
    await registry.register(instance(), ttl_ms=10_000)
    await registry.put("k", b"")
    assert [entry.key for entry in (await registry.scan("")).items] == ["k"]


async def test_names_of_keys_may_have_anything_in_them(registry: ConsulRegistry) -> None:
    """Names that people gave stand in keys: each is one key, and stays what it was."""
    names = ["lists/a b", "lists/a%20b", "lists/ä", "lists/a?b=c&d#e", "lists/a+b", "lists/.a", "lists/a/b"]
    for name in names:
        await registry.put(name, name.encode())
    assert {entry.key: entry.value for entry in (await registry.scan("lists/")).items} == {
        name: name.encode() for name in names
    }
    for name in names:
        entry = await registry.get(name)
        assert entry is not None
        assert entry.value == name.encode()


async def test_reads_beyond_the_bound_look_now_and_then(consul: ConsulAgent) -> None:
    """One read waits in Consul, the second polls; both see the change, and short calls are not in their way."""
    async with registry_at(consul, waiting_max=1, poll_ms=100) as registry:
        await registry.put("a/1", b"")
        index = (await registry.scan("a/")).index
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(registry.scan("a/", after=index, wait_ms=60_000))
            await asyncio.sleep(0.02)
            early = await registry.scan("a/", after=index, wait_ms=60_000)
            assert early.index == index
            second = tasks.create_task(registry.scan("a/", after=index, wait_ms=60_000))
            await registry.put("a/1", b"x")
        assert [entry.value for entry in first.result().items] == [b"x"]
        assert [entry.value for entry in second.result().items] == [b"x"]


# -------------------------------------------------------------------- lives


async def test_what_another_one_must_not_take_yet_is_kept_from_him(
    consul: ConsulAgent, registry: ConsulRegistry
) -> None:
    """An operator ends a session: its holder does not know, so its lock stays closed for the session's TTL."""
    clock = SystemClock()
    one = await registry.open_session("one", ttl_ms=800)
    two = await registry.open_session("two", ttl_ms=10_000)
    assert await registry.acquire("lock", one, b"one") is not None
    await registry.renew_session(one)
    renewed_at = clock.monotonic()
    await operate(consul, "PUT", f"session/destroy/{one}")
    while await registry.acquire("lock", two, b"two") is None:  # noqa: ASYNC110 - as candidates do
        await asyncio.sleep(0.02)
    assert clock.monotonic() - renewed_at >= 800
    with pytest.raises(SessionLost):
        await registry.renew_session(one)


async def test_two_nodes_at_two_agents_are_one_system(consul: ConsulAgent, tmp_path: Path) -> None:
    """A newer life at another agent takes the name at once, whatever it serves; the older one is told to stop."""
    other = ConsulAgent(folder=tmp_path / "client", name="consul-2", joins=consul)
    await other.start()
    try:
        async with (
            registry_at(consul, prefix="two") as here,
            registry_at(other, prefix="two") as there,
        ):
            await here.register(instance("n-1"), ttl_ms=10_000)
            await there.register(instance("n-2"), ttl_ms=10_000)
            assert await ids(here) == await ids(there) == ["n-1", "n-2"]
            await there.register(instance("n-1", incarnation=2, service="im"), ttl_ms=10_000)
            assert (await ids(here), await ids(here, "im")) == (["n-2"], ["n-1"])
            with pytest.raises(SessionLost):
                await here.heartbeat("n-1", 1)
            with pytest.raises(SessionLost):
                await here.register(instance("n-1"), ttl_ms=10_000)
            await here.deregister("n-1", 1)
            assert await ids(here, "im") == ["n-1"]
            await here.deregister("n-1", 2)
            assert await ids(here, "im") == []
    finally:
        other.kill()


async def test_of_lives_that_start_at_once_the_newest_one_stays(consul: ConsulAgent) -> None:
    """Each of them is at another registry; whoever is not the newest is told so, at the latest by its heartbeat."""
    newest = 5
    stayed: list[int] = []
    async with AsyncExitStack() as stack:
        registries = [
            await stack.enter_async_context(registry_at(consul, prefix="race", node=f"r{life}"))
            for life in range(1, newest + 1)
        ]

        async def live(life: int, registry: Registry, *, is_over: asyncio.Event) -> None:
            try:
                await registry.register(instance(incarnation=life), ttl_ms=10_000)
                await asyncio.wait_for(is_over.wait(), SOON_S)
                await registry.heartbeat("access-1", life, b"%d" % life)
            except SessionLost:
                return
            stayed.append(life)

        is_over = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for life, registry in enumerate(registries, start=1):
                tasks.create_task(live(life, registry, is_over=is_over))
            async for view in follow(registries[0].services, "access", SystemClock()):
                if [found.incarnation for found in view.items] == [newest]:
                    break
            is_over.set()
        assert stayed == [newest]
        (found,) = (await registries[0].services("access")).items
        assert (found.incarnation, found.note) == (newest, b"%d" % newest)


async def test_what_others_write_among_registrations_is_passed_over(
    consul: ConsulAgent, registry: ConsulRegistry
) -> None:
    """A key that an operator made by hand blinds nobody, and a name that is no name can be taken."""
    keys = registry._keys
    await operate(consul, "PUT", f"kv/{keys.instance('access', 'rubbish')}", data=b"rubbish")
    await operate(consul, "PUT", f"kv/{keys.name('access-1')}", data=b"rubbish")
    await registry.register(instance(), ttl_ms=10_000)
    with capture_logs() as logs:
        assert await ids(registry) == ["access-1"]
    assert [line["event"] for line in logs] == ["consul_key_not_ours"]


async def test_others_find_nodes_in_consul_as_healthy_services(consul: ConsulAgent, registry: ConsulRegistry) -> None:
    """Address, port and metadata for DNS and health consumers; gone from Consul when it leaves."""
    name = registry._keys.consul_name("access")
    node = ServiceInstance(
        id="access-1", service="access", url="http://127.0.0.1:7000", incarnation=3, meta={"version": "1", "a b": ""}
    )
    await registry.register(node, ttl_ms=10_000)
    (found,) = await operate(consul, "GET", f"health/service/{name}?passing")
    service = found["Service"]
    assert (service["Address"], service["Port"]) == ("127.0.0.1", 7000)
    assert service["Meta"] == {"version": "1", "url": "http://127.0.0.1:7000", "incarnation": "3"}
    await registry.register(node, ttl_ms=10_000)
    assert len(await operate(consul, "GET", f"health/service/{name}")) == 1
    await registry.deregister("access-1", 3)
    assert await operate(consul, "GET", f"health/service/{name}") == []


# -------------------------------------------------------------------- access to Consul


async def test_a_node_needs_few_rights_and_takes_a_new_token_without_a_restart(tmp_path: Path) -> None:
    """Over mutual TLS, with the rights that the documents name; without them each kind of call says why it failed."""
    ca = CertificateAuthority.create(tmp_path / "ca", now=SystemClock().realtime())
    server, client = (ca.issue(name, now=SystemClock().realtime()) for name in ("consul-1", "access-1"))
    token_file = tmp_path / "token"
    token_file.write_text("no-such-token\n")
    agent = ConsulAgent(
        folder=tmp_path / "agent",
        token=MANAGER,
        tls=ConsulTls(ca=ca.file, certificate=server.certificate, key=server.key, verify_clients=True),
    )
    await agent.start()
    try:
        for name, token, rules in (
            ("nodes", NODE_TOKEN, RULES),
            ("half", HALF_TOKEN, RULES.replace("session", "query")),
        ):
            await operate(agent, "PUT", "acl/policy", MANAGER, json={"Name": name, "Rules": rules})
            grant = {"SecretID": token, "Policies": [{"Name": name}]}
            await operate(agent, "PUT", "acl/token", MANAGER, json=grant)
        files = {
            "consul_token_file": str(token_file),
            "consul_ca_file": str(ca.file),
            "consul_certificate": str(client.certificate),
            "consul_key": str(client.key),
        }
        async with registry_at(agent, prefix="acl", consul_datacenter="dc1", **files) as registry:
            for call in (
                registry.get("k"),
                registry.put("k", b""),
                registry.register(instance(), ttl_ms=10_000),
                registry.open_session("one", ttl_ms=10_000),
            ):
                with pytest.raises(StoreUnavailable, match="token"):
                    await call
            token_file.write_text("two words\n")
            await asyncio.sleep(LOOK_MS / 1000)
            with capture_logs() as logs, pytest.raises(StoreUnavailable, match="token"):
                await registry.get("k")
            assert [line["event"] for line in logs] == ["consul_secrets_not_loaded"]
            token_file.write_text(f"{NODE_TOKEN}\n")
            await asyncio.sleep(LOOK_MS / 1000)
            await use_everything(registry)
        token_file.write_text(f"{HALF_TOKEN}\n")
        async with registry_at(agent, prefix="acl", **files) as registry:
            with pytest.raises(StoreUnavailable, match=r"open_session.*token"):
                await registry.register(instance(), ttl_ms=10_000)
            assert await operate(agent, "GET", "agent/services", MANAGER) == {}
        token_file.write_text(f"{NODE_TOKEN}\n")
        async with registry_at(agent, prefix="others", **files) as registry:
            with pytest.raises(StoreUnavailable, match="token"):
                await registry.put("k", b"", expect=0)
        del files["consul_certificate"], files["consul_key"]
        async with registry_at(agent, prefix="acl", **files) as registry:
            with pytest.raises(StoreUnavailable, match=r"(?i)certificate|ssl"):
                await registry.get("k")
    finally:
        agent.kill()


async def use_everything(registry: Registry) -> None:
    """One of each call of the port."""
    index = await registry.put("k", b"1", expect=0)
    with pytest.raises(CasConflict):
        await registry.put("k", b"2", expect=0)
    await registry.put("long", bytes(500_000))
    assert len((await registry.scan("", after=0, wait_ms=1)).items) == 2
    assert await registry.delete("k", expect=index) is True
    await registry.register(instance(), ttl_ms=10_000)
    await registry.heartbeat("access-1", 1, b"note")
    assert await ids(registry) == ["access-1"]
    session = await registry.open_session("one", ttl_ms=10_000)
    await registry.renew_session(session)
    assert await registry.acquire("lock", session, b"") is not None
    assert await registry.release("lock", session) is True
    await registry.close_session(session)
    await registry.deregister("access-1", 1)


async def test_requests_are_counted_by_what_became_of_them(agent: ConsulAgent) -> None:
    """Operators see from each node whether its agent answers, and how fast."""
    async with registry_at(agent) as registry:
        metrics = Metrics("access-1")
        registry.count_in(ConsulMetrics(metrics, node="access-1"))
        await registry.put("k", b"")
        agent.kill()
        with pytest.raises(StoreUnavailable):
            await registry.get("k")
        text = metrics.render().decode()
    sample = 'roadstead_consul_calls_total{call="%s",node="access-1",outcome="%s"} 1.0'
    assert sample % ("transact", "answered") in text
    assert sample % ("get", "failed") in text
    assert 'roadstead_consul_call_seconds_count{node="access-1"} 2.0' in text


async def test_files_that_cannot_be_used_are_told_at_the_start(consul: ConsulAgent, tmp_path: Path) -> None:
    """A token file without a token, a CA that is none."""
    (tmp_path / "empty").write_text("\n")
    for settings in (
        {"consul_token_file": str(tmp_path / "empty")},
        {"consul_token_file": str(tmp_path / "missing")},
        {"consul_ca_file": str(tmp_path / "empty"), "consul_url": "https://127.0.0.1:8501"},
    ):
        with pytest.raises(ConfigError):
            async with registry_at(consul, **settings):
                pass


def test_consul_is_found_or_missed_with_the_ways_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A name that leads nowhere is an error too, even where another Consul is installed."""
    monkeypatch.setenv("ROADSTEAD_CONSUL", str(find_consul()))
    assert find_consul() == find_consul(find_consul())
    with pytest.raises(ConfigError, match="was expected there"):
        find_consul(tmp_path / "consul")
    monkeypatch.delenv("ROADSTEAD_CONSUL")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    with pytest.raises(ConfigError, match="deploy/consul/install"):
        find_consul()


class _LosingProxy:
    """Carries bytes to an agent, and closes instead of bringing the answer to the next request that begins so."""

    def __init__(self, host: str, port: int) -> None:
        self.url = ""
        self.loses = b""
        self.lost = 0
        self._target = (host, port)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._target)
        is_lost = False

        async def forth() -> None:
            nonlocal is_lost
            while data := await reader.read(65_536):
                if self.loses and data.startswith(self.loses):
                    self.loses, is_lost = b"", True
                back.write(data)
                await back.drain()
            back.close()

        async def home() -> None:
            while data := await there.read(65_536):
                if is_lost:
                    self.lost += 1
                    break
                writer.write(data)
                await writer.drain()
            writer.close()
            back.close()

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(forth())
                tasks.create_task(home())
        except* OSError:
            writer.close()
            back.close()


@asynccontextmanager
async def loses_answers(host: str, port: int) -> AsyncIterator[_LosingProxy]:
    proxy = _LosingProxy(host, port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield proxy
