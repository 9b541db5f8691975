"""Bare WebSocket echo servers of other libraries, to be compared with: `python -m bench.echo_server LIBRARY`.

As they come, on the same event loop as ours, with compression and their own pings off, in a process of their own. It
prints its port and runs until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

from aiohttp import web
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from base import loop

__all__ = ["LIBRARIES"]

LIBRARIES = ("aiohttp", "websockets")
HOST = "127.0.0.1"
BACKLOG = 4_096


async def _aiohttp() -> int:
    async def echo(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    app = web.Application()
    app.router.add_get("/", echo)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, HOST, 0, backlog=BACKLOG)
    await site.start()
    return int(runner.addresses[0][1])


async def _websockets() -> int:
    async def echo(socket: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            async for message in socket:
                await socket.send(message)

    server = await serve(echo, HOST, 0, compression=None, ping_interval=None, backlog=BACKLOG)
    return int(next(iter(server.sockets)).getsockname()[1])


async def _main() -> None:
    port = await (_aiohttp() if sys.argv[1] == "aiohttp" else _websockets())
    print(port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    loop.run(_main())
