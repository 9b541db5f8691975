"""Bad input gets one clear error, the process goes on, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from io import BytesIO

import aiohttp
import centrifuge
import jwt
import pytest

from base.clock import SystemClock, Timestamp
from scheduler.tokens import mint_user_token
from tests.system.conftest import Connect, StockClient, System

Http = aiohttp.ClientSession


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


@pytest.mark.parametrize("ticket", ["", "nonsense", "a.b.c"])
async def test_what_is_no_ticket_closes_with_3500_for_good(system: System, ticket: str) -> None:
    """Invalid token: an SDK does not come back."""
    client = await refused(system, ticket)
    assert (await client.disconnected).code == 3500


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
        ("im.send", {"to": "bob", "client_msg_id": "x", "body": "y" * 20_000}, 106, "16384"),
        ("im.sync", {"since": -1}, 107, "since"),
        ("im.sync", [], 107, "object"),
    ]:
        with pytest.raises(centrifuge.ReplyError) as caught:
            await client.sdk.rpc(method, data)
        assert caught.value.code == code
        assert text in caught.value.message
    assert (await client.send("bob", "m-1"))["seq"] == 1
    assert (await system.status("alice"))["state"] == "online"


async def test_other_peoples_inboxes_and_unknown_channels_are_refused(connect: Connect) -> None:
    """103 permission denied, 102 unknown channel."""
    client = await connect("alice")
    for channel, code in [("inbox:bob", 103), ("chat:1", 102)]:
        subscription = client.sdk.new_subscription(channel)
        await subscription.subscribe()
        with pytest.raises(centrifuge.CentrifugeError):
            await subscription.ready()
        assert subscription.state is centrifuge.SubscriptionState.UNSUBSCRIBED, code


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("not json", 3501),
        ("[]", 3501),
        ("", 3501),
        ('{"id":1,"rpc":{"method":"im.sync"}}', 3501),
        ('{"id":0,"connect":{}}', 3501),
        (b"\xff\xfe", 3501),
        ('{"id":"one","connect":{}}', 3501),
        ("x" * 70_000, 1009),
    ],
)
async def test_frames_that_break_the_protocol_close_the_connection(
    system: System, http: Http, frame: str | bytes, code: int
) -> None:
    """3501 bad request, 1009 too big; the node goes on."""
    url = (await system.access("alice"))["candidates"][0]["urls"]["websocket"]
    socket = await http.ws_connect(url)
    await (socket.send_bytes(frame) if isinstance(frame, bytes) else socket.send_str(frame))
    async for _ in socket:
        pass
    assert socket.close_code == code
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
        (json.dumps({**good, "body": "y" * 20_000}).encode(), 400, "limit_exceeded"),
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
