"""Other people's programs follow our access nodes: Envoy, HAProxy, Prometheus and an OpenFeature SDK, the real ones.

Each gets the configuration that an operator would write, with shorter intervals. What must be seen at the other end is
what the scheduler knows: who is there, how much each takes, who is the canary, and that a drain is followed at once
while nobody who is connected is cut.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import FlagNotFoundError, OpenFeatureError, TargetingKeyMissingError

from base.core.registry import ServiceInstance
from base.http import Credentials, HttpServer, Role
from base.ids import NodeId
from base.metrics import Metrics
from roadstead.ports import free_ports
from scheduler.agent_check import AgentCheck
from scheduler.core.cohorts import ActiveRollout, Cohort
from scheduler.core.node import AccessNode
from scheduler.core.request import Location, Request
from scheduler.core.rollout import Rollout
from scheduler.eds import Eds
from scheduler.ofrep import Ofrep
from scheduler.promql import Failed, Measured, NoData, Prometheus
from scheduler.targets import Targets
from tests.process.programs import running, until

pytestmark = pytest.mark.process

KEY = "a-key-of-an-operator"
FOLLOWED_S = 5.0
"""A drain must be seen by then. With the intervals below it takes Envoy 0.5 to 1 s and HAProxy 0.5 s at most."""
ROLLOUT = ActiveRollout(
    rollout=Rollout(name="access-2", version="2.0.0", seed="access-2", steps=()), percent=30_000, is_failed=False
)


# ---------------------------------------------------------------- what they talk to


class Fleet:
    """Two access nodes, of which the second is the canary, behind all that other programs can ask."""

    def __init__(self) -> None:
        self.url = ""
        self.agent_port = 0
        self.nodes: tuple[AccessNode, ...] = ()
        self.rollouts = (ROLLOUT,)

    def change(self, node: str, **values: Any) -> None:
        """Let a node report something else."""
        self.nodes = tuple(replace(one, **values) if one.id == node else one for one in self.nodes)

    def instances(self) -> list[ServiceInstance]:
        """The registrations; all say the one port that there is."""
        return [ServiceInstance(id=node.id, service="access", url=self.url, incarnation=1) for node in self.nodes]

    async def services(self, _name: str) -> list[ServiceInstance]:
        return []

    @staticmethod
    def arm_of(node: AccessNode) -> str:
        return ROLLOUT.rollout.name if node.version == ROLLOUT.rollout.version else "stable"

    @staticmethod
    def weight(node: AccessNode) -> float:
        return float(node.capacity)


@asynccontextmanager
async def a_fleet(*ports: int) -> AsyncIterator[Fleet]:
    """Serve it. `ports`: where clients of access-1 and access-2 connect."""
    fleet = Fleet()
    fleet.nodes = tuple(
        AccessNode(
            id=NodeId(f"access-{number}"),
            url=f"http://127.0.0.1:{port}",
            region="sh" if number == 1 else "bj",
            version=f"{number}.0.0",
            capacity=30_000 // number,
            connections=3_000,
            report=1,
        )
        for number, port in enumerate(ports, 1)
    )
    credentials = Credentials({KEY: Role.BACKEND})
    server = HttpServer("access-1", Metrics("access-1"), statistics=dict)
    router = server.app.router
    Eds(nodes=lambda: fleet.nodes, arm_of=fleet.arm_of, weight=fleet.weight, credentials=credentials).add_to(router)
    Targets(
        instances=fleet.instances,
        nodes=lambda: fleet.nodes,
        arm_of=fleet.arm_of,
        services=fleet.services,
        credentials=credentials,
    ).add_to(router)
    located = lambda _address, region: Location(region=region)  # noqa: E731
    Ofrep(rollouts=lambda: fleet.rollouts, locate=located, credentials=credentials).add_to(router)
    agent = AgentCheck(nodes=lambda: fleet.nodes, weight=fleet.weight, proxies=2)
    try:
        fleet.url = await server.listen("127.0.0.1", 0)
        fleet.agent_port = await agent.listen("127.0.0.1", 0)
        yield fleet
    finally:
        await agent.close()
        await server.close()


class Backend:
    """Where clients of a node connect: it says its name, then echoes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        writer.write(f"{self.name}\n".encode())
        with suppress(OSError):
            while line := await reader.readline():
                writer.write(line)
        writer.close()


async def call(where: tuple[str, int] | Path) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect through a proxy and return the name of the node at the other end."""
    opened = asyncio.open_unix_connection(where) if isinstance(where, Path) else asyncio.open_connection(*where)
    reader, writer = await opened
    return (await reader.readline()).decode().strip(), reader, writer


async def names(where: tuple[str, int] | Path, count: int) -> Counter[str]:
    """Return who answers so many connections, one after the other."""
    found: Counter[str] = Counter()
    for _ in range(count):
        name, _reader, writer = await call(where)
        writer.close()
        found[name] += 1
    return found


async def echoes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    writer.write(b"still there?\n")
    return await reader.readline() == b"still there?\n"


# ---------------------------------------------------------------- Envoy


def envoy_bootstrap(scheduler: str, cluster: str) -> dict[str, Any]:
    """Return a configuration: a TCP proxy to the access nodes, which the scheduler names."""
    host, port = scheduler.removeprefix("http://").split(":")
    extensions = "type.googleapis.com/envoy.extensions"
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    protocol = {
        "@type": f"type.googleapis.com/{options}",
        "explicit_http_config": {"http_protocol_options": {}},
        # How Envoy shows its key: REST has no field for it, but its requests pass through the cluster's filters.
        "http_filters": [
            {
                "name": "key",
                "typed_config": {
                    "@type": f"{extensions}.filters.http.header_mutation.v3.HeaderMutation",
                    "mutations": {
                        "request_mutations": [
                            {"append": {"header": {"key": "Authorization", "value": f"Bearer {KEY}"}}}
                        ]
                    },
                },
            },
            {"name": "codec", "typed_config": {"@type": f"{extensions}.filters.http.upstream_codec.v3.UpstreamCodec"}},
        ],
    }
    static = {
        "name": "scheduler",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "scheduler",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(host, int(port))}}]}],
        },
        "typed_extension_protocol_options": {options: protocol},
    }
    followed = {
        "name": cluster,
        "type": "EDS",
        "lb_policy": "ROUND_ROBIN",
        "eds_cluster_config": {
            "service_name": cluster,
            "eds_config": {
                "resource_api_version": "V3",
                "api_config_source": {
                    "api_type": "REST",
                    "transport_api_version": "V3",
                    "cluster_names": ["scheduler"],
                    "refresh_delay": "0.5s",
                    "request_timeout": "1s",
                },
            },
        },
    }
    proxy = {
        "@type": f"{extensions}.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "access",
        "cluster": cluster,
    }
    listener = {
        "name": "clients",
        "address": address("127.0.0.1", 0),
        "filter_chains": [{"filters": [{"name": "proxy", "typed_config": proxy}]}],
    }
    return {
        "node": {"id": "envoy-1", "cluster": "front"},
        "admin": {"address": address("127.0.0.1", 0)},
        "static_resources": {"clusters": [static, followed], "listeners": [listener]},
    }


def address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


class Admin:
    """Envoy's administration port."""

    def __init__(self, http: aiohttp.ClientSession, file: Path) -> None:
        self._http = http
        self._file = file

    async def get(self, path: str) -> Any:
        async with self._http.get(f"http://{self._file.read_text()}{path}") as answer:
            return await answer.json(content_type=None) if "json" in path else await answer.text()

    async def hosts(self, cluster: str) -> dict[int, dict[str, Any]]:
        """Return the cluster's endpoints by port: weight, region, canary, health flags, connections."""
        found: dict[int, dict[str, Any]] = {}
        for line in str(await self.get("/clusters")).splitlines():
            parts = line.split("::")
            if parts[0] == cluster and parts[1].startswith("127.0.0.1:"):
                found.setdefault(int(parts[1].rsplit(":")[1]), {})[parts[2]] = parts[3]
        return found

    async def listener(self) -> tuple[str, int]:
        (shown,) = (await self.get("/listeners?format=json"))["listener_statuses"]
        where = shown["local_address"]["socket_address"]
        return where["address"], where["port_value"]

    async def stat(self, name: str) -> int:
        text = str(await self.get(f"/stats?filter=^{name}$"))
        return int(text.split(": ")[1])


@pytest.mark.spec("AL-04")
async def test_envoy_gets_weights_regions_and_canary_and_follows_a_drain(tmp_path: Path) -> None:
    """By endpoint discovery over REST; a drain within two polls, and connections that are open stay."""
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(Backend(f"access-{number}")) for number in (1, 2)]
        fleet = await stack.enter_async_context(a_fleet(one.port, two.port))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        (tmp_path / "envoy.json").write_text(json.dumps(envoy_bootstrap(fleet.url, "access")))
        command = [str(Path(sys.executable).parent / "envoy"), "-c", str(tmp_path / "envoy.json"), "--concurrency", "1"]
        command += ["--disable-hot-restart", "--log-level", "warning", "--admin-address-path", str(tmp_path / "admin")]
        await stack.enter_async_context(running(tmp_path / "envoy.log", *command))
        admin = Admin(http, tmp_path / "admin")

        async def both() -> dict[int, dict[str, Any]] | None:
            hosts = await admin.hosts("access")
            return hosts if len(hosts) == 2 else None

        hosts = await until(both)
        wanted = ("weight", "region", "canary", "health_flags")
        shown = {port: [host[name] for name in wanted] for port, host in hosts.items()}
        assert shown == {
            one.port: ["30000", "sh", "false", "healthy"],
            two.port: ["15000", "bj", "true", "healthy"],
        }
        dump = json.dumps(await admin.get("/config_dump?include_eds&format=json"))
        assert '"version": "2.0.0"' in dump
        where = await until(admin.listener)
        assert 18 <= (await names(where, 30))["access-1"] <= 22  # two thirds; where its round begins is random

        name, reader, writer = await call(where)
        while name != "access-1":
            writer.close()
            name, reader, writer = await call(where)
        fleet.change("access-1", is_draining=True)

        async def is_drained() -> bool:
            return "eds" in (await admin.hosts("access"))[one.port]["health_flags"]

        await until(is_drained, within_s=FOLLOWED_S)
        assert await names(where, 10) == {"access-2": 10}
        assert await echoes(reader, writer)
        writer.close()

        async def was_told_that_nothing_is_new() -> bool:
            polls, taken = [await admin.stat(f"cluster.access.update_{what}") for what in ("attempt", "success")]
            return polls > taken + 1  # one may be under way

        await until(was_told_that_nothing_is_new)
        assert [await admin.stat(f"cluster.access.update_{what}") for what in ("rejected", "failure")] == [0, 0]


# ---------------------------------------------------------------- HAProxy

HAPROXY = """
global
    stats socket {folder}/s
defaults
    mode tcp
    timeout connect 1s
    timeout client 30s
    timeout server 30s
frontend clients
    bind unix@{folder}/c
    default_backend access
backend access
    balance roundrobin
    default-server weight 100 agent-check agent-addr 127.0.0.1 agent-port {agent} agent-inter 500ms
    server access-1 127.0.0.1:{one} agent-send "access-1\\n"
    server access-2 127.0.0.1:{two} agent-send "access-2\\n"
    server access-3 127.0.0.1:{one} agent-send "access-3\\n"
"""


async def haproxy_servers(stats: Path) -> dict[str, dict[str, str]]:
    """Return what `show stat` says of each server."""
    reader, writer = await asyncio.open_unix_connection(stats)
    writer.write(b"show stat\n")
    text = (await reader.read()).decode().removeprefix("# ")
    writer.close()
    rows = csv.DictReader(io.StringIO(text))
    return {row["svname"]: row for row in rows if row["svname"].startswith("access-")}


@pytest.mark.spec("AL-04")
async def test_haproxy_gets_weight_and_limit_and_follows_a_drain(tmp_path: Path) -> None:
    """By its agent checks; a server that is no access node is down, and connections that are open stay."""
    stats, clients = tmp_path / "s", tmp_path / "c"
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(Backend(f"access-{number}")) for number in (1, 2)]
        fleet = await stack.enter_async_context(a_fleet(one.port, two.port))
        written = HAPROXY.format(folder=tmp_path, agent=fleet.agent_port, one=one.port, two=two.port)
        (tmp_path / "haproxy.cfg").write_text(written)
        command = ["haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg")]
        await stack.enter_async_context(running(tmp_path / "haproxy.log", *command))

        async def seen(name: str, *wanted: str) -> bool:
            server = (await haproxy_servers(stats))[name]
            return tuple(server[field] for field in ("status", "weight", "agent_status")[: len(wanted)]) == wanted

        await until(lambda: seen("access-1", "no check", "90", "L7OK"))
        await until(lambda: seen("access-2", "no check", "80", "L7OK"))
        await until(lambda: seen("access-3", "DOWN (agent)"))
        servers = await haproxy_servers(stats)
        assert [servers[f"access-{number}"]["slim"] for number in (1, 2)] == ["15000", "7500"]
        assert "unknown node" in servers["access-3"]["last_agt"]
        assert set(await names(clients, 10)) == {"access-1", "access-2"}

        name, reader, writer = await call(clients)
        while name != "access-1":
            writer.close()
            name, reader, writer = await call(clients)
        fleet.change("access-1", is_draining=True)
        await until(lambda: seen("access-1", "DRAIN (agent)"), within_s=FOLLOWED_S)
        assert await names(clients, 10) == {"access-2": 10}
        assert await echoes(reader, writer)
        writer.close()

        fleet.change("access-1", is_draining=False)
        await until(lambda: seen("access-1", "no check", "90"))


# ---------------------------------------------------------------- Prometheus

PROMETHEUS = """
global:
  scrape_interval: 1s
scrape_configs:
  - job_name: access
    honor_labels: true
    http_sd_configs:
      - url: {url}/v1/discovery/prometheus
        refresh_interval: 1s
        authorization: {{type: Bearer, credentials: {key}}}
"""


@pytest.mark.spec("AR-2")
async def test_prometheus_scrapes_the_nodes_it_is_told_of_and_answers_the_checks_of_a_rollout(tmp_path: Path) -> None:
    """By HTTP service discovery, with the labels that tell canary from stable; then our client asks it."""
    (port,) = free_ports([0])
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(a_fleet(1, 2))
        (tmp_path / "prometheus.yml").write_text(PROMETHEUS.format(url=fleet.url, key=KEY))
        command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
        await stack.enter_async_context(running(tmp_path / "prometheus.log", *command))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        server = Prometheus(http, f"http://127.0.0.1:{port}")

        async def both() -> bool:
            return await server.measure("nodes", "count(up == 1)") == Measured(2.0)

        await until(both)
        canary = 'up{canary="true", node="access-2", region="bj", service="access", version="2.0.0"}'
        assert await server.measure("canary", canary) == Measured(1.0)
        assert await server.measure("scalar", "vector(1) / 4 and on() up{canary='false'}") == Measured(0.25)
        assert await server.measure("scalar", "scalar(count(up))") == Measured(2.0)
        assert isinstance(await server.measure("none", "up{canary='maybe'}"), NoData)
        assert await server.measure("nan", "vector(0) / 0") == NoData("the result is NaN")
        several = await server.measure("several", "up")
        assert several == Failed("the result has 2 samples: aggregate to one, with sum() or max()")
        wrong = await server.measure("wrong", "sum(")
        assert isinstance(wrong, Failed)
        assert wrong.reason.startswith("bad_data: ")
        matrix = await server.measure("matrix", "up[1m]")
        assert matrix == Failed("the result is a matrix: ask for a scalar or a vector of one sample")


# ---------------------------------------------------------------- OpenFeature


@pytest.mark.spec("AR-1")
async def test_an_openfeature_provider_is_told_who_is_in_the_canary() -> None:
    """By OFREP: the answer is the cohort's, for everybody."""
    async with a_fleet(1, 2) as fleet:
        provider = OFREPProvider(fleet.url, headers_factory=lambda: {"Authorization": f"Bearer {KEY}"})
        cohort = Cohort(ROLLOUT)

        def ask() -> None:
            canaries = 0
            for number in range(40):
                user = f"user-{number}"
                context = EvaluationContext(user, {"platform": "ios", "app": "5.1.0", "ip": "192.0.2.1"})
                found = provider.resolve_boolean_details("access-2", False, context)
                placed = cohort.place(Request(user, platform="ios", app="5.1.0", address="192.0.2.1"))
                assert found.value == placed.is_canary
                assert found.variant == ("canary" if placed.is_canary else "stable")
                assert found.reason == "SPLIT"
                assert found.flag_metadata["bucket"] == placed.bucket
                canaries += found.value
            assert 0 < canaries < 40
            with pytest.raises(FlagNotFoundError):
                provider.resolve_boolean_details("access-3", False, EvaluationContext("ann"))
            with pytest.raises(TargetingKeyMissingError):
                provider.resolve_boolean_details("access-2", False, EvaluationContext())
            provider.headers_factory = None
            with pytest.raises(OpenFeatureError, match="unauthorized"):
                provider.resolve_boolean_details("access-2", False, EvaluationContext("ann"))
            provider.session.close()

        await asyncio.to_thread(ask)
