"""The message services' HTTP interface: what backends and operators may do, and the offline feed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from base.clock import SystemClock
from base.errors import StoreUnavailable
from base.http import Role
from im.methods import METHODS
from im.ports import ConversationPage
from tests.im.cluster import Cluster, running

KEYS = {"api-key": Role.ADMIN, "backend": Role.BACKEND, "viewer": Role.VIEWER}


class Backend:
    """Asks a message service with a key."""

    def __init__(self, cluster: Cluster, http: aiohttp.ClientSession) -> None:
        self.cluster = cluster
        self._http = http

    def press(self, part: float) -> None:
        """Let the service see that its queue was full to this part, a moment ago."""
        waiting = round(part * self.cluster.config.append_queue_max)
        self.cluster.shard._admission._overload.observe(SystemClock().monotonic(), waiting=waiting, running_ms=0)

    async def ask(self, method: str, path: str, body: Any = None, *, key: str = "api-key") -> tuple[int, Any]:
        """Return the status and the document."""
        url = self.cluster.service.node.http.url + path
        data = body if isinstance(body, bytes) else None if body is None else msgspec.json.encode(body)
        async with self._http.request(method, url, data=data, headers={"Authorization": f"Bearer {key}"}) as answer:
            return answer.status, await answer.json()

    async def call(self, user: str, name: str, /, **arguments: Any) -> Any:
        status, document = await self.ask("POST", f"/v1/users/{user}/im/{name}", arguments)
        assert status == 200, document
        return document

    async def send(self, sender: str, to: str, key: str, **more: Any) -> Any:
        return await self.call(sender, "send", to=to, client_msg_id=key, body=key, **more)

    async def offline(self, **query: Any) -> Any:
        text = "&".join(f"{name}={value}" for name, value in query.items())
        status, document = await self.ask("GET", f"/v1/offline?{text}")
        assert status == 200, document
        return document

    async def missed(self, count: int, **query: Any) -> Any:
        """Wait until the feed has so many items."""
        async with asyncio.timeout(10):
            while True:
                document = await self.offline(**query)
                if len(document["items"]) == count:
                    return document
                await asyncio.sleep(0.005)


@pytest.fixture
async def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Backend]:
    monkeypatch.setattr("tests.im.cluster.KEYS", KEYS)
    async with running(tmp_path, offline_items_max=20) as cluster, aiohttp.ClientSession() as http:
        yield Backend(cluster, http)


def bodies(document: Any) -> list[tuple[str, Any]]:
    return [(item["user"], item["message"]["body"]) for item in document["items"]]


# ---------------------------------------------------------------- calls


async def test_backends_call_what_clients_call(backend: Backend):
    """The same documents; `server` is the device."""
    status, stored = await backend.ask(
        "POST", "/v1/messages", {"from": "ann", "to": "bob", "client_msg_id": "k", "body": 1}
    )
    assert (status, stored["seq"], stored["is_new"]) == (200, 1, True)
    again = await backend.call("ann", "send", to="bob", client_msg_id="k", body=1)
    assert again == {**stored, "is_new": False}
    status, page = await backend.ask("GET", "/v1/users/bob/timeline?since=0&limit=10")
    assert page == await backend.call("bob", "sync", since=0, limit=10)
    assert [(one["offset"], one["data"]["device"]) for one in page["entries"]] == [(1, "server")]
    assert (await backend.call("bob", "unread"))["total"] == 1


async def test_a_body_may_be_left_out_where_nothing_is_needed(backend: Backend):
    """An empty one is no arguments."""
    assert (await backend.ask("POST", "/v1/users/bob/im/unread", b""))[0] == 200
    status, document = await backend.ask("POST", "/v1/users/bob/im/send", b"")
    assert (status, document["error"]["name"]) == (400, "bad_request")


async def test_a_key_of_a_backend_is_needed_for_everything(backend: Backend):
    """And one of an operator for the strategy alone."""
    calls = [("POST", f"/v1/users/ann/im/{method.name}") for method in METHODS]
    calls += [("POST", "/v1/messages"), ("GET", "/v1/users/ann/timeline"), ("GET", "/v1/offline")]
    calls += [("POST", "/v1/conversations/1/changes")]
    for method, path in calls:
        assert (await backend.ask(method, path, {}, key="viewer"))[0] == 403, path
        assert (await backend.ask(method, path, {}, key="nobody's"))[0] == 401, path
    await backend.send("ann", "bob", "k")
    change = {"action": "fan_out", "value": "read"}
    assert (await backend.ask("POST", "/v1/conversations/1/changes", change, key="backend"))[0] == 403
    assert (await backend.ask("POST", "/v1/conversations/1/changes", change))[1]["fan_out"] == "read"


async def test_a_change_from_outside_needs_no_membership(backend: Backend):
    """But the group; what its own owner could not do is not done either."""
    cid = (await backend.call("ann", "group_create", client_msg_id="g", name="x", members=["bob"]))["cid"]
    path = f"/v1/conversations/{cid}/changes"

    async def change(action: str, **more: Any) -> tuple[int, Any]:
        return await backend.ask("POST", path, {"action": action, **more}, key="backend")

    assert (await change("invite", users=["cleo"]))[1]["seq"] == 2
    assert (await change("invite", users=["cleo"]))[1] == {
        "cid": cid,
        "seq": 0,
        "fan_out": "write",
        "name": "x",
        "owner": "ann",
        "is_new": False,
    }
    assert (await change("kick", users=["ann"]))[0] == 400, "the owner"
    assert (await change("join"))[0] == 400
    assert (await change("explode"))[0] == 400
    assert (await change("dissolve"))[0] == 200
    assert (await change("rename", value="y"))[0] == 410
    for cid_, status in (("99", 403), ("x", 400), ("01", 400)):
        assert (await backend.ask("POST", f"/v1/conversations/{cid_}/changes", {"action": "dissolve"}))[0] == status
    history = (await backend.call("bob", "history", cid=cid))["entries"]
    assert [(one["from"], one["body"]["event"]) for one in history] == [
        ("ann", "create"),
        ("", "invite"),
        ("", "dissolve"),
    ]


async def test_new_messages_are_refused_under_pressure_and_reading_goes_on(backend: Backend):
    """Changes from outside are refused as well, with a time to come back."""
    await backend.send("ann", "bob", "k")
    backend.press(0.96)
    for path in ("/v1/users/ann/im/send", "/v1/conversations/1/changes"):
        body = {"to": "bob", "client_msg_id": "x", "body": 1, "action": "dissolve"}
        status, document = await backend.ask("POST", path, body)
        assert (status, document["error"]["name"]) == (503, "overloaded")
        assert document["error"]["detail"]["retry_after_ms"] > 0
    assert (await backend.call("bob", "unread"))["total"] == 1


# ---------------------------------------------------------------- who was not there


async def test_the_feed_has_each_message_once_from_a_cursor(backend: Backend):
    """In order; a cursor of another life begins at what is kept, one that was never given is refused."""
    start = (await backend.offline())["cursor"]
    for n in range(5):
        await backend.send("ann", "bob", f"k{n}")
    page = await backend.missed(5, cursor=start)
    assert bodies(page) == [("bob", f"k{n}") for n in range(5)]
    assert bodies(await backend.offline(cursor=start, limit=2)) == [("bob", "k0"), ("bob", "k1")]
    assert (await backend.offline(cursor=page["cursor"]))["items"] == []
    assert len((await backend.offline(cursor="elsewhere-77"))["items"]) == 5
    for query in ("cursor=x", "limit=0", "limit=1001", "wait_ms=25001", "wait_ms=x"):
        assert (await backend.ask("GET", f"/v1/offline?{query}"))[0] == 400


async def test_the_oldest_items_are_forgotten_and_that_is_told(backend: Backend):
    start = (await backend.offline())["cursor"]
    for n in range(25):
        await backend.send("ann", "bob", f"k{n}")
    page = await backend.missed(20, cursor=start)
    assert (page["lost"], bodies(page)[0]) == (5, ("bob", "k5"))


async def test_who_waits_is_told_at_once_and_nobody_waits_for_ever(backend: Backend):
    """All who wait."""
    start = (await backend.offline())["cursor"]
    assert (await backend.offline(cursor=start, wait_ms=10))["items"] == []
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(backend.offline(cursor=start, wait_ms=20_000)) for _ in range(2)]
        await asyncio.sleep(0.05)
        await backend.send("ann", "bob", "k")
    assert [bodies(one.result()) for one in waiting] == [[("bob", "k")]] * 2


async def test_what_is_no_news_any_more_is_left_out(backend: Backend):
    """Read, hidden, answered, recalled, or muted without a mention; edited ones say what they say now."""
    start = (await backend.offline())["cursor"]
    for user in ("bob", "cleo", "dan", "eve", "fay", "gus"):
        await backend.send("ann", user, f"to {user}")
    await backend.send("ann", "gus", "gus!", mentions=["gus"])
    cids = {one["peer"]: one["cid"] for one in (await backend.call("ann", "conversations"))["conversations"]}
    await backend.missed(7, cursor=start)
    await backend.call("bob", "mark", cid=cids["bob"], read_seq=1)
    await backend.call("cleo", "set", cid=cids["cleo"], hide=True)
    await backend.send("dan", "ann", "answer")
    await backend.call("ann", "recall", cid=cids["eve"], seq=1, client_msg_id="r")
    await backend.call("ann", "edit", cid=cids["fay"], seq=1, client_msg_id="e", body="edited")
    await backend.call("gus", "set", cid=cids["gus"], mute=True)
    page = await backend.missed(3, cursor=start)
    assert bodies(page) == [("fay", "edited"), ("gus", "gus!"), ("ann", "answer")]


async def test_who_left_is_not_notified_of_what_came_after(backend: Backend):
    """An edited message says what it said before; who came back is not told of what was missed before."""
    start = (await backend.offline())["cursor"]
    cid = (await backend.call("ann", "group_create", client_msg_id="g", name="x", members=["bob", "cleo"]))["cid"]
    await backend.call("ann", "send", cid=cid, client_msg_id="k", body="draft")
    await backend.missed(2, cursor=start)
    await backend.call("ann", "group_change", cid=cid, action="kick", users=["bob", "cleo"])
    await backend.call("ann", "edit", cid=cid, seq=2, client_msg_id="e", body="secret")
    await backend.call("ann", "group_change", cid=cid, action="invite", users=["cleo"])
    assert bodies(await backend.offline(cursor=start)) == [("bob", "draft")]


async def test_what_cannot_be_looked_up_is_told_without_what_it_says(backend: Backend, monkeypatch: pytest.MonkeyPatch):
    """A disk that fails in one shard keeps nobody from hearing that there is something."""

    async def broken(_cid: int, _seqs: list[int]) -> ConversationPage:
        raise StoreUnavailable("the disk failed")

    await backend.send("ann", "bob", "k")
    await backend.missed(1)
    monkeypatch.setattr(backend.cluster.store, "messages", broken)
    assert bodies(await backend.offline()) == [("bob", None)]


async def test_under_pressure_the_feed_does_not_say_what_was_said(backend: Backend):
    """Only that there is something; nor do lists show the newest messages."""
    await backend.send("ann", "bob", "k")
    await backend.missed(1)
    backend.press(0.76)
    assert bodies(await backend.offline()) == [("bob", None)]
    (one,) = (await backend.call("bob", "conversations"))["conversations"]
    assert ("last" in one, one["unread"]) == (False, 1)
