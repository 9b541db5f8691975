"""An echo server on the production codec and connection, for conformance suites: `python -m tests.support.ws_echo`.

Every path is a WebSocket, every message is sent back as it came, text as text and binary as binary. Compression is
agreed on if the client offers it. There is nothing else in between: what a suite finds here, it finds in production.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping

from access.admission import Admission
from access.config import AccessConfig
from access.core.outgoing import Form, wrap
from access.core.websocket import Opcode
from access.listener import Listener
from access.metrics import AccessMetrics
from access.ports import Connection, Gateway
from access.websocket import WebSocketConnection
from base.clock import SystemClock
from base.http import HttpServer
from base.loop import run
from base.metrics import Metrics

BINARY = {
    Form.WS_JSON: Form.WS_PROTOBUF,
    Form.WS_PROTOBUF: Form.WS_PROTOBUF,
    Form.WS_JSON_DEFLATED: Form.WS_PROTOBUF_DEFLATED,
    Form.WS_PROTOBUF_DEFLATED: Form.WS_PROTOBUF_DEFLATED,
}


class Echo:
    """A `Gateway` that sends back what comes."""

    def __init__(self) -> None:
        self.here: set[Connection] = set()

    def arrived(self, connection: Connection, address: str) -> str:
        """Take note of a client."""
        self.here.add(connection)
        return address

    def received(self, connection: Connection, frame: bytes) -> None:
        """Send it back, in the kind in which it came."""
        assert isinstance(connection, WebSocketConnection)
        form = connection.form if connection.opcode == Opcode.TEXT else BINARY[connection.form]
        connection.write(wrap(form, frame))

    def crowded(self, connection: Connection) -> None:
        """What waits for a client is bounded by its connection."""

    def relieved(self, connection: Connection) -> None:
        """See `crowded`."""

    def gone(self, connection: Connection) -> None:
        """Forget a client."""
        self.here.discard(connection)


class _Everywhere(Mapping[str, Gateway]):
    """Every path leads to the same gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def __getitem__(self, path: str) -> Gateway:
        return self._gateway

    def __contains__(self, path: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def make_listener(gateway: Gateway, config: AccessConfig) -> Listener:
    """A listener as an access node has it, with nothing behind it but the gateway."""
    metrics = Metrics("echo")
    clock = SystemClock()
    access_metrics = AccessMetrics(metrics, node="echo", connections=lambda: 0)
    return Listener(
        config,
        clock,
        node="echo",
        http=HttpServer("echo", metrics, statistics=dict, is_public=True),
        websockets=_Everywhere(gateway),
        admission=Admission(config, clock, access_metrics),
        metrics=access_metrics,
    )


async def serve(host: str, port: int, frame_bytes_max: int) -> None:
    """Serve until cancelled."""
    config = AccessConfig(
        frame_bytes_max=frame_bytes_max, compression=True, accepts_per_second=0, write_bytes_max=4 * frame_bytes_max
    )
    listener = make_listener(Echo(), config)
    await listener.listen(host, port)
    sys.stdout.write(listener.url + "\n")
    sys.stdout.flush()
    await listener.run()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9001)
    parser.add_argument("--frame-bytes-max", type=int, default=16 * 1024 * 1024)
    options = parser.parse_args()
    run(serve(options.host, options.port, options.frame_bytes_max))


if __name__ == "__main__":
    main()
