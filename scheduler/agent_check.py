r"""What HAProxy asks a server's agent, answered for all access nodes by the scheduler.

HAProxy connects, sends the node's name as a line, and takes one line back:

    backend access
        server access-1 10.0.0.1:8000 check weight 100 agent-check agent-addr 10.0.1.1 agent-port 7070 \
            agent-inter 1s agent-send "access-1\n"

    up ready 75% maxconn:20000    it takes clients; the two figures are below
    up drain                      it drains or is cordoned: no new clients, those it has stay
    down #unknown node            there is no such node, or not any more
    down #no capacity             it does not say how many connections it takes

*Percent*, of the weight in HAProxy's configuration: the free part of the capacity that the node takes now, slow start
included; never 0, which would be a drain. *maxconn*: that capacity divided by the number of HAProxies, since each
counts its own connections alone.

HAProxy leaves a server as it is when there is no answer. So whoever sends no line in time, comes when too many are here
already, or asks a scheduler that just started and knows no node yet, is hung up on: our own trouble takes no node out
of service.

The word before a "#" ends with a space: HAProxy takes `down#reason` for a word that it does not know, and ignores it.

The protocol knows no credentials: bind to an address that only proxies reach. It tells nobody anything but load.

Source: HAProxy, "Configuration Manual", `agent-check`.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from base.errors import ConfigError
from scheduler.core.node import AccessNode

__all__ = ["AgentCheck", "agent_line"]

CONNECTIONS_MAX = 256
LINE_BYTES_MAX = 256
DEADLINE_S = 2.0


def agent_line(node: AccessNode | None, weight: float, proxies: int) -> str:
    """Return what the agent says of a node, without the line feed.

    Args:
        node: None for one that is not known.
        weight: how many connections it may have now: its capacity times its slow start.
        proxies: how many HAProxies have it as their server.
    """
    if node is None:
        return "down #unknown node"
    if node.capacity <= 0:
        return "down #no capacity"
    if node.is_draining or node.is_cordoned:
        return "up drain"
    percent = min(100, max(1, round(100 * (weight - node.connections) / node.capacity)))
    return f"up ready {percent}% maxconn:{max(1, int(weight / proxies))}"


class AgentCheck:
    """The TCP port."""

    def __init__(
        self,
        *,
        nodes: Callable[[], Sequence[AccessNode]],
        weight: Callable[[AccessNode], float],
        proxies: int = 1,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """Nothing is opened yet.

        Args:
            nodes: the access nodes as they are now; another object whenever they changed.
            weight: how many connections a node may have now: its capacity times its slow start.
            proxies: how many HAProxies share the nodes.
            deadline_s: how long a connection may last.
        """
        assert proxies > 0
        self._nodes_now = nodes
        self._weight = weight
        self._nodes: Sequence[AccessNode] = ()
        self._by_name: Mapping[str, AccessNode] = {}
        self._proxies = proxies
        self._server: asyncio.Server | None = None
        self.deadline_s = deadline_s
        self.open: set[asyncio.Transport] = set()
        """Connections that are on their way."""

    async def listen(self, host: str, port: int) -> int:
        """Bind and serve; return the port (0 picks a free one). Raises ConfigError when the address cannot be bound."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: _Conversation(self), host, port, backlog=CONNECTIONS_MAX)
        except OSError as error:
            reason = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            raise ConfigError([f"agent check: cannot listen on {host}:{port}: {reason}"]) from error
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Stop listening and hang up. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for transport in tuple(self.open):
            transport.abort()

    def answer(self, line: bytes) -> bytes:
        """Return the answer to a line, both with their line feeds; nothing while no node is known at all."""
        nodes = self._nodes_now()
        if nodes is not self._nodes:
            self._nodes = nodes
            self._by_name = {node.id: node for node in nodes}
        if not nodes:
            return b""
        node = self._by_name.get(line.decode(errors="replace").strip())
        weight = self._weight(node) if node is not None else 0.0
        return f"{agent_line(node, weight, self._proxies)}\n".encode()


class _Conversation(asyncio.Protocol):
    """One connection: a line in, a line out."""

    def __init__(self, server: AgentCheck) -> None:
        self._agent = server
        self._line = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._transport = transport
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._agent.deadline_s, transport.abort)
        if len(self._agent.open) >= CONNECTIONS_MAX:
            transport.abort()
        else:
            self._agent.open.add(transport)

    def data_received(self, data: bytes) -> None:
        self._line += data
        end = self._line.find(b"\n") + 1
        if end > LINE_BYTES_MAX or (not end and len(self._line) >= LINE_BYTES_MAX):
            self._say(b"down #the name is too long\n")
        elif end:
            self._say(self._agent.answer(bytes(self._line[:end])))

    def connection_lost(self, _error: Exception | None) -> None:
        self._timer.cancel()
        self._agent.open.discard(self._transport)

    def _say(self, line: bytes) -> None:
        self._transport.write(line)
        self._transport.close()
