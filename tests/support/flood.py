"""A storm of newcomers: `python -m tests.support.flood URL --rate 5000 --seconds 5`.

Each connects, asks for a WebSocket, reads the beginning of the answer and hangs up, one after the other; on standard
output comes how many there were, by the status that they got. A program of its own, since the storm must not take the
time of those who are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import sys
import time
from collections import Counter
from ipaddress import IPv4Address
from urllib.parse import urlsplit

from tests.support.clients_port import request

TIMEOUT_S = 5.0


def flood(host: str, port: int, *, rate: int, seconds: float, addresses: int) -> Counter[str]:
    """Return how many newcomers got which status, or `none`. `addresses`: how many a load balancer names, 0: none."""
    counted: Counter[str] = Counter()
    head = request()
    draw = random.Random(1)
    began = time.monotonic()
    for number in range(int(rate * seconds)):
        ahead = number / rate - (time.monotonic() - began)
        if ahead > 0.002:
            time.sleep(ahead)
        if time.monotonic() - began > seconds:
            break
        before = f"PROXY TCP4 {_address(draw.randrange(addresses))} 10.0.0.1 1 2\r\n" if addresses else ""
        status = "none"
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=TIMEOUT_S) as made:
            made.sendall(before.encode() + head)
            status = made.recv(4_096)[9:12].decode() or "none"
        counted[status] += 1
    return counted


def _address(number: int) -> str:
    return str(IPv4Address(0x0A010000 + number))


def main() -> None:
    """Read the command line, and send the storm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--rate", type=int, default=5_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--addresses", type=int, default=0)
    asked = parser.parse_args()
    parts = urlsplit(asked.url)
    assert parts.hostname is not None
    assert parts.port is not None
    counted = flood(parts.hostname, parts.port, rate=asked.rate, seconds=asked.seconds, addresses=asked.addresses)
    sys.stdout.write(json.dumps(counted))


if __name__ == "__main__":
    main()
