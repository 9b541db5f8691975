"""Between clients and a running system: TCP proxies that can break connections, and a front for the schedulers.

The system listens on other ports after each start. Clients know none of them: they ask the front, which asks a
scheduler that there is just now and names the proxies in place of the access nodes that have one.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import cast
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from roadstead.local import System

__all__ = ["KINDS", "Front", "Proxy"]

KINDS = ("cut", "abort", "delay", "black_hole", "half_close")
"""What a proxy can do to a connection."""
FORWARD_S = 3.0
HIGH_WATER = 262_144


class _End(asyncio.Protocol):
    """One of a link's two sockets; what comes is for `other`."""

    def __init__(self, link: _Link) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _End
        self.cuts = False
        self.holds = False
        self._link = link
        self._held: list[bytes] = []
        self._has_said_eof = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(HIGH_WATER)
        self._link.made(self)

    def data_received(self, data: bytes) -> None:
        if self._link.is_black_hole:
            return
        if self.holds:
            self._held.append(data)
        elif self.cuts:
            self.other.write(data[: self._link.random.randrange(len(data))])
            self._link.end()
        else:
            self.other.write(data)

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing() and not self._has_said_eof:
            self.transport.write(data)

    def release(self) -> None:
        """Pass on what was held up, and hold nothing any more."""
        held, self._held, self.holds = self._held, [], False
        for data in held:
            self.data_received(data)

    def eof_received(self) -> bool:
        """One direction is over, the other one goes on."""
        self.release()
        if not self._link.is_black_hole:
            self.other.say_eof()
        return True

    def say_eof(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self._has_said_eof = True
            self.transport.write_eof()

    def pause_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the event loop's interface
        self.transport = None
        self.release()
        self._link.lost(self)


class _Link:
    """A client's connection, and the one to the node that goes with it."""

    def __init__(self, proxy: Proxy) -> None:
        self.random = proxy.random
        self.is_black_hole = False
        self._proxy = proxy
        self.client, self.node = _End(self), _End(self)
        self.client.other, self.node.other = self.node, self.client

    def made(self, end: _End) -> None:
        if end is self.client:
            assert end.transport is not None
            end.transport.pause_reading()
            self._proxy.arrived(self)
        elif self.client.transport is None:
            self.end()
        else:
            self.client.transport.resume_reading()

    def lost(self, end: _End) -> None:
        """Who hears nothing does not hear that the other one is gone, either."""
        other = end.other.transport
        if other is not None and not self.is_black_hole:
            other.close()
        if other is None:
            self._proxy.links.discard(self)

    def end(self) -> None:
        """End both sides: by a reset, or in an orderly way that the other protocols know nothing of."""
        for end in (self.client, self.node):
            transport = end.transport
            if transport is not None:
                if self.random.random() < 0.5:
                    linger = struct.pack("ii", 1, 0)
                    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                transport.abort()

    def break_by(self, kind: str) -> None:
        side = self.random.choice((self.client, self.node))
        match kind:
            case "cut":
                side.cuts = True
            case "abort":
                self.end()
            case "delay":
                for end in (self.client, self.node) if self.random.random() < 0.5 else (side,):
                    end.holds = True
                    asyncio.get_running_loop().call_later(self.random.uniform(0.05, 0.8), end.release)
            case "black_hole":
                self.is_black_hole = True
            case "half_close":
                side.say_eof()


class Proxy:
    """A listener in front of one node."""

    def __init__(self, random: Random, tasks: asyncio.TaskGroup) -> None:
        self.random = random
        self.links: set[_Link] = set()
        self.node: tuple[str, int] | None = None
        """Where the node listens now."""
        self.address = ""
        """Where clients reach it: host and port."""
        self._tasks = tasks
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Link(self).client, "127.0.0.1", 0)
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname())

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for link in tuple(self.links):
            link.end()
        await self._server.wait_closed()

    def arrived(self, link: _Link) -> None:
        """A client is connected: connect it to the node."""
        self.links.add(link)
        self._tasks.create_task(self._join(link))

    async def _join(self, link: _Link) -> None:
        try:
            assert self.node is not None
            await asyncio.get_running_loop().create_connection(lambda: link.node, *self.node)
        except OSError:
            link.end()

    def break_one(self, kind: str) -> bool:
        """Do that to one of the connections; return whether there is one."""
        links = sorted((link for link in self.links if not link.is_black_hole), key=id)
        if links:
            self.random.choice(links).break_by(kind)
        return bool(links)

    def mend(self) -> None:
        """Let nobody wait in a black hole."""
        for link in tuple(self.links):
            if link.is_black_hole:
                link.end()


class Front:
    """The scheduler's address, and the proxies in front of its access nodes."""

    def __init__(self, random: Random, tasks: asyncio.TaskGroup, tls: ssl.SSLContext) -> None:
        """`tls`: which schedulers to believe where their addresses are `https`."""
        self.url = ""
        self.proxies: dict[str, Proxy] = {}
        self._random = random
        self._tasks = tasks
        self._tls = tls
        self._schedulers: list[str] = []
        self._replaced: dict[str, str] = {}
        self._http: aiohttp.ClientSession

    @asynccontextmanager
    async def running(self, nodes: Sequence[str]) -> AsyncIterator[None]:
        """Listen until the block ends."""
        application = web.Application()
        application.router.add_get("/v1/access", self._get_access)
        runner = web.AppRunner(application)
        timeout = aiohttp.ClientTimeout(total=FORWARD_S)
        connector = aiohttp.TCPConnector(ssl=self._tls)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as self._http:
            try:
                for node in nodes:
                    self.proxies[node] = Proxy(self._random, self._tasks)
                    await self.proxies[node].start()
                await runner.setup()
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                self.url = "http://{}:{}".format(*runner.addresses[0])
                yield
            finally:
                for proxy in self.proxies.values():
                    await proxy.close()
                await runner.cleanup()

    def serves(self, system: System) -> None:
        """The system listens at other ports now."""
        self._schedulers = list(system.endpoints.scheduler.values())
        self._replaced.clear()
        for name, url in system.endpoints.clients.items():
            if name not in self.proxies:
                continue
            address = urlsplit(url)
            assert address.hostname is not None
            assert address.port is not None
            self.proxies[name].node = address.hostname, address.port
            self._replaced[address.netloc] = self.proxies[name].address

    def prefer(self, scheduler: str) -> None:
        """Ask this one first."""
        self._schedulers.remove(scheduler)
        self._schedulers.insert(0, scheduler)

    async def _get_access(self, request: web.Request) -> web.Response:
        """Ask one scheduler after the other, as clients with several addresses do; the last one that answered first."""
        headers = {"Authorization": request.headers["Authorization"]}
        for scheduler in tuple(self._schedulers):
            url = f"{scheduler}/v1/access"
            try:
                async with self._http.get(url, params=request.query, headers=headers) as answer:
                    text = await answer.text()
            except (aiohttp.ClientError, TimeoutError):
                if scheduler == self._schedulers[0]:
                    self._schedulers.append(self._schedulers.pop(0))
                continue
            for node, proxy in self._replaced.items():
                text = text.replace(node, proxy)
            return web.Response(status=answer.status, text=text, content_type="application/json")
        if request.transport is not None:
            request.transport.abort()
        return web.Response()
