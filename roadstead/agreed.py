"""The settings that all nodes of a system must have alike, kept in its registry.

An access node's lease is the same wherever its users are, and whoever owns a user decides which of the user's devices
stay. A node that has other settings would show users offline too early, or close what its neighbours allow.

The first node of a system says what it has, and every later one compares. A registry that lost what was said gets it
back from whoever runs. Other settings can be had when no node is
registered any more: then the first one to start says what it has again. `up`, which all others join, just says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import msgspec

from base.clock import Clock
from base.errors import CasConflict, ConfigError, StoreError
from base.registry import Registry, follow
from roadstead.config import Config

__all__ = ["SECTIONS", "agree", "keep_agreed", "publish_agreed", "require_agreed"]

PREFIX = "settings/"
SECTIONS = {
    "status": ("backend", "lease_ms", "device_policy", "device_winner"),
    "im": ("conversation_ids",),
}
"""What counts of each section of the configuration."""


async def publish_agreed(registry: Registry, config: Config) -> None:
    """Say what this system has, whatever was said before. Raises StoreUnavailable."""
    for section in SECTIONS:
        await registry.put(f"{PREFIX}{section}", msgspec.json.encode(_agreed(config, section)))


async def agree(registry: Registry, config: Config, sections: Sequence[str], *, roles: Sequence[str]) -> None:
    """Say what this node has if it is the first one, else compare.

    Args:
        registry: the system's.
        config: what this node has.
        sections: which of `SECTIONS` it goes by.
        roles: the services that nodes are registered as: while there is one, nothing is said anew.

    Raises:
        ConfigError: a setting is another one than the system's.
        StoreUnavailable: the registry does not answer.
    """
    for section in sections:
        key, ours = f"{PREFIX}{section}", _agreed(config, section)
        while True:
            entry = await registry.get(key)
            if entry is not None:
                differing = _differing(section, ours, entry.value)
                if not differing:
                    break
                if await _has_nodes(registry, roles):
                    raise _refusal(differing)
            try:
                await registry.put(key, msgspec.json.encode(ours), expect=entry.index if entry is not None else 0)
            except CasConflict:
                continue  # another node was first: look what it said
            break


async def require_agreed(registry: Registry, config: Config, sections: Sequence[str]) -> None:
    """Compare with what the system has. A system that says nothing is of an older version, and is believed.

    Raises as `agree` does.
    """
    differing: list[str] = []
    for section in sections:
        entry = await registry.get(f"{PREFIX}{section}")
        if entry is not None:
            differing += _differing(section, _agreed(config, section), entry.value)
    if differing:
        raise _refusal(differing)


async def keep_agreed(registry: Registry, clock: Clock, config: Config, sections: Sequence[str]) -> None:
    """Say again what this node has, and so all have, whenever the registry has lost it. Runs until cancelled."""
    async for view in follow(registry.scan, PREFIX, clock):
        said = {entry.key for entry in view.items}
        for section in sections:
            if f"{PREFIX}{section}" not in said:
                # If it fails, the registry is away again, and there is another view when it is back.
                with suppress(StoreError):
                    await registry.put(f"{PREFIX}{section}", msgspec.json.encode(_agreed(config, section)), expect=0)


async def _has_nodes(registry: Registry, roles: Sequence[str]) -> bool:
    for role in roles:
        if (await registry.services(role)).items:
            return True
    return False


def _differing(section: str, ours: dict[str, object], said: bytes) -> list[str]:
    """What is not alike; a setting of which nothing was said is of another version, and is no difference."""
    system = msgspec.json.decode(said, type=dict[str, object])
    return [
        f"{section}.{name} is {_shown(value)} here and {_shown(system[name])} in the system"
        for name, value in ours.items()
        if system.get(name, value) != value
    ]


def _refusal(differing: list[str]) -> ConfigError:
    return ConfigError([f"{', '.join(differing)}; give this node the settings that the others have"])


def _agreed(config: Config, section: str) -> dict[str, object]:
    return {name: getattr(getattr(config, section), name) for name in SECTIONS[section]}


def _shown(value: object) -> str:
    return msgspec.json.encode(value).decode()
