"""Streams between services: calls, replies and pushes in batches over one connection, both ways.

`wire` is the envelope, the frame and how a method is declared, `upgrade` how a connection becomes a stream, `link` one
connection with its queue and its liveness, `stream` the calls on it. `server` accepts streams on a service's HTTP port,
`client` keeps one open to a peer and reconnects, `pool` keeps the clients.
"""

from base.peer.client import PeerClient
from base.peer.pool import PeerPool
from base.peer.server import PeerServer
from base.peer.stream import PeerStream
from base.peer.wire import Method

__all__ = ["Method", "PeerClient", "PeerPool", "PeerServer", "PeerStream"]
