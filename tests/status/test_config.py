"""What a status section refuses."""

from __future__ import annotations

import pytest

from base.config import load
from base.errors import ConfigError
from status.config import StatusConfig


def problems(*flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(StatusConfig, env={}, flags=flags)
    return "\n".join(caught.value.errors)


def test_the_defaults_are_good() -> None:
    """Our own cluster, no Redis."""
    assert load(StatusConfig, env={}).backend == "cluster"


def test_a_lease_must_outlive_two_late_heartbeats() -> None:
    """Else every hiccup shows everybody offline."""
    assert "2700" in problems("lease_ms=1500")


def test_redis_needs_an_address() -> None:
    """And one that is a Redis URL."""
    assert "redis_url" in problems("backend=redis")
    assert "redis_url" in problems("backend=redis", "redis_url=http://host")
    good = load(StatusConfig, env={}, flags=["backend=redis", "redis_url=redis://host:6379/0"])
    assert good.redis_profile == "single"


def test_a_device_policy_needs_our_own_cluster() -> None:
    """Redis has no owner of a user who could decide."""
    flags = ("backend=redis", "redis_url=redis://host:6379/0")
    assert "device_policy" in problems(*flags, "device_policy=one")
