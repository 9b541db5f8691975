"""What all tests of processes may need."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.closing import goodbyes_said


@pytest.fixture
async def goodbyes() -> AsyncIterator[None]:
    """The test is over when its clients have said goodbye."""
    yield
    await goodbyes_said()
