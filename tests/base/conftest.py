"""Which event loops the tests of this folder run on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

ON_BOTH_LOOPS = {"test_secured_nodes"}
"""TLS is the loop's own affair: these hold on the one of production and on the standard one."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run a module's tests on the standard loop, and those of some on both."""
    del config
    standard = {"asyncio": asyncio.new_event_loop}
    return {**standard, "uvloop": uvloop.new_event_loop} if item.path.stem in ON_BOTH_LOOPS else standard
