"""A request as every part of a decision sees it."""

from __future__ import annotations

import msgspec

from scheduler.core.request import NOWHERE, Location, Request


def test_a_request_that_says_little_comes_from_nowhere() -> None:
    """And survives a recording; the locator that said so comes along."""
    assert Request("ann").location == NOWHERE == Location("", "", "", "none")
    request = Request("ann", "phone", "ios", "5.1.0", "192.0.2.1", Location("sh", "CN-SH", "CT", "mmdb"))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=Request) == request
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(["ann"]), type=Request) == Request("ann")
