"""Of several nodes that are as good, commands ask the first that answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from base.errors import PeerUnavailable
from roadstead.cli import common


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked; only those that are up answer."""
    urls: list[str] = []

    async def call(_method: str, url: str, **_options: Any) -> Mapping[str, str]:
        urls.append(url)
        if not url.startswith("http://up"):
            raise PeerUnavailable(url)
        return {"status": "ok"}

    monkeypatch.setattr(common, "call_api", call)
    return urls


async def test_who_is_away_is_passed_over(asked: list[str]):
    """In the order in which they are known."""
    assert await common.answering({"a": "http://away", "b": "http://up", "c": "http://up-too"}) == "http://up"
    assert asked == ["http://away/healthz", "http://up/healthz"]


async def test_the_only_one_is_not_asked_first(asked: list[str]):
    """It tells by itself what is wrong; nobody at all is told as such."""
    assert await common.answering({"a": "http://away"}) == "http://away"
    assert asked == []
    with pytest.raises(PeerUnavailable, match="none of a, b answers"):
        await common.answering({"a": "http://away", "b": "http://gone"})
