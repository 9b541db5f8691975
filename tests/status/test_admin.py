"""What operators order over HTTP: how an order has to arrive."""

from __future__ import annotations

import asyncio

import pytest

from base import http
from tests.status.event_cluster import OPERATOR_KEY, SETTLE_S, Cluster


@pytest.mark.parametrize("order", ["pause", "resize"])
async def test_an_order_must_arrive_in_time(monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    """Also one that may do without a body: to find out is to read it."""
    monkeypatch.setattr(http, "READ_TIMEOUT_S", 0.05)
    async with asyncio.TaskGroup() as tasks:
        cluster = Cluster(tasks)
        await cluster.start_node("status-1")
        host, port = cluster.url().removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/admin/status/{order} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {OPERATOR_KEY}\r\n"
        writer.write(f"{head}Content-Length: 2\r\n\r\n{{".encode())
        async with asyncio.timeout(SETTLE_S):
            assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        writer.close()
        await cluster.stop()
