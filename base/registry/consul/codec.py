"""How the registry's terms are written in Consul: names of keys and services, instances, indexes.

Below the prefix, keys are those of the port, and two more stand for each registration, held by its session:

    PREFIX/status/table                    a key of the port, as all but the following
    PREFIX/live/names/ID                   whose name it is: its life and service
    PREFIX/live/services/SERVICE/ID        the instance, with its newest note
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from base.core.registry import Entry, ServiceInstance

__all__ = ["Keys", "Name", "ViewIndex", "decode_instance", "decode_name", "encode", "entry_of", "meta_of", "told_index"]

_LIVE = "live/"
_META_KEY = re.compile("[A-Za-z0-9_-]{1,128}")
_META_VALUE_MAX = 512
_NOT_PLAIN = re.compile(r"^/|//|(^|/)\.\.?(/|$)")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Name(msgspec.Struct, frozen=True):
    """Who has a name: of several lives of one node the newest. `check` is its Consul service's id."""

    service: str
    incarnation: int
    check: str


class Keys:
    """The layout below one prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = f"{prefix}/"
        self._service_prefix = f"{prefix}-"

    def full(self, key: str) -> str:
        """Return where a key of the port is, or a prefix of keys."""
        assert not key.startswith(_LIVE), "reserved for registrations"
        assert _NOT_PLAIN.search(key) is None, "the agent's HTTP server would take it for another path"
        return f"{self._prefix}{key}"

    def is_ours(self, full: str) -> bool:
        """Return whether it is a key of the port."""
        return full.startswith(self._prefix) and not full.startswith(f"{self._prefix}{_LIVE}")

    def short(self, full: str) -> str:
        """Return the port's key."""
        return full.removeprefix(self._prefix)

    def name(self, instance_id: str) -> str:
        """Return the key for whose name it is."""
        return f"{self._prefix}{_LIVE}names/{instance_id}"

    def instances(self, service: str) -> str:
        """Return the prefix of a service's instances."""
        return f"{self._prefix}{_LIVE}services/{service}/"

    def instance(self, service: str, instance_id: str) -> str:
        """Return the key of an instance."""
        return f"{self.instances(service)}{instance_id}"

    def consul_name(self, name: str) -> str:
        """Return the name of a Consul service or session."""
        return f"{self._service_prefix}{name}"


class ViewIndex(int):
    """A view's index as a reader was told it, with what it was in Consul, and when: `life` changes with each outage.

    Consul may have been replaced, or its data, while it could not be reached: then its indexes count anew, and may have
    come to the very one that a reader knows from before.
    """

    seen: int
    life: object

    @classmethod
    def of(cls, told: int, seen: int, life: object) -> ViewIndex:
        """Make one."""
        made = cls(told)
        made.seen = seen
        made.life = life
        return made


def told_index(seen: int, after: int, life: object) -> ViewIndex:
    """Return the index to tell a reader for the one that was seen: below its `after` if Consul may have started over.

    Args:
        seen: Consul's.
        after: what the reader knows.
        life: the present one.
    """
    if not isinstance(after, ViewIndex) or (after.life is life and seen > after.seen):
        return ViewIndex.of(seen, seen, life)
    if after.life is life and seen == after.seen:
        return after
    return ViewIndex.of(min(seen, after - 1), seen, life)


def entry_of(item: Mapping[str, Any], key: str) -> Entry:
    """Return what Consul has under a key."""
    return Entry(key, item["Value"] or b"", item["ModifyIndex"], item.get("Session"))


def encode(value: Name | ServiceInstance) -> bytes:
    """Return the value to store: JSON, for operators to read."""
    return msgspec.json.encode(value)


def decode_name(value: bytes | None) -> Name | None:
    """Return who has a name, None for what this did not write."""
    try:
        return msgspec.json.decode(value or b"", type=Name)
    except msgspec.MsgspecError:
        return None


def decode_instance(value: bytes | None) -> ServiceInstance | None:
    """Return the instance, None for what this did not write."""
    try:
        return msgspec.json.decode(value or b"", type=ServiceInstance)
    except msgspec.MsgspecError:
        return None


def meta_of(instance: ServiceInstance) -> tuple[str, int, dict[str, str]]:
    """Return what others than us find in the Consul service: address, port, metadata within Consul's bounds."""
    parts = urlsplit(instance.url)
    meta = {
        key: value
        for key, value in instance.meta.items()
        if _META_KEY.fullmatch(key) and len(value.encode()) <= _META_VALUE_MAX
    }
    meta |= {"url": instance.url, "incarnation": str(instance.incarnation)}
    return parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme, 0), meta
