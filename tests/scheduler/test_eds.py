"""Endpoint discovery for Envoy: who is in which cluster, how heavy, and what a poll costs that finds nothing new."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from base.http import Credentials, HttpServer, Role
from base.ids import NodeId
from base.metrics import Metrics
from scheduler.core.node import AccessNode
from scheduler.eds import PATH, TYPE, UINT32_MAX, Eds

Connect = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]
KEYS = Credentials({"viewer": Role.VIEWER})
HEADERS = {"Authorization": "Bearer viewer"}


def node(number: int = 1, **values: Any) -> AccessNode:
    """Return access-N, which takes clients on 10.0.0.N."""
    given_: dict[str, Any] = {
        "url": f"http://10.0.0.{number}:8000",
        "region": "sh",
        "version": "1.0.0",
        "capacity": 100,
    }
    return AccessNode(id=NodeId(f"access-{number}"), **(given_ | values))


def arm_of(one: AccessNode) -> str:
    return "fast" if one.version == "2.0.0" else "stable"


class Scheduler:
    """What is asked, and the nodes that it knows."""

    def __init__(self, nodes: Sequence[AccessNode] = (), *, ramp: float = 1.0) -> None:
        self.nodes = nodes
        self.ramp = ramp
        self.http = HttpServer("scheduler-1", Metrics("scheduler-1"), statistics=dict)
        self.eds = Eds(
            nodes=lambda: self.nodes, arm_of=arm_of, weight=lambda one: one.capacity * self.ramp, credentials=KEYS
        )
        self.eds.add_to(self.http.app.router)
        self.client: TestClient[web.Request, web.Application] | None = None

    async def ask(self, body: Any, status: int = 200, headers: dict[str, str] = HEADERS) -> Any:
        assert self.client is not None
        async with self.client.post(PATH, json=body, headers=headers) as answer:
            assert answer.status == status, await answer.text()
            return await answer.json() if status != 304 else None

    async def endpoints(self, cluster: str = "access") -> dict[str, dict[str, Any]]:
        """Return the endpoints of a cluster by node."""
        (resource,) = (await self.ask({"resource_names": [cluster]}))["resources"]
        assert (resource["@type"], resource["cluster_name"]) == (TYPE, cluster)
        return {name_of(one): one for locality in resource["endpoints"] for one in locality["lb_endpoints"]}


def name_of(endpoint: dict[str, Any]) -> str:
    name = endpoint["metadata"]["filter_metadata"]["envoy.lb"]["node"]
    assert isinstance(name, str)
    return name


@pytest.fixture
def connect(aiohttp_client: Connect) -> Callable[[Scheduler], Awaitable[Scheduler]]:
    async def connected(scheduler: Scheduler) -> Scheduler:
        scheduler.client = await aiohttp_client(scheduler.http.app)
        return scheduler

    return connected


Connected = Callable[[Scheduler], Awaitable[Scheduler]]


async def test_an_endpoint_has_address_weight_region_and_what_a_subset_is_made_by(connect: Connected) -> None:
    """The whole answer, as Envoy reads it."""
    scheduler = await connect(
        Scheduler([node(2, version="2.0.0", region="bj"), node(1, capacity=300, url="http://[::1]:9")])
    )
    answer = await scheduler.ask({"resource_names": ["access"], "type_url": TYPE, "node": {"id": "envoy"}})
    assert answer["type_url"] == TYPE
    assert answer["resources"] == [
        {
            "@type": TYPE,
            "cluster_name": "access",
            "endpoints": [
                {
                    "locality": {"region": region},
                    "load_balancing_weight": weight,
                    "lb_endpoints": [
                        {
                            "endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}},
                            "health_status": "HEALTHY",
                            "load_balancing_weight": weight,
                            "metadata": {
                                "filter_metadata": {"envoy.lb": {"canary": is_canary, "node": name, "version": version}}
                            },
                        }
                    ],
                }
                for region, weight, address, port, is_canary, name, version in (
                    ("bj", 100, "10.0.0.2", 8000, True, "access-2", "2.0.0"),
                    ("sh", 300, "::1", 9, False, "access-1", "1.0.0"),
                )
            ],
        }
    ]


async def test_a_cluster_is_all_nodes_those_of_an_arm_or_those_of_a_region(connect: Connected) -> None:
    """A name that means none of these gets no endpoints, and no error that would stop the others."""
    scheduler = await connect(
        Scheduler([node(1), node(2, version="2.0.0"), node(3, region="bj"), node(4, version="2.0.0", region="bj")])
    )
    members = {
        "access": "1234",
        "access-stable": "13",
        "access-fast": "24",
        "access@sh": "12",
        "access@bj": "34",
        "access-slow": "",
        "access@gz": "",
        "access@": "",
        "access-": "",
        "other": "",
        "": "",
    }
    answer = await scheduler.ask({"resource_names": [*members, "access"]})
    found = {
        resource["cluster_name"]: "".join(
            name_of(one)[-1] for locality in resource["endpoints"] for one in locality["lb_endpoints"]
        )
        for resource in answer["resources"]
    }
    assert {name: "".join(sorted(numbers)) for name, numbers in found.items()} == members
    assert len(answer["resources"]) == len(members)


@pytest.mark.parametrize("values", [{"is_draining": True}, {"is_cordoned": True}, {"capacity": 0}])
async def test_who_takes_no_clients_is_draining_and_adds_nothing_to_its_region(
    connect: Connected, values: dict[str, Any]
) -> None:
    """It stays in the list: taking it out would have Envoy forget its connections. A weight of 0 would be refused."""
    scheduler = await connect(Scheduler([node(1, **values), node(2, capacity=70), node(3, region="bj", **values)]))
    endpoints = await scheduler.endpoints()
    status = {name: endpoint["health_status"] for name, endpoint in endpoints.items()}
    assert status == {"access-1": "DRAINING", "access-2": "HEALTHY", "access-3": "DRAINING"}
    assert endpoints["access-1"]["load_balancing_weight"] >= 1
    localities = (await scheduler.ask({"resource_names": ["access"]}))["resources"][0]["endpoints"]
    weights = [(one["locality"]["region"], one.get("load_balancing_weight")) for one in localities]
    assert weights == [("bj", None), ("sh", 70)]


async def test_slow_start_shows_in_tenths_of_the_capacity(connect: Connected) -> None:
    """So that a poll finds something new ten times in the whole of it, not every time."""
    scheduler = await connect(Scheduler([node(capacity=1_000)]))
    seen = []
    for thousandth in range(1_001):
        scheduler.ramp = thousandth / 1_000
        weight = scheduler.eds._weight(scheduler.nodes[0])
        assert abs(weight - max(100, thousandth)) <= 50
        seen.append(weight)
    assert sorted(set(seen)) == [100, 200, 300, 400, 500, 600, 700, 800, 900, 1_000]
    assert (await scheduler.endpoints())["access-1"]["load_balancing_weight"] == 1_000


async def test_who_has_the_version_gets_304_until_something_changes(connect: Connected) -> None:
    """The version is of the content alone: in whatever order the nodes come, from whichever scheduler."""
    scheduler = await connect(Scheduler([node(1), node(10), node(2)]))
    asked = {"resource_names": ["access", "access@sh"]}
    version = (await scheduler.ask(asked))["version_info"]
    scheduler.nodes = [node(2, connections=50, report=7), node(1), node(10)]
    await scheduler.ask(asked | {"version_info": version}, 304)
    await scheduler.ask({"resourceNames": asked["resource_names"], "versionInfo": version}, 304)
    other = await scheduler.ask({"resource_names": ["access"], "version_info": version})
    assert other["version_info"] != version  # it asks for something else
    scheduler.nodes = [node(2, is_draining=True), node(1), node(10)]
    changed = await scheduler.ask(asked | {"version_info": version})
    assert changed["version_info"] != version


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://10.0.0.9", ("10.0.0.9", 80)),
        ("https://10.0.0.9", ("10.0.0.9", 443)),
        ("https://[2001:DB8::0:1]:9/path", ("2001:db8::1", 9)),
        ("http://access-1.example.com:80", None),
        ("http://localhost:80", None),
        ("http://[fe80::1%eth0]:80", None),
        ("http://10.0.0.9:70000", None),
        ("http://10.0.0.9:x", None),
        ("http://[::1:80", None),
        ("10.0.0.9:80", None),
        ("ftp://10.0.0.9", None),
        ("", None),
    ],
)
async def test_a_node_without_an_ip_address_is_left_out_and_logged_once(
    connect: Connected, url: str, expected: tuple[str, int] | None
) -> None:
    """One that Envoy cannot use would have it refuse the whole answer."""
    scheduler = await connect(Scheduler([node(1, url=url), node(2)]))
    with capture_logs() as logs:
        for _ in range(2):
            endpoints = await scheduler.endpoints()
    if expected is None:
        assert set(endpoints) == {"access-2"}
        assert [(line["event"], line["access_node"]) for line in logs] == [("endpoint_left_out", "access-1")]
    else:
        address = endpoints["access-1"]["endpoint"]["address"]["socket_address"]
        assert (address["address"], address["port_value"]) == expected
        assert not logs


async def test_a_scheduler_that_knows_no_node_is_not_ready_rather_than_emptying_every_envoy(connect: Connected) -> None:
    """An Envoy goes on with what it has when it gets an error."""
    scheduler = await connect(Scheduler())
    assert (await scheduler.ask({"resource_names": ["access"]}, 503))["error"]["name"] == "not_ready"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "1 to 1000 clusters"),
        ({"resource_names": None}, "1 to 1000 clusters"),
        ({"resource_names": [str(number) for number in range(1_001)]}, "1 to 1000 clusters"),
        ({"resource_names": "access"}, "resource_names"),
        ({"resource_names": [1]}, "resource_names"),
        ({"resource_names": ["access"], "type_url": "type.googleapis.com/envoy.config.cluster.v3.Cluster"}, "type_url"),
        ({"resource_names": ["access"], "version_info": 1}, "version_info"),
        ([], "object"),
    ],
)
async def test_a_request_that_is_none_is_told_what_is_wrong(connect: Connected, body: Any, says: str) -> None:
    """With status 400."""
    scheduler = await connect(Scheduler([node()]))
    error = (await scheduler.ask(body, 400))["error"]
    assert says in error["message"]


async def test_a_viewers_key_is_needed(connect: Connected) -> None:
    """Before anything else is looked at."""
    scheduler = await connect(Scheduler([node()]))
    await scheduler.ask("nonsense", 401, headers={})
    await scheduler.ask("nonsense", 401, headers={"Authorization": "Bearer other"})


NODES = st.lists(
    st.builds(
        node,
        st.integers(1, 250),
        capacity=st.one_of(st.integers(0, 10), st.integers(0, 2**40)),
        region=st.sampled_from(["", "sh", "bj"]),
        is_draining=st.booleans(),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda one: one.id,
)


@given(NODES, st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_every_answer_is_one_that_envoy_takes(nodes: list[AccessNode], ramp: float) -> None:
    """Weights are at least 1, no sum of them is over 32 bits, and a region's is that of who takes clients in it."""
    eds = Scheduler(nodes, ramp=ramp).eds
    assignment = eds._assignment("access", eds._reachable())
    assert sum(len(locality.lb_endpoints) for locality in assignment.endpoints) == len(nodes)
    assert math.fsum(locality.load_balancing_weight or 0 for locality in assignment.endpoints) <= UINT32_MAX
    for locality in assignment.endpoints:
        weights = [one.load_balancing_weight for one in locality.lb_endpoints]
        assert min(weights) >= 1
        assert sum(weights) <= UINT32_MAX
        taking = [one.load_balancing_weight for one in locality.lb_endpoints if one.health_status == "HEALTHY"]
        assert locality.load_balancing_weight == (sum(taking) or None)
