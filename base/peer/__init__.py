"""Streams between services: calls, replies and pushes in batches over one WebSocket.

`wire` is the envelope and how a method is declared, `stream` one connection with its queues and deadlines, `server`
accepts streams on a service's HTTP port, `client` keeps one open to a peer and reconnects, `pool` keeps the clients.
"""

from base.peer.client import PeerClient
from base.peer.pool import PeerPool
from base.peer.server import PeerServer
from base.peer.wire import Method

__all__ = ["Method", "PeerClient", "PeerPool", "PeerServer"]
