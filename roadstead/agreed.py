"""The settings that all status nodes of a system must have alike, kept in its registry.

An access node's lease is the same wherever its users are, and whoever owns a user decides which of the user's devices
stay. A node that has other settings would show users offline too early, or close what its neighbours allow. So `up`
says what it has when it starts, and a node that joins later compares.
"""

from __future__ import annotations

import msgspec

from base.errors import ConfigError
from base.registry import Registry
from status.config import StatusConfig

__all__ = ["AGREED_KEY", "publish_agreed", "require_agreed"]

AGREED_KEY = "settings/status"
FIELDS = ("lease_ms", "device_policy", "device_winner")


async def publish_agreed(registry: Registry, config: StatusConfig) -> None:
    """Say what this system has. Raises StoreUnavailable."""
    await registry.put(AGREED_KEY, msgspec.json.encode(_agreed(config)))


async def require_agreed(registry: Registry, config: StatusConfig) -> None:
    """Compare with what the system has. A system that says nothing is of an older version, and is believed.

    Raises:
        ConfigError: a setting is another one than the system's.
        StoreUnavailable: the registry does not answer.
    """
    entry = await registry.get(AGREED_KEY)
    if entry is None:
        return
    system = msgspec.json.decode(entry.value, type=dict[str, object])
    differing = [
        f"status.{name} is {_shown(ours)} here and {_shown(system[name])} in the system"
        for name, ours in _agreed(config).items()
        if system.get(name, ours) != ours
    ]
    if differing:
        raise ConfigError([f"{', '.join(differing)}; give this node the same settings as `roadstead up` has"])


def _agreed(config: StatusConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in FIELDS}


def _shown(value: object) -> str:
    return msgspec.json.encode(value).decode()
