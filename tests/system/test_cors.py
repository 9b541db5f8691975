"""A page in a browser may ask for access if its origin is allowed, and learns why if it is not let in."""

from __future__ import annotations

from pathlib import Path

import aiohttp

from roadstead.config import Config
from scheduler.config import SchedulerConfig
from tests.system.conftest import running

PAGE, OTHER = "https://app.example.com", "https://evil.example.net"


async def test_a_page_of_an_allowed_origin_asks_the_scheduler(tmp_path: Path) -> None:
    """The browser asks first whether it may; answers and errors alike are shown to the page."""
    config = Config(scheduler=SchedulerConfig(origins=(PAGE,)))
    async with running(tmp_path / "data", config) as system, aiohttp.ClientSession() as session:
        url = f"{system.scheduler}/v1/access?user=alice"
        async with session.options(url, headers={"Origin": PAGE, "Access-Control-Request-Method": "GET"}) as answer:
            assert answer.status == 204
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE
            assert "authorization" in answer.headers["Access-Control-Allow-Headers"].lower()
        for credential, status in ((system.key, 200), ("wrong", 401)):
            headers = {"Origin": PAGE, "Authorization": f"Bearer {credential}"}
            async with session.get(url, headers=headers) as answer:
                assert answer.status == status
                assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        async with session.get(url, headers={"Origin": OTHER, "Authorization": f"Bearer {system.key}"}) as answer:
            assert answer.status == 403
            assert "Access-Control-Allow-Origin" not in answer.headers
