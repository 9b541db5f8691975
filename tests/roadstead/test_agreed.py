"""Settings that status nodes of one system must have alike: said by `up`, compared by whoever joins."""

from __future__ import annotations

import msgspec
import pytest

from base.clock import SystemClock
from base.errors import ConfigError
from base.registry.memory import MemoryRegistry
from roadstead.agreed import AGREED_KEY, publish_agreed, require_agreed
from status.config import StatusConfig

OURS = StatusConfig(lease_ms=3_000, device_policy="one")


async def test_a_node_with_the_settings_of_the_system_is_accepted():
    """Also where the rest differs, and where the system says less than this version asks, or nothing."""
    registry = MemoryRegistry(SystemClock())
    await require_agreed(registry, OURS)
    await publish_agreed(registry, OURS)
    await require_agreed(registry, OURS)
    await require_agreed(registry, msgspec.structs.replace(OURS, offline_grace_ms=1))
    await registry.put(AGREED_KEY, b'{"lease_ms": 3000, "of_a_later_version": 1}')
    await require_agreed(registry, OURS)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lease_ms": 2_800}, "status.lease_ms is 2800 here and 3000 in the system; give"),
        ({"device_policy": "all"}, 'status.device_policy is "all" here and "one" in the system; give'),
        (
            {"lease_ms": 2_800, "device_winner": "oldest"},
            """status.lease_ms is 2800 here and 3000 in the system, status.device_winner is "oldest" here""",
        ),
    ],
)
async def test_a_node_with_other_settings_is_refused_in_one_line(changed: dict[str, object], said: str):
    """Whatever differs is named, with both values."""
    registry = MemoryRegistry(SystemClock())
    await publish_agreed(registry, StatusConfig())
    await publish_agreed(registry, OURS)  # the newest start counts
    with pytest.raises(ConfigError) as refused:
        await require_agreed(registry, msgspec.structs.replace(OURS, **changed))
    (line,) = refused.value.errors
    assert line.startswith(said)
    assert "\n" not in line
