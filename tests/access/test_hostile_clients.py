"""What clients can do to a whole node, by malice or bad luck: each is let go, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import ClientSession

from access.config import AccessConfig
from base.errors import BadRequest
from roadstead.api import call_api
from roadstead.config import Config, UpConfig
from tests.support.clients_port import CLOSE, PONG, TEXT, RawClient, counter, frame, request
from tests.system.conftest import System, eventually, running

TOKEN_KEY = "k" * 32
SMALL = 4_096
"""Bytes that the socket of a client takes that does not read."""
BODY = "x" * 16_000
MESSAGES_MAX = 800
"""More of these than the system's own buffers hold for one connection, a few megabytes."""
PINGS = {"ping_interval_ms": 1_000, "pong_deadline_ms": 500}


class Client(RawClient):
    """A client that speaks the protocol by hand."""

    def command(self, command_id: int, **fields: Any) -> None:
        self.send(frame(TEXT, json.dumps({"id": command_id, **fields}).encode()))

    async def reply(self, command_id: int) -> Any:
        """Read messages up to a reply."""
        while True:
            message = await self.message()
            if message.get("id") == command_id:
                return message

    async def answers_pings(self) -> int:
        """Answer each ping until the connection ends; return the close code."""
        while True:
            opcode, payload = await self.frame()
            if opcode == CLOSE:
                return int.from_bytes(payload[:2])
            if payload == b"{}":
                self.send(frame(TEXT, b"{}"))


class Node:
    """A system with one access node."""

    def __init__(self, system: System) -> None:
        self.system = system
        self._clients: list[Client] = []

    @property
    def url(self) -> str:
        """Where clients connect."""
        (url,) = self.system.endpoints.clients.values()
        return url

    @property
    def api(self) -> str:
        (url,) = self.system.endpoints.access.values()
        return url

    async def client(self, *segments: bytes, buffer: int = 0) -> Client:
        """Return a new connection that sent these."""
        client = await Client.connect(self.url, buffer=buffer)
        assert isinstance(client, Client)
        self._clients.append(client)
        client.send(*segments)
        return client

    async def upgraded(self, *, buffer: int = 0, before: bytes = b"") -> Client:
        client = await self.client(before, request(), buffer=buffer)
        assert (await client.answer()).status == 101
        return client

    async def joined(self, user: str, **options: Any) -> Client:
        """Return a client that is let in."""
        client = await self.upgraded(**options)
        client.command(1, connect={"token": jwt.encode({"sub": user}, TOKEN_KEY, "HS256")})
        assert (await client.reply(1))["connect"]["node"] == "access-1"
        return client

    async def send(self, user: str, number: int) -> None:
        await self.system.send("mallory", user, f"{user}-{number}", BODY)

    async def counted(self, name: str) -> dict[str, int]:
        """Return the values of a counter by its one label."""
        async with ClientSession() as http, http.get(f"{self.api}/metrics") as response:
            return counter(await response.text(), name)

    async def statistics(self) -> dict[str, Any]:
        answer = await call_api("GET", f"{self.api}/debug/statistics")
        assert isinstance(answer, dict)
        return answer

    async def until_closed(self, code: int, count: int = 1) -> None:
        """Wait until so many connections ended with the code."""

        async def are_closed() -> bool:
            return (await self.counted("access_closes")).get(str(code), 0) == count

        await eventually(are_closed)

    async def until_offline(self, user: str) -> None:
        async def is_offline() -> bool:
            return bool((await self.system.status(user))["state"] == "offline")

        await eventually(is_offline)

    async def close(self) -> None:
        for client in self._clients:
            await client.gone()


@asynccontextmanager
async def node(folder: Path, **settings: Any) -> AsyncIterator[Node]:
    """Run a system whose access node has these settings."""
    up = UpConfig(access_nodes=1, status_nodes=1, spare_status_nodes=0)
    access = AccessConfig(**{"token_key": TOKEN_KEY, "accepts_per_second": 0, **settings})
    async with running(folder / "data", Config(up=up, access=access)) as system:
        made = Node(system)
        try:
            yield made
        finally:
            await made.close()


# ---------------------------------------------------------------- whoever does not read


async def test_a_slow_client_is_closed_and_nobody_else_waits(tmp_path: Path) -> None:
    """With 3008, as soon as its budget is used up; others get their messages meanwhile, each at once."""
    async with node(tmp_path, write_bytes_max=65_536) as one:
        slow = await one.joined("slow", buffer=SMALL)
        quick = await one.joined("quick")
        worst = 0.0
        loop = asyncio.get_running_loop()
        for number in range(MESSAGES_MAX):
            await one.send("slow", number)
            began = loop.time()
            await one.send("quick", number)
            assert (await quick.message())["push"]["pub"]["data"]["body"] == BODY
            worst = max(worst, loop.time() - began)
            if await one.counted("access_closes"):
                break
        await one.until_closed(3008)
        await one.until_offline("slow")
        assert worst < 5
        assert (await one.system.status("quick"))["state"] == "online"
        assert (await slow.is_over()).count(BODY.encode()) <= number  # of one more that were sent


async def test_the_slowest_go_when_too_much_waits_for_all_together(tmp_path: Path) -> None:
    """Though none has used up its own budget; whoever has little waiting stays."""
    async with node(tmp_path, write_bytes_max=16_777_216, queued_bytes_max=500_000) as one:
        slow = await one.joined("slow", buffer=SMALL)
        quick = await one.joined("quick")
        for number in range(MESSAGES_MAX):
            await one.send("slow", number)
            if sum((await one.counted("access_shed")).values()):
                break
        assert await slow.close_code() == 3008
        await one.until_closed(3008)
        assert await one.counted("access_shed") == {"": 1}
        await one.send("quick", 1)
        assert (await quick.message())["push"]["pub"]["data"]["body"] == BODY


@pytest.mark.spec("CC-07")
async def test_a_client_behind_a_dead_link_is_let_go(tmp_path: Path) -> None:
    """One that answers no ping is told 3012 if it hears that, and is gone without a FIN of its own if it does not."""
    async with node(tmp_path, write_bytes_max=16_777_216, **PINGS) as one:
        deaf = await one.joined("deaf", buffer=SMALL)
        for number in range(300):  # until nothing that is written leaves the process
            await one.send("deaf", number)
        mute, alive = await one.joined("mute"), await one.joined("alive")
        answering = asyncio.get_running_loop().create_task(alive.answers_pings())
        assert await mute.close_code() == 3012
        await one.until_closed(3012, count=2)
        for user in ("mute", "deaf"):
            await one.until_offline(user)
        assert (await one.system.status("alive"))["state"] == "online"
        statistics = await one.statistics()
        assert (statistics["connections"], statistics["inboxes"]["clients"]) == (1, 1)
        assert not answering.done()
        answering.cancel()
        deaf.hang_up()


async def test_pongs_of_the_transport_are_no_answers(tmp_path: Path) -> None:
    """A proxy on the way may send those; what counts is the client's own."""
    async with node(tmp_path, **PINGS) as one:
        client = await one.joined("bob")
        over = asyncio.get_running_loop().create_task(client.close_code())
        while not over.done():
            client.send(frame(PONG, b"here"))
            await asyncio.sleep(0.1)
        assert await over == 3012


# ---------------------------------------------------------------- whoever comes for nothing


async def test_whoever_does_not_connect_is_not_waited_for(tmp_path: Path) -> None:
    """3502 at the deadline, for one who says nothing and for one whose command never ends."""
    async with node(tmp_path, connect_deadline_ms=300) as one:
        bob = await one.joined("bob")
        silent, slow = await one.upgraded(), await one.upgraded()
        slow.send(frame(TEXT, b'{"id":1,"connect":{"token":"' + b"a" * 500)[:-1])
        assert [await client.close_code() for client in (silent, slow)] == [3502, 3502]
        early = await one.upgraded()
        early.send(frame(TEXT, b"{}"))
        assert await early.close_code() == 3501, "an answer to a ping that was not sent"
        bob.command(2, ping={})
        assert await bob.reply(2) == {"id": 2, "ping": {}}


async def test_a_user_may_have_only_so_many_connections(tmp_path: Path) -> None:
    """One more is closed with 3504, until one of them is gone."""
    async with node(tmp_path, user_connections_max=2) as one:
        first, _ = [await one.joined("bob") for _ in range(2)]
        third = await one.upgraded()
        third.command(1, connect={"token": jwt.encode({"sub": "bob"}, TOKEN_KEY, "HS256")})
        assert await third.close_code() == 3504
        await one.joined("alice")
        first.hang_up()
        await one.until_closed(1006)
        await one.joined("bob")


@pytest.mark.parametrize(
    ("settings", "what"), [({"capacity": 1}, "connections"), ({"memory_bytes_max": 1_000_000}, "memory")]
)
async def test_a_node_that_is_full_refuses_before_the_upgrade(
    tmp_path: Path, settings: dict[str, int], what: str
) -> None:
    """With 503, when to come back, and of what there is none left; over every transport; who is here stays."""
    async with node(tmp_path, **settings) as one:
        if what == "connections":
            bob = await one.joined("bob")
        for head in (
            request(),
            request("/connection/http_stream", "POST", Upgrade=None, Connection=None, Content_Length="0"),
            request("/connection/sse", Upgrade=None, Connection=None),
        ):

            async def answer(head: bytes = head) -> Any:
                client = await one.client(head)
                return await client.answer()

            async def is_refused(head: bytes = head) -> bool:
                return bool((await answer(head)).status == 503)

            await eventually(is_refused)  # memory is looked at from time to time
            told = await answer()
            assert (told.status, told.headers["retry-after"]) == (503, "1")
            assert (told.error()["name"], told.error()["detail"]["what"]) == ("overloaded", what)
        health = await one.client(request("/healthz", Upgrade=None, Connection=None))
        assert (await health.answer()).status == 200
        if what == "connections":
            bob.command(2, ping={})
            assert await bob.reply(2) == {"id": 2, "ping": {}}


# ---------------------------------------------------------------- whoever breaks the rules


@pytest.mark.parametrize(
    ("segment", "code"),
    [
        (frame(TEXT, b"x" * 98_305)[:10], 1009),
        (frame(TEXT, b"x" * 60_000, first=0) + frame(0, b"x" * 60_000)[:4], 1009),
        (frame(TEXT, b'{"id":2,"ping":{}}', mask=None), 1002),
        (frame(0x3, b"x"), 1002),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"nonsense"), 3501),
        (frame(TEXT, b""), 3501),
        (frame(TEXT, b'{"id":1,"connect":{}}'), 3501),
        (frame(TEXT, b"[" * 60_000), 3501),
    ],
)
async def test_a_client_that_breaks_the_rules_is_told_and_gone(tmp_path: Path, segment: bytes, code: int) -> None:
    """By the code for that, as soon as it shows; its session ends, and what it sent behind it is not read."""
    async with node(tmp_path) as one:
        bob, bad = await one.joined("bob"), await one.joined("bad")
        send = {"method": "im.send", "data": {"to": "bob", "client_msg_id": "m", "body": "behind"}}
        bad.send(segment)
        if segment[1:2] != b"\xff":  # whose payload this would be
            bad.command(7, rpc=send)
        assert await bad.close_code() == code
        await one.until_closed(code)
        await one.until_offline("bad")
        bad.hang_up()
        await one.system.send("alice", "bob", "n", "hi")
        assert (await bob.message())["push"]["pub"]["data"]["body"] == "hi"


async def test_a_frame_of_any_size_is_refused_at_its_header_and_told(tmp_path: Path) -> None:
    """A client that goes on sending ten megabytes still gets the reason: the connection is not reset under it."""
    async with node(tmp_path) as one:
        client = await one.joined("bob")
        client.send(frame(TEXT, b"x" * 10_000_000))
        assert await client.close_code() == 1009
        await one.until_offline("bob")


async def test_nobody_keeps_the_node_by_asking_without_reading_the_answers(tmp_path: Path) -> None:
    """A client that sends commands for ever and reads nothing is one that is too slow."""
    async with node(tmp_path, write_bytes_max=65_536) as one:
        bob = await one.joined("bob")
        asking = await one.joined("asking", buffer=SMALL)
        commands = b"\n".join(b'{"id":%d,"ping":{}}' % (number + 2) for number in range(2_000))
        async with asyncio.timeout(30):
            while not await one.counted("access_closes"):
                asking.send(frame(TEXT, commands))
                with_deadline = asyncio.timeout(0.05)
                try:
                    async with with_deadline:
                        await asking.writer.drain()
                except TimeoutError:
                    pass
                except ConnectionError:
                    break
        await one.until_closed(3008)
        bob.command(2, ping={})
        assert await bob.reply(2) == {"id": 2, "ping": {}}


# ---------------------------------------------------------------- behind a load balancer


async def test_operators_see_whom_the_load_balancer_named(tmp_path: Path) -> None:
    """And the limits by address are his."""
    async with node(tmp_path, proxies=("127.0.0.1/32",), address_connections_max=1) as one:
        await one.joined("bob", before=b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n")
        key = one.system.key
        answer = await call_api("GET", f"{one.api}/v1/admin/access/clients", credential=key, params={"user": "bob"})
        assert [client["address"] for client in answer["clients"]] == ["192.0.2.7"]
        again = await one.client(b"PROXY TCP4 192.0.2.7 192.0.2.1 3 4\r\n", request())
        assert (await again.answer()).error()["detail"]["what"] == "address_connections"
        await one.joined("alice", before=b"PROXY TCP4 192.0.2.8 192.0.2.1 1 2\r\n")
        with pytest.raises(BadRequest):
            await call_api("GET", f"{one.api}/v1/admin/access/clients", credential=key)
