"""Bad input gets one clear error, the process goes on, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import centrifuge
import jwt
import pytest

from base.clock import SystemClock, Timestamp
from roadstead.config import Config
from scheduler.tokens import mint_user_token
from tests.system.conftest import SETTLE_S, Connect, StockClient, System, running
from tests.system.people import SMALL, Person, Town, town

Http = aiohttp.ClientSession


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    async with running(tmp_path / "data", Config(up=SMALL)) as made:
        yield made


@pytest.fixture
async def http(system: System) -> AsyncIterator[Http]:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {system.key}"}) as session:
        yield session


async def failure(response: aiohttp.ClientResponse) -> tuple[int, str]:
    """(HTTP status, error name), after checking the shape of the answer."""
    error = (await response.json())["error"]
    assert set(error) - {"detail"} == {"code", "name", "retry", "message"}
    return response.status, error["name"]


def forged(system: System, **changes: object) -> str:
    """A ticket signed with the deployment's key, with some claims changed."""
    secrets = system.data.secrets()
    now = SystemClock().realtime() // 1000
    claims = {"sub": "eve", "jti": "j", "iat": now, "exp": now + 60, "aud": "roadstead-access", **changes}
    return jwt.encode(claims, secrets.ticket_key, algorithm="HS256", headers={"kid": secrets.ticket_kid})


async def refused(system: System, ticket: str) -> StockClient:
    """A stock client that could not connect with the ticket, and has given up."""
    answer = await system.access("anybody")
    client = StockClient(answer["candidates"][0]["urls"]["websocket"], ticket)
    await client.sdk.connect()
    async with asyncio.timeout(10):
        await client.disconnected
    return client


async def test_what_is_no_ticket_closes_with_3500_for_good(system: System) -> None:
    """Invalid token: an SDK does not come back."""
    for ticket in ("", "nonsense", "a.b.c"):
        client = await refused(system, ticket)
        assert (await client.disconnected).code == 3500, ticket


async def test_a_forged_ticket_closes_with_3500(system: System) -> None:
    """Signed with another key, under the right key id."""
    token = jwt.encode(
        {"sub": "eve", "aud": "roadstead-access", "exp": 9_999_999_999, "iat": 0, "jti": "j"},
        "another-secret-that-is-long-enough-for-hs256",
        algorithm="HS256",
        headers={"kid": system.data.secrets().ticket_kid},
    )
    client = await refused(system, token)
    assert (await client.disconnected).code == 3500


async def test_an_expired_ticket_is_told_so_and_a_new_one_works(system: System) -> None:
    """109 token expired: an SDK with getToken fetches another and is in; one without gives up, told why."""
    client = await refused(system, forged(system, exp=1))
    assert any("109" in str(context.error) for context in client.errors)
    answer = await system.access("eve")

    async def fresh() -> str:
        return str((await system.access("eve"))["ticket"])

    retrying = StockClient(answer["candidates"][0]["urls"]["websocket"], forged(system, exp=1), fresh)
    await retrying.sdk.connect()
    await retrying.sdk.ready(10)
    await retrying.sdk.disconnect()


async def test_a_ticket_lets_in_once(system: System) -> None:
    """The second connection with the same ticket is answered 109."""
    answer = await system.access("alice")
    url = answer["candidates"][0]["urls"]["websocket"]
    first = StockClient(url, answer["ticket"])
    await first.sdk.connect()
    await first.sdk.ready()
    replay = StockClient(url, answer["ticket"])
    await replay.sdk.connect()
    async with asyncio.timeout(10):
        await replay.disconnected
    assert any("109" in str(context.error) for context in replay.errors)
    await first.sdk.disconnect()


async def test_unknown_methods_and_bad_arguments_are_errors_of_the_call(system: System, connect: Connect) -> None:
    """The session goes on; the message names the field."""
    client = await connect("alice")
    for method, data, code, text in [
        ("im.nothing", {}, 104, "im.nothing"),
        ("im.send", {"to": "bob"}, 107, "client_msg_id"),
        ("im.send", {"to": 7, "client_msg_id": "x", "body": 1}, 107, "$.to"),
        ("im.send", {"to": "b" * 129, "client_msg_id": "x", "body": 1}, 107, "128 bytes"),
        ("im.send", {"to": "bob", "client_msg_id": "x", "body": "y" * 70_000}, 106, "65536"),
        ("im.sync", {"since": -1}, 107, "since"),
        ("im.sync", [], 107, "object"),
    ]:
        with pytest.raises(centrifuge.ReplyError) as caught:
            await client.sdk.rpc(method, data)
        assert caught.value.code == code
        assert text in caught.value.message
    assert (await client.send("bob", "m-1"))["seq"] == 1
    assert (await system.status("alice"))["state"] == "online"


async def state_of(here: Town, *users: str) -> list[Any]:
    """All that these users can read of the message services."""
    seen: list[Any] = []
    for user in users:
        listed = (await here.backend(user, "conversations"))["conversations"]
        logs = [await here.backend(user, "history", cid=one["cid"], after=0, limit=1_000) for one in listed]
        groups = [one["cid"] for one in listed if one["kind"] == "group" and not one.get("last_seq")]
        members = [await here.backend(user, "members", cid=cid, limit=1_000) for cid in groups]
        seen.append([user, listed, logs, members, await here.backend(user, "unread"), await here.backend(user, "sync")])
    return seen


@pytest.mark.spec("CC-02")
async def test_what_cannot_be_done_has_a_code_and_one_message_and_changes_nothing(tmp_path: Path) -> None:
    """Of messages: unknown places, others' conversations, wrong types, limits, used keys, closed windows, positions."""
    async with town(tmp_path, recall_window_ms=0, edit_window_ms=0) as here:
        ann, eve = await here.person("ann"), await here.person("eve")
        cid = (await ann.call("send", to="bob", client_msg_id="k", body="hi"))["cid"]
        await eve.say("dan", "elsewhere")
        await asyncio.sleep(0.002)  # out of the windows
        good = {"cid": cid, "client_msg_id": "n", "body": 1}
        message = {"cid": cid, "seq": 1, "client_msg_id": "n"}
        before = await state_of(here, "ann", "bob", "eve")
        cases: list[tuple[Person, int, str, dict[str, Any], str]] = [
            (ann, 1305, "send", {**good, "cid": "999"}, "no such conversation"),
            (eve, 1305, "send", good, "no such conversation"),
            (eve, 1305, "history", {"cid": cid}, "no such conversation"),
            (eve, 1305, "history", {"cid": "999"}, "no such conversation"),
            (eve, 1305, "edit", {**message, "body": 1}, "no such conversation"),
            (eve, 1305, "recall", message, "no such conversation"),
            (eve, 1305, "mark", {"cid": cid, "read_seq": 1}, "no such conversation"),
            (eve, 1305, "set", {"cid": cid, "mute": True}, "no such conversation"),
            (eve, 1305, "members", {"cid": cid}, "no such conversation"),
            (eve, 1305, "group_change", {"cid": cid, "action": "leave"}, "no such conversation"),
            (ann, 107, "group_change", {"cid": cid, "action": "invite", "users": ["eve"]}, "cannot be done"),
            (ann, 106, "send", {**good, "body": "x" * 65_535}, "65537 bytes, the limit is 65536"),
            (ann, 107, "send", {**good, "type": ""}, "type"),
            (ann, 107, "send", {**good, "type": "t" * 33}, "type"),
            (ann, 107, "send", {**good, "type": 7}, "$.type"),
            (ann, 107, "send", {**good, "to": "bob"}, "either to a user"),
            (ann, 107, "send", {"client_msg_id": "n", "body": 1}, "either to a user"),
            (ann, 107, "send", {"to": "bob", "body": 1}, "client_msg_id"),
            (ann, 107, "send", {**good, "client_msg_id": ""}, "client_msg_id"),
            (ann, 107, "send", {"to": "bob", "client_msg_id": "n"}, "body"),
            (ann, 107, "send", {**good, "cid": "01"}, "cid"),
            (ann, 107, "send", {**good, "cid": 1}, "$.cid"),
            (ann, 107, "send", {**good, "ack": "never"}, "$.ack"),
            (ann, 107, "send", {**good, "mentions": [""]}, "mentions"),
            (ann, 106, "send", {**good, "mentions": ["bob"] * 101}, "100 users"),
            (ann, 1404, "send", {**good, "reply_to": 9}, "no such message"),
            (ann, 1404, "send", {"to": "new", "client_msg_id": "n", "body": 1, "reply_to": 9}, "no such message"),
            (ann, 1303, "send", {"to": "bob", "client_msg_id": "k", "body": "other"}, "client_msg_id"),
            (ann, 1303, "send", {"to": "eve", "client_msg_id": "k", "body": "hi"}, "client_msg_id"),
            (ann, 1303, "recall", {**message, "client_msg_id": "k"}, "client_msg_id"),
            (ann, 1303, "group_create", {"client_msg_id": "k", "name": "x"}, "client_msg_id"),
            (ann, 1307, "recall", message, "too late"),
            (ann, 1307, "edit", {**message, "body": 1}, "too late"),
            (ann, 1404, "recall", {**message, "seq": 9}, "no such message"),
            (ann, 1404, "recall", {**message, "seq": 0}, "no such message"),
            (ann, 107, "recall", {**message, "seq": -1}, "$.seq"),
            (ann, 107, "mark", {"cid": cid}, "nothing"),
            (ann, 107, "history", {"cid": cid, "after": 0, "before": 2}, "either"),
            (ann, 107, "history", {"cid": cid, "limit": 0}, "$.limit"),
            (ann, 107, "conversations", {"after": "soon"}, "after"),
            (ann, 107, "search", {"cid": cid, "text": ""}, "$.text"),
            (ann, 1311, "sync", {"since": 0, "epoch": "another"}, "another epoch"),
            (ann, 1311, "sync", {"since": 99}, "beyond the end"),
        ]
        for person, code, name, arguments, text in cases:
            assert text in await person.refused(code, name, **arguments), (name, arguments)
        assert await state_of(here, "ann", "bob", "eve") == before
        assert (await ann.call("send", **good))["seq"] == 2, "and the connection goes on"


async def test_what_cannot_be_done_in_a_group_changes_nothing(tmp_path: Path) -> None:
    """Muted, dissolved, a role that is not enough, unknown actions and settings."""
    async with town(tmp_path) as here:
        ann, bob, eve = [await here.person(user) for user in ("ann", "bob", "eve")]
        cid, gone = await ann.group("bob", "cleo"), await ann.group("bob", key="g2")
        await ann.say(cid, "hi")
        await ann.call("group_change", cid=cid, action="mute", users=["bob"], value="99999999999999")
        await here.change(gone, "dissolve")
        before = await state_of(here, "ann", "bob", "eve")
        good = {"client_msg_id": "n", "body": 1}
        cases: list[tuple[Person, int, str, dict[str, Any], str]] = [
            (bob, 1306, "send", {"cid": cid, **good}, "may not send here"),
            (ann, 1305, "send", {"cid": gone, **good}, "no such conversation"),
            (bob, 103, "recall", {"cid": cid, "seq": 2, "client_msg_id": "n"}, "only its sender"),
            (ann, 107, "group_create", {"client_msg_id": "n", "name": ""}, "$.name"),
            (ann, 107, "group_create", {"client_msg_id": "n", "name": "x", "members": [""]}, "members"),
            (ann, 107, "group_create", {"client_msg_id": "n", "name": "x", "settings": {"a": "b"}}, "cannot be done"),
            (ann, 1303, "group_create", {"client_msg_id": "g", "name": "other"}, "client_msg_id"),
        ]
        changes: list[tuple[Person, int, str, dict[str, Any], str]] = [
            (ann, 107, cid, {"action": "explode"}, "$.action"),
            (ann, 107, cid, {}, "action"),
            (ann, 107, cid, {"action": "invite"}, "nothing is to be changed"),
            (ann, 107, cid, {"action": "role", "users": ["bob"], "value": "king"}, "cannot be done"),
            (ann, 1404, cid, {"action": "role", "users": ["eve"], "value": "admin"}, "no member"),
            (ann, 107, cid, {"action": "mute", "users": ["bob"], "value": "soon"}, "cannot be done"),
            (ann, 107, cid, {"action": "mute_all", "value": "maybe"}, "cannot be done"),
            (ann, 103, cid, {"action": "leave"}, "role"),
            (ann, 103, cid, {"action": "fan_out", "value": "read"}, "role"),
            (bob, 103, cid, {"action": "kick", "users": ["cleo"]}, "role"),
            (bob, 103, cid, {"action": "rename", "value": "mine"}, "role"),
            (bob, 103, cid, {"action": "transfer", "users": ["bob"]}, "role"),
            (bob, 103, cid, {"action": "dissolve"}, "role"),
            (eve, 103, cid, {"action": "join"}, "role"),
            (eve, 1305, cid, {"action": "invite", "users": ["eve"]}, "no such conversation"),
            (ann, 1310, gone, {"action": "rename", "value": "x"}, "dissolved"),
            (bob, 1305, gone, {"action": "join"}, "no such conversation"),
        ]
        cases += [(who, code, "group_change", {"cid": where, **more}, text) for who, code, where, more, text in changes]
        for person, code, name, arguments, text in cases:
            assert text in await person.refused(code, name, **arguments), (name, arguments)
        assert await state_of(here, "ann", "bob", "eve") == before


@pytest.mark.spec("FO-07", "WX-02")
@pytest.mark.parametrize("preset", ["wechat", "hybrid"])
async def test_the_501st_member_is_refused_or_changes_the_strategy(tmp_path: Path, preset: str) -> None:
    """Refused it changes nothing; else the group goes on by its channel, in one sequence, and nobody misses a thing."""
    async with town(tmp_path, preset=preset) as here:
        ann, bob = await here.person("ann"), await here.person("bob")
        cid = await ann.group("bob", *(f"u{n:03}" for n in range(498)))
        await ann.say(cid, "we are 500")
        await bob.hears("message", cid=cid, seq=2)
        before = await state_of(here, "ann", "bob", "u400")
        if preset == "wechat":
            said = await bob.refused(1309, "group_change", cid=cid, action="invite", users=["eve"])
            assert "too many members" in said
            assert await state_of(here, "ann", "bob", "u400") == before
            return
        assert (await bob.call("group_change", cid=cid, action="invite", users=["eve"]))["fan_out"] == "read"
        assert (await bob.hears("group", cid=cid, seq=3))["body"]["fan_out"] == "read"
        listed = await bob.listed(cid)
        assert listed is not None
        assert (listed["channel"], listed["members"]) == ("conv", 501)
        place = centrifuge.StreamPosition(3, (await bob.call("sync", since=0))["epoch"])
        follower = await Watching(bob.client, f"conv:{cid}", place).start()
        await ann.say(cid, "we are more")
        await follower.has(4)
        assert follower.starts[0].recovered
        assert [one["seq"] for one in await bob.log(cid)] == [1, 2, 3, 4]
        assert [one["seq"] for one in (await here.backend("u400", "history", cid=cid, after=0))["entries"]] == [
            1,
            2,
            3,
            4,
        ]


class Watching(centrifuge.SubscriptionEventHandler):
    """A subscription that begins at a position, or at the next one that it has, when it is told to ask for one."""

    def __init__(self, client: StockClient, channel: str, *positions: centrifuge.StreamPosition) -> None:
        self.asked = 0
        self.starts: list[centrifuge.SubscribedContext] = []
        self._offsets: list[int] = []
        self._more = asyncio.Event()

        async def state(_channel: str) -> centrifuge.StreamPosition:
            self.asked += 1
            return positions[self.asked - 1]

        self.subscription = client.sdk.new_subscription(channel, events=self, recoverable=True, get_state=state)

    async def on_subscribed(self, ctx: centrifuge.SubscribedContext) -> None:
        self.starts.append(ctx)

    async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
        self._offsets.append(ctx.pub.offset)
        self._more.set()

    async def start(self) -> Watching:
        await self.subscription.subscribe()
        await self.subscription.ready(SETTLE_S)
        return self

    async def has(self, *offsets: int) -> None:
        async with asyncio.timeout(SETTLE_S):
            while len(self._offsets) < len(offsets):
                self._more.clear()
                await self._more.wait()
        assert self._offsets == list(offsets)


async def test_a_position_that_means_nothing_is_not_recovered(tmp_path: Path) -> None:
    """Of another epoch, or beyond the end; of one's inbox, or of a conversation: the SDK asks for another one."""
    async with town(tmp_path) as here:
        ann = await here.person("ann")
        cid = (await ann.say("bob", "hi"))["cid"]
        epoch = (await ann.call("sync", since=0))["epoch"]
        head = centrifuge.StreamPosition(1, epoch)
        for offset, of, is_good in [(1, epoch, True), (0, epoch, True), (1, "another", False), (99, epoch, False)]:
            for channel in ("inbox:ann", f"conv:{cid}"):
                device = await here.person("ann", f"{channel}{offset}{of}".replace(":", "-"))
                position = centrifuge.StreamPosition(offset, of)
                watching = await Watching(device.client, channel, position, head).start()
                assert watching.asked == (1 if is_good else 2), (channel, offset, of)
                assert watching.starts[0].recovered
                assert watching.starts[0].stream_position == head
                await watching.has(*([1] if offset == 0 else []))
                await device.client.sdk.disconnect()


async def test_other_peoples_inboxes_and_unknown_channels_are_refused(connect: Connect) -> None:
    """103 permission denied, 102 unknown channel."""
    client = await connect("alice")
    for channel, code in [("inbox:bob", 103), ("chat:1", 102)]:
        subscription = client.sdk.new_subscription(channel)
        await subscription.subscribe()
        with pytest.raises(centrifuge.CentrifugeError):
            await subscription.ready()
        assert subscription.state is centrifuge.SubscriptionState.UNSUBSCRIBED, code


FRAMES: list[tuple[str | bytes, int]] = [
    ("not json", 3501),
    ("[]", 3501),
    ("", 3501),
    ('{"id":1,"rpc":{"method":"im.sync"}}', 3501),
    ('{"id":0,"connect":{}}', 3501),
    (b"\xff\xfe", 3501),
    ('{"id":"one","connect":{}}', 3501),
    ("x" * 100_000, 1009),
]


async def test_frames_that_break_the_protocol_close_the_connection(system: System, http: Http) -> None:
    """3501 bad request, 1009 too big; the node goes on."""
    url = (await system.access("alice"))["candidates"][0]["urls"]["websocket"]
    for frame, code in FRAMES:
        socket = await http.ws_connect(url)
        await (socket.send_bytes(frame) if isinstance(frame, bytes) else socket.send_str(frame))
        async for _ in socket:
            pass
        assert socket.close_code == code, frame[:50]
    assert (await system.access("alice"))["candidates"]


async def test_http_errors_have_a_status_a_code_and_one_clear_message(system: System, http: Http) -> None:
    """Wrong type, missing field, oversized body, unknown path, wrong method, bad parameters."""
    send = f"{system.im}/v1/messages"
    good = {"from": "a", "to": "b", "client_msg_id": "1", "body": "x"}
    for body, status, name in [
        (b"{", 400, "bad_request"),
        (json.dumps({**good, "to": 3}).encode(), 400, "bad_request"),
        (json.dumps({"from": "a"}).encode(), 400, "bad_request"),
        (json.dumps({**good, "from": ""}).encode(), 400, "bad_request"),
        (b"\xff", 400, "bad_request"),
        (json.dumps({**good, "body": "y" * 70_000}).encode(), 400, "limit_exceeded"),
        (json.dumps({**good, "body": "y" * 2_000_000}).encode(), 413, "too_large"),
    ]:
        async with http.post(send, data=BytesIO(body)) as response:
            assert await failure(response) == (status, name)
    async with http.get(f"{system.im}/v1/nothing") as response:
        assert await failure(response) == (404, "not_found")
    async with http.delete(send) as response:
        assert await failure(response) == (404, "unknown_method")
    async with http.get(f"{system.scheduler}/v1/access?user=a&usr=b") as response:
        assert await failure(response) == (400, "bad_request")
    async with http.get(f"{system.scheduler}/v1/access") as response:
        assert await failure(response) == (400, "bad_request")
    access = next(iter(system.endpoints.clients.values()))
    async with http.get(f"{access}/connection/websocket") as response:
        assert await failure(response) == (400, "bad_request")
    async with http.get(f"{system.im}/v1/users/bob/timeline?since=x") as response:
        assert await failure(response) == (400, "bad_request")


async def test_credentials_are_asked_for_and_checked(system: System) -> None:
    """No key, an unknown key, another user's token, an expired token."""
    user_key = system.data.secrets().user_key
    later = Timestamp(SystemClock().realtime() + 60_000)
    async with aiohttp.ClientSession() as session:
        for path, credential, status, name in [
            ("/v1/access?user=a", None, 401, "unauthenticated"),
            ("/v1/access?user=a", "wrong", 401, "unauthenticated"),
            ("/v1/access?user=a", "\udcff", 401, "unauthenticated"),
            ("/v1/access?user=a", mint_user_token("b", key=user_key, expires_at=later), 400, "bad_request"),
            ("/v1/access", mint_user_token("b", key=user_key, expires_at=Timestamp(0)), 401, "token_expired"),
            ("/v1/access", mint_user_token("b", key="x" * 32, expires_at=later), 401, "unauthenticated"),
        ]:
            headers = {"Authorization": f"Bearer {credential}"} if credential else {}
            async with session.get(system.scheduler + path, headers=headers) as response:
                assert await failure(response) == (status, name)
        for url in (f"{system.im}/v1/messages", f"{system.im}/v1/users/a/timeline"):
            async with session.request("POST" if "messages" in url else "GET", url) as response:
                assert await failure(response) == (401, "unauthenticated")
        token = mint_user_token("b", key=user_key, expires_at=later)
        headers = {"Authorization": f"Bearer {token}"}
        async with session.get(f"{system.scheduler}/v1/access", headers=headers) as response:
            assert response.status == 200


async def test_health_readiness_metrics_and_statistics_are_on_every_port(system: System, http: Http) -> None:
    """Each node shows itself alone."""
    for name, url in system.endpoints.nodes().items():
        for path in ("/healthz", "/readyz"):
            async with http.get(url + path) as response:
                assert response.status == 200
        async with http.get(f"{url}/metrics") as response:
            text = await response.text()
            assert f'node="{name}"' in text
            assert text.count("# HELP roadstead_http_errors_total") == 1
        async with http.get(f"{url}/debug/statistics") as response:
            assert (await response.json())["node"] == name
