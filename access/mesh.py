"""The streams between access nodes, and who of them lives.

Calls and pushes to a node go over the stream that this node opened. What an owner tells the nodes that follow a channel
goes back over theirs, so that it stays in order with the answers to their calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec

from access.api import SERVICE, NodeReport
from access.core.placement import Node, View
from base.core.registry import ServiceInstance
from base.errors import PeerUnavailable
from base.peer import Method, PeerPool, PeerServer
from base.peer.stream import Done, Serve
from base.site import Site

__all__ = ["Mesh", "Peers"]

Req = TypeVar("Req")
Rep = TypeVar("Rep")

_decode_report = msgspec.msgpack.Decoder(NodeReport).decode


class Peers(Protocol):
    """The other access nodes, to the channels of this one."""

    node: str
    """This node."""
    life: int
    """Its restart number."""

    async def call(self, node: str, method: Method[Req, Rep], request: Req, *, deadline_ms: int) -> Rep:
        """As `PeerClient.call`. Raises PeerUnavailable also for a node that is not registered."""
        ...

    def ask(self, node: str, method: Method[Req, Rep], request: Req, *, deadline_ms: int, done: Done) -> None:
        """As `PeerClient.ask`: `done` gets the reply or the error, later. Raises if nothing was sent."""
        ...

    def push(self, node: str, method: Method[Req, Any], message: Req) -> None:
        """As `PeerClient.push`."""
        ...

    def tell(self, node: str, method: Method[Req, Any], message: Req) -> None:
        """Push back over the stream that the node opened. Raises PeerUnavailable if there is none."""
        ...

    def serve(self, method: Method[Req, Rep], handler: Serve) -> None:
        """Answer calls and pushes of other nodes."""
        ...

    def hear(self, method: Method[Req, Rep], handler: Serve) -> None:
        """Take what other nodes `tell`."""
        ...

    def on_view(self, listener: Callable[[View], None]) -> None:
        """Call for each change of who lives."""
        ...

    def on_connected(self, listener: Callable[[str], None]) -> None:
        """Call with a node's name for each new stream to it: what was pushed over the old one may be lost."""
        ...


class Mesh:
    """Implements `Peers` over a node's peer streams and the registry. Subscribe to it before `run`."""

    def __init__(self, site: Site, server: PeerServer) -> None:
        self.node: str = site.name
        self.life: int = site.incarnation
        self._server = server
        self.pool = PeerPool(site, SERVICE, on_change=self._changed, on_connected=self._connected)
        """The streams to all access nodes, for others to use as well."""
        self._nodes: tuple[Node, ...] = ()
        self._on_view: list[Callable[[View], None]] = []
        self._on_instances: list[Callable[[tuple[ServiceInstance, ...]], None]] = []
        self._on_connected: list[Callable[[str], None]] = []

    async def run(self) -> None:
        """Follow the registry and keep the streams until cancelled."""
        await self.pool.run()

    async def call(self, node: str, method: Method[Req, Rep], request: Req, *, deadline_ms: int) -> Rep:
        """See `Peers`."""
        return await self.pool.get(node).call(method, request, deadline_ms=deadline_ms)

    def ask(self, node: str, method: Method[Req, Rep], request: Req, *, deadline_ms: int, done: Done) -> None:
        """See `Peers`."""
        self.pool.get(node).ask(method, request, deadline_ms=deadline_ms, done=done)

    def push(self, node: str, method: Method[Req, Any], message: Req) -> None:
        """See `Peers`."""
        self.pool.get(node).push(method, message)

    def tell(self, node: str, method: Method[Req, Any], message: Req) -> None:
        """See `Peers`."""
        stream = self._server.stream_of(node)
        if stream is None:
            raise PeerUnavailable(f"{node} has no stream to this node", peer=node)
        stream.push(method, message)

    def serve(self, method: Method[Req, Rep], handler: Serve) -> None:
        """See `Peers`."""
        self._server.serve(method, handler)

    def hear(self, method: Method[Req, Rep], handler: Serve) -> None:
        """See `Peers`."""
        self.pool.serve(method, handler)

    def on_view(self, listener: Callable[[View], None]) -> None:
        """See `Peers`."""
        self._on_view.append(listener)

    def on_instances(self, listener: Callable[[tuple[ServiceInstance, ...]], None]) -> None:
        """Give the listener the access nodes, this one among them, whenever one of them reported."""
        self._on_instances.append(listener)

    def on_connected(self, listener: Callable[[str], None]) -> None:
        """See `Peers`."""
        self._on_connected.append(listener)

    def _changed(self, instances: tuple[ServiceInstance, ...]) -> None:
        for told in self._on_instances:
            told(instances)
        nodes = tuple(Node(one.id, one.incarnation, _is_draining(one.note)) for one in instances)
        if nodes != self._nodes:  # the notes change every second
            self._nodes = nodes
            view = View(nodes)
            for listener in self._on_view:
                listener(view)

    def _connected(self, node: str) -> None:
        for listener in self._on_connected:
            listener(node)


def _is_draining(note: bytes) -> bool:
    try:
        return _decode_report(note).is_draining
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False  # it has registered, and not reported yet
