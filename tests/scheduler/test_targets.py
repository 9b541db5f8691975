"""Whom a Prometheus is told to scrape."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from base.core.registry import ServiceInstance
from base.errors import StoreUnavailable
from base.http import Credentials, HttpServer, Role
from base.ids import NodeId
from base.metrics import Metrics
from scheduler import targets
from scheduler.core.node import AccessNode
from scheduler.targets import PATH, Targets

Connect = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]
KEYS = Credentials({"viewer": Role.VIEWER})
NODES = (
    AccessNode(id=NodeId("access-2"), url="http://c:1", region="bj", version="2.0.0", capacity=1),
    AccessNode(id=NodeId("access-10"), url="http://c:2", version="1.0.0", capacity=1),
)


def instance(name: str, service: str = "access", url: str = "http://10.0.0.1:7001", **meta: str) -> ServiceInstance:
    return ServiceInstance(id=name, service=service, url=url, incarnation=1, meta=meta)


INSTANCES = (
    instance("access-10", url="http://[::1]:7010"),
    instance("access-2"),
    instance("access-3", region="gz"),
    instance("access-4", url="http://[::1"),
)


async def services(name: str) -> list[ServiceInstance]:
    """What the registry says."""
    if name == "stuck":
        await asyncio.sleep(60)
    if name == "lost":
        raise StoreUnavailable("the registry is away")
    return [instance("status-1", "status", "http://10.0.0.2:7100", region="sh")] if name == "status" else []


@pytest.fixture
def ask(aiohttp_client: Connect) -> Callable[..., Awaitable[tuple[int, Any]]]:
    async def asked(query: str = "", nodes: tuple[AccessNode, ...] = NODES, key: str = "viewer") -> tuple[int, Any]:
        server = HttpServer("scheduler-1", Metrics("scheduler-1"), statistics=dict)
        Targets(
            instances=lambda: INSTANCES,
            nodes=lambda: nodes,
            arm_of=lambda node: "fast" if node.version == "2.0.0" else "stable",
            services=services,
            credentials=KEYS,
        ).add_to(server.app.router)
        client = await aiohttp_client(server.app)
        async with client.get(PATH + query, headers={"Authorization": f"Bearer {key}"}) as answer:
            assert answer.content_type == "application/json"
            return answer.status, await answer.json()

    return asked


Ask = Callable[..., Awaitable[tuple[int, Any]]]


async def test_access_nodes_are_told_with_the_labels_that_tell_a_canary(ask: Ask) -> None:
    """At their internal address, all labels strings. One that is not decided on yet has those of its registration.

    One whose address is none is left out.
    """
    assert await ask() == (
        200,
        [
            {
                "targets": ["10.0.0.1:7001"],
                "labels": {
                    "node": "access-2",
                    "service": "access",
                    "region": "bj",
                    "version": "2.0.0",
                    "canary": "true",
                },
            },
            {"targets": ["10.0.0.1:7001"], "labels": {"node": "access-3", "service": "access", "region": "gz"}},
            {
                "targets": ["[::1]:7010"],
                "labels": {
                    "node": "access-10",
                    "service": "access",
                    "region": "",
                    "version": "1.0.0",
                    "canary": "false",
                },
            },
        ],
    )


async def test_the_instances_of_another_service_come_from_the_registry(ask: Ask) -> None:
    """None for one that nobody runs."""
    labels = {"node": "status-1", "service": "status", "region": "sh"}
    assert await ask("?service=status") == (200, [{"targets": ["10.0.0.2:7100"], "labels": labels}])
    assert await ask("?service=nothing") == (200, [])


async def test_what_is_not_known_is_an_error_so_that_prometheus_keeps_its_list(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first view of the nodes, and while the registry is away or stuck."""
    monkeypatch.setattr(targets, "DEADLINE_S", 0.05)
    found = [await ask(nodes=()), await ask("?service=lost"), await ask("?service=stuck")]
    assert [(status, body["error"]["name"]) for status, body in found] == [
        (503, "not_ready"),
        (503, "store_unavailable"),
        (503, "store_unavailable"),
    ]


@pytest.mark.parametrize("query", ["?service=", "?service=%00", f"?service={'x' * 129}"])
async def test_a_name_that_is_none_is_refused(ask: Ask, query: str) -> None:
    """With status 400."""
    status, body = await ask(query)
    assert (status, body["error"]["name"]) == (400, "bad_request")


async def test_a_viewers_key_is_needed(ask: Ask) -> None:
    """Addresses of nodes are nobody else's business."""
    assert (await ask(key="other"))[0] == 401
