"""What tests of the message store port have in common: each runs on every adapter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from im.ports import MessageStore
from tests.contract.stores import open_store


@pytest.fixture(params=["memory", "sqlite", "sqlite-merging"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
async def store(kind: str, tmp_path: Path) -> AsyncIterator[MessageStore]:
    opened = await open_store(kind, tmp_path)
    yield opened
    await opened.close()
