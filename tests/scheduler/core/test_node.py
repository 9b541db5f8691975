"""An access node as the scheduler sees it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import msgspec
import pytest

from base.ids import NodeId
from scheduler.core.node import AccessNode


def test_a_node_that_says_little_has_no_limits_of_its_own() -> None:
    """No region, any carrier, no report; it does not change, and survives a recording."""
    one = AccessNode(id=NodeId("a"), url="http://a", capacity=10)
    assert (one.region, one.carrier, one.accepts_per_s, one.report, one.is_draining, one.is_cordoned) == (
        *("", "", 0.0, 0),
        *(False, False),
    )
    with pytest.raises(FrozenInstanceError):
        one.capacity = 11  # type: ignore[misc]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(one), type=AccessNode) == one
