"""The OpenAPI document has every route that the roles register and no other, and answers look as it says."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from access.api import transport_urls
from access.config import AccessConfig
from access.core.namespaces import Namespace
from base.clock import SystemClock
from base.errors import Code
from base.peer.server import PEER_PATH
from base.registry.sqlite import SqliteRegistry
from base.service import Service
from im.methods import METHODS
from roadstead.config import Config
from roadstead.deployment import DataFolder, Endpoints
from roadstead.openapi import document
from roadstead.up import _Wiring, run_up
from status.config import StatusConfig

NOT_PUBLIC = {PEER_PATH}
UNSAID = {"HEAD", "OPTIONS"}
SETTLE_S = 10.0
DOCUMENT = document()
Operations = set[tuple[str, str]]


def documented(*tags: str) -> Operations:
    """Return the operations of the document, those of some roles or all."""
    return {
        (method, path)
        for path, item in DOCUMENT["paths"].items()
        for method in ("get", "post", "put", "delete")
        if method in item and (not tags or set(item[method]["tags"]) & set(tags))
    }


def registered(service: Service) -> Operations:
    """Return what a role has on its port; HEAD comes with each GET, and OPTIONS is what browsers ask before it."""
    return {
        (route.method.lower(), route.resource.canonical)
        for route in service.node.http.app.router.routes()
        if route.resource is not None and route.method not in UNSAID and route.resource.canonical not in NOT_PUBLIC
    }


async def built(folder: Path, config: Config) -> list[Service]:
    """Return all services of a system that does not run."""
    data = DataFolder(folder)
    data.claim()
    secrets, clock = data.make_secrets(), SystemClock()
    registry = SqliteRegistry(clock, data.registry_db)
    try:
        return (await _Wiring(config, secrets, registry, clock).build(data.path)).in_order()
    finally:
        await registry.close()
        data.release()


async def test_every_route_is_documented_and_every_documented_path_is_there(tmp_path: Path) -> None:
    """Of each role what is tagged with it, and on every node what every node has."""
    tags = {"scheduler": ("scheduler",), "access": ("access",), "status": ("status",), "im": ("im",)}
    seen: Operations = set()
    for service in await built(tmp_path / "data", Config()):
        routes = registered(service)
        assert routes == documented("every node", *tags.get(service.node.service, ())), service.node.site.name
        seen |= routes
    assert seen == documented()


async def test_the_paths_of_the_status_role_are_there_with_any_backend(tmp_path: Path) -> None:
    """A gateway has a pattern for those that it refuses."""
    status = StatusConfig(backend="redis", redis_url="redis://127.0.0.1:1")
    services = await built(tmp_path / "data", msgspec.structs.replace(Config(), status=status))
    (gateway,) = (service for service in services if service.node.service == "status")
    routes = registered(gateway)
    patterns = [re.sub(r"\{what\}", r"[^/]+", path) for method, path in routes if method == "*"]
    exact = {route for route in routes if route[0] != "*"}
    assert exact < documented("every node", "status")
    for _, path in documented("every node", "status") - exact:
        assert any(re.fullmatch(pattern, path) for pattern in patterns), path


# ---------------------------------------------------------------- what the document says


def schemas_in(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of the document."""
    if isinstance(value, dict):
        yield value
    for below in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from schemas_in(below)


def test_references_lead_to_schemas_and_each_schema_is_used() -> None:
    names = {item["$ref"].removeprefix("#/components/schemas/") for item in schemas_in(DOCUMENT) if "$ref" in item}
    assert names == set(DOCUMENT["components"]["schemas"])


def test_operations_are_told_apart_and_their_path_parameters_described() -> None:
    ids = [DOCUMENT["paths"][path][method]["operationId"] for method, path in documented()]
    assert len(set(ids)) == len(ids)
    for method, path in documented():
        parameters = DOCUMENT["paths"][path][method].get("parameters", [])
        assert {one["name"] for one in parameters if one["in"] == "path"} == set(re.findall(r"\{(\w+)\}", path))


def test_every_method_of_clients_is_an_operation_of_backends() -> None:
    """Called the same, with the arguments and one of the results of the table."""
    for method in METHODS:
        operation = DOCUMENT["paths"][f"/v1/users/{{user}}/im/{method.name}"]["post"]
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": f"#/components/schemas/{method.arguments.__name__}"}
        answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
        named = [one["$ref"].rsplit("/", 1)[1] for one in answer.get("anyOf", [answer])]
        assert named == [result.__name__ for result in method.results]


# ---------------------------------------------------------------- what is answered


def faults(value: Any, schema: dict[str, Any], at: str = "answer") -> list[str]:
    """Return where a value differs from a schema, of the keywords that the document uses. Unknown fields differ."""
    if "$ref" in schema:
        return faults(value, DOCUMENT["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], at)
    if "anyOf" in schema:
        tried = [faults(value, one, at) for one in schema["anyOf"]]
        return [] if [] in tried else tried[0]
    found = [] if value in schema.get("enum", [value]) and value == schema.get("const", value) else [f"{at}: {value}"]
    match schema.get("type"):
        case "object" if isinstance(value, dict):
            return found + object_faults(value, schema, at)
        case "array" if isinstance(value, list):
            if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
                found.append(f"{at}: {len(value)} items")
            return found + [
                fault for n, item in enumerate(value) for fault in faults(item, schema["items"], f"{at}.{n}")
            ]
        case "string" if isinstance(value, str):
            is_right = schema.get("minLength", 0) <= len(value) and re.search(schema.get("pattern", ""), value)
        case "integer" | "number" as kind if isinstance(value, int if kind == "integer" else int | float):
            low, high = schema.get("minimum", value), schema.get("maximum", value)
            is_right = not isinstance(value, bool) and low <= value <= high
        case "boolean":
            is_right = isinstance(value, bool)
        case "null":
            is_right = value is None
        case None:
            is_right = True
        case _:
            is_right = False
    return found if is_right else [*found, f"{at}: {value!r} is no {schema}"]


def object_faults(value: dict[str, Any], schema: dict[str, Any], at: str) -> list[str]:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", not schema.get("properties"))
    found = [f"{at}.{name} is missing" for name in set(schema.get("required", ())) - set(value)]
    for name, item in value.items():
        if name in known:
            found += faults(item, known[name], f"{at}.{name}")
        elif isinstance(others, dict):
            found += faults(item, others, f"{at}.{name}")
        elif not others:
            found.append(f"{at}.{name} is not described")
    return found


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[tuple[Endpoints, str]]:
    """A whole system and its API key."""
    base = Config(access=AccessConfig(namespaces=(NEWS,)))
    config = msgspec.structs.replace(base, up=msgspec.structs.replace(base.up, port=0))
    ready: asyncio.Future[Endpoints] = asyncio.get_running_loop().create_future()
    stop, data = asyncio.Event(), DataFolder(tmp_path / "data")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run_up(config, data, on_ready=ready.set_result, stop=stop))
        try:
            yield await asyncio.wait_for(ready, SETTLE_S), data.secrets().api_key
        finally:
            stop.set()


NEWS = Namespace(name="news", history_size=10, presence=True, allow_subscribe="anyone")
CHANNEL = "news:1"
ROLLOUT = "rollout: fast\npool: {version: 9.9.9}\nsteps: [{percent: 10, hold: 10m}, {percent: 100}]\n"
POLICY = "policy: even\nrules: [{name: all, strategies: [canary, weighted]}]\n"
NODES, ROLLOUTS = "/v1/admin/access/nodes", "/v1/admin/rollouts"
REBALANCE, SHADOW = "/v1/admin/access/rebalance", "/v1/admin/policy/shadow"
FLAGS, EDS = "/ofrep/v1/evaluate/flags", "/v3/discovery:endpoints"
USER = {"context": {"targetingKey": "alice"}}
SCHEDULER_CALLS: list[tuple[str, str, str, Any]] = [
    ("get", "/v1/access", "/v1/access?user=alice&why", None),
    ("get", "/v1/access", "/v1/access?user=alice&device=phone", None),
    ("get", "/v1/access", "/v1/access", None),
    ("post", "/v1/access", "/v1/access", {"user": "alice", "address": "10.0.0.1", "why": True}),
    ("post", "/v1/access", "/v1/access", {"user": ""}),
    ("get", NODES, NODES, None),
    ("post", f"{NODES}/{{node}}/cordon", f"{NODES}/access-1/cordon", {"reason": "disk"}),
    ("post", f"{NODES}/{{node}}/cordon", f"{NODES}/access-9/cordon", None),
    ("post", f"{NODES}/{{node}}/cordon", f"{NODES}/access-1/cordon", {"reason": 1}),
    ("post", f"{NODES}/{{node}}/uncordon", f"{NODES}/access-1/uncordon", None),
    ("post", "/v1/admin/access/panic/accept", "/v1/admin/access/panic/accept", None),
    ("post", f"{REBALANCE}/pause", f"{REBALANCE}/pause", None),
    ("post", REBALANCE, REBALANCE, {"rate_per_s": 1}),
    ("post", REBALANCE, REBALANCE, {"rate_per_s": 0}),
    ("post", f"{REBALANCE}/resume", f"{REBALANCE}/resume", None),
    ("post", f"{REBALANCE}/abort", f"{REBALANCE}/abort", None),
    ("get", REBALANCE, REBALANCE, None),
    ("post", ROLLOUTS, f"{ROLLOUTS}?validate", {"document": ROLLOUT}),
    ("post", ROLLOUTS, f"{ROLLOUTS}?validate", {"document": POLICY}),
    ("post", ROLLOUTS, ROLLOUTS, {"document": POLICY}),
    ("post", ROLLOUTS, ROLLOUTS, {"document": ROLLOUT}),
    ("post", ROLLOUTS, ROLLOUTS, {"document": ROLLOUT}),
    ("get", ROLLOUTS, ROLLOUTS, None),
    ("get", f"{ROLLOUTS}/{{name}}", f"{ROLLOUTS}/fast", None),
    ("get", f"{ROLLOUTS}/{{name}}", f"{ROLLOUTS}/slow", None),
    ("get", f"{ROLLOUTS}/{{name}}/flagd", f"{ROLLOUTS}/fast/flagd", None),
    ("post", FLAGS, FLAGS, USER),
    ("post", FLAGS, FLAGS, {"context": {}}),
    ("post", f"{FLAGS}/{{key}}", f"{FLAGS}/fast", USER),
    ("post", f"{FLAGS}/{{key}}", f"{FLAGS}/slow", USER),
    ("delete", f"{ROLLOUTS}/{{name}}", f"{ROLLOUTS}/fast", None),
    ("post", f"{ROLLOUTS}/{{name}}/{{order}}", f"{ROLLOUTS}/fast/abort", None),
    ("post", f"{ROLLOUTS}/{{name}}/{{order}}", f"{ROLLOUTS}/fast/resume", None),
    ("delete", f"{ROLLOUTS}/{{name}}", f"{ROLLOUTS}/fast", None),
    ("get", SHADOW, SHADOW, None),
    ("put", SHADOW, SHADOW, {"document": POLICY}),
    ("get", SHADOW, SHADOW, None),
    ("delete", SHADOW, SHADOW, None),
    ("put", "/v1/admin/policy", "/v1/admin/policy?validate", {"document": ROLLOUT}),
    ("put", "/v1/admin/policy", "/v1/admin/policy", {"document": POLICY}),
    ("put", "/v1/admin/policy", "/v1/admin/policy", {"document": ROLLOUT}),
    ("get", "/v1/admin/policy", "/v1/admin/policy", None),
    ("put", "/v1/admin/lists/{name}", "/v1/admin/lists/staff", ["alice"]),
    ("put", "/v1/admin/lists/{name}", "/v1/admin/lists/staff", [1]),
    ("get", "/v1/admin/lists/{name}", "/v1/admin/lists/staff", None),
    ("get", "/v1/admin/lists/{name}", "/v1/admin/lists/STAFF", None),
    ("get", "/v1/admin/lists", "/v1/admin/lists", None),
    ("delete", "/v1/admin/lists/{name}", "/v1/admin/lists/staff", None),
    ("delete", "/v1/admin/lists/{name}", "/v1/admin/lists/staff", None),
    ("get", "/v1/admin/explain", "/v1/admin/explain?user=alice", None),
    ("get", "/v1/admin/explain", "/v1/admin/explain?decision=x-1", None),
    ("get", "/v1/admin/explain", "/v1/admin/explain", None),
    ("get", "/v1/admin/recording", "/v1/admin/recording?for_ms=0", None),
    ("post", EDS, EDS, {"resource_names": ["access", "access-stable"]}),
    ("post", EDS, EDS, {"resource_names": []}),
    ("get", "/v1/discovery/prometheus", "/v1/discovery/prometheus", None),
    ("get", "/v1/discovery/prometheus", "/v1/discovery/prometheus?service=status", None),
    ("get", "/v1/discovery/prometheus", "/v1/discovery/prometheus?service=", None),
]
MESSAGES, OFFLINE = "/v1/messages", "/v1/offline"
CHANGES, TIMELINE = "/v1/conversations/{cid}/changes", "/v1/users/{user}/timeline"
SENT = {"to": "b", "client_msg_id": "1", "body": [1]}
GROUP = {"client_msg_id": "g", "name": "team", "members": ["b", "c"]}
METHOD_CALLS: list[tuple[str, str, Any]] = [
    ("a", "send", {**SENT, "client_msg_id": "2", "mentions": ["b"], "reply_to": 1}),
    ("a", "send", {**SENT, "client_msg_id": "3", "ack": "queued"}),
    ("a", "send", {**SENT, "client_msg_id": "2"}),
    ("a", "send", {**SENT, "client_msg_id": "4", "reply_to": 99}),
    ("a", "send", {"cid": "77", "client_msg_id": "5", "body": 1}),
    ("a", "edit", {"cid": "1", "seq": 1, "client_msg_id": "6", "body": "new"}),
    ("b", "edit", {"cid": "1", "seq": 1, "client_msg_id": "7", "body": "new"}),
    ("a", "recall", {"cid": "1", "seq": 2, "client_msg_id": "8"}),
    ("a", "recall", {"cid": "1", "seq": 2, "client_msg_id": "9"}),
    ("b", "typing", {"cid": "1"}),
    ("c", "typing", {"cid": "1"}),
    ("b", "sync", {"since": 0}),
    ("b", "sync", {"since": 10_000}),
    ("b", "history", {"cid": "1", "after": 0}),
    ("c", "history", {"cid": "1"}),
    ("b", "search", {"cid": "1", "text": "new"}),
    ("c", "search", {"cid": "1", "text": "new"}),
    ("b", "mark", {"cid": "1", "read_seq": 1}),
    ("b", "mark", {"cid": "1"}),
    ("b", "set", {"cid": "1", "pin": True}),
    ("c", "set", {"cid": "1", "pin": True}),
    ("a", "receipts", {"cid": "1", "seq": 1}),
    ("a", "receipts", {"cid": "1", "seq": 99}),
    ("a", "group_create", GROUP),
    ("a", "group_create", {**GROUP, "name": "other"}),
    ("a", "group_change", {"cid": "2", "action": "rename", "value": "crew"}),
    ("b", "group_change", {"cid": "2", "action": "rename", "value": "mine"}),
    ("b", "members", {"cid": "2"}),
    ("d", "members", {"cid": "2"}),
    ("b", "conversations", None),
    ("b", "conversations", {"after": "x"}),
    ("b", "unread", None),
    ("b", "unread", []),
]
IM_CALLS: list[tuple[str, str, str, Any]] = [
    ("post", MESSAGES, MESSAGES, {"from": "a", **SENT}),
    ("post", MESSAGES, MESSAGES, {"from": "a", **SENT, "body": [2]}),
    ("post", MESSAGES, MESSAGES, {"from": "a"}),
    *(
        ("post", f"/v1/users/{{user}}/im/{name}", f"/v1/users/{user}/im/{name}", body)
        for user, name, body in METHOD_CALLS
    ),
    ("get", TIMELINE, "/v1/users/b/timeline?limit=10", None),
    ("get", TIMELINE, "/v1/users/b/timeline?limit=0", None),
    ("get", TIMELINE, "/v1/users/b/timeline?epoch=another", None),
    ("post", CHANGES, "/v1/conversations/2/changes", {"action": "invite", "users": ["d"]}),
    ("post", CHANGES, "/v1/conversations/2/changes", {"action": "fan_out", "value": "read"}),
    ("post", CHANGES, "/v1/conversations/2/changes", {"action": "dissolve"}),
    ("post", CHANGES, "/v1/conversations/2/changes", {"action": "rename", "value": "x"}),
    ("post", CHANGES, "/v1/conversations/x/changes", {"action": "dissolve"}),
    ("get", OFFLINE, f"{OFFLINE}?wait_ms=1", None),
    ("get", OFFLINE, f"{OFFLINE}?cursor=x", None),
]
CALLS: list[tuple[str, str, str, str, Any]] = [
    ("get", "scheduler", "/healthz", "/healthz", None),
    ("get", "im", "/readyz", "/readyz", None),
    ("get", "status", "/debug/statistics", "/debug/statistics", None),
    *((method, "scheduler", path, target, body) for method, path, target, body in SCHEDULER_CALLS),
    ("get", "status", "/v1/users/{user}/status", "/v1/users/alice/status", None),
    ("get", "status", "/v1/users/{user}/status", "/v1/users/alice/status?viewer=bob", None),
    ("post", "status", "/v1/users/status", "/v1/users/status", {"users": ["alice", "bob"]}),
    ("post", "status", "/v1/users/status", "/v1/users/status", {"users": ["u"] * 1_001}),
    ("get", "status", "/v1/status/count", "/v1/status/count", None),
    ("get", "status", "/v1/status/count", "/v1/status/count?node=access-1", None),
    ("get", "status", "/v1/events", "/v1/events?cursor=start&limit=10", None),
    ("get", "status", "/v1/events", "/v1/events?limit=0", None),
    ("get", "status", "/v1/admin/status/table", "/v1/admin/status/table", None),
    ("get", "status", "/v1/admin/status/digest", "/v1/admin/status/digest", None),
    ("get", "status", "/v1/admin/status/sessions", "/v1/admin/status/sessions?node=access-1", None),
    ("get", "status", "/v1/admin/status/sessions", "/v1/admin/status/sessions?node=access-1&cursor=x", None),
    ("get", "status", "/v1/admin/status/resize", "/v1/admin/status/resize", None),
    ("post", "status", "/v1/admin/status/resize", "/v1/admin/status/resize", {"to": 4, "plan": True}),
    ("post", "status", "/v1/admin/status/abort", "/v1/admin/status/abort", None),
    ("post", "status", "/v1/admin/status/pause", "/v1/admin/status/pause", None),
    ("post", "status", "/v1/admin/status/resume", "/v1/admin/status/resume", {}),
    *((method, "im", path, target, body) for method, path, target, body in IM_CALLS),
    ("get", "im", "/v1/admin/im/shards", "/v1/admin/im/shards", None),
    ("post", "im", "/v1/admin/im/shards/{shard}/move", "/v1/admin/im/shards/0/move", {"to": "im-2"}),
    ("post", "im", "/v1/admin/im/shards/{shard}/move", "/v1/admin/im/shards/first/move", {"to": "im-2"}),
    ("get", "access", "/v1/admin/access", "/v1/admin/access", None),
    ("get", "access", "/v1/admin/access/clients", "/v1/admin/access/clients?user=alice", None),
    ("get", "access", "/v1/admin/access/clients", "/v1/admin/access/clients", None),
    ("post", "access", "/v1/channels/publish", "/v1/channels/publish", {"channel": CHANNEL, "data": [1]}),
    ("post", "access", "/v1/channels/publish", "/v1/channels/publish", {"channel": "unknown:1", "data": [1]}),
    ("post", "access", "/v1/channels/broadcast", "/v1/channels/broadcast", {"channels": [CHANNEL, "x:1"], "data": {}}),
    ("post", "access", "/v1/channels/broadcast", "/v1/channels/broadcast", {"channels": [], "data": {}}),
    ("get", "access", "/v1/channels/{channel}/history", f"/v1/channels/{CHANNEL}/history?limit=1", None),
    ("get", "access", "/v1/channels/{channel}/history", f"/v1/channels/{CHANNEL}/history?offset=1&epoch=x", None),
    ("get", "access", "/v1/channels/{channel}/presence", f"/v1/channels/{CHANNEL}/presence", None),
    ("get", "access", "/v1/channels/{channel}/presence_stats", f"/v1/channels/{CHANNEL}/presence_stats", None),
    ("post", "access", "/v1/channels/unsubscribe", "/v1/channels/unsubscribe", {"channel": CHANNEL, "user": "alice"}),
    ("post", "access", "/v1/admin/access/pause", "/v1/admin/access/pause", None),
    ("post", "access", "/v1/admin/access/drain", "/v1/admin/access/drain", {"over_ms": 600_000}),
    ("post", "access", "/v1/admin/access/drain", "/v1/admin/access/drain", {"over_ms": -1}),
    ("post", "access", "/v1/admin/access/pause", "/v1/admin/access/pause", None),
    ("post", "access", "/v1/admin/access/resume", "/v1/admin/access/resume", None),
    ("post", "access", "/v1/admin/access/abort", "/v1/admin/access/abort", None),
    ("post", "access", "/v1/admin/access/kick", "/v1/admin/access/kick", {"user": "alice"}),
    ("post", "access", "/v1/admin/access/kick", "/v1/admin/access/kick", {}),
]


async def test_answers_look_as_the_document_says(running: tuple[Endpoints, str]) -> None:
    """Good ones and refused ones, of every operation that answers with JSON; and a refusal without a key."""
    endpoints, key = running
    asked: Operations = set()
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:
        client = await subscriber(session, endpoints)
        for method, role, path, target, body in CALLS:
            url = next(iter(getattr(endpoints, role).values()))
            operation = DOCUMENT["paths"][path][method]
            async with session.request(method, url + target, json=body) as response:
                assert_described(operation, response.status, await response.json(), target)
            asked.add((method, path))
            if operation["security"]:
                no_key = {"Authorization": ""}
                async with session.request(method, url + target, json=body, headers=no_key) as response:
                    assert response.status == Code.UNAUTHENTICATED.http_status
                    assert_described(operation, response.status, await response.json(), target)
        async with asyncio.timeout(SETTLE_S):
            while (await client.receive()).type is not aiohttp.WSMsgType.CLOSE:
                pass  # it is kicked in the end
    assert documented() - asked == {("get", "/metrics"), ("get", "/v1/events/stream")}


async def subscriber(session: aiohttp.ClientSession, endpoints: Endpoints) -> aiohttp.ClientWebSocketResponse:
    """Return a client that is subscribed to the channel, at the node that is asked."""
    (scheduler,) = endpoints.scheduler.values()
    node = next(iter(endpoints.access))
    async with session.get(f"{scheduler}/v1/access", params={"user": "alice"}) as answer:
        ticket = (await answer.json())["ticket"]
    client = await session.ws_connect(transport_urls(endpoints.clients[node])["websocket"], autoclose=False)
    await client.send_json({"id": 1, "connect": {"token": ticket}})
    assert "connect" in await client.receive_json()
    await client.send_json({"id": 2, "subscribe": {"channel": CHANNEL}})
    assert "subscribe" in await client.receive_json()
    return client


def assert_described(operation: dict[str, Any], status: int, answer: Any, target: str) -> None:
    assert str(status) in operation["responses"], f"{target}: {status} {answer}"
    described = operation["responses"][str(status)]
    assert not faults(answer, described["content"]["application/json"]["schema"]), target
    if status != 200 and "error" in answer:  # a standard may have a shape of its own
        assert f"`{answer['error']['name']}`" in described["description"], target


async def test_metrics_and_streams_have_the_content_types_of_the_document(running: tuple[Endpoints, str]) -> None:
    endpoints, key = running
    status, scheduler = (next(iter(role.values())) for role in (endpoints.status, endpoints.scheduler))
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:
        for url, path, query in (
            (status, "/metrics", ""),
            (status, "/v1/events/stream", ""),
            (scheduler, "/v1/admin/recording", "?for_ms=1"),
        ):
            async with session.get(url + path + query) as response:
                assert response.status == 200
                assert response.content_type in DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]
